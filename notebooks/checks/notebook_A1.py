"""Checks of appendix A1, shattered gradients."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from checks.base import check, compare, near, unchanged, values


@check
def check_stack_jacobian(compute: Callable[[list[Tensor]], Tensor]) -> str:
    """Judge the Jacobian of a residual stack from those of its branches."""
    for layers, width in ((2, 3), (1, 3), (5, 4)):
        jacobians = [torch.randn(width, width) for _ in range(layers)]
        matrices = [jacobian.clone() for jacobian in jacobians]
        found = values(
            compute(list(matrices)),
            f"the result should be one matrix ({width}, {width}), not {{}}.",
            (width, width),
        )
        unchanged(
            matrices,
            jacobians,
            "your function changes the Jacobians that it was given: write "
            "`eye + jacobian`, not `jacobian += eye`.",
        )
        _look_at_jacobian(found, [jacobian.double() for jacobian in jacobians])
    return "The product of (I + J), last layer on the left: 2^L ways through L layers."


def _look_at_jacobian(found: Tensor, jacobians: list[Tensor]) -> None:
    eye = torch.eye(len(found), dtype=torch.double)
    steps = [eye + jacobian for jacobian in jacobians]

    def product(matrices: list[Tensor]) -> Tensor:
        return functools.reduce(lambda done, matrix: matrix @ done, matrices)

    right = product(steps)
    count = len(jacobians)
    compare(
        found,
        right,
        {
            "this is the plain stack: where is the identity?": product(jacobians),
            "you add 1 to every entry: the derivative of x with respect to x is the "
            "identity matrix, torch.eye.": product([1 + j for j in jacobians]),
            "the order is reversed: x passes layer 1 first, so J₁ stands on the "
            "right.": product(steps[::-1]),
            "only the ways through a single branch are counted: multiply the factors "
            "(I + J) instead.": eye + sum(jacobians),
            "the identity is added once, around the whole stack: every layer has a "
            "shortcut of its own.": eye + product(jacobians),
            "you add the layers' Jacobians: the chain rule multiplies them.": sum(
                steps
            ),
            "`*` multiplies entry by entry: matrices are multiplied with "
            "`@`.": functools.reduce(torch.mul, steps),
            "`*` multiplies entry by entry, and eye has zeros: take "
            "`@`.": functools.reduce(torch.mul, steps, eye),
            "the result is transposed: one row per output.": right.T,
            "the first layer is left out.": product(steps[1:] or [eye]),
            "the last layer is left out.": product(steps[:-1] or [eye]),
            "there is one identity too many.": eye + right,
        },
        f"for {count} layer{'s' if count > 1 else ''} the numbers are wrong. Write the "
        "chain rule down for two layers first.",
        functools.partial(near, rtol=1e-3, atol=1e-3),
    )
