import dataclasses
import hashlib
import io
import itertools
import math
import shlex
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from nets import DATA, bits, outcome, small_net

from resnet_lib import PAPER, QUICK, SMOOTHED, Recipe, evaluate, fit, get_model
from resnet_lib.checkpoints import RunFolder, _to_bytes
from resnet_lib.data import Normalisation
from resnet_lib.device import device_profile
from resnet_lib.fit import expected_minutes, stop_requests
from resnet_lib.recipe import ABOVE_ZERO, learning_rate_at
from resnet_lib.runs import Run, load_run
from resnet_lib.train import main, parser, recipe_from
from resnet_lib.training import Training

SHORT = dataclasses.replace(
    PAPER.scaled(24),
    batch_size=16,
    validation=10,
    log_every=4,
    eval_every=12,
    precision="fp32",
)


RECORDED = {
    "resnet18-paper-64k": PAPER,
    "resnet18-smoothed-32k": SMOOTHED.scaled(32_000),
    "resnet18-quick-24k-bf16": dataclasses.replace(QUICK, precision="bf16"),
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_named_recipe_is_what_the_recorded_runs_carried_out(name):
    assert Recipe(**load_run(name).recipe) == RECORDED[name]


def test_scaled_moves_the_steps_and_nothing_else():
    moved = {"milestones": (2_400,), "small_until": (4_200, 9_600)}
    half = dataclasses.replace(QUICK, iterations=12_000, **moved)
    assert QUICK.scaled(12_000) == half
    options = ["--recipe=quick", "--iterations=12000", "--lr=1"]  # as the command does
    recipe = recipe_from(parser().parse_args(options))
    assert recipe == dataclasses.replace(half, lr=1)
    assert learning_rate_at(12_001, half) == 0  # past the end it does not rise again


NOT_INSIDE = [(), (20, 50), (0,), (64_000,)]  # milestones without one peak
BAD_RECIPES = {
    "1 or more|above 0": [{name: 0} for name in ABOVE_ZERO],
    "less than 1": [{name: 1.0} for name in ("momentum", "label_smoothing")],
    "rising order": [{"milestones": (5, 3)}, {"small_until": (3, 1)}],
    "from 0 to the end": [{"small_until": (64_001,)}],
    "for each of small_until": [{"small_until": (9,), "small_size": (8, 8)}],
    "of pixels, 1 or more": [{"small_until": (9,), "small_size": (0,)}],
    "its peak": [{"schedule": "triangular", "milestones": m} for m in NOT_INSIDE],
}


@pytest.mark.parametrize("told", BAD_RECIPES)
def test_a_recipe_that_cannot_be_is_refused(refused, told):
    for change in BAD_RECIPES[told]:
        refused(told, dataclasses.replace, PAPER, **change)


def test_the_warm_up_ends_below_its_error_and_not_at_it():
    """Paper §4.2: until the training error is below 80 %."""

    def after_a_row(warmup_error):
        recipe = dataclasses.replace(SHORT, warmup_lr=0.02, warmup_error=warmup_error)
        state = Training(small_net(), DATA, recipe, "cpu")
        state.step()
        return state.add_row()["train_error"], state.warming_up

    error, _ = after_a_row(0.8)
    assert after_a_row(error) == (error, True)
    assert after_a_row(1.01 * error) == (error, False)


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_only_where_it_is_native(monkeypatch, native, precision):
    def supported(including_emulation):
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    assert str(device_profile(device="cuda")) == f"cuda, {precision}, channels_last"


def test_evaluation_is_exact_whatever_the_batch_size_and_leaves_every_mode():
    net, norm = small_net(), Normalisation.of(DATA.train.images)
    net.bn1.eval()  # as a reader freezes it
    count = len(DATA.test)
    whole = evaluate(net, DATA.test, norm, batch_size=count)
    for size in (1, 7, 1000):
        part = evaluate(net, DATA.test, norm, batch_size=size)
        assert part.loss == pytest.approx(whole.loss, rel=1e-5)
        assert part.error == whole.error
    right = (whole.predictions == DATA.test.labels).sum()
    assert whole.error == pytest.approx(1 - right.item() / count)
    stop = net.fc.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(net, DATA.test, norm)  # stopped in the middle
    stop.remove()
    assert net.training and net.fc.training and not net.bn1.training


def test_expected_time_is_the_time_of_the_updates(monkeypatch):
    now, pace = 0.0, 0.02  # seconds; a real clock runs on beside other work

    def step(state):
        nonlocal now
        now += pace
        state.model.bn1.bias.data += 1

    monkeypatch.setattr(Training, "step", step)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    net = small_net()
    before, drawn = bits(net), torch.get_rng_state()
    recipe = dataclasses.replace(SHORT, iterations=3_000, eval_every=1_000)
    # 3,000 updates, and three looks at 10 + 20 images, a third of an update each.
    expected = 60 * expected_minutes(net, DATA, recipe) / pace
    assert expected == pytest.approx(3_000 + 3 * 30 / 16 / 3)
    # Half of the updates on a quarter of the pixels: three eighths less.
    recipe = dataclasses.replace(recipe, small_until=(1_500,), small_size=(4,))
    now, pace = 0.0, 2.0
    expected = 60 * expected_minutes(net, DATA, recipe) / pace
    assert expected == pytest.approx(1_875 + 3 * 30 / 16 / 3)
    assert now == 6  # so slow a machine is given two to warm up, and one
    assert torch.equal(torch.get_rng_state(), drawn) and torch.equal(bits(net), before)


# --- a run folder --------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run left alone: its folder and its network."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    net = small_net()
    assert fit(net, DATA, SHORT, folder, snapshots=(0, 12), progress=False).finished
    return folder, net


def sit(folder, net=None, recipe=SHORT, **options):
    net, options = net or small_net(), {"progress": False, **options}
    return fit(net, DATA, recipe, folder, **options)


def one_update(folder, *given, **options):
    return sit(folder, *given, max_minutes=0, **options)


def test_run_folder_holds_the_record(alone):
    folder, net = alone
    files = "environment.json history.csv recipe.json snapshots weights.pt"
    assert sorted(path.name for path in folder.iterdir()) == files.split()
    run = Run(folder)
    assert run.finished and Recipe(**run.recipe) == SHORT
    assert '\n    "lr": 0.1,\n' in (folder / "recipe.json").read_text()  # lines
    assert run.history["iteration"].tolist() == [4, 8, 12, 16, 20, 24]
    for part in ("test_error", "validation_error"):
        assert run.history[part].notna().tolist() == [False, False, True] * 2
    assert torch.equal(bits(run.model()), bits(net))
    norm = Normalisation.of(DATA.train[:40].images)
    assert run.final["test_error"] == evaluate(net, DATA.test, norm).error
    half = torch.load(folder / "snapshots" / "iteration-000012.pt", weights_only=True)
    assert half["conv1.weight"].dtype == torch.float16


def test_finished_run_is_not_repeated(alone, tmp_path, monkeypatch):
    """Nor is one that another process ended before this one could hold the folder."""
    folder, net = alone
    hold = RunFolder._lock

    def at_the_last_moment(ours):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        hold(ours)

    monkeypatch.setattr(RunFolder, "_lock", at_the_last_moment)
    monkeypatch.setattr(Training, "step", None)
    for seed in (8, 9):
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


def test_seconds_add_up_over_the_sittings(tmp_path, monkeypatch):
    ticks = itertools.count(100)  # each look at the clock is a second later
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr(sys.modules["resnet_lib.fit"], "time", clock)
    first = sit(tmp_path, max_minutes=0.2)
    sat = next(ticks) - 100
    seconds = [row["seconds"] for row in sit(tmp_path).history]
    assert 0 < first.iteration < SHORT.iterations and sat > 12
    left = SHORT.iterations - first.iteration  # iterations, with a look each
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


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    one_update(tmp_path), one_update(tmp_path)
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
    content = _to_bytes(state)
    return hashlib.sha256(content).digest() + content


DAMAGES = [
    ("checkpoint.pt", half, r"is damaged.*Delete checkpoint.pt"),
    ("checkpoint.pt", older, r"version.*'window'.*Choose another"),
    ("environment.json", half, "environment.json is damaged.*another folder"),
]


@pytest.mark.parametrize(("name", "damage", "told"), DAMAGES)
def test_a_damaged_file_is_told_and_left_alone(tmp_path, refused, name, damage, told):
    one_update(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(damage(whole))
    refused(told, one_update, tmp_path, error=RuntimeError)
    assert (tmp_path / name).read_bytes() == damage(whole)
    (tmp_path / name).write_bytes(whole)
    assert one_update(tmp_path).iteration == 2


def test_folder_of_another_run_is_refused(alone, refused):
    folder, _ = alone
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    refused("model = 'resnet8', not 'plain8'", sit, folder, get_model("plain8"))
    for change in ({"lr": 0.2}, {"seed": 1}, {"iterations": 48}):
        told = f"{next(iter(change))} = .*Choose another folder"
        refused(told, sit, folder, recipe=dataclasses.replace(SHORT, **change))
    assert {path: path.read_bytes() for path in folder.glob("*.*")} == before


@pytest.mark.parametrize(
    ("at", "precision", "told"),
    [
        (4, "bf16", "is nan.*iteration 1 is kept.*lr, or set precision='fp32'"),
        (24, "fp32", r"weights are no longer finite at iteration 24\..*'s lr\.$"),
    ],
)
def test_what_is_not_finite_is_not_kept(tmp_path, refused, at, precision, told):
    def poison(rows):
        if rows[-1]["iteration"] == at:
            net.conv1.weight.data.fill_(math.inf)

    net, recipe = small_net(), dataclasses.replace(SHORT, precision=precision)
    one_update(tmp_path, recipe=recipe)
    options = {"recipe": recipe, "on_row": poison, "error": FloatingPointError}
    refused(told, sit, tmp_path, net, **options)
    assert not (tmp_path / "weights.pt").exists()
    assert one_update(tmp_path, recipe=recipe).iteration == 2


def test_wrong_number_of_classes_is_told_at_once(refused):
    refused("Build it with classes=10", sit, None, get_model("resnet8", classes=7))


# --- the command line ----------------------------------------------------------------

ARGUMENTS = shlex.split(
    "--model resnet8 --data digits --iterations 4 --batch-size 8 --validation 0 "
    "--log-every 2 --eval-every 4 --precision fp32 --checkpoint-seconds 0.2"
)


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


def test_bad_arguments_get_one_sentence(tmp_path, capsys):
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
    assert not (folder / "weights.pt").exists()
