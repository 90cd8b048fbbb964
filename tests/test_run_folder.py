"""The folder of a run: stopped and gone on with, refused to others, damaged, told of.

Many of these faults were met by users. A sentence names what is wrong in this case and
a remedy, and the tests follow it.
"""

import copy
import errno
import hashlib
import io
import itertools
import json
import math
import os
import random
import shlex
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import DATA, bits, changed, outcome, pictures, small_net
from torch import nn

from resnet_lib import (
    PAPER,
    Images,
    Recipe,
    ResNet,
    checkpoints,
    evaluate,
    fit,
    get_model,
    paths,
    runs,
)
from resnet_lib.data import Normalisation
from resnet_lib.fit import stop_requests
from resnet_lib.runs import Run, load_run, load_weights, read_history, recorded_runs
from resnet_lib.train import main
from resnet_lib.training import Training

RECIPE = replace(
    PAPER.scaled(24),
    batch_size=16,
    validation=10,
    log_every=4,
    eval_every=12,
    precision="fp32",
)
SHORT = replace(RECIPE.scaled(2), eval_every=2)


def sit(folder, net=None, recipe=RECIPE, data=DATA, **options):
    net = small_net() if net is None else net
    options = {"device": "cpu", "progress": False, **options}
    return fit(net, data, recipe, folder, **options)


def one_update(folder, *given, **options):
    return sit(folder, *given, max_minutes=0, **options)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run left alone: its folder and its network."""
    folder, net = tmp_path_factory.mktemp("alone") / "run", small_net()
    assert sit(folder, net, snapshots=(0, 12)).finished
    return folder, net


# --- stopped, gone on with, not repeated ----------------------------------------------


def test_run_folder_holds_the_record(alone):
    folder, net = alone
    files = "environment.json history.csv recipe.json snapshots weights.pt"
    assert sorted(path.name for path in folder.iterdir()) == files.split()
    run = Run(folder)
    assert run.finished and Recipe(**run.recipe) == RECIPE
    assert '\n    "lr": 0.1,\n' in (folder / "recipe.json").read_text()  # lines
    assert run.history["iteration"].tolist() == [4, 8, 12, 16, 20, 24]
    for part in ("test_error", "validation_error"):
        assert run.history[part].notna().tolist() == [False, False, True] * 2
    assert torch.equal(bits(run.model()), bits(net)) and run.model().name == net.name
    norm = Normalisation.of(DATA.train[:40].images)
    assert run.final["test_error"] == evaluate(net, DATA.test, norm).error
    told = "device cores threads computation python torch system commit started"
    assert list(run.environment) == told.split() and all(run.environment.values())
    half = torch.load(folder / "snapshots" / "iteration-000012.pt", weights_only=True)
    assert half["conv1.weight"].dtype == torch.float16
    assert half["bn1.running_var"].dtype == torch.float32  # it could overflow


def test_all_is_on_the_disk_before_the_checkpoints_go(tmp_path, monkeypatch):
    """A crash of the machine keeps what was synced, and may keep what was removed."""
    done, write = [], checkpoints.write_atomically
    remove = type(tmp_path).unlink

    def unlink(path, **options):
        done.append(f"no {path.name}")
        remove(path, **options)

    def write_and_tell(path, content):
        write(path, content)
        done.append(path.name)

    monkeypatch.setattr(checkpoints, "write_atomically", write_and_tell)
    monkeypatch.setattr(type(tmp_path), "unlink", unlink)
    options = {"snapshots": (2,), "checkpoint_seconds": 0}
    assert sit(tmp_path / "run", recipe=SHORT, **options).finished
    last = done.index("no checkpoint.pt")
    assert done[:last][-3:] == ["iteration-000002.pt", "weights.pt", "history.csv"]
    assert Run(tmp_path / "run").history["iteration"].tolist() == [2]


def test_a_file_that_is_held_for_a_moment_is_written(tmp_path, monkeypatch, refused):
    """On Windows nobody replaces what another program reads."""
    replace, held = type(tmp_path).replace, [True] * 9

    def once(path, target):
        if held:
            held.pop()
            raise PermissionError("held")
        return replace(path, target)

    monkeypatch.setattr(type(tmp_path), "replace", once)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert sit(tmp_path / "run", recipe=SHORT, checkpoint_seconds=0).finished
    held += [True] * 1_000  # for good
    told = "cannot be written: held. Choose another"
    refused(told, sit, tmp_path / "other", recipe=SHORT, error=OSError)


def test_finished_run_is_not_repeated(alone, tmp_path, monkeypatch):
    """Nor is one that another process ended before this one could hold the folder."""
    folder, net = alone
    hold = checkpoints.RunFolder._lock

    def at_the_last_moment(ours):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        hold(ours)

    monkeypatch.setattr(checkpoints.RunFolder, "_lock", at_the_last_moment)
    monkeypatch.setattr(Training, "step", None)
    for seed in (8, 9):
        if seed == 9:  # the drive is read-only now, and says so of absent files too
            read_only = OSError(errno.EROFS, "Read-only file system")
            monkeypatch.setattr(Path, "unlink", Mock(side_effect=read_only))
        other = small_net(seed)
        result = sit(tmp_path, other)
        assert result.finished and result.iteration == 24 and len(result.history) == 6
        assert torch.equal(bits(other), bits(net))
        for path in tmp_path.glob("*.*"):
            assert path.read_bytes() == (folder / path.name).read_bytes()


def test_stopped_run_goes_on_to_the_same_bits(alone, tmp_path):
    folder, net = alone
    for sitting in range(24):
        other = small_net(seed=sitting)  # the checkpoint decides, not the new weights
        result = one_update(tmp_path, other)
        assert result.iteration == sitting + 1
        assert result.finished == (sitting == 23)
    assert torch.equal(bits(other), bits(net))
    assert outcome(tmp_path) == outcome(folder)


def test_a_call_that_failed_leaves_no_trace_in_the_next_one(tmp_path, alone):
    net = small_net()

    def fail(rows):
        raise OSError("no figure")

    with pytest.raises(OSError, match="no figure"):
        sit(tmp_path, net, on_row=fail)
    assert not torch.equal(bits(net), bits(small_net()))
    assert sit(tmp_path, net, snapshots=(0, 12)).finished
    assert outcome(tmp_path) == outcome(alone[0])
    for mark in (0, 12):
        kept = [f"snapshots/iteration-{mark:06d}.pt"]
        kept = [load_weights(path / kept[0]) for path in (tmp_path, alone[0])]
        assert torch.equal(bits(kept[0]), bits(kept[1]))


@pytest.mark.parametrize("draw", [random.random, np.random.rand, torch.rand])
def test_a_network_that_draws_lots_goes_on_to_the_same_bits(tmp_path, draw):
    def drop(block, given, output):  # stochastic depth
        return given[0] if draw(*few) < 0.5 else output

    few = [1] if draw is torch.rand else []
    results = []
    for folder, minutes in (("one", [9]), ("two", [0] * 12 + [9])):
        random.seed(0)
        np.random.seed(0)
        for limit in minutes:
            net = small_net()
            net.layer1[0].register_forward_hook(drop)
            sit(tmp_path / folder, net, max_minutes=limit)
            random.seed(1)  # another process would begin elsewhere
            np.random.seed(1)
        results.append(outcome(tmp_path / folder))
    assert results[0] == results[1]


def test_a_network_that_is_broken_already_is_refused(tmp_path, refused):
    for folder in (None, tmp_path):
        net = changed(small_net(), lambda net: net.fc.bias.data.fill_(math.nan))
        told = r"not finite at iteration 0\..* Build the network anew"
        refused(told, sit, folder, net, error=FloatingPointError)
    assert one_update(tmp_path, recipe=RECIPE).iteration == 1


def test_a_run_says_where_it_went_on_and_of_a_way_back(tmp_path, monkeypatch):
    for sitting, machine in enumerate("ABBA"):
        here = {"device": machine, "commit": str(sitting // 2)}
        monkeypatch.setattr(checkpoints, "describe_environment", lambda *_, h=here: h)
        one_update(tmp_path)
    assert runs.read_json(tmp_path / "environment.json") == {
        **{"device": "A", "commit": "0"},
        "resumed": [
            {"iteration": 1, "device": "B"},
            {"iteration": 2, "commit": "1"},
            {"iteration": 3, "device": "A"},
        ],
    }


def test_seconds_add_up_over_the_sittings(tmp_path, monkeypatch):
    ticks = itertools.count(100)  # each look at the clock is a second later
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr(sys.modules["resnet_lib.fit"], "time", clock)
    first = sit(tmp_path, max_minutes=0.2)
    sat = next(ticks) - 100
    seconds = [row["seconds"] for row in sit(tmp_path).history]
    assert 0 < first.iteration < RECIPE.iterations and sat > 12
    left = RECIPE.iterations - first.iteration  # iterations, with a look each
    assert sat + left - 4 <= seconds[-1] <= next(ticks) - 100
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_a_second_one_acts_at_once(number):
    before = signal.getsignal(number)
    with stop_requests() as noted:
        signal.raise_signal(number)
        assert noted == [number]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_a_look_along_the_way_leaves_no_trace(tmp_path, alone):
    def look(rows):
        net.eval()  # and no way back
        rows[-1] |= {"mine": 1.0, "test_loss": 0.5}

    net = small_net()
    assert sit(tmp_path, net, on_row=look).finished
    assert outcome(tmp_path) == outcome(alone[0])


def test_ctrl_c_in_a_notebook_stops_the_cells_that_follow(monkeypatch, tmp_path):
    module = sys.modules["resnet_lib.fit"]
    monkeypatch.setattr(module, "in_notebook", lambda: True)

    def interrupt(rows):
        os.kill(os.getpid(), signal.SIGINT)

    told = "Interrupted at iteration 4 of 24: run this cell again to go on"
    with pytest.raises(KeyboardInterrupt, match=told) as stop:
        sit(tmp_path, on_row=interrupt)
    assert stop.value.fit.iteration == 4
    assert stop.value._render_traceback_() == [str(stop.value)]
    monkeypatch.setattr(module, "in_notebook", lambda: False)
    assert sit(tmp_path, on_row=interrupt).status == "interrupted"
    assert sit(tmp_path).finished


@pytest.mark.parametrize(
    ("at", "precision", "told"),
    [
        (4, "bf16", "is nan.*iteration 1 is kept.*lr, or set precision='fp32'"),
        (24, "fp32", r"weights are not finite at iteration 24\..*'s lr\.$"),
    ],
)
def test_what_is_not_finite_is_not_kept(tmp_path, refused, at, precision, told):
    def poison(rows):
        if rows[-1]["iteration"] == at:
            net.conv1.weight.data.fill_(math.inf)

    net, recipe = small_net(), replace(RECIPE, precision=precision)
    one_update(tmp_path, recipe=recipe)
    options = {"recipe": recipe, "on_row": poison, "error": FloatingPointError}
    refused(told, sit, tmp_path, net, **options)
    assert not (tmp_path / "weights.pt").exists()
    assert one_update(tmp_path, recipe=recipe).iteration == 2


def test_a_snapshot_keeps_whole_numbers_and_a_path_may_be_text(tmp_path):
    net, table = small_net(), torch.tensor([[2049, 70_000]])
    net.register_buffer("table", table)
    sit(tmp_path, net, SHORT, snapshots=[2])
    name = f"{tmp_path}/snapshots/iteration-000002.pt"
    assert torch.equal(load_weights(name)["table"], table)
    assert Run(str(tmp_path)).finished


def test_a_mask_of_infinities_is_no_broken_weight(tmp_path):
    net = small_net()
    net.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
    assert sit(tmp_path, net, SHORT).finished
    state = Training(net, DATA, SHORT, "cpu")
    net.bn1.running_var[0] = math.inf
    with pytest.raises(FloatingPointError, match="not finite"):
        state.check_weights()


# --- a folder of something else is refused --------------------------------------------


def mlp(activation=nn.ReLU, first=nn.Flatten):
    return nn.Sequential(first(), nn.Linear(192, 10), activation())


def own(forward, **more):
    """A layer by a name that others have too, and so has its method."""
    forward.__qualname__ = "Own.forward"
    return type("Own", (nn.Flatten,), {"forward": forward, **more})


def square(self, x):
    return x.flatten(1) ** 2


def cube(self, x):
    return x.flatten(1) ** 3


def look(net, given, answer):
    pass


def double(net, given, answer):
    return 2 * answer


def odd(activation):
    return changed(small_net(), lambda net: setattr(net, "relu", activation))


def scaled(scale):
    return changed(mlp(), lambda net: setattr(net, "scale", scale))


class Applied(nn.Flatten):
    """A layer of a reader's own that is told what it applies."""

    def __init__(self, function, *more):
        super().__init__()
        self.function, self.more, self.seen = function, [*more], []

    def forward(self, x):
        self.seen.append(x)  # which makes no other network of it
        return super().forward(self.function(x))


def applied(*functions):
    return mlp(first=lambda: Applied(*functions))


OTHER_NETS = {  # pairs that no name, size or description tells apart
    "an activation": (mlp, lambda: mlp(nn.Tanh)),
    "of ours, changed": (lambda: odd(nn.LeakyReLU(0.2)), lambda: odd(nn.ELU())),
    "a number of its own": (lambda: scaled(1.0), lambda: scaled(2.0)),
    "another class": (mlp, lambda: mlp(first=own(square))),
    "a forward": (lambda: mlp(first=own(square)), lambda: mlp(first=own(cube))),
    "a constant": (
        lambda: mlp(first=own(square, scale=1.0)),
        lambda: mlp(first=own(square, scale=2.0)),
    ),
    "a property": (
        lambda: mlp(first=own(square, size=property(square))),
        lambda: mlp(first=own(square, size=property(cube))),
    ),
    "a function": (lambda: applied(F.relu), lambda: applied(F.gelu)),
    "a list": (lambda: applied(F.relu, F.relu), lambda: applied(F.relu, F.gelu)),
    "a hook": (mlp, lambda: changed(mlp(), lambda n: n.register_forward_hook(double))),
    "a hook on the way back": (
        small_net,
        lambda: changed(
            small_net(), lambda net: net.layer1.register_full_backward_hook(look)
        ),
    ),
    "frozen": (
        small_net,
        lambda: changed(small_net(), lambda net: net.conv1.requires_grad_(False)),
    ),
}


@pytest.mark.parametrize("name", OTHER_NETS)
def test_a_run_refuses_another_network(tmp_path, name, refused):
    ours, theirs = OTHER_NETS[name]
    told = r"another network.*Choose another folder"
    net = ours()
    for minutes in (0, 60):  # cut short, finished
        sit(tmp_path, net, SHORT, max_minutes=minutes)
        refused(told, sit, tmp_path, theirs(), SHORT)
    assert sit(tmp_path, ours(), SHORT).finished  # the remedies
    assert sit(tmp_path / "other", theirs(), SHORT).finished


def looked_at_backwards(net):
    net.layer1.register_full_backward_hook(double).remove()


SAME_NETS = {
    "compiled": (small_net, lambda: torch.compile(small_net(), backend="eager")),
    "compiled, in parallel": (
        small_net,
        lambda: nn.DataParallel(torch.compile(small_net(), backend="eager")),
    ),
    "looked at": (small_net, lambda: changed(small_net(), looked_at_backwards)),
    "another version of Python": (
        lambda: mlp(first=own(square)),
        lambda: mlp(first=own(square, __firstlineno__=7)),
    ),
    "moved to another file": (
        lambda: mlp(first=own(square)),
        lambda: mlp(first=own(square, __module__="elsewhere")),
    ),
    "a tuple of things": [
        lambda: changed(mlp(), lambda net: setattr(net, "_things", (object(),)))
    ]
    * 2,
}


@pytest.mark.parametrize("name", SAME_NETS)
def test_a_run_goes_on_with_the_same_network(tmp_path, name):
    first, second = SAME_NETS[name]
    nets = first(), second(), first()
    assert [one_update(tmp_path, net).iteration for net in nets] == [1, 2, 3]


def test_a_run_goes_on_under_a_pytorch_that_prints_its_layers_otherwise(
    tmp_path, monkeypatch
):
    one_update(tmp_path)
    monkeypatch.setattr(nn.BatchNorm2d, "extra_repr", lambda layer: "of another day")
    assert one_update(tmp_path).iteration == 2


OTHERS = [  # what is said, and another network or recipe
    ("model = 'resnet8', not 'plain8'", {"net": get_model("plain8")}),
    ("lr = .*Choose another folder", {"recipe": replace(RECIPE, lr=0.2)}),
    ("seed = .*Choose another folder", {"recipe": replace(RECIPE, seed=1)}),
    ("iterations = .*another folder", {"recipe": replace(RECIPE, iterations=48)}),
    ("data = 'random', not 'mine'", {"data": replace(DATA, name="mine")}),
]
OTHER_DATA = [{"train": pictures(50)}, {"train": DATA.train[:40]}]
OTHER_DATA += [{"train": Images(DATA.train.images, DATA.train.labels.flip(0))}]
OTHER_DATA += [{"test": DATA.test[:9]}, {"classes": tuple("ABCDEFGHIJ")}]


@pytest.mark.parametrize("minutes", [0, 60], ids=["cut short", "finished"])
def test_a_run_refuses_another_recipe_and_other_data(tmp_path, minutes, refused):
    ours, told = copy.deepcopy(DATA), "other data of the name 'random'"
    sit(tmp_path, data=ours, max_minutes=minutes)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for words, other in OTHERS:
        refused(words, sit, tmp_path, **other)
    for change in OTHER_DATA:
        refused(told, sit, tmp_path, data=replace(DATA, **change))
    ours.train.images.zero_()
    refused(told, sit, tmp_path, data=ours)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert sit(tmp_path).finished  # the remedy


@pytest.mark.parametrize("file", ["weights.pt", "history.csv", "checkpoint.pt"])
def test_a_folder_of_another_program_is_left_alone(tmp_path, file, refused):
    (tmp_path / file).write_text("theirs")
    told = f"holds {file} and no recipe.json"
    refused(told, sit, tmp_path, recipe=SHORT, error=RuntimeError)
    assert (tmp_path / file).read_text() == "theirs"
    (tmp_path / file).rename(tmp_path / "checkpoint.best.pt")  # beside a run it stays
    assert sit(tmp_path, recipe=SHORT).finished
    assert (tmp_path / "checkpoint.best.pt").read_text() == "theirs"


# --- a name is no proof of the network ------------------------------------------------

REBUILT = {
    "plain": lambda: ResNet((4, 8), (1, 1), None),
    "with shortcut A": lambda: ResNet((4, 8), (1, 1), "A"),
    "with shortcut B": lambda: ResNet((4, 8), (1, 1), "B"),
    "with shortcut C": lambda: ResNet((4, 8), (1, 1), "C"),
    "a hundred classes": lambda: small_net(classes=100),
    "compiled": lambda: torch.compile(small_net(), backend="eager"),
    "in parallel": lambda: nn.DataParallel(small_net()),
    "a name that is no text": lambda: changed(
        small_net(), lambda net: setattr(net, "name", 5)
    ),
}
NOT_REBUILT = {  # test_blocks.py has more of them
    "activation": lambda: odd(nn.LeakyReLU(0.2)),
    "a subclass": lambda: type("Odd", (ResNet,), {})((8, 16), (1, 1)),
    "of no kind of ours": mlp,
}


@pytest.mark.parametrize("name", REBUILT | NOT_REBUILT)
def test_a_run_is_rebuilt_as_what_it_was_or_not_at_all(tmp_path, refused, name):
    hundred = replace(DATA, classes=tuple(map(str, range(100))))
    net = (REBUILT | NOT_REBUILT)[name]()
    sit(tmp_path / "x", net, SHORT, hundred if name == "a hundred classes" else DATA)
    recorded, run = recorded_runs(tmp_path), load_run("x", tmp_path)
    assert recorded.keys() == {"x"}
    assert runs.histories(recorded).empty == (name in NOT_REBUILT)
    refused("No two depths", runs.longest_study, recorded)
    if name in NOT_REBUILT:
        refused("Build it yourself and load the state", run.model)
        weights = load_weights(run.folder / "weights.pt")
        NOT_REBUILT[name]().load_state_dict(weights)  # so
        return
    assert run.network == getattr(net, "module", net).config
    assert run.net == ("plain" if name == "plain" else "residual")
    assert run.about["model"] in ("ResNet", "resnet8")
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(run.model()(x), net.eval()(x))


# --- damaged, or without its files ----------------------------------------------------


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    one_update(tmp_path)
    one_update(tmp_path)
    newest = tmp_path / "checkpoint.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert one_update(tmp_path).iteration == 2  # from the checkpoint of iteration 1
    assert "is damaged" in capsys.readouterr().out


def half(content):
    return content[: len(content) // 2]


def older(content):
    """A checkpoint as another version of the library might have written it."""
    state = torch.load(io.BytesIO(content[32:]), weights_only=True)
    del state["window"]
    content = checkpoints._to_bytes(state)
    return hashlib.sha256(content).digest() + content


DAMAGES = [
    ("checkpoint.pt", half, r"is damaged.*Delete checkpoint.pt"),
    ("checkpoint.pt", older, r"version.*'window'.*Choose another"),
    ("environment.json", half, "environment.json is damaged.*another folder"),
]


@pytest.mark.parametrize(("name", "damage", "told"), DAMAGES)
def test_a_damaged_file_is_told_and_left_alone(tmp_path, refused, name, damage, told):
    one_update(tmp_path)
    (tmp_path / "checkpoint.previous.pt").unlink()  # of iteration 0
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(damage(whole))
    refused(told, one_update, tmp_path, error=RuntimeError)
    assert (tmp_path / name).read_bytes() == damage(whole)
    (tmp_path / name).write_bytes(whole)
    assert one_update(tmp_path).iteration == 2


@pytest.fixture
def run(alone, tmp_path):
    """The folder of a finished run, beside nothing else."""
    return Path(shutil.copytree(alone[0], tmp_path / "run"))


BAD_HISTORIES = ["", "\0" * 100, "iteration", "iteration\n", "a,b\n1,2\n"]
BAD_ROWS = ["7,x,y", "1,2", "1,,,,,,", "inf" + "," * 8]
BAD_RECORDS = {  # changes of what recipe.json holds
    "a key that is gone": lambda about: about["recipe"].pop("iterations"),
    "no recipe": lambda about: about.update(recipe=[1, 2]),
    "a value": lambda about: about["recipe"].update(lr="fast"),
    "a name": lambda about: about.update(model=20),
    "half a network": lambda about: about["network"].pop("depths"),
    "a wide network": lambda about: about["network"].update(widths=8),
    "a shortcut": lambda about: about["network"].update(shortcut="E"),
    "a class": lambda about: about["network"].update({"class": "VGG"}),
    "an unknown argument": lambda about: about["network"].update(kernel=3),
}


@pytest.mark.parametrize("damage", [*BAD_HISTORIES, *BAD_ROWS, *BAD_RECORDS], ids=repr)
def test_one_damaged_record_breaks_nothing_else(run, tmp_path, damage, refused):
    shutil.copytree(run, tmp_path / "good")
    file = run / ("recipe.json" if damage in BAD_RECORDS else "history.csv")
    whole = file.read_text()
    if damage in BAD_RECORDS:
        about = json.loads(whole)
        BAD_RECORDS[damage](about)
        file.write_text(json.dumps(about))
    else:
        in_front = whole.replace("\n", f"\n{damage}\n", 1)
        file.write_text(in_front if damage in BAD_ROWS else damage)
    recorded = recorded_runs(tmp_path)
    assert recorded.keys() == set(runs.histories(recorded)["run"]) == {"good"}
    told = rf"{file.name} is damaged .*Restore it, or|There are: good"
    refused(told, load_run, "run", tmp_path, error=(RuntimeError, KeyError))
    file.write_text(whole)  # the remedy
    again = load_run("run", tmp_path)
    assert again.model() and again.final["iteration"] == RECIPE.iterations


def test_what_is_told_of_a_run_without_its_files_works(
    run, tmp_path, monkeypatch, refused
):
    monkeypatch.setenv("HOME", str(tmp_path))

    def told(words, call, *given, error=RuntimeError):
        refused(words, call, *given, error=error)

    # Finished means one thing: the last row, which is written after the weights.
    (run / "history.csv").write_text((run / "history.csv").read_text().rstrip("\n"))
    assert not Run(run).finished
    assert len(Run(run).history) == len(read_history(run / "history.csv"))
    assert sit(run).finished and Run(run).finished
    whole = (run / "weights.pt").read_bytes()
    for weights in ({}, small_net(classes=7).state_dict(), {"a": torch.ones(1)}):
        torch.save(weights, run / "weights.pt")
        told("does not hold the weights of .*anew", load_run("run", tmp_path).model)
    told(r"of another network\. Restore it, or train", sit, run)
    (run / "weights.pt").write_bytes(b"half")
    told(r"damaged.* train the run anew in another", sit, run)
    (run / "weights.pt").unlink()  # a record that keeps its history alone
    assert Run(run).finished
    told(r"keeps no weights.*Choose another folder", sit, run)
    (run / "weights.pt").write_bytes(whole)
    assert sit(run).finished and load_run("run", "~").model()
    (run / "history.csv").unlink()
    told(r"history.csv is damaged .*or choose", sit, run)
    assert (run / "weights.pt").read_bytes() == whole
    (run / "history.csv").mkdir()
    assert sit("~/anew").finished and Run(tmp_path / "anew").finished
    told(r"no such home .* Write it in full", sit, "~none/x", error=ValueError)
    (tmp_path / "a" / "recipe.json").mkdir(parents=True)
    assert recorded_runs("~").keys() == {"anew"}
    for name in (3, None, 2.5, "nothing", "\0"):
        words = r"No recorded run .*There are: anew\."
        told(words, load_run, name, tmp_path, error=KeyError)


def test_what_is_no_state_dict_is_not_called_damaged(tmp_path, refused):
    file = tmp_path / "w.pt"
    for told, value in {
        "If it is a whole model, load it where it was made": small_net(),
        "holds no state_dict": {"a": torch.ones(1), "b": 3},
        "holds no state_dict: a name and a tensor": [1, 2],
        "no state_dict: a name and": {3: torch.ones(1)},
        "holds no state_dict: a name": {"a": np.float64(3)},
    }.items():
        torch.save(value, file)
        refused(told, load_weights, file, error=RuntimeError)
    torch.save(small_net().state_dict(), file)
    assert load_weights(file).keys() == small_net().state_dict().keys()
    file.write_bytes(file.read_bytes()[:3000])
    refused("is damaged", load_weights, file, error=RuntimeError)


# --- drives without locks -------------------------------------------------------------


@pytest.mark.skipif(paths.fcntl is None, reason="Windows has locks of its own")
@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP", "EIO"])
def test_a_drive_without_locks_holds_a_run(tmp_path, monkeypatch, capsys, code):
    def flock(file, operation):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(paths.fcntl, "flock", flock)
    assert sit(tmp_path, max_minutes=1e-9).status == "out of time"
    assert "a drive without file locks: see to it that no" in capsys.readouterr().out
    assert sit(tmp_path).finished
    assert not (tmp_path / ".lock").exists()


def test_two_threads_of_one_process_keep_each_other_out(tmp_path):
    (tmp_path / ".lock").write_text("4711\nanother-host\n")  # of a dead process
    told = []

    def again(rows):
        with ThreadPoolExecutor() as pool:
            told.append(pool.submit(sit, tmp_path).exception())

    assert sit(tmp_path, on_row=again).finished
    assert told and all("Another process is training in" in str(e) for e in told)


# --- the command line ----------------------------------------------------------------

ARGUMENTS = shlex.split(
    "--model resnet8 --data digits --iterations 4 --batch-size 8 --validation 0 "
    "--log-every 2 --eval-every 4 --precision fp32 --checkpoint-seconds 0.2"
)


def test_an_empty_folder_name_is_refused(tmp_path, monkeypatch, capsys, refused):
    """As an unset variable leaves it; the run would lie in the folder one is in."""
    monkeypatch.chdir(tmp_path)
    assert main([*ARGUMENTS, "--run", ""]) == 1
    assert "'' is no path" in capsys.readouterr().err and not any(tmp_path.iterdir())
    refused("'' is no path", fit, small_net(), DATA, RECIPE, "")


# Of old terminals, and of files that output is redirected to. None has an arrow.
ENCODINGS = ["ascii", "cp437", "latin-1", "cp1252", "cp1250", "koi8-r", "cp866"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_encoding_ends_the_command(tmp_path, encoding, monkeypatch):
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", file)
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    folder = tmp_path / "läuft → gut"
    assert main([*ARGUMENTS, "--run", str(folder)]) == 0
    file.flush()
    text = file.buffer.getvalue().decode(encoding)
    assert "default: runs/" in text and "\\u2192 gut" in text and "Finished" in text
    assert (folder / "weights.pt").exists()


def test_bad_arguments_get_one_sentence(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    for bad, message in {
        "--model=resnet21": "6n+2",
        "--lr=0": "above 0",
        "--device=abacus": "Use 'cpu'",
        "--data=mnist": "Choose from cifar10, cifar100, digits, or",
    }.items():
        assert main([*ARGUMENTS, "--run", str(folder), bad]) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    # A cluster's own variable, without what torchrun sets beside it.
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert main([*ARGUMENTS, "--run", str(folder)]) == 1
    assert "(rank ?): " in capsys.readouterr().err
    assert not (folder / "weights.pt").exists()
