"""Faults that users met, by kind: what was believed wrongly, and what is said now.

A sentence names what is wrong in this case and a remedy, and the tests follow it.
"""

import dataclasses
import errno
import itertools
import json
import os
import shutil
import signal
import sys
import threading
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
from resnet_lib.recipe import FLOAT32
from resnet_lib.runs import (
    Run,
    histories,
    load_run,
    load_weights,
    longest_study,
    recorded_runs,
    runs_table,
)


def d(count, seed=0, name="random", classes="abcdefghij"):
    """`count` random pictures in ten classes."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=draw)
    images = Images(pixels.to(torch.uint8), torch.arange(count) % 10)
    return Dataset(name, tuple(classes), images, images[:10])


R = dataclasses.replace(
    PAPER.scaled(12), validation=0, batch_size=8, log_every=5, eval_every=12
)


SHORT = dataclasses.replace(R.scaled(2), eval_every=2)


def small_net(**options):
    torch.manual_seed(0)
    return get_model("resnet8", **options)


def train(data, run=None, net=None, recipe=R, **options):
    net = small_net() if net is None else net
    return fit(net, data, recipe, run, device="cpu", progress=False, **options)


# --- a run knows its data -------------------------------------------------------------


def relabelled(data):
    labels = data.train.labels.clone()
    labels[0] = 9
    return dataclasses.replace(data, train=Images(data.train.images, labels))


OTHER_DATA = {
    "fewer pictures": d(24),
    "other pictures": d(40, seed=1),
    "one other label": relabelled(d(40)),
    "other classes": d(40, classes="ABCDEFGHIJ"),
    "another test set": dataclasses.replace(d(40), test=d(40).test[:9]),
}


@pytest.mark.parametrize("minutes", [1e-9, 60], ids=["cut short", "finished"])
def test_a_run_refuses_other_data_of_the_same_name(tmp_path, minutes):
    train(d(40), tmp_path, max_minutes=minutes)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for data in OTHER_DATA.values():
        with pytest.raises(ValueError, match="other data of the name 'random'"):
            train(data, tmp_path)
    with pytest.raises(ValueError, match="data = 'random', not 'mine'"):
        train(d(40, name="mine"), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert train(d(40), tmp_path).finished  # the remedy


# --- a recipe is checked when it is made ----------------------------------------------

WHOLE, SEVERAL = "give a whole number", "give several whole numbers"
BAD_RECIPES = [
    *(({"iterations": 10 * 50_000 / 128}, f"{WHOLE}, such as 3906"),),
    *(({"iterations": 3.5}, WHOLE), ({"validation": 0.1}, WHOLE)),
    *(({"batch_size": 8.0}, f"{WHOLE}, such as 8"), ({"seed": "3"}, "give a number")),
    *(({"iterations": wrong}, "give a number") for wrong in (True, "64000")),
    *(({"lr": bad}, "give a number") for bad in (b"0.1", np.True_, torch.ones(2))),
    *(({"lr": bad}, "give a finite number") for bad in (float("nan"), 10**400)),
    *(({"validation": -5}, "give 0 or more"), ({"seed": -1}, "give 0 or more")),
    ({"warmup_lr": -1}, "give a number above 0"),
    ({"momentum": 1.0}, "give 0 \\(off\\) or a number below 1"),
    ({"momentum": 0, "nesterov": True}, "needs momentum: give a momentum above 0"),
    ({"nesterov": "false"}, "give True or False"),
    ({"milestones": 5}, f"{SEVERAL}, as in milestones=\\(10, 20\\)"),
    *(({"milestones": bad}, SEVERAL) for bad in ("57", {10: 0.1}, {10, 20}, b"\5")),
    ({"milestones": itertools.count()}, SEVERAL),
    ({"milestones": (1.5,)}, f"milestones\\[0\\] is 1.5: {WHOLE}"),
    ({"iterations": 20}, "use its scaled\\(20\\); for none of them, give milestones="),
    ({"precision": "fp8"}, "choose from 'auto', 'bf16', 'tf32', 'fp32'"),
    *(({"schedule": bad}, "from 'steps', 'tri") for bad in (3, np.array(["steps"]))),
    *(({"log_every": bad}, f"{WHOLE}, such as 100") for bad in (0.5, -2.5)),
    ({"validation": 0.1}, f"{WHOLE}, such as 5000"),
    *(({name: 1e300}, "than float32 holds: give less") for name in FLOAT32),
    ({"schedule": "triangular"}, "its peak, .*Give milestones=\\(12800,\\)"),
    ({"seed": 2**64}, "is 2\\*\\*63 or more: give a smaller number"),
]


@pytest.mark.parametrize(("change", "told"), BAD_RECIPES, ids=str)
def test_a_recipe_that_no_training_could_follow_is_refused(change, told):
    with pytest.raises(ValueError, match=told) as refusal:
        dataclasses.replace(PAPER, **change)
    assert str(refusal.value).startswith(f"Recipe.{next(reversed(change))}") or (
        "Recipe.milestones" in str(refusal.value)
    )


def test_the_remedies_for_a_recipe_work():
    change = {"schedule": "triangular", "milestones": (12_800,)}
    assert dataclasses.replace(PAPER, **change).milestones == (12_800,)
    with pytest.raises(ValueError, match=r"use its scaled\(4000\)\.$"):
        dataclasses.replace(QUICK, iterations=4000)
    assert QUICK.scaled(4000).milestones == (800,)
    assert QUICK.scaled(2).milestones == (1,)
    with pytest.raises(ValueError, match="2 iterations or more, or schedule='steps'"):
        QUICK.scaled(1)
    assert dataclasses.replace(QUICK, schedule="steps").scaled(1).iterations == 1
    with pytest.raises(ValueError, match=r"small_until=\(\) and small_size=\(\)"):
        dataclasses.replace(QUICK, iterations=5000)
    no_small = {"small_until": (), "small_size": ()}
    assert dataclasses.replace(QUICK, iterations=5000, **no_small)
    assert PAPER.scaled(20).milestones == (10, 15)
    assert dataclasses.replace(PAPER, iterations=20, milestones=()).iterations == 20
    for bad in (10.67, 3906.25):
        with pytest.raises(ValueError, match=f"such as {round(bad)}"):
            QUICK.scaled(bad)
        assert QUICK.scaled(round(bad)).iterations == round(bad)
    with pytest.raises(ValueError, match="give a smaller number"):
        QUICK.scaled(10**400)
    for steps in ([3, 9], np.array([3, 9]), torch.tensor([3, 9]), range(3, 10, 6)):
        assert dataclasses.replace(PAPER, milestones=steps).milestones == (3, 9)
    for none in ([], np.array([]), range(0)):
        assert dataclasses.replace(PAPER, milestones=none).milestones == ()
    train(d(24), recipe=dataclasses.replace(R, seed=2**63 - 1))
    ours = Recipe(
        iterations=np.int64(20), milestones=np.array([3]), lr=np.float32(0.5), seed=3
    )
    assert (type(ours.iterations), ours.milestones, ours.lr) == (int, (3,), 0.5)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [({"lr": 1e30}, "lr"), ({"weight_decay": 1e30}, "weight_decay")],
)
def test_the_field_that_breaks_the_loss_is_named(change, remedy):
    recipe = dataclasses.replace(R, precision="fp32", log_every=1, **change)
    with pytest.raises(FloatingPointError, match=f"Lower the recipe's {remedy}\\."):
        train(d(24), recipe=recipe)


def frozen(net, layer=""):
    net.get_submodule(layer).requires_grad_(False)
    return net


class Answers(nn.Module):
    """A small network whose answer is changed."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = small_net(), change

    def forward(self, x):
        return self.change(self.net(x))


TYPE = "is of type"
BAD_CALLS = [  # arguments of fit, and what is said
    *(({"model": bad}, f"The model {TYPE} str: give a") for bad in ("resnet8",)),
    ({"data": d(24).train}, f"The data {TYPE} Images: give a .*Dataset"),
    ({"model": d(24), "data": small_net()}, f"The model {TYPE} Dataset"),
    ({"recipe": "paper"}, f"The recipe {TYPE} str: give a .*Recipe"),
    *(({"max_minutes": bad}, "0 or more") for bad in (None, "5", float("nan"), -1)),
    *(({"checkpoint_seconds": bad}, "0 or more") for bad in (None, float("nan"))),
    *(
        (
            {"snapshots": bad, "run": "r"},
            r"from 0 to 2 and name a folder, as in snapshots=\(0, 2\), run",
        )
        for bad in (5, True, [2.5], ["3"], [99], [-1], None)
    ),
    ({"snapshots": (0, 2)}, "run is None: list iterations .* and name a folder"),
    ({"run": 5}, "5 is no path"),
    ({"model": small_net().half()}, r"torch.float16.*model.float\(\)"),
    ({"model": small_net().double()}, r"torch.float64.*model.float\(\)"),
    ({"model": frozen(small_net())}, r"are none: .* thaw them with model.requires_"),
    ({"model": nn.Flatten()}, "weights to train are none: "),
    ({"model": Answers(lambda x: {"out": x})}, "with a dict. Let its forward"),
    ({"model": Answers(lambda x: (x, x))}, "with a tuple. Let its forward"),
    ({"model": Answers(lambda x: x[:, 0])}, r"of shape \(1,\)\. Let its forward"),
    ({"model": Answers(lambda x: x[:, :, None])}, r"of shape \(1, 10, 1\)\. Let"),
    (
        {"recipe": dataclasses.replace(SHORT, batch_size=10**8)},
        "goes over 24 images .* Give a batch_size of 24",
    ),
]


@pytest.mark.parametrize(("change", "told"), BAD_CALLS)
def test_a_call_that_cannot_be_is_refused(change, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = {"model": small_net(), "data": d(24), "recipe": SHORT, "device": "cpu"}
    with pytest.raises((TypeError, ValueError), match=told) as refusal:
        fit(**call | change, progress=False)
    assert "\n" not in str(refusal.value) and not list(tmp_path.iterdir())


def test_what_a_judge_cannot_judge():
    data, norm = d(24), Normalisation.of(d(24).train.images)
    for net, told in (
        ("net", f"The model {TYPE} str"),
        (small_net(classes=7), "tells 7"),
    ):
        with pytest.raises((TypeError, ValueError), match=told):
            evaluate(net, data.test, norm)
    for size in (0, -1, 2.5, None):
        with pytest.raises(ValueError, match=r"batch_size is .*whole number above 0"):
            evaluate(small_net(), data.test, norm, batch_size=size)


def test_a_long_recipe_is_estimated_at_once():
    recipe = dataclasses.replace(SHORT, iterations=10**12)
    assert expected_minutes(small_net(), d(24), recipe, "cpu", steps=1) > 10**6
    with pytest.raises(TypeError, match=f"The recipe {TYPE} str"):
        expected_minutes(small_net(), d(24), "paper")


def test_ctrl_c_ends_a_training_within_a_step():
    recipe = dataclasses.replace(R.scaled(10**6), log_every=1)

    def interrupt(rows):
        if len(rows) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    result = train(d(24), recipe=recipe, on_row=interrupt)
    assert (result.status, result.iteration) == ("interrupted", 2)


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
    assert train(d(24), tmp_path).finished


# --- a name is no proof of the network ------------------------------------------------


class Odd(ResNet):
    def forward(self, x):
        return -super().forward(x)


def altered(layer, name, value):
    net = small_net()
    setattr(net.get_submodule(layer), name, value)
    return net


NETS = {  # with whether the record alone rebuilds them
    "plain8": (lambda: get_model("plain8"), True),
    "one of two stages": (lambda: ResNet((8, 16), (1, 1)), True),
    "a hundred classes": (lambda: small_net(classes=100), True),
    "compiled": (lambda: torch.compile(small_net(), backend="eager"), True),
    "in parallel": (lambda: nn.DataParallel(small_net()), True),
    "stem stride": (lambda: altered("conv1", "stride", (2, 2)), False),
    "BN's epsilon": (lambda: altered("bn1", "eps", 1e-3), False),
    "activation": (lambda: altered("", "relu", nn.LeakyReLU(0.2)), False),
    "pooling": (lambda: altered("", "avgpool", nn.AdaptiveMaxPool2d(1)), False),
    "a subclass": (lambda: Odd((8, 16), (1, 1)), False),
    "torchvision's": (lambda: torchvision.models.squeezenet1_1(num_classes=10), False),
}


def test_a_run_is_rebuilt_as_what_it_was_or_not_at_all(tmp_path):
    for name, (build, rebuilt) in NETS.items():
        net = build()
        data = d(24)
        if name == "a hundred classes":
            data = dataclasses.replace(data, classes=tuple(map(str, range(100))))
        train(data, tmp_path / name, net, SHORT)
        run = load_run(name, tmp_path)
        if not rebuilt:
            with pytest.raises(
                ValueError, match="Build it yourself and load the state"
            ):
                run.model()
            build().load_state_dict(load_weights(run.folder / "weights.pt"))  # so
            continue
        x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(run.model()(x), net.eval()(x))
    runs = recorded_runs(tmp_path)
    assert runs.keys() == NETS.keys()
    assert len(histories(runs)) and len(runs_table(runs)) == len(NETS)
    with pytest.raises(ValueError, match="No two depths"):
        longest_study(runs)


def mlp(activation=nn.ReLU, **attributes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), activation())
    vars(net).update(attributes)
    return net


class Squared(nn.Flatten):
    def forward(self, x):
        return super().forward(x * x)


def of_that_name(power):
    class Own(nn.Flatten):
        if power == 2:

            def forward(self, x):
                return super().forward(x**2)

        else:

            def forward(self, x):
                return super().forward(x**3)

    return nn.Sequential(Own(), nn.Linear(3072, 10))


def hooked(net, hook):
    net.register_forward_hook(hook)
    return net


OTHER_NETS = {  # pairs that no name, size or description tells apart
    "an activation": (mlp, lambda: mlp(nn.Tanh)),
    "of ours, changed": (NETS["activation"][0], lambda: altered("", "relu", nn.ELU())),
    "a number of its own": (lambda: mlp(scale=1.0), lambda: mlp(scale=2.0)),
    "another class": (mlp, lambda: nn.Sequential(Squared(), *mlp()[1:])),
    "a forward": (lambda: of_that_name(2), lambda: of_that_name(3)),
    "a hook": (mlp, lambda: hooked(mlp(), lambda net, given, answer: 2 * answer)),
    "frozen": (small_net, lambda: frozen(small_net(), "conv1")),
}


@pytest.mark.parametrize("minutes", [1e-9, 60], ids=["cut short", "finished"])
@pytest.mark.parametrize("name", OTHER_NETS)
def test_a_run_refuses_another_network(tmp_path, name, minutes):
    ours, theirs = OTHER_NETS[name]
    train(d(24), tmp_path, ours(), SHORT, max_minutes=minutes)
    with pytest.raises(ValueError, match=r"another network.*Choose another folder"):
        train(d(24), tmp_path, theirs(), SHORT)
    assert train(d(24), tmp_path, ours(), SHORT).finished  # the remedies
    assert train(d(24), tmp_path / "other", theirs(), SHORT).finished


def test_pictures_that_changed_in_place_are_other_pictures(tmp_path):
    data = d(24)
    train(data, tmp_path, recipe=SHORT)
    data.train.images.zero_()
    with pytest.raises(ValueError, match="other data of the name 'random'"):
        train(data, tmp_path, recipe=SHORT)


@pytest.mark.parametrize("file", ["weights.pt", "history.csv", "checkpoint.pt"])
def test_a_folder_of_another_program_is_left_alone(tmp_path, file):
    (tmp_path / file).write_text("theirs")
    with pytest.raises(RuntimeError, match=f"holds {file} and no recipe.json"):
        train(d(24), tmp_path, recipe=SHORT)
    assert (tmp_path / file).read_text() == "theirs"
    (tmp_path / file).rename(tmp_path / "checkpoint.best.pt")  # beside a run it stays
    assert train(d(24), tmp_path, recipe=SHORT).finished
    assert (tmp_path / "checkpoint.best.pt").read_text() == "theirs"


def test_a_name_that_is_no_text_is_no_name(tmp_path):
    net = small_net()
    net.name = 5
    train(d(24), tmp_path / "run", net, SHORT)
    assert load_run("run", tmp_path).about["model"] == "ResNet"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train(d(24), folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """The folder of a finished run, beside nothing else."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def row_in_front(row):
    return lambda text: text.replace("\n", f"\n{row}\n", 1)


def changed(change):
    return lambda text: json.dumps(change(json.loads(text)))


def without(table, name):
    return {key: value for key, value in table.items() if key != name}


def inside(key, **more):
    return changed(lambda a: a | {key: a[key] | more})


DAMAGES = {  # what befalls the text of a file
    "nothing left": ("history.csv", lambda text: ""),
    "zeros": ("history.csv", lambda text: "\0" * 100),
    "a head alone": ("history.csv", lambda text: "iteration\n"),
    "other columns": ("history.csv", lambda text: "a,b\n1,2\n"),
    **{row: ("history.csv", row_in_front(row)) for row in ("7,x,y", "1,2", "1,,,,,,")},
    "a key that is gone": (
        "recipe.json",
        changed(lambda a: a | {"recipe": without(a["recipe"], "iterations")}),
    ),
    "no recipe": ("recipe.json", changed(lambda a: a | {"recipe": [1, 2]})),
    "a value": ("recipe.json", inside("recipe", lr="fast")),
    "a name": ("recipe.json", changed(lambda a: a | {"model": 20})),
    "half a network": (
        "recipe.json",
        changed(lambda a: a | {"network": without(a["network"], "depths")}),
    ),
    "a wide network": ("recipe.json", inside("network", widths=8)),
    "a shortcut": ("recipe.json", inside("network", shortcut="E")),
    "a class": ("recipe.json", inside("network", **{"class": "VGG"})),
    "an endless number": ("history.csv", row_in_front("inf" + "," * 8)),
    "no line": ("history.csv", lambda text: "iteration"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_one_damaged_record_breaks_nothing_else(run, tmp_path, name):
    shutil.copytree(run, tmp_path / "good")
    file, damage = DAMAGES[name]
    whole = (run / file).read_text()
    (run / file).write_text(damage(whole))
    runs = recorded_runs(tmp_path)
    assert runs.keys() == set(histories(runs)["run"]) == {"good"}
    told = rf"{file} is damaged .*Restore it, or|There are: good"
    with pytest.raises((RuntimeError, KeyError), match=told):
        load_run("run", tmp_path)
    (run / file).write_text(whole)  # the remedy
    again = load_run("run", tmp_path)
    assert again.model() and again.final["iteration"] == R.iterations


def test_weights_of_another_network_are_named(run, tmp_path):
    whole = (run / "weights.pt").read_bytes()
    for weights in ({}, small_net(classes=7).state_dict(), {"a": torch.ones(1)}):
        torch.save(weights, run / "weights.pt")
        with pytest.raises(RuntimeError, match=r"does not hold the weights of .*anew"):
            load_run("run", tmp_path).model()
    (run / "weights.pt").write_bytes(whole)
    assert load_run("run", str(tmp_path)).model()


def test_what_is_told_of_a_run_without_its_files_works(run, tmp_path):
    (run / "weights.pt").write_bytes(b"half")
    with pytest.raises(RuntimeError, match=r"damaged.* train the run anew in another"):
        train(d(24), run)
    torch.save(mlp().state_dict(), run / "weights.pt")
    with pytest.raises(
        RuntimeError, match=r"of another network\. Restore it, or train"
    ):
        train(d(24), run)
    assert train(d(24), tmp_path / "another").finished
    (tmp_path / "another" / "history.csv").unlink()
    whole = (tmp_path / "another" / "weights.pt").read_bytes()
    with pytest.raises(RuntimeError, match=r"history.csv is damaged .*or choose"):
        train(d(24), tmp_path / "another")
    assert (tmp_path / "another" / "weights.pt").read_bytes() == whole
    (tmp_path / "another" / "history.csv").mkdir()
    (tmp_path / "a" / "recipe.json").mkdir(parents=True)
    assert recorded_runs(tmp_path).keys() == {"run"}


@pytest.mark.parametrize("name", [3, None, 2.5, "nothing", "\0"])
def test_a_run_that_is_not_there(run, tmp_path, name):
    with pytest.raises(KeyError, match=r"No recorded run .*There are: run\."):
        load_run(name, tmp_path)


def test_finished_means_one_thing(run):
    """Its last row, which is written after the weights."""
    history = run / "history.csv"
    assert Run(run).finished
    history.write_text(history.read_text().rstrip("\n"))  # killed in the last row
    assert not Run(run).finished
    assert train(d(24), run).finished and Run(run).finished
    (run / "weights.pt").unlink()  # a record that keeps its history alone
    assert Run(run).finished
    with pytest.raises(RuntimeError, match=r"keeps no weights.*Choose another folder"):
        train(d(24), run)


def test_what_is_no_state_dict_is_not_called_damaged(tmp_path):
    cases = {
        "If it is a whole model, load it where it was made": small_net(),
        "holds no state_dict": {"a": torch.ones(1), "b": 3},
        "holds no state_dict: a name and a tensor": [1, 2],
        "holds no state_dict: a name": {"a": np.float64(3)},
    }
    for told, value in cases.items():
        torch.save(value, tmp_path / "w.pt")
        with pytest.raises(RuntimeError, match=told):
            load_weights(tmp_path / "w.pt")
    torch.save(small_net().state_dict(), tmp_path / "w.pt")
    assert load_weights(tmp_path / "w.pt").keys() == small_net().state_dict().keys()
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:3000])
    with pytest.raises(RuntimeError, match="is damaged"):
        load_weights(tmp_path / "w.pt")


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


def test_a_lock_that_a_dead_process_left_behind_is_no_lock(tmp_path):
    (tmp_path / ".lock").write_text("4711\nanother-host\n")
    assert train(d(24), tmp_path).finished


def test_two_threads_of_one_process_keep_each_other_out(tmp_path):
    told = []

    def again(rows):
        def second():
            try:
                train(d(24), tmp_path)
            except RuntimeError as error:
                told.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    train(d(24), tmp_path, on_row=again)
    assert told and all("Another process is training in" in text for text in told)


# --- paths ----------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert train(d(24), "~/my runs/first").finished
    assert Run(tmp_path / "my runs" / "first").finished
    assert not (tmp_path / "~").exists()
    with pytest.raises(ValueError, match=r"no such home folder\. Write"):
        train(d(24), "~nosuchuser/x")
    assert load_run("first", "~/my runs") and "first" in recorded_runs("~/my runs")
