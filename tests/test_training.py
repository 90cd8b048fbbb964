import dataclasses
import hashlib
import io
import itertools
import math
import os
import shlex
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from resnet_lib import (
    PAPER,
    QUICK,
    SMOOTHED,
    Images,
    Recipe,
    evaluate,
    fit,
    get_model,
    learning_rate_at,
)
from resnet_lib.checkpoints import RunFolder, _to_bytes
from resnet_lib.data import Normalisation, shrunk
from resnet_lib.datasets import load_digits
from resnet_lib.device import device_profile
from resnet_lib.fit import expected_minutes
from resnet_lib.recipe import ABOVE_ZERO
from resnet_lib.runs import Run, load_run, read_history, recorded_runs
from resnet_lib.train import main, parser, recipe_from
from resnet_lib.training import Training

WHOLE = load_digits()


def few(images, count):
    """Every second pixel: they are 8×8, and four times as large as that."""
    return Images(images.images[:count, :, ::2, ::2], images.labels[:count])


DIGITS = dataclasses.replace(
    WHOLE, train=few(WHOLE.train, 700), test=few(WHOLE.test, 60)
)
SHORT = Recipe(
    iterations=24,
    milestones=(12, 18),
    batch_size=16,
    validation=40,
    log_every=4,
    eval_every=12,
    precision="fp32",
)


def small_net(seed=0):
    torch.manual_seed(seed)
    return get_model("resnet8")


def weights(model):
    return torch.cat(
        [value.flatten().double() for value in model.state_dict().values()]
    )


# --- the recipe ----------------------------------------------------------------------


TRIANGLE = Recipe(100, milestones=(20,), schedule="triangular", lr=0.2)


@pytest.mark.parametrize(
    ("recipe", "rates"),
    [
        (PAPER, {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001}),
        # The first update already learns, and so does the last.
        (TRIANGLE, {0: 0.01, 19: 0.2, 20: 0.2, 60: 0.1, 99: 0.0025, 130: 0}),
        (TRIANGLE.scaled(50), {0: 0.02, 9: 0.2, 30: 0.1}),
    ],
    ids=["steps", "triangular", "half as long"],
)
def test_rates_at_the_corners_of_a_schedule(recipe, rates):
    found = {iteration: learning_rate_at(iteration, recipe) for iteration in rates}
    assert found == pytest.approx(rates, rel=1e-12)


def test_a_shrunk_pixel_is_a_weighted_mean():
    halves = torch.zeros(1, 3, 32, 32)
    halves[..., 16:] = 1
    small = shrunk(halves, 16)[0, 0, 0]
    assert small.tolist() == [0] * 7 + [0.125, 0.875] + [1] * 7


def test_the_defaults_are_the_papers():
    paper = {
        **{"iterations": 64_000, "milestones": (32_000, 48_000), "schedule": "steps"},
        **{"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4},
        **{"batch_size": 128, "label_smoothing": 0, "validation": 5_000},
        **{"warmup_lr": None, "warmup_error": 0.8},  # given for 110 layers
    }
    assert paper.items() <= dataclasses.asdict(PAPER).items()


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("resnet18-paper-64k", PAPER),
        ("resnet18-smoothed-32k", SMOOTHED.scaled(32_000)),
        ("resnet18-quick-24k-bf16", dataclasses.replace(QUICK, precision="bf16")),
    ],
)
def test_a_named_recipe_is_what_the_recorded_runs_carried_out(name, recipe):
    assert Recipe(**load_run(name).recipe) == recipe


def test_scaled_moves_the_steps_and_nothing_else():
    half = QUICK.scaled(12_000)
    assert (half.milestones, half.small_until) == ((2_400,), (4_200, 9_600))
    steps = {name: getattr(QUICK, name) for name in ("milestones", "small_until")}
    assert dataclasses.replace(half, iterations=24_000, **steps) == QUICK


@pytest.mark.parametrize(
    ("change", "told"),
    [
        *[({name: 0}, "above 0") for name in ABOVE_ZERO],
        *[({name: 1.0}, "less than 1") for name in ("momentum", "label_smoothing")],
        ({"milestones": (5, 3)}, "rising order"),
        ({"small_until": (3, 1), "small_size": (8, 8)}, "rising order"),
        ({"small_until": (64_001,), "small_size": (8,)}, "from 0 to the end"),
        ({"small_until": (9,), "small_size": (8, 8)}, "for each of small_until"),
        ({"small_until": (9,), "small_size": (0,)}, "of pixels, 1 or more"),
        *[
            ({"schedule": "triangular", "milestones": m}, "one, its peak, between 0")
            for m in [(), (20, 50), (0,), (64_000,)]
        ],
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be_is_refused(change, told):
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(PAPER, **change)


def test_the_warm_up_ends_below_its_error_and_not_at_it():
    """Paper §4.2: until the training error is below 80 %."""

    def after_a_row(warmup_error):
        recipe = dataclasses.replace(SHORT, warmup_lr=0.02, warmup_error=warmup_error)
        state = Training(small_net(), DIGITS, recipe, "cpu")
        state.step()
        return state.add_row()["train_error"], state.warming_up

    error, _ = after_a_row(0.8)
    assert after_a_row(error) == (error, True)
    assert after_a_row(1.01 * error) == (error, False)


# --- one step, evaluation ------------------------------------------------------------


def test_evaluation_leaves_every_mode_as_it_was():
    net, norm = small_net(), Normalisation.of(DIGITS.train.images)
    net.bn1.eval()  # as a reader freezes it
    evaluate(net, DIGITS.test[:10], norm)
    assert net.training and not net.bn1.training
    with pytest.raises(TypeError):
        evaluate(net, DIGITS.test[:10], None)  # stopped in the middle
    assert net.training and not net.bn1.training


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_only_where_it_is_native(monkeypatch, native, precision):
    answers = {"is_available": lambda: True}
    answers["is_bf16_supported"] = lambda including_emulation: native
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    assert str(device_profile(device="cuda")) == f"cuda, {precision}, channels_last"


def test_evaluation_is_exact_whatever_the_batch_size():
    net, norm = small_net(), Normalisation.of(DIGITS.train.images)
    count = len(DIGITS.test)
    whole = evaluate(net, DIGITS.test, norm, batch_size=count)
    for size in (1, 7, 1000):
        part = evaluate(net, DIGITS.test, norm, batch_size=size)
        assert part.loss == pytest.approx(whole.loss, rel=1e-5)
        assert part.error == whole.error
    assert whole.confusion.sum() == count
    assert (whole.confusion.sum(1) == torch.bincount(DIGITS.test.labels)).all()
    assert whole.confusion.trace() == round(count * (1 - whole.error))
    assert net.training


def test_network_learns_the_digits():
    recipe = dataclasses.replace(SHORT, iterations=120, milestones=(100,))
    recipe = dataclasses.replace(recipe, batch_size=32, eval_every=120)
    result = fit(small_net(), DIGITS, recipe, progress=False)
    assert result.finished and result.history[0]["train_error"] > 0.6
    assert result.history[-1]["test_error"] < 0.5  # 0.9 is what knowing nothing gives


# --- a run folder --------------------------------------------------------------------


def test_expected_time_is_the_time_of_the_updates(monkeypatch):
    clock = [0.0]  # seconds; a real one runs on while other processes work

    def step(state):
        clock[0] += 0.02

    monkeypatch.setattr(Training, "step", step)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    model = small_net()
    before, drawn = weights(model), torch.get_rng_state()
    recipe = Recipe(iterations=3_000, milestones=(), validation=37, eval_every=1_000)
    minutes = expected_minutes(model, WHOLE, recipe)
    # 3,000 updates, and three looks at 37 + 360 images: about one update's work each.
    assert minutes == pytest.approx(3_003 * 0.02 / 60, rel=1e-3)
    # Half of the updates on a quarter of the pixels: three eighths less.
    recipe = dataclasses.replace(recipe, small_until=(1_500,), small_size=(16,))
    minutes = expected_minutes(model, WHOLE, recipe)
    assert minutes == pytest.approx(1_878 * 0.02 / 60, rel=1e-3)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(weights(model), before)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run left alone: its folder and its network."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    net = small_net()
    assert fit(net, DIGITS, SHORT, folder, snapshots=(0, 12), progress=False).finished
    return folder, net


def test_run_folder_holds_the_record(alone):
    folder, net = alone
    assert sorted(path.name for path in folder.iterdir()) == [
        "environment.json",
        "history.csv",
        "recipe.json",
        "snapshots",
        "weights.pt",
    ]
    run = Run(folder)
    assert run.finished and recorded_runs(folder.parent).keys() == {"run"}
    assert Recipe(**run.recipe) == SHORT
    text = (folder / "recipe.json").read_text()
    assert '\n    "lr": 0.1,\n' in text  # a line for each field
    assert run.history["iteration"].tolist() == [4, 8, 12, 16, 20, 24]
    assert run.history["test_error"].notna().tolist() == [False, False, True] * 2
    assert run.history["validation_error"].notna().sum() == 2
    assert torch.equal(weights(run.model()), weights(net))
    assert {"device", "threads", "torch", "commit"} <= run.environment.keys()
    half = torch.load(folder / "snapshots" / "iteration-000012.pt", weights_only=True)
    assert half["conv1.weight"].dtype == torch.float16


def test_finished_run_is_not_repeated(alone):
    folder, net = alone
    before = (folder / "history.csv").read_bytes()
    other = small_net(seed=9)
    result = fit(other, DIGITS, SHORT, folder, progress=False)
    assert result.finished and result.iteration == 24 and len(result.history) == 6
    assert torch.equal(weights(other), weights(net))
    assert (folder / "history.csv").read_bytes() == before


def test_a_run_that_another_process_just_ended_is_not_repeated(
    alone, tmp_path, monkeypatch
):
    folder, net = alone
    hold = RunFolder._lock

    def at_the_last_moment(ours):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        hold(ours)

    monkeypatch.setattr(RunFolder, "_lock", at_the_last_moment)
    monkeypatch.setattr(Training, "step", None)
    other = small_net(seed=9)
    assert fit(other, DIGITS, SHORT, tmp_path, progress=False).finished
    assert torch.equal(weights(other), weights(net))
    assert not (tmp_path / ".lock").exists()


def test_stopped_run_goes_on_to_the_same_bits(alone, tmp_path):
    folder, net = alone
    sittings = 0
    finished, start = False, time.monotonic()
    while not finished:  # every sitting ends after one iteration
        other = small_net(seed=sittings)  # the checkpoint decides, not the new weights
        if sittings == 0:
            other = small_net()
        result = fit(other, DIGITS, SHORT, tmp_path, max_minutes=1e-9, progress=False)
        finished = result.finished
        sittings += 1
        assert result.iteration == sittings
    assert sittings == 24
    assert torch.equal(weights(other), weights(net))
    kept = [{**row, "seconds": 0} for row in read_history(tmp_path / "history.csv")]
    left = [{**row, "seconds": 0} for row in read_history(folder / "history.csv")]
    assert str(kept) == str(left)  # NaN equals NaN in text
    told = [row["seconds"] for row in read_history(tmp_path / "history.csv")]
    assert told == sorted(told) and told[-1] <= time.monotonic() - start


def test_seconds_add_up_over_the_sittings(tmp_path, monkeypatch):
    ticks = itertools.count(100)  # each look at the clock is a second later
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr(sys.modules["resnet_lib.fit"], "time", clock)
    first = fit(small_net(), DIGITS, SHORT, tmp_path, max_minutes=0.2, progress=False)
    sat = next(ticks) - 100
    last = fit(small_net(), DIGITS, SHORT, tmp_path, progress=False).history[-1]
    assert 0 < first.iteration < SHORT.iterations and sat > 12
    left = SHORT.iterations - first.iteration  # iterations, with a look each
    assert sat + left - 4 <= last["seconds"] <= next(ticks) - 100


def test_interrupt_stops_cleanly_and_returns_what_it_has(tmp_path):
    def interrupt(rows):
        if rows[-1]["iteration"] == 8:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    result = fit(small_net(), DIGITS, SHORT, tmp_path, on_row=interrupt, progress=False)
    assert (result.status, result.iteration, len(result.history)) == (
        "interrupted",
        8,
        2,
    )
    assert signal.getsignal(signal.SIGINT) is before
    assert fit(small_net(5), DIGITS, SHORT, tmp_path, progress=False).finished


def stopped(folder, minutes=1e-9):
    return fit(small_net(), DIGITS, SHORT, folder, max_minutes=minutes, progress=False)


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    stopped(tmp_path), stopped(tmp_path)
    newest = tmp_path / "checkpoint.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert stopped(tmp_path).iteration == 2  # from the checkpoint of iteration 1
    assert "is damaged" in capsys.readouterr().out


def test_no_whole_checkpoint_is_told(tmp_path):
    stopped(tmp_path)
    for path in tmp_path.glob("checkpoint*"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RuntimeError, match=r"is damaged.*Delete checkpoint.pt"):
        stopped(tmp_path)


def test_checkpoint_of_another_version_is_told(tmp_path):
    stopped(tmp_path)
    path = tmp_path / "checkpoint.pt"
    state = torch.load(io.BytesIO(path.read_bytes()[32:]), weights_only=True)
    del state["window"]
    content = _to_bytes(state)
    path.write_bytes(hashlib.sha256(content).digest() + content)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match=r"version.*'window'.*Choose another"):
        stopped(tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["recipe.json", "environment.json"])
def test_damaged_description_is_told(tmp_path, name):
    stopped(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RuntimeError, match=f"{name} is damaged.*another folder"):
        stopped(tmp_path)
    (tmp_path / name).write_bytes(whole)
    assert stopped(tmp_path).iteration == 2


@pytest.mark.parametrize("change", [{"lr": 0.2}, {"seed": 1}, {"iterations": 48}])
def test_folder_of_another_recipe_is_refused(alone, change):
    folder, _ = alone
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    (key,) = change
    with pytest.raises(ValueError, match=f"{key} = .*Choose another folder"):
        fit(small_net(), DIGITS, dataclasses.replace(SHORT, **change), folder)
    assert {path: path.read_bytes() for path in folder.glob("*.*")} == before


def test_folder_of_another_network_is_refused(tmp_path):
    stopped(tmp_path)
    with pytest.raises(ValueError, match="model = 'resnet8', not 'plain8'"):
        fit(get_model("plain8"), DIGITS, SHORT, tmp_path, progress=False)
    disguised = get_model("plain8")  # the same parameter names as resnet8
    disguised.name = "resnet8"
    with pytest.raises(ValueError, match="another network"):
        fit(disguised, DIGITS, SHORT, tmp_path, progress=False)


def test_damaged_weights_are_told(alone, tmp_path):
    folder, _ = alone
    for name in ("recipe.json", "history.csv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "weights.pt").write_bytes((folder / "weights.pt").read_bytes()[:5000])
    with pytest.raises(RuntimeError, match=r"weights.pt is damaged\. Restore it"):
        fit(small_net(), DIGITS, SHORT, tmp_path, progress=False)


def test_unwritable_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot be written.*Choose another"):
        fit(small_net(), DIGITS, SHORT, tmp_path / "file" / "run", progress=False)


def test_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(tmp_path):
    stopped(tmp_path)

    def poison(rows):
        with torch.no_grad():
            net.conv1.weight.fill_(math.inf)

    net = small_net()
    with pytest.raises(
        FloatingPointError, match=r"checkpoint of iteration 1 is kept.*lr"
    ):
        fit(net, DIGITS, SHORT, tmp_path, on_row=poison, progress=False)
    assert stopped(tmp_path).iteration == 2


@pytest.mark.parametrize(
    ("precision", "remedy"),
    [("fp32", r"lr\.$"), ("bf16", "lr, or set precision='fp32' to see")],
)
def test_last_update_that_breaks_the_weights_is_told(tmp_path, precision, remedy):
    def poison(rows):
        if rows[-1]["iteration"] == SHORT.iterations:
            with torch.no_grad():
                net.conv1.weight.fill_(math.inf)

    net = small_net()
    recipe = dataclasses.replace(SHORT, precision=precision)
    told = f"no longer finite at iteration {SHORT.iterations}.*{remedy}"
    with pytest.raises(FloatingPointError, match=told):
        fit(net, DIGITS, recipe, tmp_path, on_row=poison, progress=False)
    assert not (tmp_path / "weights.pt").exists()


def test_wrong_number_of_classes_is_told_at_once():
    with pytest.raises(ValueError, match="Build it with classes=10"):
        fit(get_model("resnet8", classes=7), DIGITS, SHORT, progress=False)


def test_unknown_device_is_told():
    with pytest.raises(ValueError, match="Use 'cpu'"):
        fit(small_net(), DIGITS, SHORT, device="abacus", progress=False)


# --- the command line ----------------------------------------------------------------

ARGUMENTS = shlex.split(
    "--model resnet8 --data digits --iterations 4 --batch-size 8 --validation 0 "
    "--log-every 2 --eval-every 4 --precision fp32 --checkpoint-seconds 0.2"
)


def test_options_are_the_recipes_fields():
    arguments = parser().parse_args(["--iterations", "320", "--lr", "0.05"])
    recipe = recipe_from(arguments)
    assert recipe == dataclasses.replace(PAPER.scaled(320), lr=0.05)
    arguments = parser().parse_args(["--recipe", "smoothed", "--milestones", "5", "9"])
    assert recipe_from(arguments).milestones == (5, 9)


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


def test_run_and_data_know_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for label, colour in enumerate(("red", "blue")):
        (tmp_path / "pets" / colour).mkdir(parents=True)
        for number in range(8):
            picture = Image.new("RGB", (40, 32), (90 * label, 10 * number, 30))
            picture.save(tmp_path / "pets" / colour / f"{number}.png")
    options = ["--data=~/pets", "--validation", "2", "--batch-size", "4"]
    assert main([*ARGUMENTS, *options, "--run=~/x"]) == 0, capsys.readouterr().err
    about = load_run("x", tmp_path).about
    assert about["data"] == "folder pets" and about["network"]["classes"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets", "x"]
    assert main([*ARGUMENTS, "--data", "mnist"]) == 1
    assert "Choose from cifar10, cifar100, digits, or" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["--model", "resnet21"], "6n+2"),
        (["--model", "vgg"], "Unknown architecture"),
        (["--lr", "0"], "above 0"),
        (["--device", "abacus"], "Use 'cpu'"),
    ],
)
def test_bad_arguments_get_one_sentence(tmp_path, capsys, bad, message):
    folder = tmp_path / "run"
    assert main([*ARGUMENTS, "--run", str(folder), *bad]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (folder / "weights.pt").exists()
