"""Checks of notebook 04, training on CIFAR-10."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from checks.base import Hint, check, near, number


@check
def check_training(training: Callable) -> str:
    """Judge `training(net, batches, rates)`: SGD, one update for each rate."""
    rates = [0.1, 0.1, 0.05, 0.01]
    net = _small_net()
    losses = training(net, _stream(6), list(rates))
    if not isinstance(losses, list) or len(losses) != len(rates):
        count = f"{len(losses)} numbers" if isinstance(losses, list) else losses
        raise Hint(f"for four rates you return {count}: a list of four is wanted.")
    for loss in losses:
        if not isinstance(loss, float):
            graph = ", or each of them keeps its whole graph in memory"
            graph = graph if getattr(loss, "requires_grad", False) else ""
            raise Hint(
                f"a loss is of type {type(loss).__name__}: take `.item()`{graph}."
            )
    right, wanted = _trained(rates)
    if _alike(net, _small_net()):
        raise Hint(
            "the weights are as before: is `optimizer.step()` called, while the "
            "gradients of the net you were given are still there?"
        )
    for hint, options in _WRONG_TRAININGS.items():
        wrong, _ = _trained(rates, **options)
        if _alike(net, wrong) and not _alike(wrong, right):
            raise Hint(hint)
    if not _alike(net, right):
        raise Hint(
            "the weights are not those of SGD with momentum 0.9 and weight decay "
            "0.0001, one batch for each rate: go through the loss, the optimizer's "
            "options, and the order of the loop."
        )
    for i, (loss, other) in enumerate(zip(losses, wanted, strict=True)):
        if not math.isclose(loss, other, rel_tol=1e-3):
            raise Hint(
                f"`losses[{i}]` is {loss:.3f}, and the loss of that batch before its "
                f"update is {other:.3f}."
            )
    return "A whole training: every update is the one that torch's own would make."


def _stream(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches, as many as a loop may look at that takes one for each rate."""
    yield from _batches(count)
    raise Hint(
        "you read many more batches than there are rates, and a stream may be endless: "
        "take one for each rate."
    )


def _small_net() -> nn.Module:
    torch.default_generator.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 5),
    )


def _batches(count: int) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(8, 3, 8, 8, generator=draw),
            torch.randint(5, (8,), generator=draw),
        )
        for _ in range(count)
    ]


def _trained(
    rates: list[float],
    momentum: float = 0.9,
    decay: float = 1e-4,
    keep_gradients: bool = False,
    forget: bool = False,
    same_batch: bool = False,
    fixed_rate: bool = False,
    mode: bool = True,
) -> tuple[nn.Module, list[float]]:
    """The small net after the right training, and the losses of its batches.

    The options are known mistakes.
    """
    net = _small_net().train(mode)
    velocity = [torch.zeros_like(p) for p in net.parameters()]
    batches, losses = _batches(len(rates)), []
    for rate, (images, labels) in zip(rates, batches, strict=True):
        if same_batch:
            images, labels = batches[0]
        if not keep_gradients:
            net.zero_grad()
        loss = F.cross_entropy(net(images), labels)
        losses.append(loss.item())
        loss.backward()
        with torch.no_grad():
            for v, p in zip(velocity, net.parameters(), strict=True):
                v.mul_(0 if forget else momentum).add_(p.grad + decay * p)
                p.sub_((rates[0] if fixed_rate else rate) * v)
    return net, losses


_WRONG_TRAININGS: dict[str, dict] = {
    "every update is made with the first rate: set `lr` in each of "
    "`optimizer.param_groups`.": {"fixed_rate": True},
    "gradients add up from batch to batch: `zero_grad` is missing.": {
        "keep_gradients": True
    },
    "there is no momentum: is it given, and is there one optimiser for all updates?": {
        "forget": True
    },
    "there is no weight decay: give `weight_decay=1e-4`.": {"decay": 0.0},
    "each update sees the first batch: take `next(batches)` inside the loop.": {
        "same_batch": True
    },
    "you train in evaluation mode: leave `eval()` out.": {"mode": False},
}


def _alike(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(near(a.detach().cpu(), b.detach().cpu(), 1e-4, 1e-7) for a, b in pairs)


@check
def check_curves(diagnoses: Callable[[], dict[str, str]]) -> str:
    """Judge the reader's diagnosis of four recorded trainings."""
    said = diagnoses()
    if not isinstance(said, dict) or set(said) != set(_CURVES):
        raise Hint('return a dictionary with the keys "A", "B", "C" and "D".')
    words = [right for right, _ in _CURVES.values()]  # a list takes any answer
    for name, answer in said.items():
        if answer not in words:
            raise Hint(f"{name}: {answer!r} is not one of DIAGNOSES.")
    for name, (right, hint) in _CURVES.items():
        if said[name] != right:
            raise Hint(f"{name}: {hint}")
    return (
        "All four. Rates that are too small and too large look alike only at a glance."
    )


_CURVES = {
    "A": (
        "the rate is too small",
        "both errors are high, but they sink steadily. What would speed that up?",
    ),
    "B": (
        "it is time for a smaller rate",
        "the test error jumps up and down and no longer falls. Section 5 shows what "
        "happened next.",
    ),
    "C": (
        "it learns by heart",
        "one of the two errors still falls, the other does not. Which one?",
    ),
    "D": (
        "the rate is too large",
        "the error is that of guessing, and it stays. Does such a net only need time?",
    ),
}


@check
def check_temperature(temperature: Callable[[Tensor, Tensor], float]) -> str:
    """Judge `temperature(logits, labels)`: the T with the least loss of logits / T."""
    draw = torch.Generator().manual_seed(0)
    honest = 2 * torch.randn(5_000, 10, generator=draw)
    labels = torch.multinomial(honest.softmax(1), 1, generator=draw).flatten()
    for right in (2.0, 0.6):
        logits = right * honest
        before = logits.clone()
        hint = "return the temperature, one number, not {}."
        found = number(temperature(logits, labels), hint)
        if not torch.equal(logits, before):
            raise Hint("your function changes the logits it is given: work on a copy.")
        if not found > 0:
            raise Hint(f"a temperature is above 0, and you return {found:g}.")
        if math.isclose(found, 1 / right, rel_tol=0.1):
            raise Hint(
                f"you return {found:.2f}, and it is {right}: logits are divided by T."
            )
        if not math.isclose(found, right, rel_tol=0.1):
            raise Hint(
                f"these logits are {right} times as large as honest ones, and you "
                f"return {found:.2f}. Take the T with the smallest cross-entropy of "
                "logits / T; a grid needs steps of a few per cent."
            )
    return "Right for a net that is too sure, and for one that is too modest."
