"""Answers to the exercises of 03, 04 and 05, as test_checks.py describes them."""

import itertools
import operator
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from answers import always, but, patched, solutions
from torch import nn

from resnet_lib.basic_block import BasicBlock
from resnet_lib.resnet import get_model

solved, solved_04, solved_05 = solutions("03"), solutions("04"), solutions("05")


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


def built(depth):
    return sum(p.numel() for p in get_model(f"resnet{depth}").parameters())


def in_kinds(answer):
    """What comes of `/`, of numpy and of torch where a whole number is meant."""
    kinds = (int, float, Fraction, np.int64, np.float64, np.uint32, torch.tensor)
    return [lambda given, kind=kind: kind(answer(given)) for kind in kinds]


check_parameter_count = {
    "✓": in_kinds(count),
    "you build a network": built,
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
    "right for 20 layers, but for 56 you count 269,722 and": lambda depth: count(20),
    "for 20 layers you count 269,434 and it should": partial(count, stem=9 * 16),
}


def field(layers, first=1, less=1, early=False, jump=operator.mul):
    """The right answer; the options are mistakes."""
    field, step = first, 1
    for kernel, stride in layers:
        step = jump(step, stride) if early else step
        field += (kernel - less) * step
        step = step if early else jump(step, stride)
    return field


check_receptive_field = {
    "✓": in_kinds(field),
    "None: a whole number is wanted": always(None),
    "True: a whole": always(True),
    "3.5": lambda layers: field(layers) + 0.5,
    "1×1": lambda layers: field([layer for layer in layers if layer[0] > 1]),
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

silence = solved.silence


check_silent_start = {
    r"✓ .* at 2\.[2-4].*before at (2\.[5-9]|[3-9]\.|\d\d)": silence,
    "nothing has changed": always(None),
    "gained parameters": lambda net: net.add_module("extra", nn.Linear(1, 1)),
    "silence a shortcut": but(
        silence, lambda net: nn.init.zeros_(net.layer2[0].shortcut[1].weight)
    ),
    "still adds something": lambda net: nn.init.zeros_(net.fc.weight),
    "silent for ever": lambda net: net.apply(
        lambda m: isinstance(m, BasicBlock) and nn.init.zeros_(m.bn1.weight)
    ),
    "one parameter per block": but(
        silence, lambda net: nn.init.ones_(net.layer1[0].bn1.bias)
    ),
}

training, least = solved_04.my_training, solved_04.my_temperature
curves, SGD = solved_04.my_diagnoses(), torch.optim.SGD


def with_sgd(name, other):
    return patched(training, f"torch.optim.SGD{name}", other)


check_training = {
    "✓": training,
    "no momentum": with_sgd("", lambda w, rate, _, **more: SGD(w, rate, **more)),
    "no weight decay": with_sgd("", lambda *given, **_: SGD(*given)),
    "sees the first batch": lambda net, batches, rates: training(
        net, itertools.repeat(next(batches)), rates
    ),
    "evaluation mode": lambda net, *given: training(net.eval(), *given),
    "made with the first rate": lambda *given: training(*given[:2], 4 * [given[2][0]]),
    "gradients add up": with_sgd(".zero_grad", always(None)),
    "weights are as before": with_sgd(".step", always(None)),
    "take `.item()`": lambda *given: list(map(torch.tensor, training(*given))),
    "a list of four is wanted": lambda *given: training(*given)[:-1],
}

words = set(curves.values())
check_curves = {
    "✓": always(curves),
    "A: both": [always(curves | {"A": word}) for word in words - {curves["A"]}],
    "B: the test": [always(curves | {"B": word}) for word in words - {curves["B"]}],
    "C: one of": [always(curves | {"C": word}) for word in words - {curves["C"]}],
    "D: the error": [always(curves | {"D": word}) for word in words - {curves["D"]}],
    "'bad luck' is not one of": always(curves | {"A": "bad luck"}),
    "return a dictionary": [always(None), always({})],
}

check_temperature = {
    "✓": least,
    "divided by T": lambda *given: 1 / least(*given),
    "Try a grid": always(1.0),
    "0.6 times as large": always(2.0),
    "above 0": always(-1.0),
    "changes the logits": but(least, torch.Tensor.zero_),
}

diagnosis = solved_05.diagnosis


def by(rule):
    """(a, b) are the shallow net's errors, (c, d) the deep one's; False: as it is."""
    return lambda shallow, deep: (
        rule(*shallow.values(), *deep.values()) or diagnosis(shallow, deep)
    )


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
    "✓": [solved_05.transparent, in_double],
    "evaluation mode": but(transparent, nn.Module.train),
    "running statistics": [
        lambda bn: bn.running_mean.zero_(),
        lambda bn: bn.running_var.fill_(0.9),
    ],
    "still 1": partial(transparent, gamma=lambda v, e: torch.ones(3)),
    "with its ε": partial(transparent, gamma=lambda v, e: v.sqrt()),
    "square root": partial(transparent, gamma=lambda v, e: v + e),
    "divides once more": partial(transparent, gamma=lambda v, e: (v + e).rsqrt()),
    "γ is off": partial(transparent, gamma=lambda v, e: 3 + v),
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
    "in training mode, and fresh": measured(deep=1.2),
    "not its square": measured(deep=500.0),
    "was every BN taken out": measured(bare=19.0),
}
