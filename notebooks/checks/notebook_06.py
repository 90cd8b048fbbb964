"""Checks of notebook 06, inspecting activations."""

import contextlib
import copy
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from checks.base import Hint, check, compare, near, shake, values
from resnet_lib.basic_block import BasicBlock
from resnet_lib.resnet import get_model


@check
def check_activation(take: Callable[[nn.Module, nn.Module, Tensor], Tensor]) -> str:
    """Judge `take(model, layer, images)`: a layer's output, as a copy, no hook left."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)
    )
    images, before = torch.randn(6, 3, 8, 8), _hooks(model)
    for layer in (model[0], model[2]):
        mode = layer is model[0]
        model.train(mode)
        answer = take(model, layer, images)
        if model.training != mode:
            raise Hint("the model is in another mode than before: leave it as it is.")
        _look_at_activation(answer, model, layer, images)
        if _hooks(model) > before:
            raise Hint("the hook is still there: call `remove()` on its handle.")
    inner = nn.Conv2d(4, 4, 1)
    nested = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), inner), nn.ReLU()).eval()
    with torch.no_grad():
        right = nested[0](images)
    inside = (
        "right for a layer of the model itself, wrong for one inside a block, as "
        "`model.layer1[0].conv1` is: let a hook find it."
    )
    compare(values(take(nested, inner, images), inside), right, {}, inside, _close)
    with contextlib.suppress(Exception):
        take(model, model[0], images[:, :2])  # two channels: the forward pass fails
    if _hooks(model) > before:
        raise Hint(
            "when the forward pass fails, the hook stays: remove it in a `finally`."
        )
    return "Right: the layer's output, a copy of its own, and no hook left behind."


def _hooks(model: nn.Module) -> int:
    """How many functions hang on its layers, or on all modules."""
    every = torch.nn.modules.module
    count = len(every._global_forward_hooks) + len(every._global_forward_pre_hooks)
    for m in model.modules():
        count += len(m._forward_hooks) + len(m._forward_pre_hooks)
        count += m.forward != type(m).forward.__get__(m)  # its own, not its class's
    return count


_close = functools.partial(near, atol=1e-5)


def _look_at_activation(answer, model: nn.Module, layer: nn.Module, x: Tensor) -> None:
    found = values(answer, "return the tensor itself, not a {}.")
    if getattr(answer, "requires_grad", False):
        raise Hint("the output carries a gradient: `detach` it.")
    with torch.no_grad():
        twin = copy.deepcopy(model)
        for module in twin.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
            vars(module).pop("forward", None)
        place = list(model).index(layer)
        before = twin[:place](x.clone())
        right = twin[place](before.clone())
        end = twin[place + 1 :](right.clone())
    shape = f"the shape is {tuple(found.shape)}, not {tuple(right.shape)}."
    compare(
        found,
        right,
        {
            "that is what the model returns, not what the layer gave.": end,
            "that is the layer's input: the hook's third argument is wanted.": before,
            "a later layer changed it in place: keep a copy, with `clone`, inside the "
            "hook, and let the hook return nothing.": right.relu(),
        },
        "these are not the layer's outputs for these images."
        if found.shape == right.shape
        else shape,
        _close,
    )


@check
def check_branch_ratio(branch_ratio: Callable[[nn.Module, Tensor], Tensor]) -> str:
    """Judge `branch_ratio(block, x)`: ‖F(x)‖ / ‖x‖ for each image, (N,)."""
    for shape, block in (
        ("keeps", BasicBlock(6, 6)),
        ("changes", BasicBlock(6, 8, stride=2)),
    ):
        shake(block.eval())
        x = torch.rand(5, 6, 8, 8)
        answer = branch_ratio(copy.deepcopy(block), x.clone())
        found = values(answer, "return a tensor of shape (5,), not a {}.")
        with torch.no_grad():
            f, around = block.residual(x), block.shortcut(x)
        _look_at_ratio(found, f, around, x, f"where the block {shape} shape,")
    return "Right: one ratio for each image, against what the shortcut delivers."


def _look_at_ratio(found: Tensor, f: Tensor, around: Tensor, x: Tensor, where) -> None:
    def norm(values: Tensor) -> Tensor:
        return values.flatten(1).norm(dim=1)  # (N,)

    below = norm(around)
    right = norm(f) / below
    if found.numel() == 1:
        raise Hint("one number for each image is wanted: norms over C, H and W only.")
    if found.shape != right.shape:
        raise Hint(f"the shape is {tuple(found.shape)}, not {tuple(right.shape)}.")
    compare(
        found,
        right,
        {
            "that is ‖x‖ / ‖F(x)‖: turn it round.": 1 / right,
            "that is the square: take the root.": right**2,
            "that is ‖F(x) + x‖ / ‖x‖: before adding.": norm(f + around) / below,
            "that is the block's output: F(x) alone is wanted.": norm(
                F.relu(f + around)
            )
            / below,
            "F(x) has no ReLU after it.": norm(F.relu(f)) / below,
            "that is ‖F(x)‖: divide by ‖x‖.": norm(f),
            "these are sums of absolute values: the norm is the root of the sum of "
            "squares.": f.abs().sum((1, 2, 3)) / around.abs().sum((1, 2, 3)),
            "where the shape changes, x is what the shortcut makes of it: "
            "`block.shortcut(x)`.": norm(f) / norm(x),
        },
        f"{where} the ratios are not right: compare with probes.block_parts.",
    )


@check
def check_recalibrated(recalibrate: Callable[[nn.Module, Tensor], object]) -> str:
    """Judge `recalibrate(model, images)`: BN's statistics measured anew, untrained."""
    model = get_model("resnet8")
    shake(model.eval())
    # Bright and dark ones, so that a part of them does not stand for all.
    images = torch.randn(64, 3, 16, 16) + torch.randn(64, 3, 1, 1)
    before, right = copy.deepcopy(model), _measured(model, images)
    recalibrate(model, images)
    if any(module.training for module in model.modules()):
        raise Hint("the model is left in training mode: end with `model.eval()`.")
    old = before.parameters()
    if not all(torch.equal(p, q) for p, q in zip(model.parameters(), old, strict=True)):
        raise Hint("a weight changed: only BN's running statistics may.")
    for name, (mean, var) in right.items():
        bn, was = model.get_submodule(name), before.get_submodule(name)

        def close(other_mean, other_var, bn=bn, var=var) -> bool:
            far = (bn.running_mean - other_mean).abs() / var.sqrt()
            apart = (bn.running_var / other_var).log().abs()
            return bool(far.max() < 0.15 and apart.max() < 0.3)

        if close(was.running_mean, was.running_var):
            raise Hint(
                "the statistics are the old ones, or nearly: call "
                "`reset_running_stats()`, then run the images through the model in "
                "training mode."
            )
        if close(torch.zeros_like(mean), torch.ones_like(var)):
            raise Hint(
                "they were reset, and hardly anything was measured after it: run the "
                "images in training mode, with `momentum = None`."
            )
        if not close(mean, var):
            raise Hint(
                f"{name} holds other statistics than its input has over all images: "
                "call `reset_running_stats()`, set `momentum = None` for a plain mean, "
                "and give all images, in equal batches that are not tiny."
            )
    return "Right: every BN knows its input again, and no weight has changed."


def _measured(model: nn.Module, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of every BN's input in one pass in training mode, by name."""
    twin = copy.deepcopy(model).train()
    layers = {n: m for n, m in twin.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for bn in layers.values():
        bn.momentum = 1.0  # this batch's alone
    with torch.no_grad():
        twin(images)
    return {name: (bn.running_mean, bn.running_var) for name, bn in layers.items()}
