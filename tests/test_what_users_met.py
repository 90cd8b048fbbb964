"""Faults that users met, by kind: what was believed wrongly, and what is said now.

A sentence names what is wrong in this case and a remedy, and the tests follow it.
"""

import copy
import enum
import errno
import itertools
import json
import os
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from resnet_lib import (
    PAPER,
    QUICK,
    Dataset,
    Images,
    Recipe,
    ResNet,
    evaluate,
    fit,
    get_model,
)
from resnet_lib import checkpoints as folders
from resnet_lib.data import Normalisation
from resnet_lib.fit import expected_minutes
from resnet_lib.runs import (
    Run,
    histories,
    load_run,
    load_weights,
    longest_study,
    recorded_runs,
)


def d(count, seed=0, name="random", classes="abcdefghij"):
    """`count` random pictures in ten classes."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=draw)
    images = Images(pixels.to(torch.uint8), torch.arange(count) % 10)
    return Dataset(name, tuple(classes), images, images[:10])


R = replace(PAPER.scaled(12), validation=0, batch_size=8, log_every=5, eval_every=12)

SHORT = replace(R.scaled(2), eval_every=2)
LOUD = replace(R, precision="fp32", log_every=1)


def small_net(**options):
    torch.manual_seed(0)
    return get_model("resnet8", **options)


def train(data, run=None, net=None, recipe=R, **options):
    net = small_net() if net is None else net
    return fit(net, data, recipe, run, device="cpu", progress=False, **options)


# --- a run knows its data -------------------------------------------------------------


OTHER_DATA = [
    *(d(24), d(40, seed=1), d(40, classes="ABCDEFGHIJ")),
    replace(d(40), train=Images(d(40).train.images, d(40).train.labels.flip(0))),
    replace(d(40), test=d(40).test[:9]),
]


@pytest.mark.parametrize("minutes", [1e-9, 60], ids=["cut short", "finished"])
def test_a_run_refuses_other_data_of_the_same_name(tmp_path, minutes, refused):
    ours, told = d(40), "other data of the name 'random'"
    train(ours, tmp_path, max_minutes=minutes)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for data in OTHER_DATA:
        refused(told, train, data, tmp_path)
    refused("data = 'random', not 'mine'", train, d(40, name="mine"), tmp_path)
    ours.train.images.zero_()
    refused(told, train, ours, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert train(d(40), tmp_path).finished  # the remedy


# --- a recipe is checked when it is made ----------------------------------------------

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
    ("warmup_lr", "give a number above 0", -1),
    ("momentum", r"give 0 \(off\) or less than 1", 1.0),
    ("nesterov", "give True or False", "false"),
    ("milestones", SEVERAL, 5, "57", {10: 0.1}, {10, 20}, b"\5", itertools.count()),
    ("milestones", rf"\[1\] is .*: {WHOLE}, 0 or more", (1, 1.5), (1, -1)),
    ("schedule", "choose from 'steps', 'tri", 3, np.array(["steps"]), Path("steps")),
    ("precision", "choose from 'auto', 'bf16', 'tf32', 'fp32'", "fp8"),
    ("seed", rf"{WHOLE}, 0 or more, below 2\*\*63", "3", -1, 2**63),
]


def test_a_recipe_that_no_training_could_follow_is_refused(refused):
    for name, told, *values in BAD_FIELDS:
        for value in values:
            refused(rf"^Recipe\.{name}.*{told}", replace, PAPER, **{name: value})
    told = r"^Recipe\.nesterov needs a momentum above 0"
    refused(told, replace, PAPER, momentum=0, nesterov=True)


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
    for bad in (10.67, 3906.25):
        refused(f"{WHOLE}, 1 or more", QUICK.scaled, bad)
        assert QUICK.scaled(round(bad)).iterations == round(bad)
    refused(WHOLE, QUICK.scaled, 10**400)
    train(d(24), recipe=replace(R, seed=2**63 - 1))
    ours = Recipe(iterations=np.int64(20), milestones=(), lr=np.float32(0.5), seed=3)
    assert (type(ours.iterations), ours.lr) == (int, 0.5)


def changed(change, net=None):
    net = small_net() if net is None else net
    change(net)
    return net


def frozen(layer):
    return changed(lambda net: net.get_submodule(layer).requires_grad_(False))


class Answers(nn.Module):
    """A small network whose answer is changed."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = small_net(), change

    def forward(self, x):
        return self.change(self.net(x))


TYPE = "is of type"
BAD_CALLS = [  # arguments of fit, and what is said
    ({"model": "resnet8"}, f"The model {TYPE} str: give"),
    ({"data": d(24).train}, f"The data {TYPE} Images: give .*Dataset"),
    ({"model": d(24), "data": small_net()}, f"The model {TYPE} Dataset"),
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
    ({"model": small_net().half()}, r"torch.float16.*model.float\(\)"),
    ({"model": small_net().double()}, r"torch.float64.*model.float\(\)"),
    ({"model": frozen("")}, r"are none: .* thaw them with model.requires_"),
    ({"model": nn.Flatten()}, "weights to train are none: "),
    ({"model": Answers(lambda x: {"out": x})}, "with a dict. Let its forward"),
    ({"model": Answers(lambda x: (x, x))}, "with a tuple. Let its forward"),
    ({"model": Answers(lambda x: x[:, 0])}, r"of shape \(1,\)\. Let its forward"),
    ({"model": Answers(lambda x: x[:, :, None])}, r"of shape \(1, 10, 1\)\. Let"),
    (
        {"recipe": replace(SHORT, batch_size=10**8)},
        "batch_size is 100000000: give a whole number from 1 to 24000",
    ),
    *(
        ({"recipe": replace(LOUD, **{name: 1e30})}, rf"Lower the recipe's {name}\.$")
        for name in ("lr", "weight_decay")
    ),
]
REFUSALS = (TypeError, ValueError, FloatingPointError)


def test_a_call_that_cannot_be_is_refused(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    call = {"model": small_net(), "data": d(24), "recipe": SHORT, "device": "cpu"}
    for change, told in BAD_CALLS:
        given = copy.deepcopy(call) | change
        refused(told, fit, **given, progress=False, error=REFUSALS)
    assert not list(tmp_path.iterdir())
    fit(**call, snapshots=(0, 2), run="first", progress=False)  # the remedy
    assert Run(tmp_path / "first").snapshots == [0, 2]
    assert b"\r" not in (tmp_path / "first" / "history.csv").read_bytes()


def test_what_cannot_be_judged_or_timed(refused):
    net, test, norm = small_net(), d(24).test, Normalisation.of(d(24).train.images)
    refused(f"The model {TYPE} str", evaluate, "net", test, norm, error=TypeError)
    refused("lls 7", evaluate, small_net(classes=7), test, norm)
    for size in (0, -1, 2.5, None):
        told = r"batch_size is .*whole number, 1 or more"
        refused(told, evaluate, net, test, norm, batch_size=size)
    told = f"The recipe {TYPE} str"
    refused(told, expected_minutes, net, d(24), "paper", error=TypeError)
    recipe = replace(SHORT, iterations=10**12)  # estimated at once
    assert expected_minutes(net, d(24), recipe, "cpu") > 10**6


def test_ctrl_c_in_a_notebook_stops_the_cells_that_follow(monkeypatch, tmp_path):
    module = sys.modules["resnet_lib.fit"]
    monkeypatch.setattr(module, "in_notebook", lambda: True)

    def interrupt(rows):
        os.kill(os.getpid(), signal.SIGINT)

    told = "Interrupted at iteration 5 of 12: run this cell again to go on"
    with pytest.raises(KeyboardInterrupt, match=told) as stop:
        train(d(24), tmp_path, on_row=interrupt)
    assert stop.value.fit.iteration == 5
    assert stop.value._render_traceback_() == [str(stop.value)]
    monkeypatch.setattr(module, "in_notebook", lambda: False)
    assert train(d(24), tmp_path, on_row=interrupt).status == "interrupted"
    assert train(d(24), tmp_path).finished


# --- a name is no proof of the network ------------------------------------------------


REBUILT = {
    "plain8": lambda: get_model("plain8"),
    "one of two stages": lambda: ResNet((8, 16), (1, 1)),
    "a hundred classes": lambda: small_net(classes=100),
    "compiled": lambda: torch.compile(small_net(), backend="eager"),
    "in parallel": lambda: nn.DataParallel(small_net()),
    "a name that is no text": lambda: changed(lambda net: setattr(net, "name", 5)),
}
NOT_REBUILT = {
    "stem stride": lambda: changed(lambda net: setattr(net.conv1, "stride", (2, 2))),
    "BN's epsilon": lambda: changed(lambda net: setattr(net.bn1, "eps", 1e-3)),
    "activation": lambda: changed(lambda net: setattr(net, "relu", nn.LeakyReLU(0.2))),
    "pooling": lambda: changed(
        lambda net: setattr(net, "avgpool", nn.AdaptiveMaxPool2d(1))
    ),
    "a subclass": lambda: type("Odd", (ResNet,), {})((8, 16), (1, 1)),
    "torchvision's": lambda: torchvision.models.squeezenet1_1(num_classes=10),
}


def test_a_run_is_rebuilt_as_what_it_was_or_not_at_all(tmp_path, refused):
    hundred = replace(d(24), classes=tuple(map(str, range(100))))
    for name, build in (REBUILT | NOT_REBUILT).items():
        net = build()
        data = hundred if name == "a hundred classes" else d(24)
        train(data, tmp_path / name, net, SHORT)
        run = load_run(name, tmp_path)
        if name in NOT_REBUILT:
            refused("Build it yourself and load the state", run.model)
            build().load_state_dict(load_weights(run.folder / "weights.pt"))  # so
            continue
        x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(run.model()(x), net.eval()(x))
    assert load_run("a name that is no text", tmp_path).about["model"] == "ResNet"
    runs = recorded_runs(tmp_path)
    assert runs.keys() == REBUILT.keys() | NOT_REBUILT.keys()
    assert len(histories(runs))
    refused("No two depths", longest_study, runs)


def mlp(activation=nn.ReLU, first=nn.Flatten):
    return nn.Sequential(first(), nn.Linear(3072, 10), activation())


def own(forward):
    """A layer by a name that others have too, and so has its method."""
    forward.__qualname__ = "Own.forward"
    return type("Own", (nn.Flatten,), {"forward": forward})


def square(self, x):
    return x.flatten(1) ** 2


def cube(self, x):
    return x.flatten(1) ** 3


def double(net, given, answer):
    return 2 * answer


OTHER_NETS = {  # pairs that no name, size or description tells apart
    "an activation": (mlp, lambda: mlp(nn.Tanh)),
    "of ours, changed": (
        NOT_REBUILT["activation"],
        lambda: changed(lambda net: setattr(net, "relu", nn.ELU())),
    ),
    "a number of its own": (
        lambda: changed(lambda net: setattr(net, "scale", 1.0), mlp()),
        lambda: changed(lambda net: setattr(net, "scale", 2.0), mlp()),
    ),
    "another class": (mlp, lambda: mlp(first=own(square))),
    "a forward": (lambda: mlp(first=own(square)), lambda: mlp(first=own(cube))),
    "a hook": (
        mlp,
        lambda: changed(lambda net: net.register_forward_hook(double), mlp()),
    ),
    "frozen": (small_net, lambda: frozen("conv1")),
}


@pytest.mark.parametrize("name", OTHER_NETS)
def test_a_run_refuses_another_network(tmp_path, name, refused):
    ours, theirs = OTHER_NETS[name]
    told = r"another network.*Choose another folder"
    for minutes in (1e-9, 60):  # cut short, finished
        train(d(24), tmp_path, ours(), SHORT, max_minutes=minutes)
        refused(told, train, d(24), tmp_path, theirs(), SHORT)
    assert train(d(24), tmp_path, ours(), SHORT).finished  # the remedies
    assert train(d(24), tmp_path / "other", theirs(), SHORT).finished


@pytest.mark.parametrize("file", ["weights.pt", "history.csv", "checkpoint.pt"])
def test_a_folder_of_another_program_is_left_alone(tmp_path, file, refused):
    (tmp_path / file).write_text("theirs")
    told = f"holds {file} and no recipe.json"
    refused(told, train, d(24), tmp_path, recipe=SHORT, error=RuntimeError)
    assert (tmp_path / file).read_text() == "theirs"
    (tmp_path / file).rename(tmp_path / "checkpoint.best.pt")  # beside a run it stays
    assert train(d(24), tmp_path, recipe=SHORT).finished
    assert (tmp_path / "checkpoint.best.pt").read_text() == "theirs"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train(d(24), folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """The folder of a finished run, beside nothing else."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


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
    runs = recorded_runs(tmp_path)
    assert runs.keys() == set(histories(runs)["run"]) == {"good"}
    told = rf"{file.name} is damaged .*Restore it, or|There are: good"
    refused(told, load_run, "run", tmp_path, error=(RuntimeError, KeyError))
    file.write_text(whole)  # the remedy
    again = load_run("run", tmp_path)
    assert again.model() and again.final["iteration"] == R.iterations


def test_what_is_told_of_a_run_without_its_files_works(
    run, tmp_path, monkeypatch, refused
):
    monkeypatch.setenv("HOME", str(tmp_path))

    def told(words, call, *given, error=RuntimeError):
        refused(words, call, *given, error=error)

    # Finished means one thing: the last row, which is written after the weights.
    (run / "history.csv").write_text((run / "history.csv").read_text().rstrip("\n"))
    assert not Run(run).finished
    assert train(d(24), run).finished and Run(run).finished
    whole = (run / "weights.pt").read_bytes()
    for weights in ({}, small_net(classes=7).state_dict(), {"a": torch.ones(1)}):
        torch.save(weights, run / "weights.pt")
        told("does not hold the weights of .*anew", load_run("run", tmp_path).model)
    told(r"of another network\. Restore it, or train", train, d(24), run)
    (run / "weights.pt").write_bytes(b"half")
    told(r"damaged.* train the run anew in another", train, d(24), run)
    (run / "weights.pt").unlink()  # a record that keeps its history alone
    assert Run(run).finished
    told(r"keeps no weights.*Choose another folder", train, d(24), run)
    (run / "weights.pt").write_bytes(whole)
    assert train(d(24), run).finished and load_run("run", "~").model()
    (run / "history.csv").unlink()
    told(r"history.csv is damaged .*or choose", train, d(24), run)
    assert (run / "weights.pt").read_bytes() == whole
    (run / "history.csv").mkdir()
    assert train(d(24), "~/anew").finished and Run(tmp_path / "anew").finished
    told(r"no such home .* Write it in full", train, d(24), "~none/x", error=ValueError)
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


@pytest.mark.skipif(folders.fcntl is None, reason="Windows has locks of its own")
@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP", "EIO"])
def test_a_drive_without_locks_holds_a_run(tmp_path, monkeypatch, capsys, code):
    def flock(file, operation):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(folders.fcntl, "flock", flock)
    assert train(d(24), tmp_path, max_minutes=1e-9).status == "out of time"
    assert "a drive without file locks: see to it that no" in capsys.readouterr().out
    assert train(d(24), tmp_path).finished
    assert not (tmp_path / ".lock").exists()


def test_two_threads_of_one_process_keep_each_other_out(tmp_path):
    (tmp_path / ".lock").write_text("4711\nanother-host\n")  # of a dead process
    told = []

    def again(rows):
        with ThreadPoolExecutor() as pool:
            told.append(pool.submit(train, d(24), tmp_path).exception())

    assert train(d(24), tmp_path, on_row=again).finished
    assert told and all("Another process is training in" in str(e) for e in told)
