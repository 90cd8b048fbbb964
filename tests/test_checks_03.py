"""Wrong answers to notebook 03's exercises, each caught with a message of its own."""

import operator

import checks
import pytest
import torch.nn.functional as F
from torch import nn

from resnet_lib.resnet import get_model


def parameter_count(
    depth,
    more=0,
    stem=9 * 3 * 16,
    stem_bn=2,
    bn=2,
    bias=0,
    first=0.5,
    convolutions=2,
    projections=0,
    fc_bias=10,
):
    """The right formula; the options are mistakes."""
    n = (depth - 2) // 6 + more
    total = stem + (stem_bn + bias) * 16 + 64 * 10 + fc_bias
    for c in (16, 32, 64):
        layers = convolutions * n
        total += layers * (9 * c * c + (bn + bias) * c)
        if c > 16:
            total -= int(9 * c * c * (1 - first))
            total += projections * (c // 2 * c + 2 * c)
    return total


def wrong_count(**options):
    return lambda depth: parameter_count(depth, **options)


def built(depth):
    return sum(p.numel() for p in get_model(f"resnet{depth}").parameters())


COUNTS = {
    "you build a network": built,
    "None": lambda depth: None,
    "in millions": lambda depth: parameter_count(depth) / 1e6,
    "BN is missing": wrong_count(bn=0, stem_bn=0),
    "two parameters per channel": wrong_count(bn=1, stem_bn=1),
    "buffers and not parameters": wrong_count(bn=4, stem_bn=4),
    "have no bias": wrong_count(bias=1),
    "BN after the stem": wrong_count(stem_bn=0),
    "stem's convolution": wrong_count(stem=0),
    "the stem is missing": wrong_count(stem=0, stem_bn=0),
    "not 7×7": wrong_count(stem=49 * 3 * 16),
    "linear layer is missing": lambda depth: parameter_count(depth) - 650,
    "bias as well": wrong_count(fc_bias=0),
    "half as many channels": wrong_count(first=1),
    "shortcut B": wrong_count(projections=1),
    "one block too many": wrong_count(more=1),
    "one block too few": wrong_count(more=-1),
    "you count one": wrong_count(convolutions=1),
    "right for 20 layers, but for 56": lambda depth: parameter_count(20),
    "stage by stage": wrong_count(stem=9 * 16),
}


def stage(block, in_channels, out_channels, depth, stride):
    first = block(in_channels, out_channels, stride)
    return nn.Sequential(
        first, *[block(out_channels, out_channels) for _ in range(depth - 1)]
    )


def from_shapes(shapes, wrap=nn.Sequential):
    """A wrong stage from what it asks of each block: (in, out, stride)."""

    def wrong(block, *arguments):
        return wrap(*[block(*shape) for shape in shapes(*arguments)])

    return wrong


def one_block(block, in_channels, out_channels, depth, stride):
    return nn.Sequential(*[block(in_channels, out_channels, stride)] * depth)


def wrapped(wrap):
    return lambda *arguments: wrap(*stage(*arguments))


class Twisted(nn.Sequential):
    def forward(self, x):
        for block in self:
            x = F.relu(block(x))
        return x


STAGES = {
    "never called": lambda block, i, o, d, s: nn.Sequential(nn.Conv2d(i, o, 3, s)),
    "single block": one_block,
    "builds 4 blocks": lambda block, i, o, d, s: stage(block, i, o, d + 1, s),
    "no block takes": from_shapes(lambda i, o, d, s: [(i, o)] + [(o, o)] * (d - 1)),
    "keep H and W": from_shapes(lambda i, o, d, s: [(i, o, 2)] + [(o, o, 1)] * (d - 1)),
    "every block takes": from_shapes(
        lambda i, o, d, s: [(i, o, s)] + [(o, o, s)] * (d - 1)
    ),
    "the strides are [1, 1, 2]": from_shapes(
        lambda i, o, d, s: [(i, o, 1)] + [(o, o, 1)] * (d - 2) + [(o, o, s)]
    ),
    "told to read 4": from_shapes(
        lambda i, o, d, s: [(i, o, s)] + [(i, o, 1)] * (d - 1)
    ),
    "in the last block": from_shapes(
        lambda i, o, d, s: [(i, i, s)] + [(i, i, 1)] * (d - 2) + [(i, o, 1)]
    ),
    "the others stay at 8": from_shapes(
        lambda i, o, d, s: [(i, i, s)] + [(i, i, 1)] * (d - 1)
    ),
    "returns None": lambda *arguments: stage(*arguments) and None,
    "return a list": wrapped(lambda *blocks: list(blocks)),
    "cannot run them": wrapped(lambda *blocks: nn.ModuleList(blocks)),
    "in the order": wrapped(lambda *blocks: nn.Sequential(*blocks[::-1])),
    "a ReLU stands between": wrapped(
        lambda *blocks: nn.Sequential(*[m for b in blocks for m in (b, nn.ReLU())])
    ),
    "one after the other": wrapped(Twisted),
}


def receptive_field(layers, first=1, less=1, early=False, jump=operator.mul):
    """The right answer; the options are mistakes."""
    field, step = first, 1
    for kernel, stride in layers:
        step = jump(step, stride) if early else step
        field += (kernel - less) * step
        step = step if early else jump(step, stride)
    return field


def wrong_field(**options):
    return lambda layers: receptive_field(layers, **options)


def without_points(layers):
    return receptive_field([layer for layer in layers if layer[0] > 1])


FIELDS = {
    "None": lambda layers: None,
    "1×1": without_points,
    "ignored": wrong_field(jump=lambda step, stride: step),
    "starts at 0": wrong_field(first=0),
    "neighbouring windows overlap": wrong_field(first=0, less=0),
    "to the 1 you start from": wrong_field(less=0),
    "from the next layer on": wrong_field(early=True),
    "only the stride just before": wrong_field(jump=lambda step, stride: stride),
    "strides are added up": wrong_field(jump=operator.add),
    "read from its end": lambda layers: receptive_field(layers[::-1]),
    "area": lambda layers: receptive_field(layers) ** 2,
    "draw it on paper": lambda layers: 3,
}


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (checks.check_parameter_count, parameter_count),
        (checks.check_stage, stage),
        (checks.check_receptive_field, receptive_field),
    ],
)
def test_right_answers_pass(says, check, answer):
    verdict, line = says(check, answer)
    assert verdict and line.startswith("✓ ")


@pytest.mark.parametrize(
    ("check", "table"),
    [
        (checks.check_parameter_count, COUNTS),
        (checks.check_stage, STAGES),
        (checks.check_receptive_field, FIELDS),
    ],
)
def test_wrong_answers_are_told_apart(told_apart, check, table):
    told_apart(check, table)


def test_the_formula_meets_the_networks():
    for depth in (8, 20, 56):
        assert parameter_count(depth) == built(depth)


def test_a_stage_may_name_its_arguments(says):
    def named(block, in_channels, out_channels, depth, stride):
        blocks = [block(in_channels, out_channels, stride=stride)]
        for _ in range(1, depth):
            blocks.append(block(in_channels=out_channels, out_channels=out_channels))
        return nn.Sequential(*blocks)

    assert says(checks.check_stage, named)[0]
