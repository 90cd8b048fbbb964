"""The judges of experiments and trainings: what passes, and what gets which hint."""

import re

import checks
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import BasicBlock
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


STARTS = {
    "changes nothing": lambda net: None,
    "other layers": longer,
    "the same to every image": start(scale=0.0),
    "loses negative numbers": start(lift=0.0),
    "does not pass on": scrambled,
    "layer 30": start(layers=slice(1, -2)),
}


# --- 02: y by hand --------------------------------------------------------------------


def rows(*row):
    return lambda: [[0] * 4, list(row), list(row), [0] * 4]


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


# --- 05: what makes the first gradient explode ----------------------------------------


def measured(shallow=1.1, deep=20.0, bare=0.5):
    table = {(8, True): shallow, (32, True): deep, (32, False): bare}
    return lambda layers, batch_norm: table[layers, batch_norm]


RATIOS = {
    "above 0, not nan": measured(bare=float("nan")),
    "the last one below it": measured(deep=0.05),
    "in training mode, and fresh": measured(deep=1.2),
    "not its square": measured(deep=500.0),
    "was every BN taken out": measured(bare=19.0),
}


# --- 03: silent branches --------------------------------------------------------------


def zeroed(*names: str):
    def silence(net):
        for block in net.modules():
            if isinstance(block, BasicBlock):
                for name in names:
                    nn.init.zeros_(block.get_parameter(name))

    return silence


def every_norm(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)


def more_layers(net):
    net.extra = nn.Linear(1, 1)


def too_much(net):
    zeroed("bn2.weight")(net)
    nn.init.ones_(net.layer1[0].bn1.bias)


SILENCES = {
    "nothing has changed": lambda net: None,
    "gained parameters": more_layers,
    "silence a shortcut": every_norm,
    "still adds something": lambda net: nn.init.zeros_(net.fc.weight),
    "silent for ever": zeroed("bn1.weight"),
    "one parameter per block": too_much,
}


# --- 04: a whole loop -----------------------------------------------------------------


def training(slip: str = ""):
    """The right loop with one slip in it."""

    def run(net, batches, rates):
        settings = {"momentum": 0.9, "weight_decay": 1e-4}
        settings |= {"no momentum": {"momentum": 0}}.get(slip, {})
        settings |= {"no decay": {"weight_decay": 0}}.get(slip, {})
        optimizer = torch.optim.SGD(net.parameters(), rates[0], **settings)
        first, losses = next(batches) if slip == "one batch" else None, []
        net.train(slip != "eval")
        for rate in rates:
            if slip != "first rate":
                optimizer.param_groups[0]["lr"] = rate
            images, labels = first or next(batches)
            loss = F.cross_entropy(net(images), labels)
            if slip != "keeps gradients":
                optimizer.zero_grad()
            loss.backward()
            if slip != "no step":
                optimizer.step()
            losses.append(loss if slip == "tensors" else loss.item())
        return losses[:-1] if slip == "too few" else losses

    return run


TRAININGS = {
    "no momentum": training("no momentum"),
    "no weight decay": training("no decay"),
    "sees the first batch": training("one batch"),
    "evaluation mode": training("eval"),
    "made with the first rate": training("first rate"),
    "gradients add up": training("keeps gradients"),
    "weights are as before": training("no step"),
    "take `.item()`": training("tensors"),
    "a list of four is wanted": training("too few"),
}


# --- 04: four curves, one temperature -------------------------------------------------

RIGHT = {
    "A": "the rate is too small",
    "B": "it is time for a smaller rate",
    "C": "it learns by heart",
    "D": "the rate is too large",
}


def test_four_diagnoses(says):
    assert says(checks.check_curves, lambda: dict(RIGHT))[0]
    for name in RIGHT:
        for wrong in set(RIGHT.values()) - {RIGHT[name]}:
            verdict, hint = says(
                checks.check_curves, lambda n=name, w=wrong: RIGHT | {n: w}
            )
            assert not verdict and hint.startswith(f"✗ Not yet: {name}: ")
    for answer in (None, {}, RIGHT | {"A": "bad luck"}):
        assert not says(checks.check_curves, lambda a=answer: a)[0]


def least(logits, labels):
    grid = torch.logspace(-1, 1, 200)
    losses = [F.cross_entropy(logits / t, labels) for t in grid]
    return grid[torch.stack(losses).argmin()].item()


def overwritten(logits, labels):
    best = least(logits, labels)
    logits /= best
    return best


TEMPERATURES = {
    "divided by T": lambda logits, labels: 1 / least(logits, labels),
    "Try a grid": lambda logits, labels: 1.0,
    "0.6 times as large": lambda logits, labels: 2.0,
    "above 0": lambda logits, labels: -1.0,
    "changes the logits": overwritten,
}


# --- all of them ----------------------------------------------------------------------


def check_start(answer):
    return checks.check_identity_start(answer, x, y)


# A judge, wrong answers, right ones, and what the praise says.
EXERCISES = [
    (check_start, STARTS, [start()], r"\d %.*\d % from yours.*residual.*\d %"),
    (checks.check_predicted_block, PREDICTIONS, [rows(0, 0, 3, 0)], "mirror"),
    (checks.check_clipped_shares, SHARES, [shares, step_by_step], ""),
    (checks.check_gradient_ratio, RATIOS, [measured()], "1.1 at 8 .* 20 at 32.*0.5 at"),
    (
        checks.check_silent_start,
        SILENCES,
        [zeroed("bn2.weight")],
        r"at 2\.[2-4].*before at (2\.[5-9]|[3-9]\.|\d\d)",
    ),
    (checks.check_training, TRAININGS, [training()], ""),
    (checks.check_temperature, TEMPERATURES, [least], ""),
]


@pytest.mark.parametrize(("check", "wrong", "right", "praise"), EXERCISES)
def test_answers_are_told_apart(
    says, told_apart, monkeypatch, check, wrong, right, praise
):
    monkeypatch.setattr(checks.notebook_01, "UPDATES", 45)
    told_apart(check, wrong, *right[1:])
    verdict, line = says(check, right[0])
    assert verdict and re.search(praise, line), line
