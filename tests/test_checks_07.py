"""The clinic: its sixteen faults, and its procedure on other networks."""

import sys

import checks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checks import patients
from checks.patients import PATIENTS, healthy, late_relu
from torch import Tensor, nn
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


class NormalisesFirst(nn.Module):
    """A pre-activation block: a bare projection, or zeros for the new channels."""

    def __init__(self, channels: int, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 16, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        f = self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())
        padding = (0, 0, 0, 0, 0, f.shape[1] - x.shape[1])
        return f + (F.pad(x, padding) if self.shortcut is None else self.shortcut(x))


def test_examine_finds_nothing_in_sound_nets(digits):
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
    middle = (nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    last = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    pooled, batch = nn.Sequential(first, *middle, second, *last), healthy(digits).batch
    theirs = [models.resnet18, models.mobilenet_v2, models.squeezenet1_0]
    theirs = [build(num_classes=10) for build in theirs]
    certain = nn.Sequential(*pooled, nn.LogSoftmax(1))  # harmless before either loss
    silent = get_model("resnet20")
    for block in silent.modules():
        if hasattr(block, "bn2"):
            nn.init.zeros_(block.bn2.weight)
    strided = (nn.Conv2d(8, 16, 3, stride=2, padding=1), *last)
    strided = nn.Sequential(first, nn.ReLU(), *strided)
    named = models.resnet50(num_classes=10)
    named.name = "resnet50"
    before = (NormalisesFirst(8), NormalisesFirst(16, nn.Conv2d(16, 16, 1)))
    before = nn.Sequential(first, *before, *last)
    theirs += [nn.Sequential(nn.Upsample(64), models.resnet18(num_classes=10)), named]
    ours = [get_model("resnet18"), get_model("plain20"), silent]
    for net in (pooled, certain, strided, before, *ours, *theirs):
        found = checks.examine(net, batch(600))
        assert not found.odd, type(net)
        assert not [line for line in found.unknown if "stopped" in line], type(net)


def test_examine_takes_rare_classes_and_small_rates(digits):
    x, y = healthy(digits).batch(600)
    # Few of nine digits, and many ones, which the nearest mean often misses.
    few = [torch.where(y == digit)[0][:5] for digit in range(10) if digit != 1]
    rare = torch.cat([*few, torch.where(y == 1)[0].repeat(9)])[:600]
    adam = [3e-4 * (1 - i / 240) for i in range(240)]
    found = checks.examine(get_model("resnet8"), (x[rare], y[rare]), rates=adam)
    assert not found.odd and "usual for Adam" in str(found)


@pytest.mark.parametrize("build", [models.mobilenet_v2, models.resnet18])
def test_examine_names_a_missing_eval_in_other_nets(build, digits):
    net = build(num_classes=10).train()
    with torch.no_grad():
        found = checks.examine(net, healthy(digits).batch(600), judge=net)
    (odd,) = found.odd
    assert "eval()" in odd and "as `judge`" not in str(found)


def test_examine_names_a_larger_map_in_the_middle_and_a_strided_bottleneck(digits):
    wide, batch = get_model("plain20"), healthy(digits).batch(600)
    wide.layer2[0].conv1.padding = (2, 2)
    (odd,) = checks.examine(wide, batch).odd
    assert "padding" in odd
    small = models.resnet50(num_classes=10)
    small.conv1, small.maxpool = nn.Conv2d(3, 64, 3, padding=1), nn.Identity()
    small.layer1[0].conv2.stride = small.layer1[0].downsample[0].stride = (2, 2)
    (odd,) = checks.examine(small, batch).odd
    assert "stride" in odd


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
