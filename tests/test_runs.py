import dataclasses
import json
import math
import shutil
import statistics
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from resnet_lib import PAPER, QUICK, SMOOTHED, Recipe, ResNet, fit
from resnet_lib.datasets import load_digits
from resnet_lib.runs import (
    COLUMNS,
    _tree,
    histories,
    history_text,
    load_run,
    longest_study,
    recorded_runs,
    runs_table,
)
from workshop.results import (
    beside_the_paper,
    cifar10_runs,
    comparison,
    draw,
    pages,
    plain_vs_residual,
)

RUNS = recorded_runs()
WARMED = dataclasses.replace(PAPER, warmup_lr=0.01)
README = Path(__file__).parent.parent / "README.md"


def test_the_pages_say_what_the_records_say():
    for path, text in pages(cifar10_runs()).items():
        assert path.read_text(encoding="utf-8") == text, "run `make results`"


def test_the_papers_length_and_a_shorter_one_stand_in_columns_of_their_own(
    record, tmp_path
):
    record("resnet20", 0.1234, iterations=8_000)
    short = "**12.34** (8,000 iterations) |"
    told = comparison(recorded_runs(tmp_path))
    assert f"| `resnet20` | 8.75 | not recorded yet | {short}" in told
    record("resnet20", 0.09)
    told = comparison(recorded_runs(tmp_path))
    assert f"| `resnet20` | 8.75 | **9.00** | {short}" in told
    assert "plain20" not in told


def test_both_recipes_reach_91_percent():
    for name in ("resnet18-paper-64k", "resnet18-smoothed-32k"):
        run = load_run(name)
        assert run.final["test_error"] < 0.09
        assert run.recipe["iterations"] >= 16_000
        assert len(run.recipe["milestones"]) == 2


def test_quick_reaches_91_percent_with_every_one_of_five_seeds():
    length = f"{QUICK.iterations // 1_000}k"
    runs = [run for n, run in RUNS.items() if n.startswith(f"resnet18-quick-{length}")]
    assert len({run.recipe["seed"] for run in runs}) >= 5
    errors = [run.final["test_error"] for run in runs]
    assert max(errors) < 0.09
    mean, best, worst = (100 * f(errors) for f in (statistics.mean, min, max))
    told = f"misjudges {mean:.2f} % of the test images in the mean of five seeds"
    page = README.parent / "data" / "results.md"
    words = " ".join(page.read_text(encoding="utf-8").split())
    assert f"{told} ({best:.2f} to {worst:.2f} %)" in words


@pytest.mark.parametrize("name", RUNS)
def test_recorded_run_is_whole(name):
    run = RUNS[name]
    Recipe(**run.recipe)
    assert run.finished and "-dirty" not in run.environment["commit"]
    history = run.history
    assert history["iteration"].is_monotonic_increasing
    assert history["seconds"].is_monotonic_increasing
    assert not math.isnan(run.final["test_error"])
    if (run.folder / "weights.pt").exists():
        assert not run.model().training
    else:
        with pytest.raises(ValueError, match=r"keeps no weights, only its history"):
            run.model()
    size = sum(path.stat().st_size for path in run.folder.glob("*.*"))
    assert size < 4_000_000
    assert not list(run.folder.glob("checkpoint*"))


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_folder_has_the_name_that_git_gives_it(tmp_path):
    for name in ("a/x.py", "a.py", "a-b.py", "b/c/y.py", "b/__pycache__/y.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    ours = _tree(tmp_path).hex()
    for work in ("init -q", "add *.py", "write-tree"):
        git = subprocess.run(
            ["git", "-C", tmp_path, *work.split()], capture_output=True, check=True
        )
    assert git.stdout.decode().strip() == ours


# --- the study ------------------------------------------------------------------------


@pytest.fixture
def record(tmp_path):
    """Write the plain text of a run whose errors fall in a line to its final one."""

    def write(model, final, iterations=64_000, seed=0, recipe=PAPER, data="cifar10"):
        recipe = dataclasses.replace(recipe.scaled(iterations), seed=seed)
        about = {"model": model, "data": data, "recipe": dataclasses.asdict(recipe)}
        folder = tmp_path / f"{model}-{iterations}-{seed}-{recipe.label_smoothing}"
        if recipe.warmup_lr:
            folder = folder.with_name(f"{folder.name}-warmup")
        folder.mkdir()
        (folder / "recipe.json").write_text(json.dumps(about))
        rows = []
        for share in (0.25, 0.5, 0.75, 1):
            row = dict.fromkeys(COLUMNS, math.nan)
            error = 0.9 - (0.9 - final) * share
            row |= {"iteration": int(share * iterations), "train_error": error / 2}
            if share > 0.25:
                row["test_error"] = error
            rows.append(row)
        (folder / "history.csv").write_text(history_text(rows))

    return write


def test_the_longest_study_has_both_nets_at_two_depths(record, tmp_path):
    with pytest.raises(ValueError, match="make reproduce"):
        longest_study({})
    for model in ("plain20", "resnet20", "plain56", "resnet56"):
        record(model, 0.3, iterations=1_000)
    record("resnet20", 0.3, iterations=1_000, seed=1)
    study = [
        "plain20-1000-0-0.0",
        "resnet20-1000-0-0.0",
        "resnet20-1000-1-0.0",
        "plain56-1000-0-0.0",
        "resnet56-1000-0-0.0",
    ]
    assert list(longest_study(recorded_runs(tmp_path))) == study
    # Longer runs, but not of two depths with both nets by one recipe.
    for model in ("plain20", "resnet20", "resnet110", "resnet56-B", "plain18"):
        record(model, 0.2, iterations=2_000)
    record("resnet56", 0.2, iterations=2_000, recipe=SMOOTHED)
    record("plain56", 0.2, iterations=2_000, recipe=SMOOTHED)
    record("resnet18", 0.2, iterations=2_000)
    for model in ("plain56", "resnet56"):
        record(model, 0.2, iterations=2_000, recipe=WARMED)
    assert list(longest_study(recorded_runs(tmp_path))) == study
    record("plain110", 0.2, iterations=2_000, recipe=WARMED)  # as the paper does
    names = list(longest_study(recorded_runs(tmp_path)))
    assert names == [
        "plain20-2000-0-0.0",
        "resnet20-2000-0-0.0",
        "plain110-2000-0-0.0-warmup",
        "resnet110-2000-0-0.0",
    ]


def test_histories_are_in_percent_with_a_row_per_measurement(record, tmp_path):
    record("plain20", 0.1)
    record("resnet56", 0.05, seed=3)
    table = histories(recorded_runs(tmp_path))
    assert len(table) == 2 * (4 + 3)
    last = table[table["iteration"] == 64_000].set_index(["net", "part"])
    assert last.loc[("plain", "test"), "error (%)"] == pytest.approx(10)
    assert last.loc[("residual", "train"), "error (%)"] == pytest.approx(2.5)
    assert last.loc[("residual", "test"), "layers"] == 56
    assert last.loc[("residual", "test"), "seed"] == 3


def test_beside_the_paper(record, tmp_path):
    record("resnet20", 0.09)
    record("resnet20", 0.10, seed=1)
    record("resnet20", 0.12, iterations=1_000)
    record("plain20", 0.11)
    record("resnet20", 0.01, recipe=SMOOTHED)
    record("resnet20", 0.01, recipe=WARMED)
    record("resnet20", 0.01, seed=2, data="digits")
    record("resnet20", 0.01, seed=3, recipe=dataclasses.replace(PAPER, lr=0.01))
    table = beside_the_paper(recorded_runs(tmp_path)).set_index(
        ["network", "iterations"]
    )
    assert len(table) == 3
    pair = table.loc["resnet20", 64_000]
    assert pair["n"] == 2 and pair["ours"] == pytest.approx(9.5)
    assert pair["std"] == pytest.approx(math.sqrt(0.5))
    assert pair["difference"] == pytest.approx(9.5 - 8.75)
    assert math.isnan(table.loc[("resnet20", 1_000), "std"])
    assert math.isnan(table.loc[("plain20", 64_000), "difference"])


def test_a_half_made_folder_is_no_recorded_run(record, tmp_path):
    record("resnet20", 0.09)
    (tmp_path / "killed").mkdir()
    written = next(tmp_path.glob("resnet20*")) / "recipe.json"
    (tmp_path / "killed" / "recipe.json").write_bytes(written.read_bytes())
    assert len(recorded_runs(tmp_path)) == 1


def test_the_curves_are_those_of_the_runs(record, tmp_path):
    for model in ("plain20", "resnet20", "plain56", "resnet56"):
        record(model, 0.3 if "plain56" not in model else 0.5)
    runs = recorded_runs(tmp_path)
    axes = plain_vs_residual(histories(runs))
    for ax, deep in zip(axes, (50, 30), strict=True):
        ends = [line.get_ydata()[-1] for line in ax.lines if len(line.get_ydata())]
        assert np.allclose(sorted(ends), sorted([30, 15, deep, deep / 2]))
    with plt.rc_context():
        draw(runs, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_snapshots_are_networks_of_their_time():
    run = load_run("resnet18-paper-64k")
    first, *_, last = run.snapshots
    assert first == 0 and last == 64_000
    final, kept = run.model(), run.model(last)
    for name, value in final.state_dict().items():
        np.testing.assert_allclose(kept.state_dict()[name], value, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"choose from \[0, 500"):
        run.model(7)


# --- the table ------------------------------------------------------------------------


def test_table_has_a_row_per_run():
    table = runs_table(RUNS).set_index("run")
    assert table.index.tolist() == list(RUNS)
    assert table["model"].tolist() == [run.about["model"] for run in RUNS.values()]
    table = table["test error (%)"]
    for name, run in RUNS.items():
        assert table[name] == round(100 * run.final["test_error"], 2)


@pytest.mark.parametrize("shortcut", [None, "A", "B", "C"])
def test_a_network_of_each_kind_comes_back(tmp_path, shortcut):
    net = ResNet((4, 8), (1, 1), shortcut)
    recipe = dataclasses.replace(PAPER.scaled(1), batch_size=8, validation=0)
    fit(net, load_digits(), recipe, tmp_path / "run", progress=False)
    run = load_run("run", tmp_path)
    assert run.network == net.config
    assert run.net == ("plain" if shortcut is None else "residual")
    assert torch.equal(run.model().conv1.weight, net.conv1.weight)
    told = "device cores threads computation python torch system commit started"
    assert list(run.environment) == told.split() and all(run.environment.values())


def test_unknown_run_names_the_others(tmp_path):
    with pytest.raises(KeyError, match="resnet18-digits"):
        load_run("resnet19")
    with pytest.raises(KeyError, match="There are: none"):
        load_run("resnet19", tmp_path)
