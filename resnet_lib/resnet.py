"""ResNets for CIFAR-10 and their plain twins. Notebook 03; paper §3.3 and §4.2."""

import contextlib
import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor, nn

from resnet_lib.basic_block import BasicBlock, PlainBlock
from resnet_lib.inputs import check_images, check_stages, whole_number

__all__ = [
    "ResNet",
    "evaluating",
    "get_model",
    "init_weights",
    "make_stage",
]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is in the mode it had before."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def init_weights(module: nn.Module) -> None:
    """Draw one layer's weights as the paper does (§3.4 and its reference [13]).

    [13] Eq. (10): std = √(2 / fan_in), so that a signal keeps its mean square on the
    way forward through ReLU and convolution. The linear layer takes
    √(1 / fan_in): its input is an average, no fresh ReLU output, and the paper is
    silent on it. BN starts at γ = 1, β = 0. `model.apply(init_weights)` draws every
    layer of a network anew. Built in notebook 03.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        module.reset_parameters()


def make_stage(
    in_channels: int,
    out_channels: int,
    depth: int,
    stride: int = 1,
    shortcut: str | None = "B",
) -> nn.Sequential:
    """`depth` blocks in a row; the first alone takes the stride and the new channels.

    `shortcut` None gives plain blocks. Maps (N, in_channels, H, W) to
    (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉). Built in notebook 03; paper §3.3.
    """
    block = PlainBlock if shortcut is None else partial(BasicBlock, shortcut=shortcut)
    first = block(in_channels, out_channels, stride)
    rest = [block(out_channels, out_channels) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)


class ResNet(nn.Module):
    """A 3×3 stem, stages of blocks, global average pooling and one linear layer.

    `widths` gives the channels of each stage and `depths` its number of blocks. The
    first block of every stage but the first halves H and W. `shortcut` is "A", "B" or
    "C"; None builds the plain twin, the same layers without the additions.
    `ResNet(**net.config)` builds a network like `net`, with new weights.

    Maps (N, in_channels, H, W) to logits (N, classes). Raises ValueError, naming the
    remedy, for images of another shape or of integers. Built in notebook 03; paper §3.3
    and §4.2.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        shortcut: str | None = "B",
        classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        check_stages(widths, depths)
        self.config = {
            "widths": list(widths),
            "depths": list(depths),
            "shortcut": shortcut,
            "classes": classes,
            "in_channels": in_channels,
        }
        self.in_channels = in_channels
        # The CIFAR stem: 3×3, stride 1, no max-pool. 32×32 has no pixels to spare.
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.stages = [f"layer{number + 1}" for number in range(len(widths))]
        before, stride = widths[0], 1
        for stage, channels, depth in zip(self.stages, widths, depths, strict=True):
            blocks = make_stage(before, channels, depth, stride, shortcut)
            self.add_module(stage, blocks)
            before, stride = channels, 2  # only the first stage keeps H and W
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, classes)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.in_channels)
        x = self.relu(self.bn1(self.conv1(x)))  # (N, C, H, W), C = widths[0]
        for name, stage in self.named_children():  # torch.jit reads no getattr by name
            if name in self.stages:
                x = stage(x)  # (N, 2C, H/2, W/2) from the second stage on
        x = self.avgpool(x).flatten(1)  # (N, C)
        return self.fc(x)  # (N, classes)


# 6n+2 too, but of other blocks: the paper's nets for ImageNet (Table 1). Nobody who
# asks for them wants a CIFAR net.
IMAGENET_DEPTHS = (50, 152)
FAMILY = [n for n in range(8, 10_000, 6) if n not in IMAGENET_DEPTHS]


def get_model(
    name: str, shortcut: str | None = None, classes: int = 10, in_channels: int = 3
) -> ResNet:
    """Build a network from its name: "resnet18", "plain18", "resnet20", "plain56", …

    18 is the series' own net: four stages 16/32/64/128 of two blocks, shortcut B. Every
    other depth is of the paper's CIFAR family: three stages 16/32/64 of n blocks, 6n+2
    layers, shortcut A (paper §4.2). `shortcut` overrides the choice for a residual net.

    Raises ValueError for a name or a depth that is neither, and for 50 and 152, whose
    nets for ImageNet have other blocks.
    """
    match = re.fullmatch(r"(resnet|plain)(0|[1-9][0-9]{0,3})", str(name))
    if not match:
        raise ValueError(
            f"Unknown architecture {name!r}: use resnet18, resnet20, 32, 44, 56 or "
            "110, or plain in place of resnet."
        )
    classes = whole_number("classes", classes, 1)
    in_channels = whole_number("in_channels", in_channels, 1)
    kind, depth = match[1], int(match[2])
    if kind == "plain" and shortcut is not None:
        raise ValueError(f"{name} has no shortcuts: leave `shortcut` out.")
    if depth == 18:
        widths, depths, default = (16, 32, 64, 128), (2, 2, 2, 2), "B"
    elif depth in FAMILY:
        widths, depths, default = (16, 32, 64), ((depth - 2) // 6,) * 3, "A"
    else:
        above = min(max(1, bisect(FAMILY, depth)), len(FAMILY) - 1)
        raise ValueError(
            f"{name}: the paper's CIFAR nets have 6n+2 layers, those of 34, 50, 101 "
            f"and 152 are for ImageNet. Try {FAMILY[above - 1]} or {FAMILY[above]}, or "
            "choose widths, depths and shortcut yourself with ResNet."
        )
    shortcut = None if kind == "plain" else shortcut or default
    model = ResNet(widths, depths, shortcut, classes, in_channels)
    model.name = name if shortcut in (None, default) else f"{name}-{shortcut}"
    return model
