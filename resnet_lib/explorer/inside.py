"""What a network does with one picture: every number that the explorer shows."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_lib.basic_block import BasicBlock, PaddedIdentity, PlainBlock
from resnet_lib.probes import block_names
from resnet_lib.resnet import evaluating

__all__ = ["Inside", "Kernel", "kernel_of", "look_inside", "untouched", "way_around"]


class Inside(NamedTuple):
    """One forward pass over images (N, 3, H, W): the logits and what came before.

    `parts` holds "input", "stem.f" (the stem in front of its ReLU) and for every block
    "NAME.h" (after its first ReLU), "NAME.f" (F(x): after the second BN) and "NAME.x"
    (what goes around the branch). The rest follows: a residual block gives
    relu(scale · f + x), a plain one scale · relu(f) + (1 - scale) · x.
    """

    logits: Tensor
    parts: dict[str, Tensor]


def way_around(block: BasicBlock | PlainBlock) -> nn.Module:
    """The block's shortcut. A plain block has none: it is lent a parameter-free one."""
    if isinstance(block, BasicBlock):
        return block.shortcut
    conv = block.conv1
    if conv.stride == (1, 1) and conv.in_channels == conv.out_channels:
        return nn.Identity()
    return PaddedIdentity(conv.in_channels, conv.out_channels, conv.stride[0])


@torch.no_grad()
def look_inside(
    model: nn.Module,
    images: Tensor,
    scales: Mapping[str, float] | None = None,
    known: Mapping[str, Tensor] | None = None,
) -> Inside:
    """Run the network layer by layer and keep what the layers gave.

    `scales` weakens branches by block name, as `probes.lesion` does. Parts that are
    `known` from another lesion, those of `untouched`, are taken and not computed. The
    model runs in evaluation mode and is left in the mode that it was in. Used in
    notebook 06.
    """
    scales, parts = scales or {}, dict(known or {})
    with evaluating(model):
        if not parts:
            parts = {"input": images, "stem.f": model.bn1(model.conv1(images))}
        out = F.relu(parts["stem.f"])  # (N, C, H, W)
        for name in block_names(model):
            block, scale = model.get_submodule(name), scales.get(name, 1)
            if f"{name}.f" not in parts:
                h = F.relu(block.bn1(block.conv1(out)))
                parts[f"{name}.h"], parts[f"{name}.f"] = h, block.bn2(block.conv2(h))
                parts[f"{name}.x"] = way_around(block)(out)
            f, x = parts[f"{name}.f"], parts[f"{name}.x"]
            if isinstance(block, BasicBlock):
                out = F.relu(scale * f + x)
            else:
                out = scale * F.relu(f) + (1 - scale) * x
        logits = model.fc(model.avgpool(out).flatten(1))  # (N, classes)
    return Inside(logits, parts)


def untouched(
    model: nn.Module,
    inside: Inside,
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> dict[str, Tensor]:
    """The parts of `inside` that stay as they are when one lesion follows another.

    A branch that is weakened gives the same as before; what comes after it does not.
    """
    parts = {name: inside.parts[name] for name in ("input", "stem.f")}
    for name in block_names(model):
        for part in (f"{name}.h", f"{name}.f", f"{name}.x"):
            parts[part] = inside.parts[part]
        if before.get(name, 1) != after.get(name, 1):
            break
    return parts


class Kernel(NamedTuple):
    """One output channel of a 3×3 convolution and of the BN behind it.

    The layer gives scale · Σ weights · window + shift, with `weights` (C, 3, 3).
    """

    weights: Tensor
    scale: float
    shift: float


@torch.no_grad()
def kernel_of(model: nn.Module, block: str, channel: int) -> Kernel:
    """What makes channel `channel` of F(x) out of the block's "h"; see `Inside`.

    For the block "stem" it makes the stem's channel out of the picture.
    """
    layers = model if block == "stem" else model.get_submodule(block)
    last = ("conv1", "bn1") if block == "stem" else ("conv2", "bn2")
    conv, bn = (getattr(layers, name) for name in last)
    scale = bn.weight[channel] / (bn.running_var[channel] + bn.eps).sqrt()
    shift = bn.bias[channel] - scale * bn.running_mean[channel]
    return Kernel(conv.weight[channel].detach(), scale.item(), shift.item())
