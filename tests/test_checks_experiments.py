"""The judges of the experiments in 01 and 02: what passes, and what gets which hint."""

import re

import checks
import pytest
import torch
from torch import nn

from resnet_lib.probes import block_parts

x = torch.randn(256, 12, generator=torch.Generator().manual_seed(0))
y = torch.arange(256) % 10


# --- 01: start at the identity --------------------------------------------------------


def start(lift=3.0, scale=1.0, layers=slice(1, -1)):
    @torch.no_grad()
    def change(net):
        for norm, _, linear in net[layers]:
            norm.bias.fill_(lift)
            linear.weight.copy_(scale * torch.eye(64))
            linear.bias.fill_(-lift)

    return change


def longer(net):
    start()(net)
    net.append(nn.Identity())


def scrambled(net):
    start()(net)
    with torch.no_grad():
        for layer in net[1:-1]:
            layer[2].weight.copy_(torch.eye(64).roll(1, 0))


def test_an_identity_start_is_trained_beside_a_random_one(says):
    verdict, line = says(checks.check_identity_start, start(), x, y)
    assert verdict
    errors = [int(number) for number in re.findall(r"(\d+) %", line)]
    assert len(errors) == 3 and "residual" in line
    assert all(0 < error <= 100 for error in errors[:2])
    assert errors[2] < errors[0]


STARTS = {
    "changes nothing": lambda net: None,
    "other layers": longer,
    "the same to every image": start(scale=0.0),
    "loses negative numbers": start(lift=0.0),
    "does not pass on": scrambled,
    "layer 30": start(layers=slice(1, -2)),
}


def test_a_wrong_start_is_told_what_it_loses(told_apart):
    told_apart(lambda answer: checks.check_identity_start(answer, x, y), STARTS)


# --- 02: y by hand --------------------------------------------------------------------


def rows(*row):
    return lambda: [[0] * 4, list(row), list(row), [0] * 4]


def test_the_mirror_image_is_right(says):
    verdict, line = says(checks.check_predicted_block, rows(0, 0, 3, 0))
    assert verdict and "mirror" in line


PREDICTIONS = {
    "the first kernel": rows(0, 3, 0, 0),
    "the last ReLU is missing": rows(0, -1, 3, 0),
    "this is F(x)": rows(0, -2, 2, 0),
    "after the addition, not before": rows(0, 1, 3, 0),
    "x has not been added": rows(0, 0, 2, 0),
    "rows and columns": lambda: [[0] * 4, [0] * 4, [0, 3, 3, 0], [0] * 4],
    "4×4": lambda: [[0, 0, 3, 0]],
    "four rows": lambda: [[0] * 4, [1]],
    "−1, 0, 1, 0": rows(9, 9, 9, 9),
}


def test_a_wrong_prediction_is_told_the_step(told_apart):
    told_apart(checks.check_predicted_block, PREDICTIONS)


# --- 02: what the last ReLU takes -----------------------------------------------------


def shares(net, images):
    parts = block_parts(net, images).values()
    return [(part.sum < 0).float().mean().item() for part in parts]


@torch.no_grad()
def step_by_step(net, images):
    found, h = [], net.bn1(net.conv1(images)).relu()
    for block in (*net.layer1, *net.layer2, *net.layer3):
        total = block.residual(h) + block.shortcut(h)
        found.append((total < 0).float().mean().item())
        h = total.relu()
    return found


@pytest.mark.parametrize("answer", [shares, step_by_step])
def test_right_shares_pass(says, answer):
    assert says(checks.check_clipped_shares, answer)[0]


SHARES = {
    "percents": lambda net, images: [100 * share for share in shares(net, images)],
    "keeps": lambda net, images: [1 - share for share in shares(net, images)],
    "share of F(x) below zero": lambda net, images: [
        (part.f < 0).float().mean().item() for part in block_parts(net, images).values()
    ],
    "last block stands first": lambda net, images: shares(net, images)[::-1],
    "training mode": lambda net, images: step_by_step(net.train(), images),
    "6 blocks and your list 2": lambda net, images: shares(net, images)[:2],
    "not float": lambda net, images: 0.5,
    "the numbers are wrong": lambda net, images: [0.5] * 6,
    "counts": lambda net, images: [
        (part.sum < 0).sum().item() for part in block_parts(net, images).values()
    ],
}


def test_wrong_shares_are_told_what_they_are(told_apart):
    told_apart(checks.check_clipped_shares, SHARES)


# --- 05: what makes the first gradient explode ----------------------------------------


def measured(shallow=1.1, deep=20.0, bare=0.5):
    table = {(8, True): shallow, (32, True): deep, (32, False): bare}
    return lambda layers, batch_norm: table[layers, batch_norm]


def test_a_gradient_ratio_is_told_with_and_without_bn(says):
    verdict, line = says(checks.check_gradient_ratio, measured())
    assert verdict and "1.1 at 8 layers to 20 at 32" in line and "0.5 at 32" in line


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (measured(bare=float("nan")), "above 0, not nan"),
        (measured(deep=0.05), "the last one below it"),
        (measured(deep=1.2), "in training mode, and fresh"),
        (measured(deep=500.0), "not its square"),
        (measured(bare=19.0), "was every BN taken out"),
    ],
)
def test_a_wrong_gradient_ratio_gets_its_hint(says, answer, hint):
    verdict, line = says(checks.check_gradient_ratio, answer)
    assert not verdict and hint in line
