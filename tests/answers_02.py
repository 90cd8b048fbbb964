"""Answers to notebook 02's exercises: every wrong one has a message of its own."""

import checks
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib.basic_block import PaddedIdentity, make_shortcut  # noqa: F401

# --- the right answers ----------------------------------------------------------------


class Block(nn.Module):
    """A right answer in the reader's style; the wrong ones change one thing each."""

    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut("B", in_channels, out_channels, stride)

    def branch(self, x):
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    def forward(self, x):
        out = self.branch(x)
        out += self.shortcut(x)
        return F.relu(out)


class Bottleneck(Block):
    def __init__(self, in_channels, channels, stride=1):
        super().__init__(in_channels, channels, stride)
        self.conv1 = conv(in_channels, channels, 1)
        self.conv2 = conv(channels, channels, 3, stride)
        self.conv3 = conv(channels, 4 * channels, 1)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.shortcut = make_shortcut("B", in_channels, 4 * channels, stride)

    def branch(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out))


def conv(in_channels, out_channels, size, stride=1, padding=None, **other):
    padding = size // 2 if padding is None else padding
    other = {"bias": False} | other
    return nn.Conv2d(in_channels, out_channels, size, stride, padding, **other)


def layers(base=Block, **change):
    """The right block with other layers, each a formula of its arguments b, a and s."""

    class Wrong(base):
        def __init__(self, before, after, stride=1):
            super().__init__(before, after, stride)
            names = globals() | {"b": before, "a": after, "s": stride}
            for name, formula in change.items():
                setattr(self, name, eval(formula, names))

    return Wrong


def forward(formula, base=Block):
    """The right layers, with another formula of x for what `forward` returns.

    c1, b1, … are convolutions and BNs, f is the branch and s the shortcut.
    """

    def run(self, x):
        names = {name[0] + name[-1]: layer for name, layer in self.named_children()}
        names |= {"s": self.shortcut, "f": self.branch, "relu": F.relu, "F": F}
        return eval(formula, names | {"x": x, "self": self})

    return type("Wrong", (base,), {"forward": run})


def projection(*parts):
    """Another shortcut where the shape changes, of these layers."""
    inside = ", ".join(parts)
    return layers(
        shortcut=f"nn.Sequential({inside}) if b != a or s != 1 else nn.Identity()"
    )


POINT, NORM = "conv(b, a, 1, s)", "nn.BatchNorm2d(a)"
LAZY, LAZY_NORM = "nn.LazyConv2d(a, 3, padding=1, bias=False)", "nn.LazyBatchNorm2d()"


class NoShortcutLayer(Block):
    """torchvision's way: nothing is built where nothing changes."""

    def __init__(self, before, after, stride=1):
        super().__init__(before, after, stride)
        changes = before != after or stride != 1
        self.shortcut = make_shortcut("B", before, after, stride) if changes else None

    def forward(self, x):
        around = x if self.shortcut is None else self.shortcut(x)
        return torch.relu(around + self.branch(x))


RIGHT_BLOCKS = [
    Block,
    NoShortcutLayer,
    layers(conv2="conv(a, a, 3, padding='same')"),
    layers(bn1=LAZY_NORM, conv2=LAZY, bn2=LAZY_NORM),
    projection("nn.Sequential()", POINT, NORM),
    forward("relu(f(x).double() + s(x)).double()"),
]
RIGHT_BOTTLENECKS = [
    Bottleneck,
    layers(Bottleneck, conv3="conv(a, 4 * a, 1, padding='valid')"),
    layers(Bottleneck, conv1="conv(b, a, 1, padding='same')"),
    layers(Bottleneck, conv3="nn.LazyConv2d(4 * a, 1, bias=False)", bn3=LAZY_NORM),
]


# --- wrong blocks ---------------------------------------------------------------------


def without(name, formula):
    class Without(forward(formula)):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            delattr(self, name)

    return Without


class OneLayerTwice(Block):
    def __init__(self, before, after, stride=1):
        super().__init__(before, after, stride)
        self.conv2 = self.conv1 if before == after else self.conv2


class OneNormTwice(Block):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.bn2 = self.bn1


class OtherNames(nn.Module):
    def __init__(self, before, after, stride=1):
        super().__init__()
        self.layers = nn.Sequential(
            conv(before, after, 3, stride), nn.BatchNorm2d(after)
        )


def in_place(self, x):
    out = self.branch(x)
    if x.shape == out.shape:
        return F.relu(x.add_(out))
    return F.relu(out + self.shortcut(x))


ALWAYS_TRAINING = (
    "F.batch_norm(c2(relu(b1(c1(x)))), None, None, b2.weight, b2.bias, True)"
)

WRONG_BLOCKS = {
    "in Wrong(4, 8, 1) the shape changes": layers(
        shortcut="make_shortcut('B', b, a, s) if s != 1 else nn.Sequential()"
    ),
    "in Wrong(4, 4, 2) the shape changes": layers(
        shortcut="make_shortcut('B', b, a, s) if b != a else nn.Sequential()"
    ),
    "in Wrong(4, 8, 2) the shape changes": [
        layers(shortcut="nn.Identity()"),
        layers(shortcut="make_shortcut('A', b, a, s)"),
    ],
    "ReLU after bn1 is missing": forward("relu(b2(c2(b1(c1(x)))) + s(x))"),
    "stands before bn1": forward("relu(b2(c2(b1(relu(c1(x))))) + s(x))"),
    "last ReLU is missing": forward("f(x) + s(x)"),
    "stands before the addition": forward("relu(f(x)) + s(x)"),
    "never negative": forward("relu(relu(f(x)) + s(x))"),
    "each path has its own ReLU": forward("relu(f(x)) + relu(s(x))"),
    "ReLU stands in the shortcut": forward("relu(f(x) + relu(s(x)))"),
    "never added": forward("relu(f(x))"),
    "subtract": forward("relu(f(x) - s(x))"),
    "added twice": forward("relu(f(x) + s(x) + s(x))"),
    "behind the first layer": forward(
        "relu(b2(c2(relu(b1(c1(x))))) + relu(b1(c1(x))))"
    ),
    "bn2 stands after the addition": forward("relu(b2(c2(relu(b1(c1(x)))) + s(x)))"),
    "bn1 is built and never used": forward("relu(b2(c2(relu(c1(x)))) + s(x))"),
    "bn2 is built and never used": forward("relu(c2(relu(b1(c1(x)))) + s(x))"),
    "no nn.BatchNorm2d called bn2": without("bn2", "relu(c2(relu(b1(c1(x)))) + s(x))"),
    "bn1 works twice": without("bn2", "relu(b1(c2(relu(b1(c1(x))))) + s(x))"),
    "two of bn1, bn2 are one object": OneNormTwice,
    "two of conv1, conv2 are one object": OneLayerTwice,
    "no running statistics": layers(bn1="nn.BatchNorm2d(a, track_running_stats=False)"),
    "normalises 4 channels": layers(bn1="nn.BatchNorm2d(2 * a)"),
    "in eval mode": forward(f"relu({ALWAYS_TRAINING} + s(x))"),
    "conv1 has stride 1 and should have 2": layers(conv1="conv(b, a, 3)"),
    "conv2 has stride 2 and should have 1": layers(conv2="conv(a, a, 3, s)"),
    "conv1 has a bias": layers(conv1="conv(b, a, 3, s, bias=True)"),
    "conv1 needs padding=1": layers(conv1="conv(b, a, 3, s, padding=0)"),
    "conv2 needs padding=1": layers(conv2="conv(a, a, 3, padding='valid')"),
    "kernel of conv2 is not 3×3": layers(conv2="conv(a, a, 5)"),
    "conv2: leave dilation, groups and padding_mode": [
        layers(conv2="conv(a, a, 3, padding=2, dilation=2)"),
        layers(conv2="conv(a, a, 3, groups=2)"),
        layers(conv2="conv(a, a, 3, padding_mode='reflect')"),
    ],
    "conv1 maps 4 to 4": layers(conv1="conv(b, b, 3, s)"),
    "that is option C": layers(shortcut="make_shortcut('C', b, a, s)"),
    "no BN behind it": projection(POINT),
    "and nothing else": [
        projection(POINT, NORM, "nn.ReLU()"),
        projection(NORM, POINT),
        projection(POINT, NORM, NORM),
    ],
    "needs the block's stride": projection("conv(b, a, 1)", NORM),
    "is not 1×1": projection("conv(b, a, 3, s)", NORM),
    "has a bias in front of its BN": projection("conv(b, a, 1, s, bias=True)", NORM),
    "no gradient reaches conv1.weight": forward("relu(f(x).detach() + s(x))"),
    "gradient of x is not": forward("relu(f(x) + s(x).detach())"),
    "no gradient can flow back": forward("relu(f(x) + s(x)).detach()"),
    "changes its input": type("Wrong", (Block,), {"forward": in_place}),
    "returns NoneType": forward("None"),
    "returns the shape": forward("F.max_pool2d(relu(f(x) + s(x)), 2)"),
    "in train mode": forward("relu(0.1 * f(x) + s(x))"),
    "no nn.Conv2d called conv1": OtherNames,
    "hand over the class": [Block(4, 4), lambda x: x, dict],
}
# What depends on the number of layers; the rest is judged as in the block above.
WRONG_BOTTLENECKS = {
    "conv3 maps 2 to 2 channels and should map 2 to 8": layers(
        Bottleneck, conv3="conv(a, a, 1)"
    ),
    "kernel of conv1 is not 1×1": layers(Bottleneck, conv1="conv(b, a, 3)"),
    "conv1 has stride 2 and should have 1": layers(
        Bottleneck, conv1="conv(b, a, 1, s)", conv2="conv(a, a, 3)"
    ),
    "conv1 needs padding=0": layers(Bottleneck, conv1="conv(b, a, 1, padding=1)"),
    "ReLU after bn2 is missing": forward(
        "relu(b3(c3(b2(c2(relu(b1(c1(x))))))) + s(x))", Bottleneck
    ),
    "ReLU between bn3 and the addition": forward("relu(relu(f(x)) + s(x))", Bottleneck),
    "bn3 stands after the addition": forward(
        "relu(b3(c3(relu(b2(c2(relu(b1(c1(x))))))) + s(x)))", Bottleneck
    ),
    "no nn.Conv2d called conv3": Block,
}


# --- all of them ----------------------------------------------------------------------

EXERCISES = [
    (checks.check_basic_block, WRONG_BLOCKS, RIGHT_BLOCKS),
    (checks.check_bottleneck, WRONG_BOTTLENECKS, RIGHT_BOTTLENECKS),
]
