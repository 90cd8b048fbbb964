"""Hooks and lesions: activations, responses, gradients, parameter and FLOP tables.

A model may be on any device: images are brought to it, and what is measured comes back
to the device of the images.
"""

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_lib.basic_block import BasicBlock, PaddedIdentity, PlainBlock
from resnet_lib.resnet import evaluating

__all__ = [
    "BlockParts",
    "activations",
    "block_names",
    "block_parts",
    "confident_mistakes",
    "gradient_norms",
    "layer_table",
    "lesion",
    "way_around",
]


@contextlib.contextmanager
def _hooked(
    model: nn.Module, names: Sequence[str], note: Callable[..., None]
) -> Iterator[None]:
    """Call note(name, module, inputs, output) behind each of these layers inside."""
    layers = {name: _find(model, name) for name in names}  # all known, or none hooked
    with contextlib.ExitStack() as hooks:
        # Compiled code does not call hooks that are newer than it.
        if "torch._dynamo" in sys.modules:  # or nothing is compiled
            hooks.enter_context(torch.compiler.set_stance("force_eager"))
        for name, layer in layers.items():
            hook = layer.register_forward_hook(partial(note, name))
            hooks.callback(hook.remove)
        yield


def _device(model: nn.Module, images: Tensor) -> torch.device:
    """Where the model computes; the images' device for one without weights."""
    return next((weight.device for weight in model.parameters()), images.device)


def _find(model: nn.Module, name: str) -> nn.Module:
    """The layer `name`; raises ValueError, listing near names, where there is none."""
    layers = dict(model.named_modules())
    del layers[""]
    if name in layers:
        return layers[name]
    near = difflib.get_close_matches(name, layers, n=3, cutoff=0.5)
    near = near or [child for child, _ in model.named_children()]
    raise ValueError(
        f"{type(model).__name__} has no layer {name!r}. Did you mean "
        f"{', '.join(repr(other) for other in near)}?"
    )


@torch.no_grad()
def activations(
    model: nn.Module, images: Tensor, layers: Sequence[str]
) -> dict[str, Tensor]:
    """The outputs of `layers`, by name, in one forward pass over images (N, C, H, W).

    Names are those of `model.named_modules()`, such as "layer1.0.conv1". The model runs
    in the mode it is in: in training mode BN updates its running statistics. Outputs
    are copies without a gradient.

    Raises ValueError, listing near names, for a layer that the model does not have, and
    for one that this forward pass never calls.
    """
    layers = [layers] if isinstance(layers, str) else list(layers)
    outputs: dict[str, Tensor] = {}

    def keep(name, module, inputs, output) -> None:
        outputs[name] = output.detach().clone()  # an in-place ReLU may follow

    with _hooked(model, layers, keep):
        model(images.to(_device(model, images)))
    for name in layers:
        if name not in outputs:
            raise ValueError(
                f"{type(model).__name__} never calls its layer {name!r} on the way "
                "forward. Ask for a layer inside it or around it."
            )
    return {name: outputs[name].to(images.device) for name in layers}


def gradient_norms(model: nn.Module, loss: Tensor) -> dict[str, float]:
    """The norm of the loss's gradient for each convolution's and linear layer's weight.

    By layer name, in the order of `model.named_modules()`. `loss` is one number from
    the model's output. No `.grad` is touched, and `loss.backward()` still works
    afterwards.

    Raises ValueError for a loss that does not depend on one of these weights, and for
    a frozen one.
    """
    weights = {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    if frozen := [name for name, w in weights.items() if not w.requires_grad]:
        raise ValueError(
            f"The weight of {frozen[0]!r} is frozen and has no gradient: thaw it with "
            "model.requires_grad_() before you compute the loss."
        )
    gradients = [None] * len(weights)
    if loss.requires_grad:
        gradients = torch.autograd.grad(
            loss, list(weights.values()), retain_graph=True, allow_unused=True
        )
    norms = {}
    for name, gradient in zip(weights, gradients, strict=True):
        if gradient is None:
            raise ValueError(
                f"The loss does not depend on the weight of {name!r}. Compute it from "
                "this model's output, without detach or no_grad."
            )
        norms[name] = gradient.norm().item()
    return norms


@torch.no_grad()
def layer_table(model: nn.Module, shape: tuple[int, ...] | None = None) -> pd.DataFrame:
    """One row per convolution, BN, linear layer and shortcut A, in the order they run.

    Columns: name, kind, output shape, parameters, and the multiply-adds of one image,
    measured by hooks in one forward pass over zeros of `shape`, by default one image of
    32×32 pixels with the channels that the model takes. Convolutions and linear layers
    count (the paper's FLOPs, §3.3); BN does not, because at test time it folds into the
    convolution before it. The model's mode and statistics are left as they were.
    """
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, PaddedIdentity)
    columns = ("name", "kind", "output shape", "parameters", "multiply-adds")
    rows: dict[str, tuple] = {}

    def measure(name, module, inputs, output) -> None:
        parameters = sum(p.numel() for p in module.parameters())
        counted = rows[name][-1] if name in rows else 0  # a layer may run twice
        counted += _multiply_adds(module, output)
        kind = type(module).__name__
        rows[name] = (name, kind, tuple(output.shape), parameters, counted)

    layers = [name for name, m in model.named_modules() if isinstance(m, kinds)]
    shape = shape or (1, getattr(model, "in_channels", 3), 32, 32)
    like = next(model.parameters(), torch.empty(0))
    images = torch.zeros(shape, device=like.device, dtype=like.dtype)
    with evaluating(model), _hooked(model, layers, measure):
        model(images)
    return pd.DataFrame(list(rows.values()), columns=columns)


def _multiply_adds(module: nn.Module, output: Tensor) -> int:
    """Of one image: every output number takes one multiply-add per weight it reads."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return 0
    weights_read = module.weight[0].numel()  # C_in / groups · k · k, or in_features
    return output[0].numel() * weights_read


# --- blocks ---------------------------------------------------------------------------


def block_names(model: nn.Module) -> list[str]:
    """The names of the model's blocks, such as "layer1.0", in the order they run."""
    blocks = (BasicBlock, PlainBlock)
    return [name for name, m in model.named_modules() if isinstance(m, blocks)]


class BlockParts(NamedTuple):
    """What happens in one residual block, each of shape (N, C, H, W).

    `x` is what the shortcut delivers: the block's input, or its projection where the
    shape changes. `f` is F(x), what the branch adds to it.
    """

    x: Tensor
    f: Tensor

    @property
    def sum(self) -> Tensor:
        """F(x) + x."""
        return self.f + self.x

    @property
    def out(self) -> Tensor:
        """relu(F(x) + x), the block's output."""
        return F.relu(self.sum)

    @property
    def ratio(self) -> float:
        """‖F(x)‖ / ‖x‖ over all images: how much the branch changes."""
        return (self.f.norm() / self.x.norm()).item()


@torch.no_grad()
def block_parts(model: nn.Module, images: Tensor) -> dict[str, BlockParts]:
    """x and F(x) of every residual block, by name, for images (N, C, H, W).

    The model runs in evaluation mode and is left in the mode it was in. Paper §3.1 and
    Fig. 7.
    """
    names = [n for n, m in model.named_modules() if isinstance(m, BasicBlock)]
    parts: dict[str, BlockParts] = {}

    def keep(name, block, inputs, output) -> None:
        both = block.shortcut(*inputs), block.residual(*inputs)
        parts[name] = BlockParts(*(part.to(images.device) for part in both))

    with evaluating(model), _hooked(model, names, keep):
        model(images.to(_device(model, images)))
    return parts


def confident_mistakes(logits: Tensor, labels: Tensor) -> list[int]:
    """The indices of wrong predictions, the most confident first.

    Confidence is the probability of the predicted class. Takes logits (N, classes) and
    labels (N,).
    """
    confidence, predictions = logits.softmax(1).max(1)
    wrong = (predictions != labels.to(predictions.device)).nonzero().flatten()
    order = confidence[wrong].argsort(descending=True, stable=True)
    return wrong[order].tolist()


# --- lesions --------------------------------------------------------------------------


@contextlib.contextmanager
def lesion(model: nn.Module, scales: Mapping[str, float] | None) -> Iterator[nn.Module]:
    """Weaken blocks inside the `with`; the model is whole again after it.

    `scales` gives factors by block name. A residual block becomes
    relu(scale · F(x) + x): 1 leaves it whole, 0 leaves its shortcut alone. A plain
    block has no shortcut, so one is lent to it: scale · block(x) + (1 - scale) · x,
    with x strided and padded as in shortcut A where the shape changes; 0 skips the
    block. The model is restored whatever happens inside. Veit et al. 2016, §4.

    Raises ValueError for an unknown block, for one whose `forward` is its own, and for
    a scale outside 0 to 1.
    """
    scales = dict(scales or {})
    blocks = {name: _find(model, name) for name in scales}
    for name, scale in scales.items():
        if not isinstance(blocks[name], BasicBlock | PlainBlock):
            raise ValueError(f"{name!r} is no block: choose from {block_names(model)}.")
        if type(blocks[name]).forward not in (BasicBlock.forward, PlainBlock.forward):
            raise ValueError(
                f"{name!r} has a forward of its own, and a lesion knows only those of "
                "BasicBlock and PlainBlock."
            )
        if not 0 <= scale <= 1:
            raise ValueError(f"{name} is scaled by {scale}: give a number from 0 to 1.")
    before = {name: vars(block).get("forward") for name, block in blocks.items()}
    try:
        for name, block in blocks.items():
            block.forward = partial(_weakened, block, scales[name])
        yield model
    finally:
        for name, block in blocks.items():
            if before[name] is None:
                vars(block).pop("forward", None)  # the class's own is back
            else:
                block.forward = before[name]  # of the lesion around this one


def way_around(block: BasicBlock | PlainBlock) -> nn.Module:
    """The block's shortcut. A plain block has none: it is lent a parameter-free one."""
    if isinstance(block, BasicBlock):
        return block.shortcut
    conv = block.conv1
    if conv.stride == (1, 1) and conv.in_channels == conv.out_channels:
        return nn.Identity()
    return PaddedIdentity(conv.in_channels, conv.out_channels, conv.stride[0])


def _weakened(block: BasicBlock | PlainBlock, scale: float, x: Tensor) -> Tensor:
    if isinstance(block, BasicBlock):
        around = block.shortcut(x)
        return F.relu(around if scale == 0 else scale * block.residual(x) + around)
    if scale == 1:
        return PlainBlock.forward(block, x)
    lent = way_around(block)
    if scale == 0:
        return lent(x)
    return scale * PlainBlock.forward(block, x) + (1 - scale) * lent(x)
