"""A plan of runs survives kills, repeats nothing, and says where it stands."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from resnet_lib import PAPER, Recipe, fit, get_model
from resnet_lib.datasets import load_digits
from resnet_lib.paths import data_home
from resnet_lib.runs import load_run, load_weights, recorded_runs
from resnet_lib.train import parser, recipe_from
from workshop.reproduce import (
    Places,
    main,
    publish,
    read_plan,
    reproduce,
    status_of,
)

PLANS = sorted((data_home() / "plans").glob("*.toml"))
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


@pytest.fixture
def tiny(tmp_path):
    """A plan of two short runs, and where they go."""
    path = tmp_path / "plan.toml"
    path.write_text(TINY)
    return path, Places(tmp_path / "work", tmp_path / "data" / "runs")


def arguments(path, places, *more):
    where = ["--work", str(places.work), "--records", str(places.records)]
    return [str(path), *where, *more]


def start(path, places, *more):
    command = [sys.executable, "-m", "workshop.reproduce"]
    return subprocess.Popen(
        command + arguments(path, places, *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_for_lines(count, history, process):
    deadline = time.monotonic() + 120
    while not history.exists() or len(history.read_text().splitlines()) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


# --- the plan -------------------------------------------------------------------------


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_reaches_the_command_line_whole(path):
    plan = read_plan(path)
    assert len(plan) == len(tomllib.loads(path.read_text())["runs"]) > 0
    for run in plan:
        options = parser().parse_args(run.command(Path("folder"))[3:])
        assert recipe_from(options) == run.recipe
        assert (options.model, options.shortcut) == (run.model, run.shortcut)
        assert options.snapshots == run.snapshots


def test_recorded_runs_are_those_of_the_plans():
    planned = {run.name: run for path in PLANS for run in read_plan(path)}
    for name, run in recorded_runs().items():
        if run.about["data"] == "cifar10":
            assert planned[name].is_same_run(run)


def test_milestones_move_with_the_iterations(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text('runs = [{model = "plain20", iterations = 16_000, lr = 0.05}]')
    (run,) = read_plan(path)
    assert run.name == "plain20-paper-16k"
    assert run.recipe.milestones == (8_000, 12_000)
    assert run.recipe.lr == 0.05 and run.recipe.momentum == PAPER.momentum


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("runs = [", "cannot be read"),
        ('runs = [{model = "resnet19"}]', "6n+2"),
        ('runs = [{model = "resnet20", recipe = "best"}]', "unknown recipe 'best'"),
        ('runs = [{model = "resnet20", speed = 3}]', "speed"),
        ('runs = [{model = "resnet20", lr = -1}]', "number above 0"),
        ('runs = [{model = "resnet20"}, {model = "resnet20"}]', "has its name"),
        (
            'runs = [{model = "resnet20"}, {model = "resnet20", lr = 1}]',
            "has its name",
        ),
        ('runs = [{recipe = "paper"}]', "model"),
    ],
)
def test_a_plan_that_cannot_be_carried_out(tmp_path, text, words):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        read_plan(path)
    assert "plan.toml" in str(caught.value)


def test_what_differs_shows_in_the_name(tmp_path):
    path = tmp_path / "plan.toml"
    entries = ("", ", seed = 1", ', shortcut = "B"', ', data = "digits"')
    entries += (", warmup_lr = 0.01", ', precision = "bf16", seed = 1')
    runs = ", ".join(f'{{model = "resnet20"{entry}}}' for entry in entries)
    path.write_text(f"runs = [{runs}]")
    assert [run.name for run in read_plan(path)] == [
        "resnet20-paper-64k",
        "resnet20-paper-64k-seed1",
        "resnet20-B-paper-64k",
        "resnet20-paper-64k-digits",
        "resnet20-paper-64k-warmup",
        "resnet20-paper-64k-bf16-seed1",
    ]


# --- carrying it out ------------------------------------------------------------------


def test_a_killed_plan_goes_on_with_the_same_results(tiny, one_thread, capsys):
    path, places = tiny
    first, second = read_plan(path)
    options = ("--checkpoint-seconds", "0")
    process = start(path, places)
    history = places.work / first.name / "history.csv"
    wait_for_lines(4, history, process)
    process.kill()  # the training process is orphaned, and holds the folder …
    process.wait()
    assert main(arguments(path, places, "--status")) == 0
    text = capsys.readouterr().out
    assert f"partial  {first.name}" in text and "0 done, 1 partial, 1 missing" in text
    # … until it has finished; nobody trains in it a second time meanwhile.
    assert reproduce([first, second], places, jobs=2, options=options) == []
    assert [status_of(run, places) for run in (first, second)] == ["done", "done"]
    for run in (first, second):
        torch.manual_seed(run.recipe.seed)
        alone = get_model(run.model)
        fit(alone, load_digits(), run.recipe, progress=False)
        recorded = load_weights(places.records / run.name / "weights.pt")
        for name, value in alone.state_dict().items():
            assert torch.equal(recorded[name], value), name
        assert run.is_same_run(recorded_runs(places.records)[run.name])
    left = {file.name for file in (places.records / first.name).iterdir()}
    assert left == {"recipe.json", "environment.json", "history.csv", "weights.pt"}


def test_sigterm_stops_with_a_checkpoint_and_the_next_call_goes_on(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(
        'runs = [{model = "resnet8", data = "digits", batch_size = 16, '
        'validation = 100, iterations = 100_000, log_every = 2, precision = "fp32"}]'
    )
    places = Places(tmp_path / "work", tmp_path / "data" / "runs")
    (run,) = read_plan(path)
    process = start(path, places)
    history = places.work / run.name / "history.csv"
    wait_for_lines(3, history, process)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "0 done, 1 partial, 0 missing" in text
    assert (places.work / run.name / "checkpoint.pt").exists()
    # At a time limit of no time at all, nothing is started.
    assert reproduce([run], places, max_minutes=0) == []
    assert status_of(run, places) == "partial"


def test_a_time_limit_binds_a_process_that_was_left_over(tiny):
    path, places = tiny
    run = read_plan(path)[1]
    lock = FileLock(places.work / run.name / ".lock", thread_local=False)
    lock.acquire()  # as such a process holds it
    given_up = threading.Timer(20, lock.release)
    given_up.start()
    assert reproduce([run], places, max_minutes=0.01) == []
    given_up.cancel()
    assert lock.is_locked and status_of(run, places) == "partial"
    lock.release()


def test_a_number_of_jobs_that_cannot_be(tiny, capsys):
    path, places = tiny
    assert main(arguments(path, places, "--jobs", "0")) == 1
    assert "give 1 or more" in capsys.readouterr().err


def test_large_weights_are_recorded_in_half_precision(tiny, monkeypatch):
    path, places = tiny
    run = read_plan(path)[1]
    folder, target = places.work / run.name, places.records / run.name
    net = get_model(run.model)
    fit(net, load_digits(), run.recipe, folder, progress=False)
    monkeypatch.setattr("workshop.reproduce.MOST_BYTES", 1_000)
    publish(folder, target)
    assert load_weights(target / "weights.pt")["fc.weight"].dtype == torch.half
    again = load_run(run.name, places.records).model()
    torch.testing.assert_close(again.fc.weight, net.fc.weight, atol=1e-3, rtol=1e-3)


def test_finished_runs_are_never_repeated(tiny, monkeypatch):
    path, places = tiny
    run = read_plan(path)[1]
    torch.manual_seed(run.recipe.seed)
    target = places.records / run.name
    fit(get_model(run.model), load_digits(), run.recipe, target, progress=False)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert reproduce([run], places) == []


def test_a_record_of_another_run_under_the_same_name_is_refused(tiny, capsys):
    path, places = tiny
    run = read_plan(path)[1]
    other = Recipe(**{**vars(run.recipe), "lr": 0.2})
    target = places.records / run.name
    fit(get_model("plain8"), load_digits(), other, target, progress=False)
    assert main(arguments(path, places, "--status")) == 1
    assert "holds another run" in capsys.readouterr().err


def test_a_failing_run_is_named_and_the_others_go_on(tmp_path, capfd):
    path = tmp_path / "plan.toml"
    runs = TINY.replace("iterations = 30", "iterations = 30, lr = 1e30")
    path.write_text(runs)
    places = Places(tmp_path / "work", tmp_path / "data" / "runs")
    assert main(arguments(path, places)) == 1
    written = capfd.readouterr()
    assert "resnet8-paper-30-digits-fp32: " in written.err
    assert "The loss is nan" in written.err
    assert "1 done, 1 partial, 0 missing" in written.out


def test_a_run_that_cannot_be_recorded_is_named_and_the_others_go_on(tiny, monkeypatch):
    path, places = tiny
    first, second = read_plan(path)

    def full_disk(folder, target):
        if target.name == second.name:
            raise OSError(28, "No space left on device")
        publish(folder, target)

    monkeypatch.setattr("workshop.reproduce.publish", full_disk)
    (error,) = reproduce([second, first], places)
    assert second.name in error and "not recorded" in error and "No space" in error
    assert [status_of(run, places) for run in (first, second)] == ["done", "partial"]
    monkeypatch.undo()  # with room again, it is recorded and not repeated
    assert reproduce([second], places) == []
    assert status_of(second, places) == "done"


def test_one_process_to_a_run_folder(tmp_path):
    recipe = Recipe(iterations=2, milestones=(), batch_size=16, validation=100)
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(RuntimeError, match="Another process is training"),
    ):
        fit(get_model("resnet8"), load_digits(), recipe, tmp_path, progress=False)
    fit(get_model("resnet8"), load_digits(), recipe, tmp_path, progress=False)
    assert not (tmp_path / ".lock").exists()


def test_unknown_name_and_unknown_plan(tiny, capsys):
    path, places = tiny
    assert main(arguments(path, places, "--only", "resnet9")) == 1
    assert "has no run 'resnet9'" in capsys.readouterr().err
    assert main(["nowhere.toml", "--status"]) == 1
    assert "cannot be read" in capsys.readouterr().err
