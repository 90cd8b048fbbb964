"""The clinic: its sixteen faults, and its procedure on other networks."""

import sys

import checks
import numpy as np
import pytest
import torch
from checks import patients
from checks.patients import PATIENTS, healthy, late_relu
from torch import nn
from torchvision import models

from resnet_lib import get_model
from resnet_lib.datasets import load_digits


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.mark.parametrize("name", PATIENTS)
def test_each_fault_is_caught_and_the_healthy_case_is_not(name, digits):
    patient = PATIENTS[name]
    well, sick = patient.cases(digits, seed=3, updates=8)
    assert not patient.caught(patient.measure(well))
    assert patient.caught(patient.measure(sick))


def test_the_record_has_every_patient_and_says_the_same():
    record = patients.recorded()
    assert set(record["runs"]) == {"healthy", "late_relu", *PATIENTS}
    for name, patient in PATIENTS.items():
        assert len(record["measured"][name]) == 3
        for well, sick in record["measured"][name]:
            assert not patient.caught(well) and patient.caught(sick)
    for rows in record["runs"].values():
        assert rows[-1]["iteration"] == patients.UPDATES


@pytest.mark.parametrize("name", ["relu_first", "wide_stem", "no_eval"])
def test_a_sick_case_trains_without_a_word(name, digits):
    rows = patients.train(PATIENTS[name].cases(digits, updates=2)[1], 20, 1)
    assert len(rows) == 2 and rows[-1]["train_loss"] > 0


# The word by which `examine` names a fault, from the network and its batch alone,
SEEN = {
    "relu_first": "ReLU before",
    "in_place": "in place",
    "one_map": "broadcasting",
    "bare_projection": "projection",
    "stride_everywhere": "stride",
    "miscounted": "depth",
    "wide_stem": "padding",
    "foreign_normalisation": "normalisation",
    "double_softmax": "softmax",
    "shuffled_labels": "labels",
}
# and with the rates, the test and the report.
TOLD = {"flat_rate": "rate", "stuck_warmup": "rate", "best_epoch": "report"}
TOLD |= {"cropped_test": "random", "no_eval": "eval()"}


def more(case):
    """What a reader can give beside the network and the batch."""

    def judge(x):
        pixels = x * case.normalisation.std + case.normalisation.mean
        return case.judge(pixels.round().clamp(0, 255).to(torch.uint8))

    return {"rates": case.rates, "judge": judge, "report": case.report}


@pytest.mark.parametrize("name", SEEN | TOLD)
def test_examine_names_the_fault(name, digits):
    case = PATIENTS[name].cases(digits)[1]
    given = more(case) if name in TOLD else {}
    (odd,) = checks.examine(case.net, case.batch(600), **given).odd
    assert (SEEN | TOLD)[name] in odd


def test_examine_knows_an_identity_by_what_it_does(digits):
    case = PATIENTS["relu_first"].cases(digits)[1]
    for block in case.net.modules():
        if isinstance(getattr(block, "shortcut", None), nn.Identity):
            block.shortcut = nn.Sequential()
    (odd,) = checks.examine(case.net, case.batch(600)).odd
    assert "ReLU before" in odd


@pytest.mark.parametrize("base", [healthy, late_relu])
def test_examine_finds_nothing_in_a_healthy_case(base, digits):
    case = base(digits)
    found = checks.examine(case.net, case.batch(600), **more(case))
    assert not found.odd and len(found.fine) > 8


def test_examine_finds_nothing_in_sound_nets(digits):
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
    middle = (nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    last = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    pooled, batch = nn.Sequential(first, *middle, second, *last), healthy(digits).batch
    theirs = [models.resnet18, models.mobilenet_v2, models.squeezenet1_0]
    theirs = [build(num_classes=10) for build in theirs]
    certain = nn.Sequential(*pooled, nn.LogSoftmax(1))  # harmless before either loss
    for net in (pooled, certain, get_model("resnet18"), get_model("plain20"), *theirs):
        found = checks.examine(net, batch(600))
        assert not found.odd, type(net)
        assert not [line for line in found.unknown if "stopped" in line], type(net)


IMAGES = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NET, exits = get_model("resnet20"), nn.Identity()
exits.forward = lambda x: sys.exit("from a model")


@pytest.mark.parametrize(
    ("model", "batch", "words"),
    [
        (None, IMAGES, "a NoneType is no network"),
        (nn.Linear(3, 2), IMAGES, "stopped with"),
        (NET, "images", "str is no tensor of images"),
        (NET, [IMAGES], "list is no tensor of images"),
        (NET, load_digits().train, "Images is no tensor"),
        (NET, (IMAGES > 0).byte(), "the images are torch.uint8"),
        (NET, (IMAGES[:0], torch.zeros(0)), "no images in the batch"),
        (NET, IMAGES.masked_fill(IMAGES > 3, torch.nan), "some pixels are not finite"),
        (exits, IMAGES, "stopped with SystemExit: from a model"),
    ],
)
def test_examine_never_raises_and_names_what_is_odd(model, batch, words):
    found = checks.examine(model, batch)
    assert "Odd:" in str(found) and words in str(found)
    assert len(found.odd) <= 1  # and nothing that follows from it


def test_examine_takes_arrays():
    net, labels = get_model("resnet8"), np.arange(64) % 10
    found = checks.examine(net, (IMAGES.double().numpy(), labels))
    assert str(found) == str(checks.examine(net, (IMAGES, torch.tensor(labels))))


def kept(net):
    """Its last answer cannot be copied."""
    net.register_forward_hook(lambda net, _, out: setattr(net, "last", out))
    net(IMAGES[:2])
    return net


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # in use all the same
@pytest.mark.parametrize("labels", ["a", 1, -1, 0.5, None])
@pytest.mark.parametrize("kind", [nn.Module.eval, kept, torch.jit.script])
def test_examine_leaves_the_model_as_it_was(kind, labels):
    net, batch = kind(get_model("resnet8")).eval(), (IMAGES.clone(), [labels] * 64)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    found = checks.examine(net, batch)
    after = net.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not net.training and all(p.grad is None for p in net.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(batch[0], IMAGES)
    assert ("cannot be copied" in str(found)) == (kind is kept)
