"""The house: which room may call which, what the tree weighs, and how fast it is."""

import ast
import json
import re
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from forked import Forked

from resnet_lib import Normalisation, evaluate
from resnet_lib.cifar10 import CIFAR10, find
from resnet_lib.datasets import load_cifar10, load_digits
from resnet_lib.runs import recorded_runs
from workshop.benchmarks import throughput
from workshop.benchmarks.throughput import flop, markdown, rate, summary, take_turns

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "resnet_lib"

# From the core outwards: a module imports only from those before it.
CORE = ["inputs", "basic_block", "resnet", "data", "recipe", "device", "training"]
ORDER = [
    *(*CORE, "identity", "paths", "progress", "cifar10", "datasets"),
    *("distributed", "runs", "checkpoints", "fit"),
    *("probes", "plots", "explorer", "train", "colab"),
]
NOT_OURS = {"workshop", "checks", "notebooks"}
DISKS_AND_BARS = {"pathlib", "shutil", "tqdm", "json", "pickle", "filelock"}
HEAVY = {"IPython", "ipywidgets", "matplotlib", "seaborn", "pandas", "anywidget"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_point_one_way_and_the_core_knows_no_disk():
    files = set(LIBRARY.rglob("*.py")) - {LIBRARY / "__init__.py"}
    rooms = {path: path.relative_to(LIBRARY).parts[0].split(".")[0] for path in files}
    assert set(rooms.values()) == set(ORDER)
    for path, room in rooms.items():
        for name in imports(path):
            package, *inside = name.split(".")
            assert package not in NOT_OURS, (path, name)
            assert not (room in CORE and package in DISKS_AND_BARS), (path, name)
            if package == "resnet_lib" and inside:
                assert inside[0] in ORDER[: ORDER.index(room) + 1], (path, name)


def test_training_needs_no_jupyter_and_no_plots():
    loaded = set(Forked(["python", "-m", "forked"]).end()[1].split())
    assert "resnet_lib.train" in loaded and not HEAVY & loaded


# --- what the tree weighs -------------------------------------------------------------

# The runs whose weights a notebook, the explorer or a test loads.
KEPT = {
    *("plain18-digits", "plain20-paper-64k", "plain56-paper-64k"),
    *("resnet18-digits", "resnet18-paper-64k"),
    *("resnet20-paper-64k", "resnet56-paper-64k", "resnet56-paper-64k-seed1"),
}


@pytest.mark.usefixtures("checkout")
def test_the_tree_is_light():
    """An unfinished run is on its way; all else together is a quick clone."""
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    files = {ROOT / name for name in names.split("\0")}
    files -= set((ROOT / "data" / "unfinished").rglob("*"))
    assert sum(path.stat().st_size for path in files if path.is_file()) < 35_000_000


def test_weights_are_kept_where_they_are_loaded_and_in_half_precision():
    with_weights = {path.parent.name for path in ROOT.glob("data/runs/*/weights.pt")}
    assert with_weights == KEPT
    for path in ROOT.glob("data/runs/*/**/*.pt"):
        for value in torch.load(path, weights_only=True).values():
            assert value.dtype == torch.float16 or value.ndim < 2, path


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KEPT))
def test_weights_in_half_precision_judge_as_their_record_says(name):
    run = recorded_runs()[name]
    digits = run.about["data"] == "digits"
    if not digits and not find(CIFAR10):
        pytest.skip("needs CIFAR-10")
    data = load_digits() if digits else load_cifar10()
    train, _ = data.split(run.recipe["validation"])
    result = evaluate(run.model(), data.test, Normalisation.of(train.images))
    recorded = run.final["test_error"]
    assert result.error == pytest.approx(recorded, abs=0.0005 + 1e-9)


# --- the benchmark --------------------------------------------------------------------

ROW = "resnet20, training"
ALIKE = {"compute alone": 400.0, "matmul, GFLOP/s": 100.0}
ROUNDS = [
    {
        ROW: {"textbook": textbook, "ours": ours, "data alone": 10 * ours} | ALIKE,
        "machine": {"copy, GB/s": 9.5},
        "resnet20, fused": {"as is": ours / 50, "changed": ours / 50 + 1},
    }
    for textbook, ours in ((100.0, 200.0), (200.0, 300.0), (50.0, 150.0))
]


def test_a_ratio_compares_neighbours_of_one_round():
    results = summary(ROUNDS)
    cells = results[ROW]
    assert cells["ours"] == (150, 200, 300)
    assert cells["ours / textbook"] == (1.5, 2, 3)  # not 200 / 100 of the medians alone
    assert cells["ours / compute"] == (0.375, 0.5, 0.75)
    assert cells["data's share"] == pytest.approx((0.1, 0.1, 0.1))
    peak = [ours * flop("resnet20", "training") / 100e9 for ours in (150, 200, 300)]
    assert cells["of matmul"] == pytest.approx(tuple(peak))
    change = results["resnet20, fused"]["changed / as is"]
    assert change == pytest.approx((7 / 6, 5 / 4, 4 / 3))
    lines = markdown(results).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert "200 (150–300)" in lines[2] and "2.00 (1.50–3.00)" in lines[2]
    assert "| – " in lines[3] and "9.50 (9.50–9.50)" in lines[3]


def test_readme_tells_what_the_benchmark_recorded():
    readme = (ROOT / "workshop/benchmarks/README.md").read_text(encoding="utf-8")
    report = json.loads((ROOT / "data/bench.json").read_text())
    changes = [row["changed / as is"] for row in report["changes"]["results"].values()]
    recorded = ["{1:.2f} ({0:.2f}–{2:.2f})".format(*change) for change in changes]
    assert recorded == re.findall(r"\| (\d\.\d\d \(.+\)) \|", readme)
    results = report["throughput"]["results"]
    for what in ("training", "evaluation"):
        rows = [row for name, row in results.items() if name.endswith(what)]
        gains = [row["ours / textbook"][1] for row in rows]
        assert f"{min(gains):.2f} to {max(gains):.2f} times" in readme


def test_multiply_adds_are_those_of_the_layers():
    first, rest = 16 * 27 * 32**2, 16 * 16 * 9 * 32**2
    # Six layers in each stage; halving the size and doubling the width leaves their
    # work as it is, but the first of a stage reads half the channels.
    adds = first + 6 * rest + 2 * (rest // 2 + 5 * rest) + 64 * 10
    assert flop("resnet20", "evaluation") == 2 * adds
    assert flop("resnet20", "training") == 3 * 2 * adds - 2 * first


def test_rate_is_work_over_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(throughput, "time", Mock(perf_counter=lambda: now[0]))

    def job(done, work):
        while True:
            now[0] += 0.5
            done(work)

    assert rate(100, job, 3.0) == 6.0


def test_the_large_product_is_one_in_the_precision_of_fit(monkeypatch):
    cpu = throughput.device_profile(device="cpu")
    monkeypatch.setattr(throughput, "device_profile", lambda: cpu)

    class EnoughError(Exception):
        pass

    def once(work):
        raise EnoughError(work)

    with pytest.raises(EnoughError, match=r"^17\.1"):  # GFLOP
        throughput.matmul(once)


def test_ctrl_c_keeps_the_whole_rounds(capsys):
    process = Mock()
    process.submit().result.side_effect = [1.0, 2.0, KeyboardInterrupt]
    rounds = take_turns({"row": {"a": (process, None)}}, 5, 1)
    assert rounds == [{"row": {"a": 1.0}}, {"row": {"a": 2.0}}]
    assert "round 2 of 5 · row: a 2.00" in capsys.readouterr().out
