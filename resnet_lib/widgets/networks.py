"""The networks that a widget looks into, and what they say about one picture."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from resnet_lib.plots import PLAIN, RESIDUAL
from resnet_lib.probes import block_names

__all__ = ["as_pair", "colour_of", "probabilities", "verdict"]


def as_pair(models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """One or two networks by title, in evaluation mode.

    A pair must have the same blocks, so that one control moves both. Raises ValueError
    for another number of networks, and for a pair with other blocks.
    """
    if not 1 <= len(models) <= 2:
        raise ValueError(
            f"Give one network or two, by title, not {len(models)}: "
            '{"residual": model, "plain": twin}.'
        )
    if len({tuple(block_names(model)) for model in models.values()}) != 1:
        raise ValueError(
            f"{' and '.join(models)} have different blocks: give a network and its "
            "plain twin."
        )
    return {title: model.eval() for title, model in models.items()}


def colour_of(title: str) -> str:
    """The series' colour of plain nets, and of residual ones."""
    return PLAIN if "plain" in title.lower() else RESIDUAL


@torch.no_grad()
def probabilities(model: nn.Module, x: Tensor) -> Tensor:
    """A network's probabilities (classes,) for one image (1, 3, H, W)."""
    return model(x)[0].softmax(0)


def verdict(found: Tensor, classes: Sequence[str]) -> str:
    """The likeliest class and its probability, as words."""
    best = int(found.argmax())
    return f"{classes[best]} ({100 * found[best]:.0f}%)"
