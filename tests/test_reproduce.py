"""A plan of runs survives kills, repeats nothing, and says where it stands."""

import errno
import os
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked import Forked
from PIL import Image

from resnet_lib import PAPER, fit, get_model
from resnet_lib.datasets import load_digits
from resnet_lib.paths import data_home
from resnet_lib.runs import Run, load_run, load_weights, recorded_runs
from resnet_lib.train import main as train_main
from resnet_lib.train import parser, recipe_from
from workshop import reproduce as module
from workshop.plans import read_plan
from workshop.reproduce import Places, main, publish, reproduce, status_of

PLANS = sorted((data_home() / "plans").glob("*.toml"))
RUN = 'model = "resnet20"'
RUNS = f"runs = [{{ {RUN} }}]"
TINY = """
defaults = { data = "digits", batch_size = 16, validation = 100, precision = "fp32" }
runs = [
    { model = "resnet8", iterations = 30, log_every = 2, eval_every = 15 },
    { model = "plain8", iterations = 10, log_every = 5, eval_every = 10, seed = 3 },
]
"""


@pytest.fixture
def one_thread(monkeypatch):
    """Every process on one thread: other numbers of threads give other bits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    """The trainings that are started here are forked: the libraries are loaded."""
    monkeypatch.setattr(module, "subprocess", SimpleNamespace(Popen=Forked, STDOUT=-2))


@pytest.fixture
def planned(tmp_path):
    """Write a plan; returns its path and its runs."""

    def write(text=TINY, encoding="utf-8"):
        path = tmp_path / "plan.toml"
        path.write_text(text, encoding=encoding)
        return path, read_plan(path)

    return write


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path / "work", tmp_path / "data" / "runs")


def arguments(path, places, *more):
    where = ["--work", str(places.work), "--records", str(places.records)]
    return [str(path), *where, *more]


def train(run, folder, **changes):
    """Carry out a run here; returns its network."""
    torch.manual_seed(run.recipe.seed)
    net = get_model(run.model, run.shortcut)
    recipe = replace(run.recipe, **changes)
    fit(net, load_digits(), recipe, folder, progress=False)
    return net


def start(path, places, *more, popen=Forked):
    """The command itself, as a process; its trainings are started anew."""
    command = [sys.executable, "-m", "workshop.reproduce"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return popen(command + arguments(path, places, *more), env=environment)


def wait_until(done):
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_lines(count, history, process):
    def written():
        assert process.poll() is None
        return history.exists() and len(history.read_text().splitlines()) >= count

    wait_until(written)


# --- the plan -------------------------------------------------------------------------


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_reaches_the_command_line_whole(path):
    plan = read_plan(path)
    assert len(plan) == len(tomllib.loads(path.read_text("utf-8"))["runs"]) > 0
    for run in plan:
        options = parser().parse_args(run.command(Path("folder"))[3:])
        assert recipe_from(options) == run.recipe
        for name in ("model", "shortcut", "data", "snapshots"):
            assert getattr(options, name) == getattr(run, name)


def test_records_are_those_of_the_plans():
    plans = {run.name: run for path in PLANS for run in read_plan(path)}
    for name, run in recorded_runs().items():
        if run.about["data"] == "cifar10":
            assert plans[name].is_same_run(run), name
            kept = (run.folder / "weights.pt").exists()
            assert not kept or plans[name].weights, name


def test_milestones_move_with_the_iterations(planned):
    _, (run,) = planned(RUNS.replace(" }", ", iterations = 16_000, lr = 0.05 }"))
    assert run.name == "resnet20-paper-16k-lr0.05"
    assert run.recipe.milestones == (8_000, 12_000)
    assert run.recipe.lr == 0.05 and run.recipe.momentum == PAPER.momentum


def test_what_differs_shows_in_the_name(planned):
    names = {
        "": "resnet20-paper-64k",
        ", seed = 1": "resnet20-paper-64k-seed1",
        ', shortcut = "B"': "resnet20-B-paper-64k",
        ', data = "digits", validation = 0': "resnet20-paper-64k-digits",
        ", warmup_lr = 0.01": "resnet20-paper-64k-warmup",
        ", lr = 0.3, milestones = []": "resnet20-paper-64k-lr0.3-constant",
        ', precision = "bf16", seed = 1': "resnet20-paper-64k-bf16-seed1",
    }
    runs = ", ".join(f'{{model = "resnet20"{entry}}}' for entry in names)
    _, plan = planned(f"runs = [{runs}]")
    assert [run.name for run in plan] == list(names.values())


# A plan that cannot be carried out, words of the error, and the remedy it names.
FAULTS = [
    (f"[runs]\n{RUN}", "[runs] is one table", f"[[runs]]\n{RUN}"),
    ("runs = 3", "runs = 3: list them", RUNS),
    ("", "runs = []: list them", RUNS),
    ('runs = ["x"]', f'run "x": give a table, as in {{ {RUN} }}', RUNS),
    (
        f'defaults = "x"\n{RUNS}',
        f'defaults = "x": give a table, as in defaults = {{ {RUN} }}',
        f"defaults = {{ {RUN} }}\n{RUNS}",
    ),
    (f"[[run]]\n{RUN}", "no key 'run'. Write runs", f"[[runs]]\n{RUN}"),
    (
        f"defaults = {{ iteration = 9 }}\n{RUNS}",
        "defaults: there is no key 'iteration'. Write iterations",
        f"defaults = {{ iterations = 9 }}\n{RUNS}",
    ),
]
# The same for one run, as what follows its model.
ONE_RUN = [
    ("sed = 3", "no key 'sed'. Write seed", "seed = 3"),
    ("turbo = 3", "no key 'turbo'. Choose from", ""),
    ('shortcut = "D"', "shortcut", 'shortcut = "A"'),
    ('recipe = "best"', 'Choose from "paper", "quick"', ""),
    ('seed = "3"', "as in seed = 3.", "seed = 3"),
    ("seed = true", "as in seed = 0.", "seed = 0"),
    ('nesterov = "false"', "true or false, without quotes, as in", "nesterov = false"),
    ('snapshots = "no"', "as in snapshots = true.", "weights = true"),
    ("iterations = 20.0", "a whole number, as in iterations = 20.", "iterations = 20"),
    ('lr = "0.3"', "as in lr = 0.3.", "lr = 0.3"),
    ("lr = -1", "number above 0", "lr = 1"),
    ("lr = inf", "finite number", "lr = 1"),
    ("milestones = 30", "as in milestones = [32000, 48000].", "milestones = [32, 48]"),
    ("iterations = 20, milestones = [30]", "Leave them out, and", "iterations = 20"),
    ('data = "mnist"', "Choose from cifar10, cifar100", ""),
    ('data = ""', "data '' is neither a set", ""),
    ("small_until = [9], small_size = [64]", "32 pixels a side", "lr = 1"),
    ('data = "digits"', "as in validation = 143.", 'data = "digits", validation = 143'),
    ("seed = 7", "has its name, resnet20-paper-64k-seed7", ""),
    ("seed = 7, momentum = 0.8", "Leave this one out", ""),
]
NO_NET = [
    ('recipe = "paper"', f"as in {RUN}"),
    ("model = 20", f"text in quotes, as in {RUN}"),
    ('model = "resnet19"', "Try 14 or 20"),
]
PLAN = f"runs = [{{{RUN}, seed = 7}}, {{%s}}]"
FAULTS += [(PLAN % bad, f"run 2, {words}", RUNS) for bad, words in NO_NET]
FAULTS += [
    (PLAN % f"{RUN}, {bad}", f"run 2, {words}", PLAN % f"{RUN}, {good}".strip(", "))
    for bad, words, good in ONE_RUN
]


@pytest.mark.parametrize(("text", "words", "remedy"), FAULTS)
def test_a_plan_that_cannot_be_carried_out(planned, text, words, remedy):
    with pytest.raises(ValueError) as caught:
        planned(text)
    said = str(caught.value)
    assert "plan.toml: " in said and said.endswith(".") and "\n" not in said
    assert all(word in said for word in words.split(", ", 1)), said
    assert len(planned(remedy)[1]) >= 1


def test_a_folder_with_fewer_pictures_than_are_set_aside(
    planned, places, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for i in range(20):
        (tmp_path / "pets" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), i).save(tmp_path / "pets" / "ab"[i % 2] / f"{i}.png")
    words = "validation = 5000 leaves none of the 16 training images of"
    entry = 'model = "resnet8", data = "pets", iterations = 4, batch_size = 8'
    path, _ = planned(f"runs = [{{{entry}}}]")
    assert main(arguments(path, places)) == 1
    said = capsys.readouterr().err
    assert f"{words} pets. Give fewer, as in validation = 1.\n" in said
    assert not places.work.exists()
    planned(f"runs = [{{{entry}, validation = 1}}]")
    assert main(arguments(path, places)) == 0
    command = "--data pets --model resnet8 --iterations 4 --batch-size 8 --quiet"
    assert train_main(command.split()) == 1
    said = capsys.readouterr().err
    assert f"{words} folder pets. Give fewer, as in --validation 1.\n" in said
    assert train_main([*command.split(), "--validation", "1"]) == 0


def test_a_plan_in_another_encoding(planned, refused):
    text = f"# Größe\n{RUNS}"
    for encoding in ("cp1252", "utf-16", "utf-16-le"):
        refused(r"plan.toml: .* Save it in UTF-8\.", planned, text, encoding)
    assert planned(text, "utf-8") and planned(text, "utf-8-sig")  # as Notepad does


def test_a_plan_that_is_not_there_or_not_toml(planned, tmp_path, capsys, refused):
    wrong = f"runs = [{{{RUN}, nesterov = False}}]"
    refused("plan.toml: .*not TOML: .*line 1", planned, wrong)
    assert planned(wrong.replace("False", "false"))
    for deep in ("runs = " + "[" * 5_000 + "]" * 5_000, "x = " + "{a=" * 5_000 + "1"):
        refused("plan.toml: .*Write a table for each run", planned, deep)
    assert main([str(tmp_path / "nowhere.toml"), "--status"]) == 1
    assert "nowhere.toml: the plan cannot be read (No such" in capsys.readouterr().err


# --- carrying it out ------------------------------------------------------------------


def test_a_killed_plan_goes_on_with_the_same_results(
    planned, places, one_thread, capsys
):
    path, (first, second) = planned()
    options = ("--checkpoint-seconds", "0")
    process = start(path, places, popen=subprocess.Popen)
    folder = places.work / first.name
    wait_for_lines(4, folder / "history.csv", process)
    process.kill()  # the training process is orphaned, and holds the folder …
    process.wait()
    assert main(arguments(path, places, "--status")) == 0
    text = capsys.readouterr().out
    assert f"partial  {first.name}" in text and "0 done, 1 partial, 1 missing" in text
    errors = reproduce([first, second], places, jobs=2, options=options)
    # … until it has finished; nobody trains in it a second time meanwhile.
    assert all("Another process is training" in error for error in errors)
    wait_until(lambda: Run(folder).finished)
    time.sleep(1)
    assert reproduce([first, second], places, options=options) == []
    for run in (first, second):
        assert status_of(run, places) == "done"
        alone = train(run, None)
        kept = load_weights(places.work / run.name / "weights.pt")
        for name, value in alone.state_dict().items():
            assert torch.equal(kept[name], value), name
        record = recorded_runs(places.records)[run.name]
        assert run.is_same_run(record)
        left = {file.name for file in record.folder.iterdir()}
        assert left == {"recipe.json", "environment.json", "history.csv"}


def test_sigterm_stops_with_a_checkpoint_and_the_next_call_goes_on(planned, places):
    path, (run, _) = planned(TINY.replace("iterations = 30", "iterations = 100_000"))
    process = start(path, places, "--only", run.name)
    wait_for_lines(3, places.work / run.name / "history.csv", process)
    process.send_signal(signal.SIGTERM)
    code, text = process.end()
    assert code == 0 and "0 done, 1 partial, 0 missing" in text
    assert (places.work / run.name / "checkpoint.pt").exists()
    # At a time limit of no time at all, nothing is started.
    assert reproduce([run], places, max_minutes=0) == []
    assert status_of(run, places) == "partial"


def test_weights_are_recorded_in_half_precision_where_the_plan_asks(planned, places):
    kept = TINY.replace("seed = 3", "seed = 3, weights = true")
    _, (_, run) = planned(kept)
    assert run.weights and not planned()[1][1].weights
    net = train(run, places.work / run.name)
    publish(run, places.work / run.name, places.records / run.name)
    weights = load_weights(places.records / run.name / "weights.pt")
    assert weights["fc.weight"].dtype == torch.half
    again = load_run(run.name, places.records).model()
    torch.testing.assert_close(again.fc.weight, net.fc.weight, atol=1e-3, rtol=1e-3)


def test_snapshots_bring_their_weights_along(planned, places):
    _, (_, run) = planned(TINY.replace("seed = 3", "seed = 3, snapshots = true"))
    assert reproduce([run], places) == []
    record = load_run(run.name, places.records)
    assert record.snapshots == [0, 1, 5, 8, 10]
    assert record.model(5).fc.weight.shape == record.model().fc.weight.shape


@pytest.mark.parametrize("where", ["work", "records"])
def test_another_run_under_the_same_name_is_refused(planned, places, where, capsys):
    path, (_, run) = planned()
    folder = getattr(places, where) / run.name
    train(run, folder, lr=0.2)
    for more in ([], ["--status"]):  # before any work begins
        assert main(arguments(path, places, *more)) == 1
        said = capsys.readouterr().err
        assert f"{folder} holds another run" in said and "Rename the folder" in said
    folder.rename(folder.with_name("renamed"))
    assert main(arguments(path, places, "--status")) == 0


def test_half_a_run_among_the_records_goes_on_elsewhere(planned, places, capsys):
    path, (_, run) = planned()
    folder = places.records / run.name
    train(run, folder)
    history = folder / "history.csv"
    history.write_text("".join(history.read_text().splitlines(True)[:-1]))
    (folder / "weights.pt").unlink()
    assert main(arguments(path, places, "--status")) == 1
    said = capsys.readouterr().err
    assert f"not finished. Move it to {places.work}, and it goes on" in said
    places.work.mkdir()
    folder.rename(places.work / run.name)
    assert reproduce([run], places) == [] and status_of(run, places) == "done"


def test_a_failing_run_is_named_and_the_others_go_on(planned, places, capfd):
    path, _ = planned(TINY.replace("iterations = 30", "iterations = 30, lr = 1e30"))
    assert main(arguments(path, places)) == 1
    written = capfd.readouterr()
    assert "resnet8-paper-30-digits-lr1e+30-fp32: " in written.err
    assert "The loss is nan" in written.err
    assert "1 done, 1 partial, 0 missing" in written.out


def test_a_run_that_cannot_be_recorded_is_named_and_the_others_go_on(
    planned, places, monkeypatch
):
    _, (first, second) = planned()

    def full_disk(run, folder, target):
        if run is second:
            raise OSError(28, "No space left on device")
        publish(run, folder, target)

    with monkeypatch.context() as patch:
        patch.setattr(module, "publish", full_disk)
        (error,) = reproduce([second, first], places)
    assert second.name in error and "not recorded" in error and "No space" in error
    assert [status_of(run, places) for run in (first, second)] == ["done", "partial"]
    # With room again it is recorded, and nothing that is finished is ever repeated.
    assert reproduce([second], places) == [] and status_of(second, places) == "done"
    monkeypatch.setattr(module, "subprocess", None)
    assert reproduce([first, second], places) == []


def test_a_drive_without_locks_is_named(planned, places, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    path, _ = planned()
    monkeypatch.setattr(fcntl, "flock", flock)
    assert main(arguments(path, places, "--max-minutes", "0")) == 0
    said = capsys.readouterr().err
    assert f"{places.work} lies on a drive without file locks: see to it" in said


def test_a_folder_that_cannot_be_written(planned, places, tmp_path, capsys):
    path, _ = planned()
    places.work.write_text("a file where the folder should be")
    assert main(arguments(path, places)) == 1
    said = capsys.readouterr().err
    assert f"{places.work} cannot be written" in said
    assert said.endswith("Choose another place with --work.\n")
    other = Places(tmp_path / "other", places.records)
    assert main(arguments(path, other, "--max-minutes", "0")) == 0


def test_options_that_cannot_be(planned, places, capsys):
    path, _ = planned()
    for options, words in {
        ("--only", "resnet9"): "has no run resnet9: resnet8-paper-30-digits-fp32, ",
        ("--jobs", "0"): "give 1 or more",
    }.items():
        assert main(arguments(path, places, *options)) == 1
        assert words in capsys.readouterr().err
