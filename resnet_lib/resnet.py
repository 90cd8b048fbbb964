"""ResNets for CIFAR-10 and their plain twins. Built in notebook 03; paper §3.3 and §4.2."""

import re
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from resnet_lib.basic_block import BasicBlock, PlainBlock

__all__ = [
    "ResNet",
    "get_model",
    "plain18",
    "plain20",
    "plain32",
    "plain44",
    "plain56",
    "plain110",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
]


class ResNet(nn.Module):
    """A 3×3 stem, stages of blocks, global average pooling and one linear layer.

    `widths` gives the channels of each stage and `depths` its number of blocks. The first
    block of every stage but the first halves H and W. `shortcut` is "A", "B" or "C"; None
    builds the plain twin, the same layers without the additions.

    Maps (N, 3, H, W) to logits (N, classes). Raises ValueError, naming the remedy, for an
    input of another shape or an integer input. Built in notebook 03; paper §3.3 and §4.2.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        shortcut: str | None = "B",
        classes: int = 10,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths) or not widths:
            raise ValueError(
                f"Give one width and one depth per stage: got widths {tuple(widths)} and "
                f"depths {tuple(depths)}."
            )
        block = (
            PlainBlock if shortcut is None else partial(BasicBlock, shortcut=shortcut)
        )
        # The CIFAR stem: 3×3, stride 1, no max-pool. A 32×32 image has no pixels to spare.
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.stages = [f"layer{number}" for number in range(1, len(widths) + 1)]
        in_channels = widths[0]
        for stage, out_channels, depth in zip(self.stages, widths, depths, strict=True):
            blocks = []
            for index in range(depth):
                stride = 2 if index == 0 and stage != "layer1" else 1
                blocks.append(block(in_channels, out_channels, stride))
                in_channels = out_channels
            self.add_module(stage, nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_channels, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as the paper does (§4.1 and its reference [13]).

        [13] Eq. (10): std = √(2 / fan_in), so that a signal keeps its variance on the way
        forward through convolution and ReLU. The linear layer has no ReLU behind it and so
        takes √(1 / fan_in). BN starts at γ = 1, β = 0.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_in", nonlinearity="relu"
                )
            elif isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_in", nonlinearity="linear"
                )
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(
                f"Expected images of shape (N, 3, H, W), got {tuple(x.shape)}. "
                "Add the batch dimension with x[None], and move the channels to the second "
                "place with x.permute(0, 3, 1, 2)."
            )
        if not x.is_floating_point():
            raise ValueError(
                f"Expected floating-point images, got {x.dtype}. "
                "Normalise them first, as resnet_lib.data.normalise does."
            )
        x = self.relu(self.bn1(self.conv1(x)))  # (N, 16, 32, 32)
        for stage in self.stages:
            x = getattr(self, stage)(x)  # (N, 2C, H/2, W/2) from the second stage on
        x = torch.flatten(self.avgpool(x), 1)  # (N, C)
        return self.fc(x)  # (N, classes)


def get_model(name: str, shortcut: str | None = None, classes: int = 10) -> ResNet:
    """Build a network from its name: "resnet18", "plain18", "resnet20", "plain56", …

    18 is the series' own net: four stages 16/32/64/128 of two blocks, shortcut B. Every
    other depth is of the paper's CIFAR family: three stages 16/32/64 of n blocks, 6n+2
    layers, shortcut A (paper §4.2). `shortcut` overrides the choice for a residual net.

    Raises ValueError for a name or a depth that is neither.
    """
    match = re.fullmatch(r"(resnet|plain)(\d+)", name)
    if not match:
        raise ValueError(
            f"Unknown architecture {name!r}: use resnet18, resnet20, 32, 44, 56 or 110, "
            "or plain in place of resnet."
        )
    kind, depth = match[1], int(match[2])
    if kind == "plain" and shortcut is not None:
        raise ValueError(f"{name} has no shortcuts: leave `shortcut` out.")
    if depth == 18:
        widths, depths, default = (16, 32, 64, 128), (2, 2, 2, 2), "B"
    elif depth % 6 == 2 and depth >= 8:
        widths, depths, default = (16, 32, 64), ((depth - 2) // 6,) * 3, "A"
    else:
        below = max(8, (depth - 2) // 6 * 6 + 2)
        raise ValueError(
            f"{name}: the paper's CIFAR nets have 6n+2 layers. Try {below} or {below + 6}."
        )
    shortcut = None if kind == "plain" else shortcut or default
    model = ResNet(widths, depths, shortcut, classes)
    model.name = name if shortcut in (None, default) else f"{name}-{shortcut}"
    return model


resnet18, plain18 = partial(get_model, "resnet18"), partial(get_model, "plain18")
resnet20, plain20 = partial(get_model, "resnet20"), partial(get_model, "plain20")
resnet32, plain32 = partial(get_model, "resnet32"), partial(get_model, "plain32")
resnet44, plain44 = partial(get_model, "resnet44"), partial(get_model, "plain44")
resnet56, plain56 = partial(get_model, "resnet56"), partial(get_model, "plain56")
resnet110, plain110 = partial(get_model, "resnet110"), partial(get_model, "plain110")
