"""What a network does with pictures: every number that the explorer shows."""

import copy
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from resnet_lib.basic_block import BasicBlock
from resnet_lib.probes import block_names, lesion, way_around
from resnet_lib.resnet import evaluating

__all__ = [
    "Inside",
    "Kernel",
    "LesionedNet",
    "fold_batch_norm",
    "is_open",
    "kernel_of",
    "look_inside",
    "path_lengths",
    "untouched",
]


class Inside(NamedTuple):
    """One forward pass over images (N, 3, H, W): the logits and what came before.

    `parts` holds "input", "stem.f" (the stem in front of its ReLU) and for every block
    "NAME.h" (after its first ReLU), "NAME.f" (F(x): after the second BN) and "NAME.x"
    (what goes around the branch). The rest follows: a residual block gives
    relu(scale · f + x), a plain one scale · relu(f) + (1 - scale) · x.
    """

    logits: Tensor
    parts: dict[str, Tensor]


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
    home, device = images.device, model.conv1.weight.device
    images, scales = images.to(device), scales or {}
    parts = {name: part.to(device) for name, part in (known or {}).items()}
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
    return Inside(logits.to(home), {n: part.to(home) for n, part in parts.items()})


@torch.no_grad()
def is_open(model: nn.Module, images: Tensor) -> bool:
    """Whether `look_inside` sees what the network itself computes."""
    with evaluating(model):
        logits = model(images.to(next(model.parameters()).device))
    try:
        seen = look_inside(model, images).logits
    except (AttributeError, RuntimeError):  # other layers, or of other shapes
        return False
    near = 1e-3 * logits.nan_to_num(0, 0, 0).abs().max().item()
    return torch.allclose(seen, logits.to(seen.device), atol=near, equal_nan=True)


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
    return Kernel(conv.weight[channel].detach().cpu(), scale.item(), shift.item())


def path_lengths(blocks: int) -> list[int]:
    """How many paths through `blocks` residual blocks go through 0, 1, 2, … branches.

    A path takes the branch or the shortcut at every block, so the counts are binomial
    coefficients, 2^blocks in all. Veit et al. 2016, §5.
    """
    return [math.comb(blocks, length) for length in range(blocks + 1)]


# --- many pictures, one lesion after another ------------------------------------------


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy for evaluation in which each convolution does the work of its BN too.

    A convolution's BN is the module that stands next to it, as in the blocks.
    """
    model = copy.deepcopy(model).eval()
    for parent in model.modules():
        for (conv, first), (bn, second) in pairwise(list(parent.named_children())):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(parent, conv, fuse_conv_bn_eval(first, second))
                setattr(parent, bn, nn.Identity())
    return model


class LesionedNet:
    """A network's logits for one set of images (N, C, H, W), under one lesion or other.

    A lesion changes nothing in front of the first block that it touches. So the inputs
    of the stages are kept, and of the block that was touched first the last time; the
    forward pass starts there, in a copy of the model whose BN is part of its
    convolutions. The copy computes where the model does.
    """

    def __init__(self, model: nn.Module, images: Tensor, batch_size: int = 100) -> None:
        model = fold_batch_norm(model).to(memory_format=torch.channels_last)
        self.model = model
        self.batch_size = batch_size  # small: it stays in the processor's cache
        self.names = block_names(model)
        self.home = images.device
        images = images.to(model.conv1.weight.device)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            x = self._batched(images, model.conv1, model.bn1, model.relu)
            self.stages = {0: x}  # inputs, by the position of the block that reads them
            for position, name in enumerate(self.names):
                if name.endswith(".0"):
                    self.stages[position] = x
                x = self._batched(x, model.get_submodule(name))
            self.intact = self._head(x)  # logits (N, classes) without a lesion
        self.last: dict[int, Tensor] = {}

    def __call__(self, scales: Mapping[str, float] | None = None) -> Tensor:
        """Logits (N, classes) under this lesion.

        Raises ValueError for a lesion that `probes.lesion` refuses.
        """
        scales = scales or {}
        touched = {name for name, scale in scales.items() if scale != 1}
        with lesion(self.model, scales), torch.no_grad():
            if not touched:
                return self.intact
            first = min(self.names.index(name) for name in touched)
            known = self.stages | self.last
            start = max(position for position in known if position <= first)
            blocks = [self.model.get_submodule(name) for name in self.names]
            x = self._batched(known[start], *blocks[start:first])
            self.last = {first: x}
            return self._head(self._batched(x, *blocks[first:]))

    def _batched(self, x: Tensor, *layers: nn.Module) -> Tensor:
        """x through the layers, batch by batch."""
        if not layers:
            return x
        return torch.cat([nn.Sequential(*layers)(b) for b in x.split(self.batch_size)])

    def _head(self, x: Tensor) -> Tensor:
        logits = self.model.fc(self.model.avgpool(x).flatten(1))  # (N, classes)
        return logits.to(self.home)
