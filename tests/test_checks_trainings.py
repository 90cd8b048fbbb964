"""The judges of experiments in 03 and 04: what passes, and what gets which hint."""

import checks
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import BasicBlock

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


def test_silent_branches_that_can_learn_are_praised_with_the_losses(says):
    verdict, line = says(checks.check_silent_start, zeroed("bn2.weight"))
    silent, loud = (
        float(part.split()[0].strip(",;"))
        for part in (line.split("starts at ")[1], line.split("before at ")[1])
    )
    assert verdict and 2.2 < silent < 2.5 < loud


def test_other_silences_are_told_apart(told_apart):
    told_apart(checks.check_silent_start, SILENCES)


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


def test_a_whole_loop_is_praised(says):
    assert says(checks.check_training, training())[0]


def test_slips_in_the_loop_are_told_apart(told_apart):
    told_apart(checks.check_training, TRAININGS)


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


def test_the_temperature_with_the_least_loss(says):
    assert says(checks.check_temperature, least)[0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda logits, labels: 1 / least(logits, labels), "divided by T"),
        (lambda logits, labels: 1.0, "Try a grid"),
        (lambda logits, labels: 2.0, "0.6 times as large"),
        (lambda logits, labels: -1.0, "above 0"),
        (overwritten, "changes the logits"),
    ],
)
def test_other_temperatures(says, answer, words):
    verdict, hint = says(checks.check_temperature, answer)
    assert not verdict and words in hint
