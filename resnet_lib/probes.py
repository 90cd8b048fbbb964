"""Hooks: activations, responses, gradients, parameter and FLOP tables."""

import contextlib
import difflib
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from resnet_lib.basic_block import PaddedIdentity

__all__ = ["activations", "gradient_norms", "layer_responses", "layer_table"]


@contextlib.contextmanager
def _hooked(hooks: Sequence[tuple[nn.Module, object]]) -> Iterator[None]:
    """Attach (module, forward hook) pairs, and take them off whatever happens."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is in the mode it had before."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


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

    def keep(name: str):
        def hook(module, inputs, output) -> None:
            outputs[name] = output.detach().clone()  # an in-place ReLU may follow

        return hook

    with _hooked([(_find(model, name), keep(name)) for name in layers]):
        model(images)
    for name in layers:
        if name not in outputs:
            raise ValueError(
                f"{type(model).__name__} never calls its layer {name!r} on the way "
                "forward. Ask for a layer inside it or around it."
            )
    return {name: outputs[name] for name in layers}


def gradient_norms(model: nn.Module, loss: Tensor) -> dict[str, float]:
    """The norm of the loss's gradient for each convolution's and linear layer's weight.

    By layer name, in the order of `model.named_modules()`. `loss` is one number from
    the model's output. No `.grad` is touched, and `loss.backward()` still works
    afterwards. Built in notebook 01.

    Raises ValueError for a loss that does not depend on one of these weights.
    """
    weights = {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    gradients = [None] * len(weights)
    if loss.requires_grad:
        gradients = torch.autograd.grad(
            loss, list(weights.values()), retain_graph=True, allow_unused=True
        )
    for name, gradient in zip(weights, gradients, strict=True):
        if gradient is None:
            raise ValueError(
                f"The loss does not depend on the weight of {name!r}. Compute it from "
                "this model's output, without detach or no_grad."
            )
    norms = (gradient.norm().item() for gradient in gradients)
    return dict(zip(weights, norms, strict=True))


def layer_responses(model: nn.Module, images: Tensor) -> dict[str, float]:
    """The standard deviation of each 3×3 layer's response, by BN name, in order.

    A response is the output after BN, before the ReLU or the addition, over all of
    images (N, C, H, W), channels and places. The 1×1 shortcuts are no layers here. The
    model's mode is left as it was. Used in notebook 05; paper §4.2 and Fig. 7.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and "shortcut" not in name
    ]
    with _evaluating(model):
        outputs = activations(model, images, names)
    return {name: output.std().item() for name, output in outputs.items()}


@torch.no_grad()
def layer_table(
    model: nn.Module, shape: tuple[int, ...] = (1, 3, 32, 32)
) -> pd.DataFrame:
    """One row per convolution, BN, linear layer and shortcut A, in the order they run.

    Columns: name, kind, output shape, parameters, and the multiply-adds of one image,
    measured by hooks in one forward pass over zeros of `shape`. Convolutions and linear
    layers count multiply-adds, the paper's FLOPs (§3.3); BN counts none, because at
    test time it folds into the convolution before it. The model's mode and its running
    statistics are left as they were.
    """
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, PaddedIdentity)
    rows: dict[str, dict] = {}

    def measure(name: str):
        def hook(module, inputs, output) -> None:
            row = rows.setdefault(
                name,
                {
                    "name": name,
                    "kind": type(module).__name__,
                    "output shape": tuple(output.shape),
                    "parameters": sum(p.numel() for p in module.parameters()),
                    "multiply-adds": 0,
                },
            )
            row["multiply-adds"] += _multiply_adds(module, output)

        return hook

    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, kinds)]
    parameter = next(model.parameters())
    images = torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)
    with _evaluating(model), _hooked([(m, measure(name)) for name, m in layers]):
        model(images)
    columns = ["name", "kind", "output shape", "parameters", "multiply-adds"]
    return pd.DataFrame(list(rows.values()), columns=columns)


def _multiply_adds(module: nn.Module, output: Tensor) -> int:
    """Of one image: every output number takes one multiply-add per weight it reads."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return 0
    weights_read = module.weight[0].numel()  # C_in / groups · k · k, or in_features
    return output[0].numel() * weights_read
