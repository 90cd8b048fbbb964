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
ORDER = [
    *("inputs", "basic_block", "resnet"),
    *("data", "recipe", "device", "training", "identity"),
    *("paths", "progress", "cifar10", "datasets"),
    *("distributed", "runs", "checkpoints", "fit"),
    *("probes", "plots", "explorer"),
    *("train", "colab"),
]
CORE = ["inputs", "basic_block", "resnet", "data", "recipe", "device", "training"]
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


def room(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


FILES = [path for path in LIBRARY.rglob("*.py") if path != LIBRARY / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_imports_point_one_way(path):
    for name in imports(path):
        assert name.split(".")[0] not in ("workshop", "checks", "notebooks"), name
        if name.startswith("resnet_lib."):
            other = name.split(".")[1]
            if other in ORDER and other != room(path):
                assert ORDER.index(other) < ORDER.index(room(path)), name


def test_every_room_has_its_place():
    assert {room(path) for path in FILES} == set(ORDER)


def test_the_core_knows_no_disk_no_ranks_and_no_bars():
    for name in CORE:
        used = {module.split(".")[0] for module in imports(LIBRARY / f"{name}.py")}
        assert not used & {"pathlib", "shutil", "tqdm", "json", "pickle", "filelock"}
        inside = {
            m.split(".")[1] for m in imports(LIBRARY / f"{name}.py") if "lib." in m
        }
        assert inside <= set(CORE), name


def test_training_needs_no_jupyter_and_no_plots():
    loaded = set(Forked.calling(modules).end()[1].split())
    assert "resnet_lib.train" in loaded and not HEAVY & loaded


# --- what the tree weighs -------------------------------------------------------------

# The runs whose weights a notebook, the explorer or a test loads.
KEPT = {
    "plain18-digits",
    "plain18-paper-32k",
    "plain20-paper-8k",
    "plain56-paper-8k",
    "resnet18-digits",
    "resnet18-paper-64k",
    "resnet20-paper-8k",
    "resnet56-paper-8k",
}


def tracked() -> list[Path]:
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    return [ROOT / name for name in names.split("\0") if (ROOT / name).is_file()]


def test_the_tree_is_light():
    """An unfinished run is on its way; all else together is a quick clone."""
    unfinished = ROOT / "data" / "unfinished"
    files = [path for path in tracked() if unfinished not in path.parents]
    assert sum(path.stat().st_size for path in files) < 35_000_000


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
