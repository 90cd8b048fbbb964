"""Answers to the exercises of 02, as test_checks.py describes them."""

from functools import partial

import torch.nn.functional as F
from answers import always, solutions
from torch import nn

from resnet_lib.basic_block import make_shortcut  # noqa: F401  for the formulas
from resnet_lib.probes import block_parts

solved = solutions("02")


class Block(solved.MyBlock):
    """The right answer; the wrong ones change one thing each."""

    def branch(self, x):
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class Bottleneck(solved.MyBottleneck):
    def branch(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))


def conv(in_channels, out_channels, size, stride=1, padding=None, **other):
    padding = size // 2 if padding is None else padding
    other = {"bias": False} | other
    return nn.Conv2d(in_channels, out_channels, size, stride, padding, **other)


def layers(base=Block, **change):
    """Other layers, each a formula of the arguments b, a, s and of the right layers."""

    class Wrong(base):
        def __init__(self, before, after, stride=1):
            super().__init__(before, after, stride)
            names = globals() | {"b": before, "a": after, "s": stride}
            for name, formula in change.items():
                right = dict(self.named_children())
                setattr(self, name, eval(formula, names | right))

    return Wrong


def forward(formula, base=Block):
    """The right layers, with another formula of x for what `forward` returns.

    c1, b1, … are convolutions and BNs, f is the branch and s the shortcut.
    """

    def run(self, x):
        names = {name[0] + name[-1]: layer for name, layer in self.named_children()}
        names |= {"s": self.shortcut, "f": self.branch, "relu": F.relu, "F": F}
        return eval(formula, names | {"x": x})

    return type("Wrong", (base,), {"forward": run})


def projection(*parts):
    """Another shortcut where the shape changes, of these layers."""
    inside = ", ".join(parts)
    return layers(
        shortcut=f"nn.Sequential({inside}) if b != a or s != 1 else nn.Identity()"
    )


POINT, NORM = "conv(b, a, 1, s)", "nn.BatchNorm2d(a)"
LAZY, LAZY_NORM = "nn.LazyConv2d(a, 3, padding=1, bias=False)", "nn.LazyBatchNorm2d()"

check_basic_block = {
    "✓": [
        solved.MyBlock,
        # torchvision's way: nothing is built where nothing changes.
        forward(
            "relu((s(x) if s else x) + f(x))",
            layers(shortcut="shortcut if b != a or s != 1 else None"),
        ),
        layers(conv2="conv(a, a, 3, padding='same')"),
        layers(bn1=LAZY_NORM, conv2=LAZY, bn2=LAZY_NORM),
        projection("nn.Sequential()", POINT, NORM),
        forward("relu(f(x).double().add_(s(x))).double()"),
    ],
    "(4, 8, 1) the shape": layers(shortcut="shortcut if s != 1 else nn.Identity()"),
    "(4, 4, 2) the shape": layers(shortcut="shortcut if b != a else nn.Identity()"),
    "in Wrong(4, 8, 2) the shape": layers(shortcut="make_shortcut('A', b, a, s)"),
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
    "behind the first": forward("relu(b2(c2(relu(b1(c1(x))))) + relu(b1(c1(x))))"),
    "bn2 stands after the addition": forward("relu(b2(c2(relu(b1(c1(x)))) + s(x)))"),
    "bn1 is built and never used": forward("relu(b2(c2(relu(c1(x)))) + s(x))"),
    "bn2 is built and never used": forward("relu(c2(relu(b1(c1(x)))) + s(x))"),
    "no nn.BatchNorm2d called bn2": layers(bn2="None"),
    "bn1 works twice": forward(
        "relu(b1(c2(relu(b1(c1(x))))) + s(x))", layers(bn2="None")
    ),
    "two of bn1, bn2 are one object": layers(bn2="bn1"),
    "two of conv1, conv2 are one object": layers(conv2="conv1 if b == a else conv2"),
    "no running statistics": layers(bn1="nn.BatchNorm2d(a, track_running_stats=False)"),
    "normalises 4 channels": layers(bn1="nn.BatchNorm2d(2 * a)"),
    "in eval mode": forward(
        "relu(F.batch_norm(c2(relu(b1(c1(x)))), None, None, b2.weight, b2.bias, True)"
        " + s(x))"
    ),
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
    "changes its input": forward("relu(f(x) + s(x.relu_()))"),
    "returns NoneType": forward("None"),
    "returns the shape": forward("F.max_pool2d(relu(f(x) + s(x)), 2)"),
    "in train mode": forward("relu(0.1 * f(x) + s(x))"),
    "no nn.Conv2d called conv1": layers(conv1="nn.Identity()"),
    "hand over the class": [Block(4, 4), dict],
}
deep = partial(forward, base=Bottleneck)
# What depends on the number of layers; the rest is judged as in the block above.
check_bottleneck = {
    "✓ .* 70,400 .* 1,180,672": [
        solved.MyBottleneck,
        layers(
            Bottleneck,
            conv1="conv(b, a, 1, padding='same')",
            conv3="conv(a, 4 * a, 1, padding='valid')",
        ),
        layers(Bottleneck, conv3="nn.LazyConv2d(4 * a, 1, bias=False)", bn3=LAZY_NORM),
    ],
    "2 to 2 channels and should map 2 to 8": layers(Bottleneck, conv3="conv(a, a, 1)"),
    "kernel of conv1 is not 1×1": layers(Bottleneck, conv1="conv(b, a, 3)"),
    "conv1 has stride 2 and should have 1": layers(
        Bottleneck, conv1="conv(b, a, 1, s)", conv2="conv(a, a, 3)"
    ),
    "conv1 needs padding=0": layers(Bottleneck, conv1="conv(b, a, 1, padding=1)"),
    "ReLU after bn2 is missing": deep("relu(b3(c3(b2(c2(relu(b1(c1(x))))))) + s(x))"),
    "ReLU between bn3 and the addition": deep("relu(relu(f(x)) + s(x))"),
    "bn3 stands after": deep("relu(b3(c3(relu(b2(c2(relu(b1(c1(x))))))) + s(x)))"),
    "no nn.Conv2d called conv3": Block,
}


def rows(*row):
    return always([[0] * 4, list(row), list(row), [0] * 4])


check_predicted_block = {
    "✓ .*mirror": rows(0, 0, 3, 0),
    "the first kernel": rows(0, 3, 0, 0),
    "the last ReLU is missing": rows(0, -1, 3, 0),
    "this is F(x)": rows(0, -2, 2, 0),
    "after the addition, not before": rows(0, 1, 3, 0),
    "x has not been added": rows(0, 0, 2, 0),
    "rows and columns": always([[0] * 4, [0] * 4, [0, 3, 3, 0], [0] * 4]),
    "4×4": always([[0, 0, 3, 0]]),
    "four rows": always([[0] * 4, [1]]),
    "−1, 0, 1, 0": rows(9, 9, 9, 9),
}


def of_parts(measure):
    """A number for each block, measured on what `block_parts` finds."""
    return lambda net, images: list(map(measure, block_parts(net, images).values()))


def share(values):
    return (values < 0).float().mean().item()


shares = of_parts(lambda part: share(part.sum))

check_clipped_shares = {
    "✓": [solved.my_clipped, shares],
    "percents": of_parts(lambda part: 100 * share(part.sum)),
    "keeps": of_parts(lambda part: 1 - share(part.sum)),
    "share of F(x) below zero": of_parts(lambda part: share(part.f)),
    "last block stands first": lambda *given: shares(*given)[::-1],
    "training mode": lambda net, images: solved.my_clipped(net.train(), images),
    "6 blocks and your list 2": lambda *given: shares(*given)[:2],
    "not float": always(0.5),
    "the numbers are wrong": always([0.5] * 6),
    "counts": of_parts(lambda part: (part.sum < 0).sum().item()),
}
