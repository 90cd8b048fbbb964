"""A plan of runs survives kills, repeats nothing, and says where it stands."""

import math
import os
import re
import signal
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from forked import Forked, wait_until
from nets import outcome
from PIL import Image

from resnet_lib import fit, get_model
from resnet_lib import train as command
from resnet_lib.datasets import load_digits
from resnet_lib.device import threads
from resnet_lib.paths import data_home
from resnet_lib.recipe import QUICK
from resnet_lib.runs import Run, load_run, load_weights, recorded_runs
from workshop import reproduce as module
from workshop.plans import read_plan
from workshop.reproduce import Places, iteration_of, main, reproduce, status_of

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
def places(tmp_path, monkeypatch):
    """Trainings that are started here are forked: the libraries are loaded."""
    monkeypatch.setattr(module, "subprocess", SimpleNamespace(Popen=Forked, STDOUT=-2))
    return Places(tmp_path / "work", tmp_path / "data" / "runs")


def planned(folder, text=TINY, encoding="utf-8"):
    """Write a plan; returns its path and its runs."""
    path = folder / "plan.toml"
    path.write_text(text, encoding=encoding)
    return path, read_plan(path)


def arguments(path, places, *more):
    return [str(path), f"--work={places.work}", f"--records={places.records}", *more]


def train(run, folder, minutes=math.inf, **changes):
    torch.manual_seed(run.recipe.seed)
    net, recipe = get_model(run.model), replace(run.recipe, **changes)
    fit(net, load_digits(), recipe, folder, max_minutes=minutes, progress=False)


def start(path, places, *more):
    """The command itself, as a process; its trainings are started anew."""
    words = [sys.executable, "-m", "workshop.reproduce"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return Forked(words + arguments(path, places, *more), env=environment)


# --- the plan -------------------------------------------------------------------------


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_reaches_the_command_line_whole(path):
    plan = read_plan(path)
    assert len(plan) == len(tomllib.loads(path.read_text("utf-8"))["runs"]) > 0
    reaches_the_command_line(plan)


def test_steps_of_the_shorter_recipe_stay_where_they_are(tmp_path):
    steps = "iterations = 100_000, milestones = [32_000, 48_000]"
    small = f"iterations = 30_000, small_until = {list(QUICK.small_until)}"
    for entry in (steps, f'recipe = "quick", {small}'):
        reaches_the_command_line(planned(tmp_path, f"runs = [{{{RUN}, {entry}}}]")[1])


def reaches_the_command_line(plan):
    for run in plan:
        options = command.parser().parse_args(run.command(Path("folder"))[3:])
        assert command.recipe_from(options) == run.recipe
        for name in ("model", "shortcut", "data", "snapshots"):
            assert getattr(options, name) == getattr(run, name)


def test_records_are_those_of_the_plans():
    plans = {run.name: run for path in PLANS for run in read_plan(path)}
    for name, run in recorded_runs().items():
        if run.about["data"] == "cifar10":
            assert plans[name].is_same_run(run), name
            kept = (run.folder / "weights.pt").exists()
            assert not kept or plans[name].weights, name


# A plan that cannot be carried out, words of the error, and the remedy it names.
FAULTS = [
    (f"[runs]\n{RUN}", "[runs] is one table", f"[[runs]]\n{RUN}"),
    ("runs = 3", "runs = 3: list them", RUNS),
    ("", "runs = []: list them", RUNS),
    ('runs = ["x"]', f'run "x": give a table, as in {{ {RUN} }}', RUNS),
    ('defaults = "x"', 'defaults = "x": give a table, as in defaults = {', RUNS),
    (f"[[run]]\n{RUN}", "no key 'run'. Write runs", f"[[runs]]\n{RUN}"),
    (f"{RUNS}\ndefaults.sed = 3", "defaults: there is no key 'sed'. Write seed", RUNS),
    ('runs = [{ recipe = "paper" }]', f"run 1, as in {RUN}", RUNS),
    ('runs = [{ model = "resnet19" }]', "run 1, Try 14 or 20", RUNS),
    ("runs = [A]", "not TOML: , line 1", RUNS),
    ("runs = " + "[" * 5_000 + "]" * 5_000, "Write a table for each run", RUNS),
]
# The same for one run, as what follows its model.
SAME = 'shortcut = "B", seed = 7'
ONE_RUN = [
    ("sed = 3", "no key 'sed'. Write seed", "seed = 3"),
    ("turbo = 3", "no key 'turbo'. Choose from", "lr = 1"),
    ('recipe = "best"', "choose from 'paper', 'quick'", 'recipe = "quick"'),
    ('snapshots = "no"', "as in snapshots = true.", "weights = true"),
    ("iterations = 20, milestones = [30]", "to the end, 20, as", "iterations = 20"),
    ('data = ""', "data '' is neither a set", 'data = "cifar100"'),
    ("small_until = [9], small_size = [64]", "32 pixels a side", "lr = 1"),
    ('data = "digits"', "as in validation = 143.", 'data = "digits", validation = 143'),
    (f"{SAME}, momentum = 0.8", "has its name, resnet20-B-paper-64k-seed7;", "lr = 1"),
]
PLAN = f"runs = [{{{RUN}, {SAME}}}, {{{RUN}, %s}}]"
FAULTS += [(PLAN % bad, f"run 2, {told}", PLAN % good) for bad, told, good in ONE_RUN]


def test_a_plan_that_cannot_be_carried_out(tmp_path, refused):
    for text, words, remedy in FAULTS:
        told = ".*".join(map(re.escape, ["plan.toml: ", *words.split(", ", 1)]))
        refused(rf"{told}.*(?<=\.)$", planned, tmp_path, text)
        assert planned(tmp_path, remedy)[1], text


def test_a_folder_with_too_few_pictures(places, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for i in range(20):
        (tmp_path / "pets" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), i).save(tmp_path / "pets" / "ab"[i % 2] / f"{i}.png")
    entry = 'model = "resnet8", data = "~/pets", iterations = 4, batch_size = 8'
    path, _ = planned(tmp_path, f"runs = [{{{entry}}}]")
    options = "--data ~/pets --model resnet8 --iterations 4 --batch-size 8 --run ~/x"
    assert main(arguments(path, places)) == command.main(options.split()) == 1
    said, words = capsys.readouterr().err, "leaves none of the 16 training images of"
    assert f"{words} ~/pets. Give fewer, as in validation = 1.\n" in said
    assert f"{words} folder pets. Give fewer, as in --validation 1.\n" in said
    assert not places.work.exists() and not (tmp_path / "x").exists()
    planned(tmp_path, f"runs = [{{{entry}, validation = 1}}]")
    assert main(arguments(path, places)) == 0
    assert command.main([*options.split(), "--validation", "1"]) == 0
    (recorded,) = recorded_runs(places.records).values()
    for about in (recorded.about, load_run("x", tmp_path).about):
        assert about["data"] == "folder pets" and about["network"]["classes"] == 2


def test_a_plan_that_is_not_there_or_not_in_utf_8(tmp_path, capsys, refused):
    text, told = f"# Größe\n{RUNS}", r"plan.toml: .* Save it in UTF-8\."
    refused(told, planned, tmp_path, text, "cp1252")
    refused(told, planned, tmp_path, RUNS, "utf-16-le")
    for encoding in ("utf-8", "utf-8-sig"):  # as Notepad does
        assert planned(tmp_path, text, encoding)
    assert main([str(tmp_path / "nowhere.toml"), "--status"]) == 1
    assert "nowhere.toml: the plan cannot be read (No such" in capsys.readouterr().err


# --- carrying it out ------------------------------------------------------------------


def test_a_killed_plan_has_the_same_results(places, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other numbers give other bits
    path, plan = planned(tmp_path, TINY.replace("= 3 ", "= 3, snapshots = true "))
    first, second = plan
    options = ("--checkpoint-seconds", "0")
    process = start(path, places)
    wait_until(lambda: iteration_of(places.work / first.name) >= 6)
    process.send_signal(signal.SIGKILL)
    process.end()  # the training process is orphaned, and holds the folder …
    assert main(arguments(path, places, "--status")) == 0
    text = capsys.readouterr().out
    assert f"partial  {first.name}" in text and "0 done, 1 partial, 1 missing" in text
    errors = reproduce(plan, places, jobs=2, options=options)
    # … until it has finished; nobody trains in it a second time meanwhile.
    assert all("Another process is training" in error for error in errors), errors
    wait_until(lambda: Run(places.work / first.name).finished)
    time.sleep(1)
    assert reproduce(plan, places, options=options) == []
    for run in plan:
        assert status_of(run, places) == "done"
        with threads(1):
            train(run, tmp_path / run.name)
        assert outcome(places.work / run.name) == outcome(tmp_path / run.name)
        record = recorded_runs(places.records)[run.name]
        assert run.is_same_run(record)
        left = {file.name for file in record.folder.iterdir()} - {"snapshots"}
        whole = {"recipe.json", "environment.json", "history.csv"}
        assert left == whole | ({"weights.pt"} if run is second else set())
    assert record.snapshots == [0, 1, 5, 8, 10]
    kept = load_weights(places.work / second.name / "weights.pt")["fc.weight"]
    half = load_weights(record.folder / "weights.pt")["fc.weight"]
    assert torch.equal(half, kept.half())
    for again in (record.model(), record.model(10)):
        assert torch.equal(again.fc.weight, half.float())


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps an open file")
def test_an_orphan_does_not_write_into_the_log_of_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "subprocess", Mock())
    run = planned(tmp_path)[1][0]
    with open(tmp_path / "train.log", "w") as orphans:
        job = module.Job(run, tmp_path, (), 1)
        orphans.write("40%")
    assert job.log.read_text() == ""


def test_sigterm_stops_with_a_checkpoint_and_the_next_call_goes_on(tmp_path, places):
    path, (run, _) = planned(tmp_path, TINY.replace("= 30", "= 100_000"))
    process = start(path, places, "--only", run.name)
    wait_until(lambda: iteration_of(places.work / run.name) >= 4)
    process.send_signal(signal.SIGTERM)
    code, text = process.end()
    assert code == command.INTERRUPTED and "0 done, 1 partial, 0 missing" in text
    assert (places.work / run.name / "checkpoint.pt").exists()
    # At a time limit of no time at all, nothing is started.
    assert reproduce([run], places, max_minutes=0) == []
    assert status_of(run, places) == "partial"


def test_another_or_half_a_run_is_left_alone(tmp_path, places, capsys):
    path, (_, run) = planned(tmp_path)
    work, record = (place / run.name for place in (places.work, places.records))

    def told(words):
        for more in ([], ["--status"]):  # before any work begins
            assert main(arguments(path, places, *more)) == 1
            assert re.search(words, capsys.readouterr().err)

    train(run, work, lr=0.2)
    told(f"{work} holds another run .* Rename the folder")
    places.records.mkdir(parents=True)
    work.rename(record)
    told(f"{record} holds another run .* Rename the folder")
    record.rename(places.work / "renamed")
    train(run, record, minutes=0)
    told(f"not finished. Move it to {places.work}, and it goes on")
    record.rename(work)
    assert reproduce([run], places) == [] and status_of(run, places) == "done"


def test_what_fails_is_named_and_the_others_go_on(tmp_path, places, monkeypatch, capfd):
    path, (_, run) = planned(tmp_path, TINY.replace("= 30", "= 30, lr = 1e30"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "publish", Mock(side_effect=OSError("No space left")))
        assert main(arguments(path, places)) == 1
    written = capfd.readouterr()
    assert re.search(r"resnet8-paper-30-digits-lr1e\+30-.*: .*loss is nan", written.err)
    assert re.search(f"{run.name}: finished but not recorded: .*No space", written.err)
    assert "0 done, 2 partial, 0 missing" in written.out
    # With room again it is recorded, and nothing that is finished is ever repeated.
    assert main(arguments(path, places, "--only", run.name, run.name)) == 0
    monkeypatch.setattr(module, "subprocess", None)
    monkeypatch.setattr(module, "load", None)  # nor downloaded for
    assert main(arguments(path, places, "--only", run.name)) == 0


def test_snapshots_that_were_not_kept_are_named(tmp_path, places):
    _, (_, run) = planned(tmp_path, TINY.replace("= 3 ", "= 3, snapshots = true "))
    train(run, places.work / run.name)
    (error,) = reproduce([run], places)
    assert "no weights of iterations [0, 1, 5, 8, 10]" in error
    assert "Leave snapshots out of the plan" in error
    _, (_, run) = planned(tmp_path)
    assert reproduce([run], places) == [] and status_of(run, places) == "done"


def test_records_may_lie_on_another_drive(tmp_path):
    drive = Path("/dev/shm")
    if not drive.is_dir() or drive.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second drive")
    _, (_, run) = planned(tmp_path)
    train(run, tmp_path / run.name)
    with TemporaryDirectory(dir=drive) as folder:
        (tmp_path / "runs").symlink_to(folder)
        module.publish(run, tmp_path / run.name, tmp_path / "runs" / run.name)
        assert list(recorded_runs(tmp_path / "runs")) == [run.name]
        assert [path.name for path in Path(folder).iterdir()] == [run.name]


def test_options_and_drives_that_cannot_be(tmp_path, places, monkeypatch, capsys):
    path, _ = planned(tmp_path)
    for option, words in {
        f"--work={path}": f"{path} cannot be written: .* Choose another .* --work.\n",
        "--only=resnet9": "has no run resnet9: resnet8-paper-30-digits-fp32, ",
        "--jobs=0": "give 1 or more",
    }.items():
        assert main(arguments(path, places, option)) == 1
        assert re.search(words, capsys.readouterr().err)
    monkeypatch.setattr(module, "has_locks", lambda path: False)
    assert main(arguments(path, places, "--max-minutes=0")) == 0
    told = capsys.readouterr().err
    assert f"{places.work} lies on a drive without file locks: see to it" in told
