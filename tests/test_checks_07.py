"""The clinic: wrong answers to its exercises, its sixteen faults, its procedure."""

import math
import re
import warnings
from functools import partial

import checks
import numpy as np
import pytest
import torch
import torchvision
from checks import patients
from checks.patients import BEDS, PATIENTS, healthy, late_relu
from torch import nn

from resnet_lib import get_model, learning_rate_at
from resnet_lib.datasets import load_digits

# --- 3: the learning rate -------------------------------------------------------------


def rates(recipe, warmup, longer=0, late=0, low=lambda i: 1.0):
    """The schedule, with a warm-up `longer` and drops `late` by so many updates."""
    return [
        recipe.warmup_lr * low(i)
        if i < warmup + longer
        else learning_rate_at(i - late, recipe)
        for i in range(recipe.iterations)
    ]


def stuck(recipe, warmup):
    factor = recipe.warmup_lr / recipe.lr
    return [factor * learning_rate_at(i, recipe) for i in range(recipe.iterations)]


def overwritten(recipe, warmup):
    return [
        recipe.warmup_lr if i < warmup else recipe.lr for i in range(recipe.iterations)
    ]


def one_drop(recipe, warmup):
    return [max(rate, 0.1 * recipe.lr) for rate in rates(recipe, warmup)]


def typed_in(recipe, warmup):
    found = [recipe.warmup_lr] * warmup + [0.1] * (32 - warmup) + [0.01] * 16
    return (found + [0.001] * recipe.iterations)[: recipe.iterations]


def half_way(recipe, warmup):
    found = rates(recipe, warmup)
    found[warmup + 4] = recipe.lr / 2
    return found


def told_by_the_rate(recipe, warmup):
    found = rates(recipe, warmup)
    over = [
        i >= warmup and math.isclose(r, recipe.warmup_lr) for i, r in enumerate(found)
    ]
    return [recipe.lr if wrong else r for r, wrong in zip(found, over, strict=True)]


RATES = {
    "number of the update": told_by_the_rate,
    "who writes the full rate back": stuck,
    "the warm-up is gone": lambda r, w: rates(r, w, longer=-w),
    "wipes out": overwritten,
    "8 updates late": lambda r, w: rates(r, w, late=w),
    "one update late": lambda r, w: rates(r, w, longer=1),
    "one update early": lambda r, w: rates(r, w, longer=-1),
    "climbs or falls": lambda r, w: rates(r, w, low=lambda i: (i + 1) / w),
    "off by one": lambda r, w: rates(r, w, late=1),
    "divides by 10": one_drop,
    "64 updates": lambda r, w: rates(r, w)[1:],
    "other numbers": typed_in,
    "grey curve": half_way,
    "list of numbers": lambda r, w: None,
}


# --- 6: the report --------------------------------------------------------------------


def column(history, name):
    return [row[name] for row in history]


def error_where(history, name):
    return min(history, key=lambda row: row[name])["test_error"]


def whichever_is_smaller(history):
    return min(history[-1]["test_error"], error_where(history, "validation_error"))


REPORTS = {
    "smallest of all": lambda h: min(column(h, "test_error")),
    "shorter window": lambda h: min(column(h, "test_error")[-3:]),
    "test loss": lambda h: error_where(h, "test_loss"),
    "a validation error": lambda h: min(column(h, "validation_error")),
    "training images": lambda h: error_where(h, "train_error"),
    "average": lambda h: sum(column(h, "test_error")) / len(h),
    "first row": lambda h: h[0]["test_error"],
    "largest": lambda h: max(column(h, "test_error")),
    "accuracy": lambda h: 1 - h[-1]["test_error"],
    "per cent": lambda h: 100 * h[-1]["test_error"],
    "neither": lambda h: h[-2]["test_error"] + 1e-4,
    "got dict": lambda h: h[-1],
    "changes from run to run": whichever_is_smaller,
}


# --- the exercises --------------------------------------------------------------------


def says_of(beds):
    return lambda: beds


WRONG_BEDS = {
    "a dict from the": [says_of(BEDS["A"]), says_of({"A": BEDS["A"]})],
    "no patient of this ward": says_of(BEDS | {"A": "flu"}),
    "is not healthy": says_of(BEDS | {"A": "healthy"}),
    "has nothing": says_of(BEDS | {"B": "flat_rate"}),
    "no bed is right": says_of(dict.fromkeys(BEDS, "best_epoch")),
    "1 of 4": says_of(BEDS | {"A": "cropped_test"}),
}
RIGHT_REPORTS = [
    lambda h: h[-1]["test_error"],
    lambda h: error_where(h, "validation_error"),
]
EXERCISES = [
    (checks.check_beds, WRONG_BEDS, [says_of(BEDS)]),
    (checks.check_repaired_rates, RATES, [rates]),
    (checks.check_repaired_report, REPORTS, RIGHT_REPORTS),
]


@pytest.mark.parametrize(("check", "wrong", "right"), EXERCISES)
def test_answers_are_told_apart(told_apart, check, wrong, right):
    told_apart(check, wrong, *right)


# --- the ward -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.mark.parametrize("name", PATIENTS)
def test_each_fault_is_caught_by_its_measurement_and_the_healthy_case_is_not(
    name, digits
):
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


# --- examine --------------------------------------------------------------------------

# The word by which `examine` names a fault, from the network and its batch alone.
NAMED = {
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
# And with the rates, the test and the report.
TOLD = {
    "flat_rate": "rate",
    "stuck_warmup": "rate",
    "cropped_test": "random",
    "no_eval": "eval()",
    "best_epoch": "report",
}


def more(case):
    """What a reader can give beside the network and the batch."""

    def judge(x):
        pixels = x * case.normalisation.std + case.normalisation.mean
        return case.judge(pixels.round().clamp(0, 255).to(torch.uint8))

    return {"rates": case.rates, "judge": judge, "report": case.report}


@pytest.mark.parametrize("name", [*NAMED, *TOLD])
def test_examine_names_the_fault(name, digits):
    case = PATIENTS[name].cases(digits)[1]
    given = more(case) if name in TOLD else {}
    (odd,) = checks.examine(case.net, case.batch(600), **given).odd
    assert (NAMED | TOLD)[name] in odd


@pytest.mark.parametrize("base", [healthy, late_relu])
def test_examine_finds_nothing_in_a_healthy_case(base, digits):
    case = base(digits)
    found = checks.examine(case.net, case.batch(600), **more(case))
    assert not found.odd and len(found.fine) > 8


def pooled():
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
    middle = (nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    last = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return nn.Sequential(first, *middle, second, *last)


OTHERS = ("resnet18", "mobilenet_v2", "squeezenet1_0")
SOUND = {name: partial(get_model, name) for name in ("resnet18", "plain20")}
SOUND |= {
    f"{n}'": partial(getattr(torchvision.models, n), num_classes=10) for n in OTHERS
}
SOUND |= {"with pooling": pooled}


@pytest.mark.parametrize("name", SOUND)
def test_examine_finds_nothing_in_sound_nets(name, digits):
    found = checks.examine(SOUND[name](), healthy(digits).batch(600))
    assert not found.odd
    assert not [line for line in found.unknown if "stopped" in line]


def leaving(x):
    raise SystemExit("from a model")


def exits():
    net = get_model("resnet8")
    net.fc.forward = leaving
    return net


IMAGES = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
HOLED = IMAGES.clone()
HOLED[3] = torch.nan


@pytest.mark.parametrize(
    ("model", "batch", "words"),
    [
        (None, IMAGES, "a NoneType is no network"),
        (nn.Linear(3, 2), IMAGES, "stopped with"),
        (get_model("resnet20"), "images", "str is no tensor of images"),
        (get_model("resnet20"), [IMAGES], "list is no tensor of images"),
        (get_model("resnet20"), load_digits(), "Dataset is no tensor of images"),
        (get_model("resnet20"), load_digits().train, "Images is no tensor"),
        (get_model("resnet20"), (IMAGES > 0).byte(), "the images are torch.uint8"),
        (get_model("resnet20"), (IMAGES[:0], torch.zeros(0)), "no images in the batch"),
        (get_model("resnet20"), HOLED, "some pixels are not finite"),
        (exits(), IMAGES, "stopped with SystemExit: from a model"),
    ],
)
def test_examine_never_raises_and_names_what_is_odd(model, batch, words):
    found = checks.examine(model, batch)
    assert "Odd:" in str(found) and re.search(words, str(found))
    assert len(found.odd) <= 1  # and nothing that follows from it


def test_examine_takes_arrays():
    net, labels = get_model("resnet8"), np.arange(64) % 10
    found = checks.examine(net, (IMAGES.double().numpy(), labels))
    assert str(found) == str(checks.examine(net, (IMAGES, torch.tensor(labels))))


class Keeps(nn.Module):
    """Its last answer cannot be copied."""

    def __init__(self):
        super().__init__()
        self.net = get_model("resnet8")
        self.last = None

    def forward(self, x):
        self.last = self.net(x)
        return self.last


def kept():
    net = Keeps()
    net(IMAGES[:2])
    return net


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in use
        return torch.jit.script(get_model("resnet8"))


@pytest.mark.parametrize("labels", ["a", 1, -1, 0.5, None])
@pytest.mark.parametrize("build", [partial(get_model, "resnet8"), kept, scripted])
def test_examine_leaves_the_model_as_it_was(build, labels):
    net, batch = build().eval(), (IMAGES.clone(), [labels] * 64)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    found = checks.examine(net, batch)
    after = net.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not net.training and all(p.grad is None for p in net.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(batch[0], IMAGES)
    assert ("cannot be copied" in str(found)) == (build is kept)
