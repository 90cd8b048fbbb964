"""Answers to all exercises, right and wrong, as test_checks.py describes them."""

import ast
import copy
import dataclasses
import json
import math
import operator
import pathlib
import weakref
from fractions import Fraction
from functools import cache, partial, reduce
from itertools import accumulate, repeat
from types import SimpleNamespace
from unittest import mock

import checks
import numpy as np
import torch
import torch.nn.functional as F
from checks.patients import BEDS
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from resnet_lib import get_model, learning_rate_at
from resnet_lib.basic_block import make_shortcut  # noqa: F401  for the formulas
from resnet_lib.probes import block_parts

SOLUTIONS = pathlib.Path(checks.__file__).parents[1] / "solutions"
DEFINITIONS = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef


def solutions(notebook: str) -> SimpleNamespace:
    """What the solutions to a notebook import and define; nothing else of it is run."""
    cells = json.loads((SOLUTIONS / f"{notebook}_solutions.ipynb").read_text("utf-8"))
    sources = ["".join(c["source"]) for c in cells["cells"] if c["cell_type"] == "code"]
    body = [s for s in ast.parse("\n".join(sources)).body if isinstance(s, DEFINITIONS)]
    found = {"__name__": f"solutions_{notebook}"}
    exec(compile(ast.Module(body, []), found["__name__"], "exec"), found)
    return SimpleNamespace(**found)


def always(answer):
    return lambda *_: answer


def but(answer, change):
    """The answer, which then changes what it was given first."""

    def run(given, *more):
        found = answer(given, *more)
        change(given)
        return found

    return run


def patched(answer, name, other):
    """The answer with something else under a name that it uses."""

    def run(*given):
        with mock.patch(name, other):
            return answer(*given)

    return run


def times(factor, *names):
    """What multiplies these numbers of a network, and returns it."""

    def change(net):
        for name in names:
            net.state_dict()[name].mul_(factor)
        return net

    return change


# 01, adding the input back, and A1, shattered gradients ------------------------------

solved_01 = solutions("01")
identity, deepened, start = (
    solved_01.my_identity,
    solved_01.my_deepened,
    solved_01.my_start,
)
jacobian = solutions("A1").my_stack_jacobian


def halves(*signs, turn=0):
    """Blocks (a, b, c, d) of ±I: first = [aI; bI], second = [cI, dI]."""

    def make(width):
        a, b, c, d = (sign * torch.eye(width) for sign in signs)
        return torch.cat([a, b]), torch.cat([c, d], dim=1).roll(turn, 0)

    return make


check_identity_weights = {
    "✓": [identity, lambda width: list(halves(-2, 2, -0.5, 0.5)(width))],
    "return two matrices": [always(None), lambda width: [torch.eye(width)]],
    "should have the shape (6, 3), not (3, 3)": lambda width: 2 * [torch.eye(width)],
    "should have the shape (3, 6), not (6, 3)": lambda width: 2 * identity(width)[:1],
    "not NoneType": lambda width: (identity(width)[0], None),
    "not torch.bool": lambda width: [matrix.bool() for matrix in identity(width)],
    "negative ones are lost": halves(1, 0, 1, 0),
    "the output is |v|": halves(1, -1, 1, 1),
    "the output is −v": halves(1, -1, -1, 1),
    "the output is −|v|": halves(1, -1, -1, -1),
    "zero whatever v is": halves(1, 1, 1, -1),
    "the output is 2v": halves(1, -1, 2, -2),
    "their order is not": halves(1, -1, 1, -1, turn=1),
    "for v = (": halves(1, -1, 1.001, -1.001),
}


def product(factors):
    return reduce(lambda done, factor: factor @ done, factors)


def eye(jacobians):
    return torch.eye(len(jacobians[0]))


def factors(jacobians):
    return [eye(jacobians) + j for j in jacobians]


check_stack_jacobian = {
    "✓": [jacobian, but(jacobian, list.pop)],  # the list is a copy
    "where is the identity": product,
    "add 1 to every entry": lambda js: product([1 + j for j in js]),
    "order is reversed": lambda js: product(factors(js)[::-1]),
    "ways through a single branch": lambda js: eye(js) + sum(js),
    "added once, around the whole stack": lambda js: eye(js) + product(js),
    "the chain rule multiplies": lambda js: sum(factors(js)),
    "are multiplied with": lambda js: reduce(torch.mul, factors(js)),
    "eye has zeros": lambda js: reduce(torch.mul, factors(js), eye(js)),
    "transposed": lambda js: jacobian(js).T,
    "the first layer is left out": lambda js: product([eye(js), *factors(js)[1:]]),
    "the last layer is left out": lambda js: product([*factors(js)[:-1], eye(js)]),
    "one identity too many": lambda js: eye(js) + jacobian(js),
    "changes the Jacobians": but(jacobian, lambda js: js[-1].add_(eye(js))),
    "should be one matrix (3, 3), not None": always(None),
    "should be one matrix (3, 3), not (2, 3, 3)": torch.stack,
    "for 2 layers the numbers are wrong": lambda js: 3 * jacobian(js),
    "for 1 layer the numbers": lambda js: jacobian(js) * (1 + (len(js) == 1)),
}


class Detached(solved_01.Residual):
    def forward(self, x):
        return self.branch(x).detach() + x


class InPlace(solved_01.Residual):
    def forward(self, x):
        x += self.branch(x)
        return x


def layer(width, *silent, wrap=solved_01.Residual):
    return wrap(times(0, *silent)(solved_01.layer(width, width)))


def quiet(width, *more, **other):
    return layer(width, "2.weight", "2.bias", *more, **other)


def grown(make=quiet, old=lambda net, _: copy.deepcopy(net)):
    """Old layers by `old(net, width)`, then new ones as `make(width)` builds them."""
    return lambda net, width, extra: nn.Sequential(
        *old(net, width), *(make(width) for _ in range(extra))
    )


def passing(width):
    linear = nn.Linear(width, width)
    nn.init.zeros_(linear.bias)
    nn.init.eye_(linear.weight)
    return linear


def zeros(width):
    return times(0, "weight", "bias")(nn.Linear(width, width))


def sharing(deep):
    for one in deep[-2:]:
        one.branch[2].weight.data = deep[-1].branch[2].weight.data
    return deep


check_deepened = {
    "✓": deepened,
    "lengthens": [lambda n, *_: n, but(deepened, lambda n: n.append(n[0]))],
    "shares parameters with `net`": grown(old=lambda net, _: net),
    "stand in front": lambda n, w, e: (deep := deepened(n, w, e))[-e:] + deep[:-e],
    "one and the same object": [
        grown(cache(quiet)),
        lambda *g: sharing(deepened(*g)),
    ],
    "do not keep their weights": grown(old=lambda n, w: [layer(w) for _ in n]),
    "`net` itself has changed": [
        but(deepened, times(0, "0.branch.2.bias")),
        but(deepened, lambda net: net(torch.randn(9, net[0].branch[0].num_features))),
    ],
    "not those of `net`: copy the buffers": lambda *g: times(
        0, "0.branch.0.running_var"
    )(deepened(*g)),
    "are frozen": lambda *given: deepened(*given).requires_grad_(False),
    "in training mode": [
        but(deepened, nn.Module.eval),
        lambda *given: deepened(*given).eval(),
    ],
    "detach or no_grad": grown(lambda w: quiet(w, wrap=Detached)),
    "branch is not zero at the start": [
        grown(layer),
        grown(lambda w: times(1e-7, "branch.2.weight")(layer(w, "2.bias"))),
    ],
    "changes its input": grown(lambda w: quiet(w, wrap=InPlace)),
    "has a bias too": grown(lambda w: layer(w, "2.weight")),
    "gets no gradient": grown(lambda w: quiet(w, "0.weight", "0.bias")),
    "nothing adds the input back": grown(lambda w: quiet(w, wrap=nn.Sequential)),
    "no linear map": grown(lambda _: nn.Identity()),
    "make 7, and yours has 8": lambda n, w, e: deepened(n, w, e + 1),
    "not list": lambda *given: list(deepened(*given)),
    "not those of `net`": grown(old=lambda n, _: [nn.ReLU() for _ in n]),
    "which have a BN": grown(passing),
    "which have a ReLU": grown(
        lambda w: solved_01.Residual(nn.Sequential(nn.BatchNorm1d(w), zeros(w)))
    ),
    "to (32, 1)": grown(
        lambda w: nn.Sequential(nn.BatchNorm1d(w), nn.ReLU(), nn.Linear(w, 1))
    ),
}


def share(net):
    for layer in net[1:-1]:
        layer[2].weight = net[1][2].weight


check_identity_start = {
    r"✓ .* \d+ % from .* \d+ % from yours.*residual.* \d+ %": start,
    "changes nothing": always(None),
    "other layers": but(start, lambda net: net.append(nn.Identity())),
    "first or the last layer": but(start, times(2, "0.weight")),
    "frozen": but(start, lambda net: net[1:-1].requires_grad_(False)),
    "share their numbers": but(start, share),
    "the same to every image": but(start, times(0, "1.2.weight")),
    "negative numbers": [
        but(start, times(0, "1.0.bias", "1.2.bias")),
        but(start, times(0, "1.0.bias")),
    ],
    "does not pass on": but(start, times(-1, "1.2.weight")),
    "lift large enough": but(start, times(1 / 3, "1.0.bias", "1.2.bias")),
    "layer 30": but(start, lambda net: nn.init.normal_(net[30][2].weight)),
}

# 02, the basic block -----------------------------------------------------------------

solved_02 = solutions("02")
Block, Bottleneck = solved_02.MyBlock, solved_02.MyBottleneck


def branch(block, x):
    x = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    return block.bn3(block.conv3(F.relu(x))) if hasattr(block, "conv3") else x


def conv(in_channels, out_channels, size, stride=1, padding=None, **other):
    padding = size // 2 if padding is None else padding
    other = {"bias": False} | other
    return nn.Conv2d(in_channels, out_channels, size, stride, padding, **other)


def layers(base=Block, **change):
    """Other layers, each a formula of the arguments b, a, s and of the right layers."""

    class Wrong(base):
        def __init__(self, before, after, stride=1):
            super().__init__(before, after, stride)
            new = before != after or stride != 1  # has the output another shape?
            names = globals() | {"b": before, "a": after, "s": stride, "new": new}
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
        names |= {"s": self.shortcut, "f": partial(branch, self), "relu": F.relu}
        return eval(formula, names | {"F": F, "x": x})

    return type("Wrong", (base,), {"forward": run})


def projection(*parts):
    """Another shortcut where the shape changes, of these layers."""
    return layers(shortcut=f"nn.Sequential({', '.join(parts)}) if new else shortcut")


class Shortcut(nn.Module):
    """A projection that declares its BN first, and applies it last."""

    def __init__(self, before, after, stride, then=lambda x: x):
        super().__init__()
        self.bn = nn.BatchNorm2d(after)
        self.conv = nn.Conv2d(before, after, 1, stride, bias=False)
        self.then = then

    def forward(self, x):
        return self.then(self.bn(self.conv(x)))


POINT, NORM = "conv(b, a, 1, s)", "nn.BatchNorm2d(a)"
LAZY, LAZY_NORM = "nn.LazyConv2d(a, 3, padding=1, bias=False)", "nn.LazyBatchNorm2d()"

check_basic_block = {
    "✓": [
        Block,
        # torchvision's way: nothing is built where nothing changes.
        forward(
            "relu((s(x) if s else x) + f(x))",
            layers(shortcut="shortcut if new else None"),
        ),
        layers(conv2="conv(a, a, 3, padding='same')"),
        layers(bn1=LAZY_NORM, conv2=LAZY, bn2=LAZY_NORM),
        projection("nn.Sequential()", POINT, NORM),
        layers(shortcut="Shortcut(b, a, s) if new else shortcut"),
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
    "ReLU stands in the shortcut": [
        forward("relu(f(x) + relu(s(x)))"),
        layers(shortcut="Shortcut(b, a, s, F.relu) if new else shortcut"),
    ],
    "never added": forward("relu(f(x))"),
    "added to itself": forward("relu(f(x) + f(x))"),
    "subtract": forward("relu(f(x) - s(x))"),
    "added twice": forward("relu(f(x) + s(x) + s(x))"),
    "after the first": forward("relu(b2(c2(relu(b1(c1(x))))) + relu(b1(c1(x))))"),
    "bn2 stands after the addition": forward("relu(b2(c2(relu(b1(c1(x)))) + s(x)))"),
    "bn1 is built and never used": forward("relu(b2(c2(relu(c1(x)))) + s(x))"),
    "bn2 is built and never used": forward("relu(c2(relu(b1(c1(x)))) + s(x))"),
    "no nn.BatchNorm2d called bn1": layers(bn1="None"),
    "no nn.BatchNorm2d called bn2": layers(bn2="None"),
    "bn1 works twice": forward(
        "relu(b1(c2(relu(b1(c1(x))))) + s(x))", layers(bn2="None")
    ),
    "two of bn1, bn2 are one object": layers(bn2="bn1"),
    "two of conv1, conv2 are one object": layers(conv2="conv1 if b == a else conv2"),
    "no running statistics": layers(bn1="nn.BatchNorm2d(a, track_running_stats=False)"),
    "bn1 has no γ": layers(bn1="nn.BatchNorm2d(a, affine=False)"),
    "shortcut's BN has no γ": projection(POINT, "nn.BatchNorm2d(a, affine=False)"),
    "the shortcut's BN keeps no": projection(
        POINT, "nn.BatchNorm2d(a, track_running_stats=False)"
    ),
    "works in the branch as well": [projection(POINT, name) for name in ("bn1", "bn2")],
    "the shortcut's convolution has groups": projection(
        "conv(b, a, 1, s, groups=2)", NORM
    ),
    "normalises 4 channels": layers(bn1="nn.BatchNorm2d(2 * a)"),
    "in eval mode": forward("relu(b2.train()(c2(relu(b1(c1(x))))) + s(x))"),
    "conv1 has stride 1 and should have 2": layers(conv1="conv(b, a, 3)"),
    "conv2 has stride 2 and should have 1": layers(conv2="conv(a, a, 3, s)"),
    "conv1 has a bias": layers(conv1="conv(b, a, 3, s, bias=True)"),
    "conv1 needs padding=1": layers(conv1="conv(b, a, 3, s, padding=0)"),
    "conv2 needs padding=1, or it changes the map's size": [
        layers(conv2=f"conv(a, a, 3, padding={padding})") for padding in ("'valid'", 2)
    ],
    "kernel of conv2 is not 3×3": layers(conv2="conv(a, a, 5)"),
    "conv2: leave dilation, groups and padding_mode": [
        layers(conv2=f"conv(a, a, 3, {more})")
        for more in ("padding=2, dilation=2", "groups=2", "padding_mode='reflect'")
    ],
    "conv1 maps 4 to 4": layers(conv1="conv(b, b, 3, s)"),
    "that is option C": layers(shortcut="make_shortcut('C', b, a, s)"),
    "put both into it": projection(POINT),
    "cannot be called": layers(shortcut="nn.ModuleList(shortcut) if new else shortcut"),
    "and nothing else": projection(POINT, NORM, "nn.ReLU()"),
    "BN stands before its conv": [
        projection(norm, POINT) for norm in (NORM, "nn.BatchNorm2d(b)")
    ],
    "needs the block's stride": projection("conv(b, a, 1)", NORM),
    "is not 1×1": projection("conv(b, a, 3, s)", NORM),
    "has a bias in front of its BN": projection("conv(b, a, 1, s, bias=True)", NORM),
    "conv3 is built and has no part in the output": layers(conv3=POINT),
    "are frozen": layers(conv1="conv1.requires_grad_(False)"),
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
deep, deep_layers = partial(forward, base=Bottleneck), partial(layers, Bottleneck)


class NoDefault(Bottleneck):
    def __init__(self, before, channels, stride):
        super().__init__(before, channels, stride)


# What depends on the number of layers; the rest is judged as in the block above.
check_bottleneck = {
    "✓ .* 70,400 .* 1,180,672": [
        Bottleneck,
        NoDefault,
        deep_layers(conv3="conv(a, 4 * a, 1, padding='valid')"),
        deep_layers(conv3="nn.LazyConv2d(4 * a, 1, bias=False)", bn3=LAZY_NORM),
    ],
    "works in the branch as well": deep_layers(
        shortcut="nn.Sequential(conv(b, 4 * a, 1, s), bn3) if [*shortcut.children()] "
        "else shortcut"
    ),
    "2 to 2 channels and should map 2 to 8": deep_layers(conv3="conv(a, a, 1)"),
    "kernel of conv1 is not 1×1": deep_layers(conv1="conv(b, a, 3)"),
    "conv1 has stride 2 and should have 1": deep_layers(conv1="conv(b, a, 1, s)"),
    "conv1 needs padding=0": deep_layers(conv1="conv(b, a, 1, padding=1)"),
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


clipped, shares = solved_02.my_clipped, of_parts(lambda part: share(part.sum))

check_clipped_shares = {
    "✓": [clipped, shares],
    "percents": of_parts(lambda part: 100 * share(part.sum)),
    "keeps": of_parts(lambda part: 1 - share(part.sum)),
    "share of F(x) below zero": of_parts(lambda part: share(part.f)),
    "last block stands first": lambda *given: shares(*given)[::-1],
    "training mode": lambda net, images: clipped(net.train(), images),
    "6 blocks and your list 2": lambda *given: shares(*given)[:2],
    "not float": always(0.5),
    "the numbers are wrong": always([0.5] * 6),
    "counts": of_parts(lambda part: (part.sum < 0).sum().item()),
    "do not round": of_parts(lambda part: round(share(part.sum), 2)),
}

# 03, ResNet-18 -----------------------------------------------------------------------


def count(depth, more=0, bn=2, bias=0, first=0.5, convs=2, projections=0, **other):
    """The right formula; the options are mistakes."""
    n = (depth - 2) // 6 + more
    total = other.get("stem", 9 * 3 * 16) + (other.get("stem_bn", bn) + bias) * 16
    total += 64 * 10 + other.get("fc_bias", 10)
    for c in (16, 32, 64):
        total += convs * n * (9 * c * c + (bn + bias) * c)
        if c > 16:
            total -= int(9 * c * c * (1 - first))
            total += projections * (c // 2 * c + 2 * c)
    return total


def in_kinds(answer):
    """What comes of `/`, of numpy and of torch where a whole number is meant."""
    kinds = (int, float, Fraction, np.int64, np.float64, np.uint32, torch.tensor)
    return [lambda given, kind=kind: kind(answer(given)) for kind in kinds]


check_parameter_count = {
    "✓": in_kinds(count),
    "you build a network": lambda depth: get_model(f"resnet{depth}"),
    "you return None: a number": always(None),
    "you return [": lambda depth: [count(depth)],
    "you return True": always(True),
    "in millions": lambda depth: count(depth) / 1e6,
    "BN is missing": partial(count, bn=0),
    "two parameters per channel": partial(count, bn=1),
    "buffers and not parameters": partial(count, bn=4),
    "have no bias": partial(count, bias=1),
    "BN after the stem": partial(count, stem_bn=0),
    "stem's convolution": partial(count, stem=0),
    "the stem is missing": partial(count, stem=0, stem_bn=0),
    "not 7×7": partial(count, stem=49 * 3 * 16),
    "linear layer is missing": lambda depth: count(depth) - 650,
    "bias as well": partial(count, fc_bias=0),
    "half as many channels": partial(count, first=1),
    "shortcut B": partial(count, projections=1),
    "one block too many": partial(count, more=1),
    "one block too few": partial(count, more=-1),
    "you count one": partial(count, convs=1),
    # The networks themselves have these numbers, as test_blocks.py holds.
    "for 56 you count 269,722 and it should be 853,018": lambda depth: count(20),
    "for 20 layers you count 269,434 and it should": partial(count, stem=9 * 16),
}


def field(layers, first=1, less=1, early=False, jump=operator.mul):
    """The right answer; the options are mistakes."""
    field, step = first, 1
    for kernel, stride in layers:
        before, step = step, jump(step, stride)
        field += (kernel - less) * (step if early else before)
    return field


check_receptive_field = {
    "✓": in_kinds(field),
    "None: a whole number is wanted": always(None),
    "True: a whole": always(True),
    "3.5": lambda layers: field(layers) + 0.5,
    "1×1": lambda layers: field([layer for layer in layers if layer[0] > 1]),
    "no middle": lambda layers: 2 * field([(k // 2 + 1, s) for k, s in layers]) - 1,
    "ignored": partial(field, jump=lambda step, stride: step),
    "starts at 0": partial(field, first=0),
    "neighbouring windows overlap": partial(field, first=0, less=0),
    "to the 1 you start from": partial(field, less=0),
    "from the next layer on": partial(field, early=True),
    "only the stride just before": partial(field, jump=lambda step, stride: stride),
    "strides are added up": partial(field, jump=operator.add),
    "read from its end": lambda layers: field(layers[::-1]),
    "area": lambda layers: field(layers) ** 2,
    "for [(3, 1), (5, 1)] you say 3, and it is 7: draw it": always(3),
}

silence = solutions("03").silence


def zeroed(ending):
    """What sets all parameters whose names end so to zero."""

    def change(net):
        for name, parameter in net.named_parameters():
            if name.endswith(ending):
                nn.init.zeros_(parameter)

    return change


def freeze(net, only=lambda block: True):
    for block in net.modules():
        if hasattr(block, "bn2") and only(block):
            block.bn2.weight.requires_grad_(False)


def freeze_projected(net):
    freeze(net, lambda block: list(block.shortcut.parameters()))


check_silent_start = {
    r"✓ .* at 2\.[2-4].*before at (2\.[5-9]|[3-9]\.|\d\d)": [
        silence,
        zeroed(".conv2.weight"),
    ],
    "nothing has changed": [always(None), lambda net: silence(copy.deepcopy(net))],
    "still starts at": lambda net: [
        nn.init.zeros_(block.bn2.weight)
        for stage in (net.layer1, net.layer2, net.layer3)
        for block in stage[:2]
    ],
    "gained parameters": lambda net: net.add_module("extra", nn.Linear(1, 1)),
    "silence a shortcut": but(silence, times(0, "layer2.0.shortcut.1.weight")),
    "still adds something": times(0, "fc.weight"),
    "silent for ever": [times(0, "layer1.0.bn1.weight"), but(silence, freeze)],
    "branch of layer2.0 is silent for ever": but(silence, freeze_projected),
    "one parameter per block": but(silence, times(2, "layer1.0.bn1.weight")),
    "the branch of layer1.1 still": zeroed(".0.bn2.weight"),
}

# 04, training on CIFAR-10, and 05, plain against residual ----------------------------

solved_04, SGD = solutions("04"), torch.optim.SGD
training, least, curves = (
    solved_04.my_training,
    solved_04.my_temperature,
    solved_04.my_diagnoses(),
)


def in_float64(net, batches, rates):
    pairs = ((x.double(), y) for x, y in batches)
    return training(net.double(), pairs, rates)


def with_sgd(name, other):
    return patched(training, f"torch.optim.SGD{name}", other)


check_training = {
    "✓": [training, but(training, nn.Module.eval), in_float64],
    "no momentum": with_sgd("", lambda w, rate, _, **more: SGD(w, rate, **more)),
    "no weight decay": with_sgd("", lambda *given, **_: SGD(*given)),
    "sees the first batch": lambda n, b, rates: training(n, repeat(next(b)), rates),
    "train in evaluation mode": lambda net, *given: training(net.eval(), *given),
    "made with the first rate": lambda *given: training(*given[:2], 4 * [given[2][0]]),
    "gradients add up": with_sgd(".zero_grad", always(None)),
    "weights are as before": [
        with_sgd(".step", always(None)),
        with_sgd(".step", lambda sgd, step=SGD.step: sgd.zero_grad() or step(sgd)),
    ],
    "type Tensor: take `.item()`.": lambda *given: list(
        map(torch.tensor, training(*given))
    ),
    "keeps its whole graph": lambda *given: [
        *training(*given)[:3],
        torch.ones((), requires_grad=True),
    ],
    "a loss is of type float32": lambda *given: list(map(np.float32, training(*given))),
    "`losses[1]` is": lambda *given: [*accumulate(training(*given))],
    "the optimizer's options": with_sgd(
        "", lambda *given, **more: SGD(*given, **more, nesterov=True)
    ),
    "a list of four is wanted": lambda *given: training(*given)[:-1],
    "a stream may be endless": lambda net, batches, rates: training(
        net, iter([*batches]), rates
    ),
}

check_curves = {
    "✓": always(curves),
    "A: both": always(curves | {"A": curves["B"]}),
    "B: the test": always(curves | {"B": curves["C"]}),
    "C: one of": always(curves | {"C": curves["D"]}),
    "D: the error": always(curves | {"D": curves["A"]}),
    "is not one of DIAGNOSES": [
        always(curves | {"A": answer}) for answer in ("bad luck", ["bad luck"])
    ],
    "return a dictionary": [always(None), always({})],
}

check_temperature = {
    "✓": least,
    "divided by T": lambda *given: 1 / least(*given),
    "steps of a few per cent": always(1.0),
    "0.6 times as large": always(2.0),
    "above 0": always(-1.0),
    "changes the logits": but(least, Tensor.zero_),
}

diagnosis = solutions("05").diagnosis


def by(rule):
    """(a, b) are the shallow net's errors, (c, d) the deep one's; False: as it is."""
    return lambda one, two: rule(*one.values(), *two.values()) or diagnosis(one, two)


check_diagnosis = {
    "✓": [diagnosis, lambda *given: np.str_(diagnosis(*given))],
    "return one of degradation, overfitting, neither, not True": always(True),
    "by heart": by(lambda a, b, c, d: "degradation" if d > b else "neither"),
    "it is not learning": by(lambda a, b, c, d: "overfitting" if d > b else "neither"),
    "simply better": by(lambda a, b, c, d: "degradation" if c > a else "overfitting"),
    "whatever the test": by(lambda a, b, c, d: c > a and d < b and "neither"),
    "not the test error": by(lambda a, b, c, d: c > a and d == c + 1 and "overfitting"),
    "two equal nets": by(lambda a, b, c, d: (a, b) == (c, d) and "degradation"),
    "gap is wider": by(lambda a, b, c, d: c < a and d - c > 6 and "overfitting"),
    "only the test error": by(lambda a, b, c, d: a == c and d > b and "neither"),
    "another one built in": lambda _, deep: diagnosis({"train": 9, "test": 12}, deep),
}


@torch.no_grad()
def transparent(bn, gamma=lambda var, eps: (var + eps).sqrt(), beta=1.0):
    bn.weight.copy_(gamma(bn.running_var, bn.eps))
    bn.bias.copy_(beta * bn.running_mean)


def in_double(bn):
    """What comes of numpy: an array in float64 becomes a parameter in float64."""
    transparent(bn)
    bn.weight, bn.bias = (nn.Parameter(p.double()) for p in (bn.weight, bn.bias))


check_transparent = {
    "✓": [solutions("05").transparent, in_double],
    "evaluation mode": but(transparent, nn.Module.train),
    "running statistics": [times(0, "running_mean"), times(2, "running_var")],
    "write into the layer": always(None),
    "are one tensor": but(
        transparent, lambda bn: setattr(bn.bias, "data", bn.running_mean)
    ),
    "leave ε": but(transparent, lambda bn: setattr(bn, "eps", 0.0)),
    "γ is still 1": partial(transparent, gamma=lambda v, e: torch.ones(3)),
    "with its ε": partial(transparent, gamma=lambda v, e: v.sqrt()),
    "square root": partial(transparent, gamma=lambda v, e: v + e),
    "divides once more": partial(transparent, gamma=lambda v, e: (v + e).rsqrt()),
    "γ is off": [
        partial(transparent, gamma=lambda v, e: 3 + v),
        partial(transparent, gamma=lambda v, e: (v + e).sqrt().mean()),
    ],
    "wrong sign": partial(transparent, beta=-1),
    "β is off": partial(transparent, beta=0),
}


def measured(shallow=1.1, deep=20.0, bare=0.5):
    table = {(8, True): shallow, (32, True): deep, (32, False): bare}
    return lambda *asked: table[asked]


check_gradient_ratio = {
    "✓ .* 1.1 at 8 .* 20 at 32.*0.5 at": measured(),
    "above 0, not nan": measured(bare=float("nan")),
    "the last one below it": measured(deep=0.05),
    "in training mode, and fresh": [measured(deep=1.2), measured(deep=7.5)],
    "not its square": measured(deep=500.0),
    "as many as `layers` says": [
        measured(shallow=19.0),
        measured(shallow=4.9, deep=4.9),
    ],
    "is BN kept when": measured(shallow=0.3, deep=0.6, bare=23.0),
    "was every BN taken out": measured(bare=19.0),
    "divide norms, not means": measured(shallow=2.7),
}

# 06, inspecting activations ----------------------------------------------------------

solved_06 = solutions("06")
activation, recalibrate = solved_06.my_activation, solved_06.my_recalibrate


def hooked(model, layer, images, keep=lambda inputs, output: output.clone()):
    """What the hook keeps; it is removed, but not in a `finally`."""
    kept = []
    handle = layer.register_forward_hook(lambda _, *seen: kept.append(keep(*seen)))
    model(images)
    handle.remove()
    return kept[-1].detach()


def returned(model, layer, images):
    """What a hook returns takes the output's place."""
    kept = {}
    handle = layer.register_forward_hook(
        lambda _, inputs, output: kept.setdefault("y", output.detach().clone())
    )
    model(images)
    handle.remove()
    return kept["y"]


def everywhere(*given):
    """With a hook that PyTorch calls for every module; gone when it is forgotten."""
    handle = register_module_forward_hook(always(None))
    weakref.finalize(given[0], handle.remove)
    return activation(*given)


check_activation = {
    "✓": [
        activation,
        lambda *given: activation(*given).double(),
        but(activation, lambda m: setattr(m[1], "forward", m[1].forward)),  # put back
    ],
    "inside a block": lambda m, la, x: activation(m, la, x) if la in [*m] else None,
    "not a list": lambda *a: [activation(*a)],
    "carries a gradient": patched(activation, "torch.Tensor.detach", Tensor.clone),
    "what the model returns": lambda m, la, x: m(x).detach(),
    "the layer's input": lambda *a: hooked(*a, lambda inputs, _: inputs[0].clone()),
    "let the hook return nothing": [
        patched(activation, "torch.Tensor.clone", Tensor.detach),
        returned,
    ],
    "the shape is (4, 8, 8)": lambda *a: activation(*a)[0],
    "not the layer's outputs": lambda *a: 2 * activation(*a),
    "still there": [
        patched(activation, "torch.utils.hooks.RemovableHandle.remove", always(None)),
        but(activation, lambda m: m[0].register_forward_pre_hook(always(None))),
        but(activation, lambda m: setattr(m[2], "forward", partial(m[2].forward))),
        everywhere,
    ],
    "in a `finally`": hooked,
    "another mode": [
        but(activation, lambda m: m.train(not m.training)),
        lambda m, *more: but(activation, nn.Module.train)(m.eval(), *more),
    ],
}


def norm(values, power=2):
    return values.flatten(1).norm(power, dim=1)


@torch.no_grad()
def branch_ratio(block, x, f=lambda f, x: f, below=lambda block, x: block.shortcut(x)):
    return norm(f(block.residual(x), block.shortcut(x))) / norm(below(block, x))


check_branch_ratio = {
    "✓": [
        solved_06.my_branch_ratio,
        lambda b, x: list(branch_ratio(copy.deepcopy(b).double(), x.double())),
    ],
    "not a NoneType": always(None),
    "one number for each image": lambda b, x: branch_ratio(b, x).mean().item(),
    "the shape is (5, 6)": lambda b, x: b.residual(x).norm(dim=(2, 3)),
    "turn it round": lambda b, x: 1 / branch_ratio(b, x),
    "take the root": lambda b, x: branch_ratio(b, x) ** 2,
    "before adding": lambda b, x: branch_ratio(b, x, lambda f, x: f + x),
    "the block's output": lambda b, x: branch_ratio(b, x, lambda f, x: F.relu(f + x)),
    "no ReLU after it": lambda b, x: branch_ratio(b, x, lambda f, x: F.relu(f)),
    "divide by": lambda b, x: norm(b.residual(x)),
    "absolute values": lambda b, x: norm(b.residual(x), 1) / norm(b.shortcut(x), 1),
    "what the shortcut makes": lambda b, x: branch_ratio(b, x, below=lambda b, x: x),
    "where the block keeps shape, the ratios": [
        lambda b, x: 3 * branch_ratio(b, x),
        lambda b, x: branch_ratio(times(2, "bn2.weight", "bn2.bias")(b), x),
    ],
}


def unreset(model, images):
    for bn in model.modules():
        bn.momentum = None  # a plain mean, but over the whole training as well
    model.train()(images)
    model.eval()


def by_parts(size, momentum=None, end=None):
    """Reset, then one pass over the images, or their first, in parts of a size."""

    @torch.no_grad()
    def run(model, images):
        for bn in model.modules():
            if isinstance(bn, nn.BatchNorm2d):
                bn.reset_running_stats()
                bn.momentum = momentum
        model.train()
        for part in images[:end].split(size):
            model(part)
        model.eval()

    return run


check_recalibrated = {
    "✓": [recalibrate, by_parts(64, 1.0), *map(by_parts, (4, 8, 16, 32))],
    "training mode": but(recalibrate, nn.Module.train),
    "a weight changed": but(recalibrate, times(1.01, "fc.weight")),
    "the old ones": [always(None), unreset],
    "hardly anything": patched(recalibrate, "torch.nn.Module.train", always(None)),
    "bn1 holds other": [
        lambda m, x: [m.train()(x) for _ in range(4)] and m.eval(),
        by_parts(16, 1.0),
        by_parts(32, 1.0),
        by_parts(32, end=32),
        by_parts(2, 0.1),
        *map(by_parts, (1, 60)),  # the last batch, of four, counts as much
    ],
    "layer3.0.bn1": but(recalibrate, times(3, "layer3.0.bn1.running_var")),
}

# 07, the clinic ----------------------------------------------------------------------

solved_07 = solutions("07")

check_beds = {
    "✓": always(BEDS),
    "a dict from the": [always(BEDS["A"]), always({"A": BEDS["A"]})],
    "no patient of this ward": always(BEDS | {"A": "flu"}),
    "is not healthy": always(BEDS | {"A": "healthy"}),
    "has nothing": always(BEDS | {"B": "flat_rate"}),
    "no bed is right": always(dict.fromkeys(BEDS, "best_epoch")),
    "1 of 4": always(BEDS | {"A": "cropped_test"}),
}


def rates(recipe, warmup, longer=0, late=0, low=lambda i: 1.0, **change):
    """The schedule, with a warm-up `longer` and drops `late` by so many updates."""
    first, other = warmup + longer, dataclasses.replace(recipe, **change)
    after = [learning_rate_at(i - late, other) for i in range(first, other.iterations)]
    return [recipe.warmup_lr * low(i) for i in range(first)] + after


def told_by_the_rate(recipe, warmup):
    return [
        recipe.lr if i >= warmup and math.isclose(rate, recipe.warmup_lr) else rate
        for i, rate in enumerate(rates(recipe, warmup))
    ]


check_repaired_rates = {
    "✓": [solved_07.rates_of, rates],
    "number of the update": told_by_the_rate,
    "`get_last_lr` does not": lambda r, w: [
        *(r.lr, *rates(r, w)[1:w]),
        *(r.warmup_lr, *rates(r, w)[w + 1 :]),
    ],
    "got a list of lists": lambda r, w: [[rate] for rate in rates(r, w)],
    "who writes the full rate back": lambda r, w: rates(r, w, lr=r.warmup_lr),
    "the warm-up is gone": lambda r, w: rates(r, w, longer=-w),
    "wipes out": lambda r, w: rates(r, w, milestones=()),
    "8 updates late": lambda r, w: rates(r, w, late=w),
    "one update late": lambda r, w: rates(r, w, longer=1),
    "one update early": lambda r, w: rates(r, w, longer=-1),
    "climbs or falls": lambda r, w: rates(r, w, low=lambda i: (i + 1) / w),
    "off by one": lambda r, w: rates(r, w, late=1),
    "divides by 10": lambda r, w: rates(r, w, milestones=r.milestones[:1]),
    "64 updates": lambda r, w: rates(r, w)[1:],
    "other numbers": lambda r, w: rates(r, w, lr=0.1),
    "of your lines": lambda r, w: [*rates(r, w)[:12], r.lr / 2, *rates(r, w)[13:]],
    "list of numbers": always(None),
}


def column(history, name):
    return [row[name] for row in history]


def best(history, name):
    """The test error of the row in which this column is least."""
    return min(history, key=lambda row: row[name])["test_error"]


report = solved_07.report

check_repaired_report = {
    "✓": [
        report,
        lambda h: best(h, "validation_error"),
        lambda h: best(h, "validation_loss"),
        lambda h: torch.tensor(column(h, "test_error"))[-1],
        lambda h: h.pop()["test_error"],
    ],
    "smallest of all": lambda h: min(column(h, "test_error")),
    "shorter window": lambda h: min(column(h, "test_error")[-3:]),
    "test loss": lambda h: best(h, "test_loss"),
    "a validation error": lambda h: min(column(h, "validation_error")),
    "largest validation": [
        lambda h: max(h, key=operator.itemgetter("validation_error"))["test_error"],
        lambda h: max(h, key=operator.itemgetter("validation_loss"))["test_error"],
    ],
    "training images": lambda h: best(h, "train_error"),
    "average": lambda h: sum(column(h, "test_error")) / len(h),
    "first row": lambda h: h[0]["test_error"],
    "largest": lambda h: max(column(h, "test_error")),
    "accuracy": lambda h: 1 - report(h),
    "per cent": lambda h: 100 * report(h),
    "do not round": lambda h: round(h[-1]["test_error"], 3),
    "neither": lambda h: h[-2]["test_error"] + 1e-4,
    "got dict": lambda h: h[-1],
    "changes from run to run": lambda h: min(report(h), best(h, "validation_error")),
}

# 08, what we reproduced --------------------------------------------------------------

STEADY = [2.0 + number for number in range(9)]  # as a fresh net of 2016 gives them

check_stream = {
    "✓ .* 2.00 to 10.00, about 1.0 more": [always(STEADY), always(np.array(STEADY))],
    "in a list, not float": always(9.0),
    "not a list of Tensors": always([torch.ones(2)] * 9),
    "not a list of NoneTypes": always([None] * 9),
    "blocks of layer1": always([4 + number for number in STEADY]),
    "nine blocks, and here are 3": always(STEADY[::3]),
    "a variance is above 0": always([0.0, *STEADY[1:]]),
    "is the first block first": always(STEADY[::-1]),
    "what the branches add": [
        always(np.linspace(*ends, 9)) for ends in ((0.74, 0.85), (1.5, 1.17))
    ],
    "Call net.train() first": always([2.0**number for number in range(9)]),
    "Take the square": [
        always(np.sqrt(STEADY)),
        always(np.sqrt(np.linspace(2, 4.4, 9))),
    ],
    "a norm or a sum": [
        always([40 * number for number in STEADY]),
        *(always(np.linspace(6e4, end, 9)) for end in (5.9e4, 6.1e4)),  # raw pixels
    ],
    "has a ReLU in it": always([0.7 + number / 2 for number in range(9)]),
}

# A2, outgrowing one machine ----------------------------------------------------------

solved_a2 = solutions("A2")
average, scaled = solved_a2.my_average, solved_a2.my_scaled_recipe

check_average = {
    "✓": average,
    "got list": lambda g, n: [average(g, n)],
    "changes the gradients": but(average, lambda g: g[0].zero_()),
    "the shape is ()": lambda g, n: average(g, n).mean(),
    "a kernel's gradient": [
        lambda g, n: (torch.stack(g) * torch.tensor(n)[:, None]).sum(0) / sum(n),
        lambda g, n: torch.tensor(n, dtype=g[0].dtype) @ torch.stack(g) / sum(n),
    ],
    "every device counts the same": lambda g, n: sum(g) / len(g),
    "the plain sum": lambda g, n: sum(g),
    "is not divided": lambda g, n: average(g, n) * sum(n),
    "by the number of devices": lambda g, n: average(g, n) * sum(n) / len(n),
    "turn that round": lambda g, n: average(g, [1 / count for count in n]),
    "without multiplying": lambda g, n: sum(g) / sum(n),
    "the first device's": lambda g, n: g[0].clone(),
    "not the mean over": lambda g, n: 2 * average(g, n),
    "wrong for two": lambda g, n: average(g, [96, 32, 64][: len(g)]),
}


def scale(recipe, k, **change):
    return dataclasses.replace(scaled(recipe, k), **change)


check_scaled_recipe = {
    # 3 / (1 / 0.05) is 0.15, where 3 * 0.05 rounds up.
    "✓": [scaled, lambda r, k: scale(r, k, lr=k / (1 / r.lr))],
    "got dict": lambda r, k: dataclasses.asdict(scaled(r, k)),
    "has 128 images": lambda r, k: scale(r, k, batch_size=128),
    "the rate is the old one": lambda r, k: scale(r, k, lr=r.lr),
    "square root": lambda r, k: scale(r, k, lr=r.lr * k**0.5),
    "goes down": lambda r, k: scale(r, k, lr=r.lr / k),
    "the rate is 1.6": lambda r, k: scale(r, k, lr=r.lr * k**2),
    "updates is the old one": lambda r, k: scale(r, k, iterations=r.iterations),
    "there are 32,000": lambda r, k: scale(r, k, iterations=32_000),
    "they move along": lambda r, k: scale(r, k, milestones=(16_000,)),
    "`momentum` has changed": lambda r, k: scale(r, k, momentum=0.8),
    "`weight_decay` has": lambda r, k: scale(r, k, weight_decay=k * r.weight_decay),
    "k = 3": lambda r, k: scale(r, 4),
}
