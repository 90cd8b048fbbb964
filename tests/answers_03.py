"""Answers to notebook 03's exercises: every wrong one has a message of its own."""

import operator
from fractions import Fraction
from functools import partial

import checks
import numpy as np
import torch

from resnet_lib.resnet import get_model


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


COUNTS = {
    "you build a network": built,
    "you return None: a number": lambda depth: None,
    "you return [": lambda depth: [count(depth)],
    "you return True": lambda depth: True,
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
    "for 20 layers you count 269,434 and it should be 269,722": partial(
        count, stem=9 * 16
    ),
}


def field(layers, first=1, less=1, early=False, jump=operator.mul):
    """The right answer; the options are mistakes."""
    field, step = first, 1
    for kernel, stride in layers:
        step = jump(step, stride) if early else step
        field += (kernel - less) * step
        step = step if early else jump(step, stride)
    return field


FIELDS = {
    "None: a whole number is wanted": lambda layers: None,
    "True: a whole": lambda layers: True,
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
    "for [(3, 1), (5, 1)] you say 3, and it is 7: draw it": lambda layers: 3,
}

# What comes of `/`, of numpy and of torch where a whole number is meant.
WHOLE = [float, Fraction, np.int64, np.float64, np.uint32, torch.tensor]


def in_kinds(answer):
    return [answer, *(lambda x, kind=kind: kind(answer(x)) for kind in WHOLE)]


EXERCISES = [
    (checks.check_parameter_count, COUNTS, in_kinds(count)),
    (checks.check_receptive_field, FIELDS, in_kinds(field)),
]
