"""Checks of notebook 05, plain against residual."""

import copy
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from checks.base import Hint, check, compare, near, number


@check
def check_diagnosis(diagnose: Callable[[dict, dict], str]) -> str:
    """Judge `diagnose(shallow, deep)`, dicts of the training and test error (%)."""
    first = {"train": 9.0, "test": 12.0}
    names = ("degradation", "overfitting", "neither")
    cases = (
        (first, {"train": 2.0, "test": 14.0}, 1, "lower on the training images, higher "
         "on the test images: that net has learned its training images by heart."),
        (first, {"train": 14.0, "test": 16.0}, 0, "higher on the training images too: "
         "it is not learning by heart, it is not learning."),
        (first, {"train": 4.0, "test": 9.0}, 2, "both errors are lower: the deeper net "
         "is simply better."),
        (first, {"train": 13.0, "test": 11.5}, 0, "a higher training error is "
         "degradation, whatever the test error does."),
        (first, {"train": 10.0, "test": 11.0}, 0, "compare the deep net with the "
         "shallow one, not the test error with the training error."),
        (first, first, 2, "for two equal nets nothing has got worse."),
        (first, {"train": 2.0, "test": 11.0}, 2, "the gap is wider, but the test error "
         "is lower: nothing has got worse."),
        ({"train": 20.0, "test": 22.0}, {"train": 12.0, "test": 18.0}, 2, "both errors "
         "are lower than those of this shallow net: is another one built in?"),
        (first, {"train": 9.0, "test": 14.0}, 1, "only the test error has got worse, "
         "and an equal training error is no degradation."),
    )  # fmt: skip
    for shallow, deep, right, hint in cases:
        answer = diagnose(dict(shallow), dict(deep))
        if not isinstance(answer, str) or answer not in names:
            raise Hint(f"return one of {', '.join(names)}, not {answer!r}.")
        if answer != names[right]:
            raise Hint(f"shallow {shallow}, deep {deep}: {hint}")
    return "Right: the training error decides, the test error names the rest."


@check
def check_transparent(make: Callable[[nn.BatchNorm2d], object]) -> str:
    """Judge `make(bn)`: γ and β that undo the running statistics."""
    for statistics in ((0.5, 4.0), (-1.0, 0.3)):
        bn = nn.BatchNorm2d(3, eps=0.1).eval()  # an eps that cannot be overlooked
        with torch.no_grad():
            bn.running_mean += statistics[0] * torch.tensor([1.0, 2.0, -1.0])
            bn.running_var *= statistics[1] * torch.tensor([1.0, 2.0, 0.5])
        mean, variance = bn.running_mean.clone(), bn.running_var.clone()
        make(bn)
        if bn.eps != 0.1:
            raise Hint("leave ε as it is: set weight and bias.")
        _look_at_transparent(bn, mean, variance)
    return "Right: γ = √(σ² + ε) and β = μ give the input back."


def _look_at_transparent(bn: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    if bn.training:
        raise Hint("leave the layer in evaluation mode.")
    if not (
        torch.equal(bn.running_mean, mean) and torch.equal(bn.running_var, variance)
    ):
        raise Hint("leave the running statistics as they are: set weight and bias.")
    given, set_by_you = (
        {tensor.untyped_storage().data_ptr() for tensor in tensors}
        for tensors in ((bn.running_mean, bn.running_var), (bn.weight, bn.bias))
    )
    if given & set_by_you:
        raise Hint("a statistic and γ or β are one tensor: copy the numbers.")
    x = torch.randn(8, 3, 4, 4).double()
    if near(copy.deepcopy(bn).double()(x), x, rtol=1e-3, atol=1e-3):
        return
    if near(bn.weight, torch.ones(3)) and not bn.bias.any():
        raise Hint("γ and β are still 1 and 0: write into the layer you are given.")
    compare(
        bn.weight,
        (variance + bn.eps).sqrt(),
        {
            "γ is still 1: the layer divides by √(σ² + ε), so multiply.": torch.ones(3),
            "γ is √σ²: the layer divides by √(σ² + ε), with its ε.": variance.sqrt(),
            "γ is σ² + ε: take the square root.": variance + bn.eps,
            "γ divides once more: multiply instead.": (variance + bn.eps).rsqrt(),
        },
        "γ is off: what does the layer divide by?",
        functools.partial(near, rtol=1e-3),
    )
    if near(bn.bias, -mean):
        raise Hint("β has the wrong sign: the layer subtracts μ, so add it.")
    raise Hint("β is off: what does the layer subtract?")


@check
def check_gradient_ratio(measure: Callable[[int, bool], float]) -> str:
    """Judge `measure(layers, batch_norm)`: first over last gradient of a plain net.

    Weights are random, so a ratio is judged by its size, not by its digits.
    """
    ratios = {}
    for layers, batch_norm in ((8, True), (32, True), (32, False)):
        torch.default_generator.manual_seed(0)
        hint = "return the ratio, one number, not {}."
        ratio = number(measure(layers, batch_norm), hint)
        if not (math.isfinite(ratio) and ratio > 0):
            raise Hint(f"{layers} layers: a ratio of norms is above 0, not {ratio}.")
        ratios[layers, batch_norm] = ratio
    shallow, deep, bare = ratios.values()
    if 1 / deep > 4:
        raise Hint("the first gradient belongs above the line, the last one below it.")
    if shallow == deep or (shallow > deep / 3 and deep > 9):
        raise Hint(
            f"8 layers give {shallow:.1f} and 32 layers {deep:.1f}: is the net built "
            "with as many as `layers` says?"
        )
    if deep < 9 < bare:
        raise Hint(
            f"with BN {deep:.1f}, without {bare:.1f}: is BN kept when `batch_norm` is "
            "True, and taken out when it is False?"
        )
    if deep < 9:  # right ones gave 13 or more, residual ones 8 at most
        raise Hint(
            f"32 plain layers with BN give {deep:.1f}: is the net plain, in training "
            "mode, and fresh? In evaluation mode a new BN does nothing."
        )
    if deep > 400:
        raise Hint(
            f"32 plain layers give {deep:,.0f}: divide by the last 3×3 convolution's "
            "norm, not its square or the linear layer's."
        )
    if bare > deep / 3:
        raise Hint(
            f"with BN {deep:.1f}, without {bare:.1f}: was every BN taken out, those "
            "inside the blocks too?"
        )
    if shallow > 2.2:  # right ones gave 1.7 at most
        raise Hint(
            f"8 layers give {shallow:.1f}: divide norms, not means or maxima; the two "
            "kernels differ in size."
        )
    return (
        f"Right: with BN the ratio grows from {shallow:.1f} at 8 layers to {deep:.0f} "
        f"at 32. Without BN it is {bare:.1f} at 32: BN makes it explode."
    )
