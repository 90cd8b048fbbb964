"""The house: which room may call which, and what the tree may weigh."""

import ast
import subprocess
from pathlib import Path

import pytest
import torch
from forked import Forked, modules

from resnet_lib import Normalisation, evaluate
from resnet_lib.cifar10 import CIFAR10, find
from resnet_lib.datasets import load_cifar10, load_digits
from resnet_lib.runs import recorded_runs

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
                before = ORDER[: ORDER.index(room) + 1]
                assert inside[0] in before, (path, name)


def test_training_needs_no_jupyter_and_no_plots():
    loaded = set(Forked.calling(modules).end()[1].split())
    assert "resnet_lib.train" in loaded and not HEAVY & loaded


# --- what the tree weighs -------------------------------------------------------------

# The runs whose weights a notebook, the explorer or a test loads.
KEPT = {
    *("plain18-digits", "plain18-paper-32k", "plain20-paper-8k", "plain56-paper-8k"),
    *("resnet18-digits", "resnet18-paper-64k", "resnet20-paper-8k"),
    "resnet56-paper-8k",
}


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
    if run.about["data"] == "digits":
        data = load_digits()
    elif find(CIFAR10):
        data = load_cifar10()
    else:
        pytest.skip("needs CIFAR-10")
    train, _ = data.split(run.recipe["validation"])
    result = evaluate(run.model(), data.test, Normalisation.of(train.images))
    recorded = run.final["test_error"]
    assert result.error == pytest.approx(recorded, abs=0.0005 + 1e-9)
