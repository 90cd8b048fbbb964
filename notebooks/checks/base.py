"""What the checks share: a judge, its hints, one printed sentence."""

import functools
import inspect
import numbers
import os
import re
import textwrap
import traceback
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import resnet_lib

# Files whose lines are not the reader's own.
_OURS = tuple(
    os.path.dirname(place) + os.sep
    for place in (__file__, resnet_lib.__file__, torch.__file__)
)


class Hint(Exception):
    """What is wrong with an answer and where to look, in one sentence."""


def check(judge: Callable[..., str]) -> Callable[..., bool]:
    """Turn a judge, which returns praise or raises Hint, into a check that prints.

    The judge draws the same random numbers each time and leaves the reader's alone. It
    works on the CPU, whatever the reader's default device is.
    """

    @functools.wraps(judge)
    def report(*answer) -> bool:
        try:
            _look_at_call(judge, answer)
            with (
                torch.random.fork_rng(devices=[]),
                torch.device("cpu"),
                torch.enable_grad(),
            ):
                torch.default_generator.manual_seed(0)
                praise = judge(*answer)
        except Hint as hint:
            print(_one_line(f"✗ Not yet: {hint}"))
        except Exception as error:
            print(_one_line(_stopped(error, answer[0])))
        else:
            print(f"✓ {praise}")
            return True
        return False

    return report


def _one_line(told: str) -> str:
    """A tensor that a hint repeats may be long."""
    return textwrap.shorten(told, 600, placeholder=" …")


def _look_at_call(judge: Callable[..., str], answer: tuple) -> None:
    """Was the function handed over, or what it returns, or nothing?"""
    signature = inspect.signature(judge)
    call = f"checks.{judge.__name__}({', '.join(signature.parameters)})"
    try:
        signature.bind(*answer)
    except TypeError:
        raise Hint(f"the check is called as {call}.") from None
    if not callable(answer[0]):
        raise Hint(
            f"hand over what you defined itself, as in {call}, without calling it: "
            f"this is of type {type(answer[0]).__name__}."
        )


def _stopped(error: Exception, answer: object) -> str:
    """Whose the error is, or that there is no answer yet.

    PyTorch too raises NotImplementedError, for what it lacks.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    if last.name == "_forward_unimplemented":
        return "✗ Not yet: your class has no method forward. Is its name misspelt?"
    raised = "raise" in (last.line or "raise") and not last.filename.startswith(_OURS)
    if isinstance(error, NotImplementedError) and raised:
        return "○ Not yet: replace `raise NotImplementedError` with your answer."
    reached = _reached_answer(error) or _is_of_a_library(answer)
    who = "Your code" if reached else "The check of your answer"
    return f"✗ {who} stopped with {type(error).__name__}: {error}"


def _reached_answer(error: Exception) -> bool:
    """Whether a line of the reader's own was running when the error came.

    Or a library was, with what the reader built; or their signature did not fit.
    """
    lines = traceback.extract_tb(error.__traceback__)
    reached = not all(line.filename.startswith(_OURS) for line in lines)
    misfit = isinstance(error, TypeError) and re.search(
        r"\(\) (takes|missing|got) ", str(error)
    )
    return reached or bool(misfit) or not lines[-1].filename.startswith(_OURS[0])


def _is_of_a_library(answer: object) -> bool:
    """Whether the answer has no lines of the reader's own, as `sum` or `nn.ReLU()`."""
    module = getattr(answer, "__module__", None) or "builtins"
    return module.split(".")[0] in ("builtins", "numpy", "torch", "resnet_lib")


def values(answer: object, hint: str, shape: tuple[int, ...] | None = None) -> Tensor:
    """The numbers of an answer, in float64 on the CPU, whatever they come in.

    A tensor, a numpy array or scalar, a Python number, a list of numbers: they say the
    same. Anything else, or another shape, earns the hint; "{}" in it becomes the type
    or the shape that was found.
    """
    try:
        if isinstance(answer, Tensor):
            found = answer.detach().cpu().to_dense()  # not for every sparse dtype
        else:
            is_array = getattr(answer, "ndim", 0)
            found = torch.from_numpy(np.array(answer if is_array else _bare(answer)))
    except (OverflowError, TypeError, ValueError, RuntimeError):
        raise Hint(_filled(hint, type(answer).__name__)) from None
    if found.dtype == torch.bool or found.is_complex():
        raise Hint(_filled(hint, found.dtype))
    if shape is not None and found.shape != shape:
        raise Hint(_filled(hint, tuple(found.shape)))
    return found.double()


def _filled(hint: str, found: object) -> str:
    """Braces in an answer that the hint repeats stay as they are."""
    return hint.replace("{}", str(found))


def _bare(answer: object) -> object:
    """The same with Python's own kind of number for each number in it."""
    if isinstance(answer, list | tuple):
        return [_bare(part) for part in answer]
    dimensions = getattr(answer, "ndim", None)
    if dimensions:
        raise TypeError("a list of arrays is no list of numbers")
    if dimensions == 0:
        return answer.item()
    is_other = isinstance(answer, numbers.Real) and not isinstance(answer, int)
    return float(answer) if is_other else answer  # a Fraction, say


def row(answer: object, hint: str) -> Tensor:
    """The numbers (n,) of an answer that lists them; anything else earns the hint."""
    if isinstance(answer, list | tuple):
        kinds = sorted({f"{type(part).__name__}s" for part in answer})
        hint = _filled(hint, f"a list of {' and '.join(kinds)}")
    found = values(answer, hint)
    if found.ndim != 1:
        raise Hint(_filled(hint, type(answer).__name__))
    return found


def number(answer: object, hint: str) -> float:
    """The one number that an answer is; anything else earns the hint."""
    found = values(answer, hint)
    if found.numel() != 1 or isinstance(answer, list | tuple):
        raise Hint(_filled(hint, type(answer).__name__))
    return found.item()


def whole(answer: object, hint: str) -> int:
    """The whole number that an answer is, 5.0 too; anything else earns the hint."""
    found = number(answer, hint)
    if not found.is_integer():
        raise Hint(_filled(hint, found))
    return int(found)


def near(found: object, other: object, rtol: float = 1e-4, atol: float = 1e-6) -> bool:
    """Whether two tensors or numbers agree, in shape too; their dtype is free."""
    found, other = (torch.as_tensor(v, dtype=torch.double) for v in (found, other))
    return found.shape == other.shape and torch.allclose(found, other, rtol, atol)


def tell(mistakes: dict[str, bool]) -> None:
    """Raise the first hint that is true."""
    for hint, made in mistakes.items():
        if made:
            raise Hint(hint)


def compare(
    found: object,
    right: object,
    mistakes: dict[str, object],
    otherwise: str,
    same: Callable[[object, object], bool] = near,
) -> None:
    """Raise a hint unless the answer is right.

    `mistakes` has the known wrong answers, each under the hint that it earns;
    `otherwise` is the hint for all others.
    """
    if not same(found, right):
        tell({hint: same(found, wrong) for hint, wrong in mistakes.items()})
        raise Hint(otherwise)


def unchanged(given: list[Tensor], before: list[Tensor], hint: str) -> None:
    """Raise the hint unless the tensors that the reader was given are as before."""
    kept = len(given) == len(before) and all(
        one.dtype == other.dtype and torch.equal(one, other)
        for one, other in zip(given, before, strict=True)
    )
    tell({hint: not kept})


def shake(net: nn.Module) -> None:
    """Give BN layers statistics, scales and shifts that no two of them share."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            # Both signs: a ReLU before BN would show in some channel, whatever follows.
            module.bias.data = torch.linspace(-1, 1, module.num_features)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.fill_(1000)  # as after a training
