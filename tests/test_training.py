"""A recipe and a call that can be carried out, and one update: as a plain loop does it,
and as a GPU would replay it.

No GPU is needed. A recorder that simply runs the step again stands in for CUDA graphs;
what it cannot show, that a step never waits for the device and never moves a tensor,
is shown on the CPU.
"""

import contextlib
import copy
import enum
import itertools
import os
import platform
import random
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import DATA, bits, small_net
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_lib import (
    BasicBlock,
    Batches,
    Images,
    Normalisation,
    ResNet,
    evaluate,
    fit,
)
from resnet_lib import device as devices
from resnet_lib.fit import expected_minutes
from resnet_lib.recipe import PAPER, QUICK, SMOOTHED, Recipe, learning_rate_at
from resnet_lib.runs import Run, load_run, read_json
from resnet_lib.train import parser, recipe_from
from resnet_lib.training import Training

RECIPE = replace(
    PAPER.scaled(8), batch_size=16, validation=0, precision="fp32", log_every=4
)
NORM = Normalisation.of(DATA.train.images)

# --- a recipe is checked when it is made ----------------------------------------------

RECORDED = {
    "resnet18-paper-64k": PAPER,
    "resnet18-smoothed-32k": SMOOTHED.scaled(32_000),
    "resnet18-quick-24k-bf16": replace(QUICK, precision="bf16"),
}


def test_a_named_recipe_is_what_the_recorded_runs_carried_out():
    for name, recipe in RECORDED.items():
        assert Recipe(**load_run(name).recipe) == recipe


def test_scaled_moves_the_steps_and_nothing_else():
    moved = {"milestones": (2_400,), "small_until": (4_200, 9_600)}
    half = replace(QUICK, iterations=12_000, **moved)
    assert QUICK.scaled(12_000) == half
    options = ["--recipe=quick", "--iterations=12000", "--lr=1"]  # as the command does
    assert recipe_from(parser().parse_args(options)) == replace(half, lr=1)
    assert learning_rate_at(12_001, half) == 0  # past the end it does not rise again


WHOLE, NUMBER, FLOAT = "give a whole number", "a finite number", "give what float32"
SEVERAL = r"give several whole numbers, as in \(10, 20\)"
BAD_FIELDS = [  # a field, what is said of it, and the values that it is said of
    ("iterations", f"{WHOLE}, 1 or more", 3906.25, 3.5, True, "64000", 0),
    ("batch_size", f"{WHOLE}, 1 or more", 8.0, 0),
    ("log_every", f"{WHOLE}, 1 or more", -2.5, 0),
    ("eval_every", f"{WHOLE}, 1 or more", None, 0),
    ("validation", f"{WHOLE}, 0 or more", 0.1, -5),
    ("lr", NUMBER, b"0.1", np.True_, np.nan, 10**400, torch.ones(2)),
    ("lr", "give a number above 0", 0),
    ("weight_decay", "give 0 or more", -1e-4),
    *((name, FLOAT, 1e300) for name in ("lr", "warmup_lr", "weight_decay")),
    ("warmup_lr", "give a number above 0", 0, -1),
    ("momentum", r"give 0 \(off\) or less than 1", 1.0),
    ("label_smoothing", r"give 0 \(off\) or less than 1", 1.0),
    ("nesterov", "give True or False", "false"),
    ("milestones", SEVERAL, 5, "57", {10: 0.1}, {10, 20}, b"\5", itertools.count()),
    ("milestones", rf"\[1\] is .*: {WHOLE}, 0 or more", (1, 1.5), (1, -1)),
    *((name, "in rising order", (5, 3)) for name in ("milestones", "small_until")),
    ("small_until", "from 0 to the end, 64000", (64_001,)),
    ("schedule", "choose from 'steps', 'tri", 3, np.array(["steps"]), Path("steps")),
    ("precision", "choose from 'auto', 'bf16', 'tf32', 'fp32'", "fp8"),
    ("seed", rf"{WHOLE}, 0 or more, below 2\*\*63", "3", -1, 2**63),
]
BAD_PAIRS = [  # what is said, and fields that cannot be had together
    ("nesterov needs a momentum above 0", {"momentum": 0, "nesterov": True}),
    ("for each of small_until", {"small_until": (9,), "small_size": (8, 8)}),
    ("of pixels, 1 or more", {"small_until": (9,), "small_size": (0,)}),
    *(
        ("has one, its peak", {"schedule": "triangular", "milestones": peaks})
        for peaks in ((20, 50), (0,), (64_000,))
    ),
]


def test_a_recipe_that_no_training_could_follow_is_refused(refused):
    for name, told, *values in BAD_FIELDS:
        for value in values:
            refused(rf"^Recipe\.{name}.*{told}", replace, PAPER, **{name: value})
    for told, fields in BAD_PAIRS:
        refused(rf"^Recipe\..*{told}", replace, PAPER, **fields)


def test_the_remedies_for_a_recipe_work(refused):
    for end, peak in {64_000: 12_800, 2: 1, 3: 1}.items():
        refused(rf"milestones=\({peak},\)", replace, QUICK.scaled(end), milestones=())
        assert replace(QUICK.scaled(end), milestones=(peak,))
    told = r"^Recipe\.milestones .* to the end, 20, as scaled\(20\) of a longer"
    refused(told, replace, PAPER, iterations=20)
    assert replace(PAPER, iterations=20, milestones=()).iterations == 20
    assert PAPER.scaled(20).milestones == (10, 15)
    for steps in ([3, 9], np.array([3, 9]), torch.tensor([3, 9]), range(3, 10, 6)):
        assert replace(PAPER, milestones=steps).milestones == (3, 9)
    for none in ([], np.array([]), range(0)):
        assert replace(PAPER, milestones=none).milestones == ()
    named = enum.Enum("Schedule", {"STEPS": "steps"}, type=str).STEPS
    for text in (named, np.str_("steps")):
        assert str(replace(QUICK, schedule=text).schedule) == "steps"
    refused("and 2 iterations or more", QUICK.scaled, 1)
    for recipe in (QUICK, replace(QUICK, milestones=(23_999,))):  # the peak is inside
        assert recipe.scaled(2).milestones == (1,)
    assert replace(QUICK, schedule="steps").scaled(1).iterations == 1
    for bad in (3906.25, 10**400):
        refused(f"{WHOLE}, 1 or more", QUICK.scaled, bad)
    fit(small_net(), DATA, replace(RECIPE, seed=2**63 - 1), progress=False)
    ours = Recipe(iterations=np.int64(20), milestones=(), lr=np.float32(0.5), seed=3)
    assert (type(ours.iterations), ours.lr) == (int, 0.5)


# --- a call that cannot be carried out is refused at once -----------------------------


class Answers(nn.Module):
    """A small network whose answer is changed."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = small_net(), change

    def forward(self, x):
        return self.change(self.net(x))


TYPE, LOUD = "is of type", replace(RECIPE.scaled(2), log_every=1)
SMALL = replace(LOUD, small_until=(2,), small_size=(4,))
WIDE = replace(DATA, train=Images(DATA.train.images[..., :4], DATA.train.labels))
BAD_CALLS = [  # arguments of fit, and what is said
    ({"model": "resnet8"}, f"The model {TYPE} str: give"),
    ({"data": DATA.train}, f"The data {TYPE} Images: give .*Dataset"),
    ({"model": DATA, "data": small_net()}, f"The model {TYPE} Dataset"),
    ({"recipe": "paper"}, f"The recipe {TYPE} str: give .*Recipe"),
    *(({"max_minutes": bad}, "^max_min.*0 or") for bad in (None, "5", np.nan, -1)),
    *(({"checkpoint_seconds": bad}, "^checkpoint_s.*0 or") for bad in (None, np.nan)),
    *(({"snapshots": bad, "run": "r"}, f"^snap.*{SEVERAL}") for bad in (5, True, None)),
    *(
        ({"snapshots": [0, bad], "run": "r"}, rf"^snapshots\[1\] .*{WHOLE} from 0 to 2")
        for bad in (2.5, "1", 3, -1)
    ),
    ({"snapshots": (0, 2)}, "need a folder .* as `run`"),
    ({"run": 5}, "5 is no path"),
    ({"model": small_net(classes=7)}, "Build it with classes=10"),
    ({"model": small_net().half()}, r"torch.float16.*model.float\(\)"),
    ({"model": small_net().double()}, r"torch.float64.*model.float\(\)"),
    ({"model": small_net().requires_grad_(False)}, "are none: .* thaw them with model"),
    ({"model": nn.Flatten()}, "weights to train are none: "),
    ({"recipe": replace(SMALL, small_size=(9,))}, "8 × 8 pixels: it shrinks square"),
    ({"recipe": SMALL, "data": WIDE}, "have 8 × 4 pixels: it shrinks square"),
    ({"model": Answers(lambda x: {"out": x})}, "with a dict. Let its forward"),
    ({"model": Answers(lambda x: (x, x))}, "with a tuple. Let its forward"),
    ({"model": Answers(lambda x: x[:, 0])}, r"of shape \(2,\)\. Let its forward"),
    ({"model": Answers(lambda x: x[:, :, None])}, r"of shape \(2, 10, 1\)\. Let"),
    ({"recipe": replace(LOUD, batch_size=10**8)}, f"^batch_s.*{WHOLE} from 1 to 50000"),
    ({"recipe": replace(LOUD, lr=1e30)}, r"Lower the recipe's lr\.$"),
    ({"recipe": replace(LOUD, weight_decay=1e30)}, r"the recipe's weight_decay\.$"),
    ({"recipe": replace(SMALL, batch_size=1)}, "a batch of 1 leaves it.*2 or more"),
]
REFUSALS = (TypeError, ValueError, FloatingPointError)


def test_a_call_that_cannot_be_is_refused(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    call = {"model": small_net(), "data": DATA, "recipe": LOUD, "device": "cpu"}
    for change, told in BAD_CALLS:
        given = copy.deepcopy(call) | change
        refused(told, fit, **given, progress=False, error=REFUSALS)
    assert not list(tmp_path.iterdir())
    fit(**call, snapshots=(0, 2), run="first", progress=False)  # the remedy
    assert Run(tmp_path / "first").snapshots == [0, 2]
    assert b"\r" not in (tmp_path / "first" / "history.csv").read_bytes()


# --- judging and foretelling ----------------------------------------------------------


def test_evaluate_judges_any_network_and_says_what_it_wants(refused):
    logits = evaluate(nn.Flatten(), DATA.test, NORM).logits
    assert torch.equal(logits, NORM(DATA.test.images).flatten(1))
    call = {"model": small_net(), "data": DATA.test, "normalisation": NORM}
    for told, name, *values in (
        (f"The model {TYPE} str", "model", "net"),
        ("lls 7", "model", small_net(classes=7)),
        (rf"The data {TYPE} Dataset: give .*Images, such as data\.test", "data", DATA),
        (rf"^The norm.* {TYPE} float: give .*Normalisation\.of", "normalisation", 0.5),
        ("batch_size is .*whole number, 1 or more", "batch_size", 0, -1, 2.5),
    ):
        for value in values:
            refused(told, evaluate, **call | {name: value}, error=REFUSALS)


def test_evaluation_is_exact_whatever_the_batch_size_and_leaves_every_mode():
    net, count = small_net(), len(DATA.test)
    net.bn1.eval()  # as a reader freezes it
    whole = evaluate(net, DATA.test, NORM, batch_size=count)
    for size in (1, 7, 1000):
        part = evaluate(net, DATA.test, NORM, batch_size=size)
        assert part.loss == pytest.approx(whole.loss, rel=1e-5)
        assert part.error == whole.error
    right = (whole.predictions == DATA.test.labels).sum()
    assert whole.error == pytest.approx(1 - right.item() / count)
    stop = net.fc.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(net, DATA.test, NORM)  # stopped in the middle
    stop.remove()
    assert net.training and net.fc.training and not net.bn1.training


def test_larger_pictures_are_judged_in_smaller_batches():
    batches = []
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10))
    net.register_forward_pre_hook(lambda _, given: batches.append(len(given[0])))
    for size in (8, 32, 128):
        images = torch.zeros(1_100, 3, size, size, dtype=torch.uint8)
        evaluate(net, Images(images, torch.zeros(1_100, dtype=torch.int64)), NORM)
    assert batches[:4] == [1_000, 100] * 2
    assert 60 < max(batches[4:]) < 65 and sum(batches[4:]) == 1_100


def test_evaluate_brings_images_and_statistics_to_the_model(monkeypatch):
    """A stand-in for a GPU: what is on `meta` has no values to bring back."""
    seen = []

    class Elsewhere(nn.Linear):
        def forward(self, x):
            seen.append(x.device.type)
            return super().forward(x.mean((2, 3)))

    profile = devices.DeviceProfile(torch.device("meta"), "fp32", torch.channels_last)
    monkeypatch.setattr(devices.DeviceProfile, "autocast", lambda self: nullcontext())
    monkeypatch.setattr(devices, "_usable", torch.device)
    for given in (profile, None):  # given, and found where the weights are
        norm = Normalisation.of(DATA.train.images, per_pixel=given is None)
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta"):
            evaluate(Elsewhere(3, 10, device="meta"), DATA.test, norm, given)
    assert set(seen) == {"meta"}


def test_expected_time_is_the_time_of_the_updates(monkeypatch, refused):
    now, pace = 0.0, 0.02  # seconds; a real clock runs on beside other work

    def step(state):
        nonlocal now
        now += pace
        state.model.bn1.bias.data += 1

    monkeypatch.setattr(Training, "step", step)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    net = small_net()
    before, drawn = bits(net), torch.get_rng_state()
    recipe = replace(RECIPE, iterations=3_000, validation=10, eval_every=1_000)
    # 3,000 updates, and three looks at 10 + 20 images, a third of an update each.
    expected = 60 * expected_minutes(net, DATA, recipe) / pace
    assert expected == pytest.approx(3_000 + 3 * 30 / 16 / 3)
    # Half of the updates on a quarter of the pixels: three eighths less.
    recipe = replace(recipe, small_until=(1_500,), small_size=(4,))
    now, pace = 0.0, 2.0
    expected = 60 * expected_minutes(net, DATA, recipe) / pace
    assert expected == pytest.approx(1_875 + 3 * 30 / 16 / 3)
    assert now == 6  # so slow a machine is given two to warm up, and one
    assert torch.equal(torch.get_rng_state(), drawn) and torch.equal(bits(net), before)
    endless = replace(RECIPE, iterations=10**12)  # estimated at once
    assert expected_minutes(net, DATA, endless, "cpu") > 10**6
    told = f"The recipe {TYPE} str"
    refused(told, expected_minutes, net, DATA, "paper", error=TypeError)


# --- one update -----------------------------------------------------------------------


def test_images_are_trained_on_at_their_own_size():
    net, seen = small_net(), []
    smaller = Images(DATA.test.images[..., :4, :4], DATA.test.labels)
    state = Training(net, replace(DATA, test=smaller), RECIPE, "cpu")
    net.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-2:]))
    state.step()
    assert seen == [(8, 8)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fit_is_a_plain_loop_to_the_last_bit(precision):
    recipe = replace(RECIPE, precision=precision)
    layout = {"memory_format": torch.channels_last}
    net, ours = small_net().train().to(**layout), small_net()
    batches = Batches(DATA.train, 16, NORM, recipe.seed)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=1e-4)
    for iteration in range(8):
        optimizer.param_groups[0]["lr"] = learning_rate_at(iteration, recipe)
        images, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = net(images.contiguous(**layout))
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
    fit(ours, DATA, recipe, device="cpu", progress=False)
    assert torch.equal(bits(ours), bits(net))


def test_a_narrow_strided_shortcut_is_kept_from_channels_last():
    """Where it would end the process."""
    nets = {(4, 8): torch.contiguous_format, (8, 16): torch.channels_last}
    for widths, layout in nets.items():
        state = Training(ResNet(widths, (1, 1), "B"), DATA, RECIPE, "cpu")
        assert state.profile.memory_format == layout
        state.step()
    for stride, layout in ((1, torch.channels_last), (4, torch.contiguous_format)):
        net = nn.Sequential(BasicBlock(3, 16, stride, shortcut="B"), nn.Flatten())
        cpu = torch.device("cpu")
        profile = devices.DeviceProfile(cpu, "fp32", torch.channels_last)
        assert profile.suiting(net).memory_format == layout


class Viewing(nn.Module):
    """As many a tutorial has it."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(144, 10)

    def forward(self, x):
        return self.fc(self.conv(x).view(-1, 144))


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv3d(3, 4, (1, 3, 3)), nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.conv(x[:, :, None]).mean((2, 3, 4)))


class Merging(nn.Module):
    """Whose maps of a single picture would pass."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.conv(x).view(-1, 36).mean(1).view(-1, 4))


@pytest.mark.parametrize("net", [Viewing(), Deep(), Merging()])
def test_a_network_that_takes_no_channels_last_is_trained_without(net):
    evaluate(net, DATA.test, NORM)
    fit(net, DATA, RECIPE.scaled(2), device="cpu", progress=False)
    evaluate(net, DATA.test, NORM)


def test_a_fault_of_the_network_is_told_once():
    net = nn.Sequential(nn.Flatten(), nn.Linear(7, 10))
    with pytest.raises(RuntimeError, match="mat1 and mat2") as told:
        fit(net, DATA, RECIPE, device="cpu")
    assert told.value.__context__ is None


def test_everything_lies_where_it_is_said_whatever_the_default():
    net = small_net()
    with torch.device("meta"):
        assert fit(net, DATA, RECIPE, device="cpu", progress=False).finished
        norm = Normalisation.of(DATA.train.images, per_pixel=True)
        evaluate(net, DATA.test, norm)


class NoHostReads(TorchDispatchMode):
    """Fail where a number is read back: there a GPU would be waited for."""

    WAITING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in self.WAITING, function
        return function(*args, **(kwargs or {}))


def test_an_update_reads_no_number_back():
    state = Training(small_net(), DATA, RECIPE, "cpu")
    plan = state.batches.next_plan()
    for size in (8, 4):
        with NoHostReads():
            state.update(plan, size)
    with pytest.raises(AssertionError), NoHostReads():
        state.progress()  # the mode does see reading


def test_a_quiet_run_reads_no_loss_between_rows(monkeypatch):
    reads, window = [], Training._window

    def noted(state):
        reads.append(state.iteration)
        return window(state)

    monkeypatch.setattr(Training, "_window", noted)
    recipe = replace(RECIPE.scaled(25), log_every=22, eval_every=25)
    fit(small_net(), DATA, recipe, progress=False)
    assert reads == [22, 25]


# --- an update that is recorded and replayed ------------------------------------------


@pytest.fixture
def recorder(monkeypatch):
    """A device on which steps are recorded and replayed; counts the recordings."""
    recordings = []

    def record(work, device):
        assert device.type == "cpu"
        recordings.append(work)
        return work

    module = sys.modules["resnet_lib.training"]
    monkeypatch.setattr(module, "can_record", lambda _: True)
    monkeypatch.setattr(devices, "record_cuda_graph", record)
    return recordings


def test_a_replayed_training_is_the_eager_one(recorder):
    """Warm-up leaves no trace, momentum begins as zeros, each call counts once."""
    recipe = replace(RECIPE, small_until=(3,), small_size=(4,))
    eager, replayed, other = (
        Training(small_net(seed), DATA, recipe, "cpu", graphed=graphed)
        for seed, graphed in ((0, False), (0, True), (1, False))
    )
    assert replayed.graphed and not eager.graphed
    rate = replayed.optimizer.param_groups[0]["lr"]
    places, given = set(), set()  # what a recording reads and writes may not move

    def compare(theirs):
        for ours, other in zip(replayed._changing(), theirs._changing(), strict=True):
            assert torch.equal(ours, other)
        places.add(tuple(tensor.data_ptr() for tensor in replayed._changing()))

    for size in (4, 4, 4, 8, 8, 8, 8, 8):
        eager.step()
        replayed.step()
        compare(eager)
        given.add(replayed.graphs[size].given.data_ptr())
    assert len(recorder) == len(given) == 2  # one for each image size
    assert replayed.optimizer.param_groups[0]["lr"] is rate
    assert rate == pytest.approx(learning_rate_at(7, recipe))
    assert replayed.model.bn1.num_batches_tracked == 8
    replayed.add_row()
    other.step()
    replayed.load_state_dict(other.state_dict())
    compare(other)
    (place,) = places
    assert len(place) == len(set(place)) > 50


def test_a_checkpoint_goes_from_cpu_to_gpu_and_back(recorder, monkeypatch):
    gpu = Training(small_net(), DATA, RECIPE, "cpu")
    module = sys.modules["resnet_lib.training"]
    monkeypatch.setattr(module, "can_record", lambda _: False)
    cpu = Training(small_net(1), DATA, RECIPE, "cpu")
    cpu.step()
    rate = gpu.optimizer.param_groups[0]["lr"]
    for here, there in ((cpu, gpu), (gpu, cpu)):
        there.load_state_dict(here.state_dict())
        there.step()
        here.step()
        # The fused kernel rounds otherwise on some processors (AVX512).
        close = {"rtol": 1e-6, "atol": 1e-6}
        torch.testing.assert_close(bits(here.model), bits(there.model), **close)
    (ours,), (theirs,) = gpu.optimizer.param_groups, cpu.optimizer.param_groups
    assert ours["lr"] is rate and rate.ndim == 0 and ours["fused"] is True
    assert isinstance(theirs["lr"], float) and not theirs["fused"]
    (written,) = gpu.state_dict()["optimizer"]["param_groups"]
    assert type(written["lr"]) is float and written["fused"] is None  # for any machine
    assert cpu.iteration == gpu.iteration == 3


def test_a_run_is_replayed_unless_it_is_told_not_to(recorder, monkeypatch):
    graphs, make = [], Training.__init__

    def note(state, *given, **more):
        make(state, *given, **more)
        graphs.append(state.graphs)

    monkeypatch.setattr(Training, "__init__", note)
    for options, count in (({"graphed": False}, 0), ({}, 1)):
        expected_minutes(small_net(), DATA, RECIPE, "cpu", **options)
        assert len(recorder) == count
        fit(small_net(), DATA, RECIPE, device="cpu", progress=False, **options)
        assert len(recorder) == 2 * count
        assert not any(graphs)  # a GPU has its memory back


TOLD = "An update is recorded once, .* graphed=False."
HERE = {"device": "cpu", "progress": False}


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(1)])
def test_a_network_that_draws_lots_is_not_recorded(recorder, draw, refused):
    def drop(block, given, output):  # stochastic depth
        return given[0] if draw() < 0.5 else output

    net = small_net()
    net.layer1[0].register_forward_hook(drop)
    before, told = bits(net), f"random numbers. {TOLD}"
    refused(told, fit, net, DATA, RECIPE, error=RuntimeError, **HERE)
    assert torch.equal(bits(net), before)
    assert fit(net, DATA, RECIPE, graphed=False, **HERE).finished


def test_a_failed_recording_is_told(recorder, monkeypatch, refused):
    fit(nn.DataParallel(small_net()), DATA, RECIPE, **HERE)
    assert not recorder  # its streams cannot be
    fault = Mock(side_effect=RuntimeError("not permitted"))
    monkeypatch.setattr(devices, "record_cuda_graph", fault)
    told = f"{TOLD} Restart the kernel first: .* .not permitted"
    refused(told, fit, small_net(), DATA, RECIPE, error=RuntimeError, **HERE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_replayed_training_is_the_eager_one():
    runs = []
    for graphed in (False, True):
        net = small_net()
        here = evaluate(net, DATA.test, NORM).logits
        there = evaluate(net.cuda(), DATA.test, NORM).logits  # the data are not there
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)
        runs.append(fit(net, DATA, RECIPE, graphed=graphed, progress=False).history)
    for ours, theirs in zip(*runs, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)


# --- where it computes ----------------------------------------------------------------


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_only_where_it_is_native(monkeypatch, native, precision):
    def supported(including_emulation):
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(devices, "_usable", torch.device)
    profile = devices.device_profile(device="cuda")
    assert str(profile) == f"cuda, {precision}, channels_last"
    # With AVX512-BF16 alone it may be slower than fp32.
    for name, there in (("amx_tile", native), ("avx512_bf16", True)):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda yes=there: yes)
    profile = devices.device_profile(device="cpu")
    assert str(profile) == f"cpu, {precision}, channels_last"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this one can compute")
def test_a_gpu_that_cannot_compute_is_passed_over(monkeypatch, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    told = "Device 'cuda' is not usable here"
    with pytest.warns(UserWarning, match=f"{told} .* Going on with the CPU."):
        assert devices.device_profile().device.type == "cpu"
    refused(told, devices.device_profile, device="cuda")


def test_fp32_on_a_gpu_is_no_tf32():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def allowed():
        return cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic

    before = allowed()
    assert before == (True, False, False)  # PyTorch's default is not "fp32"
    for precision in ("fp32", "tf32"):
        device = torch.device("cuda")
        profile = devices.DeviceProfile(device, precision, torch.channels_last)
        with profile.exactly():
            assert allowed() == (precision == "tf32", precision == "tf32", True)
        assert allowed() == before


@pytest.fixture
def kinds_of_fp32():
    """Where PyTorch keeps them, from 2.9 on; afterwards they are as before."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if not hasattr(cudnn, "conv"):
        pytest.skip("older than that")
    places = [cudnn.conv, cudnn.rnn, matmul, torch.backends.mkldnn.matmul]
    before = [place.fp32_precision for place in places]
    yield places
    torch.set_float32_matmul_precision("highest")
    for place, kind in zip(places, before, strict=True):
        place.fp32_precision = kind


@pytest.mark.parametrize("asked", [0, 1, 2, "medium"])
def test_a_gpu_computes_exactly_whatever_was_asked_of_pytorch(asked, kinds_of_fp32):
    def said():
        return [place.fp32_precision for place in kinds_of_fp32]

    if asked == "medium":
        torch.set_float32_matmul_precision(asked)
    else:
        kinds_of_fp32[asked].fp32_precision = ("ieee", "ieee", "tf32")[asked]
    before = said()
    for precision, kind in (("fp32", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")):
        device = torch.device("cuda")
        profile = devices.DeviceProfile(device, precision, torch.channels_last)
        with profile.exactly():
            assert said() == [kind, kind, kind, before[-1]]
        assert said() == before
    if asked == "medium":
        assert torch.get_float32_matmul_precision() == asked


def test_threads_are_chosen_once_and_kept(tmp_path, monkeypatch, capsys):
    module = sys.modules["resnet_lib.fit"]
    monkeypatch.setattr(module, "threads_given", lambda: False)
    before, used = torch.get_num_threads(), []

    def look(rows):
        used.append(torch.get_num_threads())

    recipe = replace(RECIPE, log_every=1)
    # The last two sittings are on a machine with too few cores for that.
    for tried, cores in (
        ({3: 0.1, 1: 0.2}, 4),
        ({1: 0.1, 3: 0.2}, 4),
        ({1: 1, 2: 2}, 2),
        ({2: 1, 1: 2}, 2),
    ):
        monkeypatch.setattr(module, "faster_threads", lambda step, tried=tried: tried)
        monkeypatch.setattr(module, "cores", lambda cores=cores: cores)
        options = {"device": "cpu", "max_minutes": 0, "on_row": look}
        fit(small_net(), DATA, recipe, tmp_path, **options)
    assert used == [3, 3, 1, 1] and torch.get_num_threads() == before
    assert "Threads: 3 (0.1 s an update; 1: 0.2 s)." in capsys.readouterr().out
    assert read_json(tmp_path / "environment.json")["threads"] == 3


def test_cores_are_those_that_are_lent(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    assert devices.cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")  # as on a Mac
    assert devices.cores() == 128


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
def test_memory_is_kept_by_the_process_after_a_training_too():
    from resource import RUSAGE_SELF, getrusage  # Windows has none

    with devices.keeping_freed_memory():
        pass

    def faults():
        for _ in range(50):
            torch.ones(1 << 18)  # 1 MiB, 256 pages
        return getrusage(RUSAGE_SELF).ru_minflt

    before = faults()
    assert faults() - before < 25 * 256


def test_both_numbers_of_threads_are_tried():
    used = []
    with devices.threads(2):
        tried = devices.faster_threads(lambda: used.append(torch.get_num_threads()))
    assert used == [1, 1, 2, 2]
    assert tried.keys() == {1, 2} and list(tried.values()) == sorted(tried.values())
