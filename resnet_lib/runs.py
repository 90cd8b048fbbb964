"""Recorded runs: write, read and tabulate the folders that `fit` fills."""

import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resnet_lib.inputs import check_stages
from resnet_lib.paths import data_home, expanded, rename
from resnet_lib.recipe import Recipe
from resnet_lib.resnet import ResNet, get_model
from resnet_lib.training import COLUMNS, PARTS

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "MAY_DIFFER",
    "Run",
    "describe_environment",
    "halved",
    "histories",
    "history_text",
    "load_run",
    "load_weights",
    "longest_study",
    "read_about",
    "read_history",
    "read_json",
    "recorded_runs",
    "write_atomically",
    "write_json",
]

# Fields of a recipe in which the runs of one study may differ.
MAY_DIFFER = ("seed", "warmup_lr", "warmup_error", "log_every", "eval_every")

FIELDS = tuple(field.name for field in fields(Recipe))

# What a record says of its network: `ResNet`, and each of its arguments.
NETWORK = {"class", *signature(ResNet).parameters}

# What runs did that were recorded before these fields of a recipe were a choice.
OLDER = {"schedule": "steps", "small_until": [], "small_size": []}


# --- writing --------------------------------------------------------------------------


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the file and rename: a reader finds the old one or the new."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    rename(part, path)


def write_json(path: Path, value: dict) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def history_text(rows: list[dict], header: bool = True) -> str:
    """The rows as CSV; what was not measured (NaN) stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    for row in rows:
        cells = {k: "" if v != v else f"{v:.7g}" for k, v in row.items()}
        writer.writerow({**cells, "iteration": row["iteration"]})
    return text.getvalue()


def describe_environment(device: str, computation: str) -> dict:
    """What a reader needs to judge or repeat a run: hardware, versions, commit."""
    on_gpu = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "computation": computation,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
        "commit": _commit(),
        "started": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name"))
        return name.split(":")[1].strip()
    if sys.platform == "darwin":  # whose `processor` is "arm", of whatever chip
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.check_output(command, text=True).strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of this library's checkout, marked "-dirty" if its files differ.

    Where there is no git, the library's name as a git tree: the commit is one of those
    for which `git rev-parse COMMIT:resnet_lib` answers with it.
    """
    here = Path(__file__).parent

    def git(*words: str) -> str:
        told = {"stderr": subprocess.DEVNULL, "text": True}
        return subprocess.check_output(["git", *words], cwd=here, **told)

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else another's
        commit = git("describe", "--always", "--abbrev=12").strip()
        return commit + "-dirty" * bool(git("status", "--short", "."))
    return f"tree {_tree(here).hex()[:12]}"


def _tree(folder: Path) -> bytes:
    """The SHA-1 that git gives a folder of plain files."""
    content = b""
    paths = [p for p in folder.iterdir() if p.name != "__pycache__"]
    paths = [p for p in paths if p.is_file() or p.is_dir()]  # no editor's dangling link
    for path in sorted(paths, key=lambda path: path.name + "/" * path.is_dir()):
        if path.is_dir():
            mode, digest = b"40000", _tree(path)
        else:
            mode, digest = b"100644", _git_sha1(b"blob", path.read_bytes())
        content += mode + b" " + path.name.encode() + b"\0" + digest
    return _git_sha1(b"tree", content)


def _git_sha1(kind: bytes, content: bytes) -> bytes:
    return hashlib.sha1(b"%b %d\0" % (kind, len(content)) + content).digest()


# --- reading --------------------------------------------------------------------------


@contextlib.contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """RuntimeError, with the remedy, for what a damaged file leads to."""
    expected = (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError)
    try:
        yield
    except expected as error:
        raise RuntimeError(
            f"{path} is damaged ({error}). Restore it, or choose another folder."
        ) from error


def read_json(path: Path) -> dict:
    """What `write_json` wrote; RuntimeError if it is damaged."""
    with _undamaged(path):
        return {} | json.loads(path.read_bytes())


def read_about(folder: Path) -> dict:
    """A run folder's recipe.json: the model, the data and the recipe."""
    path = folder / "recipe.json"
    about = read_json(path)
    with _undamaged(path):
        recipe = OLDER | about["recipe"]
        if isinstance(recipe["small_until"], int):  # there was one small size at most
            some = recipe["small_until"] > 0
            for name in ("small_until", "small_size"):
                recipe[name] = [recipe[name]] if some else []
        Recipe(**{name: recipe[name] for name in FIELDS})
        if about.get("network") is not None:
            _check_network(about["network"])
        if not all(isinstance(about[key], str) for key in ("model", "data")):
            raise TypeError("the model or the data has no name")
    return about | {"recipe": recipe}


def _check_network(network: dict) -> None:
    """Raise ValueError, TypeError or KeyError for what `describe` did not write."""
    check_stages(network["widths"], network["depths"])
    check_stages([network["classes"]], [network["in_channels"]])  # 1 or more
    known = network["class"] == "ResNet" and network.keys() == NETWORK
    if not known or network["shortcut"] not in (None, "A", "B", "C"):
        raise ValueError(f"its network is {network}")


def read_history(path: Path) -> list[dict]:
    """The rows of a history.csv; what was not measured is NaN.

    A kill may leave half a line, so the last one needs its end. Raises RuntimeError for
    a damaged file.
    """
    rows = []
    with _undamaged(path):
        header, *lines = path.read_text().rpartition("\n")[0].split("\n")
        if header != ",".join(COLUMNS):
            raise ValueError(f"its first line is {header!r}")
        for line in lines:
            cells = [float(cell or "nan") for cell in line.split(",")]
            row = dict(zip(COLUMNS, cells, strict=True))
            rows.append({**row, "iteration": int(row["iteration"])})
    return rows


def load_weights(path: Path | str) -> dict[str, Tensor]:
    """A `state_dict` from a file; RuntimeError if it holds none, or is damaged."""
    content = expanded(path).read_bytes()
    no_weights = (
        f"{path} holds no state_dict: a name and a tensor for each weight. If it is a "
        "whole model, load it where it was made, and save its state_dict() instead."
    )
    try:
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever a damaged byte leads to
        if "weights_only" in str(error).lower() and zipfile.is_zipfile(path):
            raise RuntimeError(no_weights) from error  # it holds Python objects
        raise RuntimeError(
            f"{path} is damaged. Restore it, or train the run anew in another folder."
        ) from error
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor)
        for name, value in weights.items()
    ):
        raise RuntimeError(no_weights)
    return weights


def halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A `state_dict` with its kernels in half precision, where nearly all bytes are.

    Vectors stay as they are: a variance in a deep plain net exceeds what half precision
    can hold.
    """

    def is_kernel(value: Tensor) -> bool:
        return value.ndim > 1 and value.is_floating_point()

    return {k: v.half() if is_kernel(v) else v for k, v in weights.items()}


@dataclass(frozen=True)
class Run:
    """One run folder: what was trained, how, where, and what came of it."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", expanded(self.folder))  # from text, too

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def about(self) -> dict:
        """recipe.json: the model, the data and the recipe."""
        return read_about(self.folder)

    @property
    def recipe(self) -> dict:
        """The fields of the `Recipe` that was carried out."""
        return self.about["recipe"]

    @cached_property
    def environment(self) -> dict:
        """environment.json: hardware, versions, commit."""
        return read_json(self.folder / "environment.json")

    @cached_property
    def history(self) -> "pd.DataFrame":
        """history.csv: one row per `log_every` iterations; NaN where not evaluated."""
        import pandas as pd

        return pd.DataFrame(read_history(self.folder / "history.csv"), columns=COLUMNS)

    @property
    def finished(self) -> bool:
        """Whether its history reaches the recipe's last iteration.

        That row is written last, after the weights. Raises RuntimeError for weights
        beside a history that cannot be read.
        """
        if not (self.folder / "recipe.json").exists():
            return False
        end = self.recipe["iterations"]
        try:
            rows = read_history(self.folder / "history.csv")
        except RuntimeError:
            if (self.folder / "weights.pt").exists():
                raise
            return False  # just begun, or the checkpoint holds the rows too
        return bool(rows) and rows[-1]["iteration"] == end

    @property
    def final(self) -> "pd.Series":
        """The last row with a test error: of a finished run, its result."""
        return self.history.dropna(subset=["test_error"]).iloc[-1]

    @cached_property
    def network(self) -> dict | None:
        """What rebuilds the network, the arguments of `ResNet`; None for others.

        Runs from before it was recorded have the networks of `get_model`.
        """
        if "network" in self.about:
            known = self.about["network"]
            return known and {k: v for k, v in known.items() if k != "class"}
        name, _, shortcut = self.about["model"].partition("-")
        try:
            return get_model(name, shortcut or None).config
        except ValueError:
            return None

    @property
    def net(self) -> str:
        """ "plain", "residual", or "other" for a network that is none of ours."""
        if self.network is None:
            return "other"
        return "plain" if self.network["shortcut"] is None else "residual"

    @property
    def layers(self) -> int | None:
        """The paper's count: two for each block, the stem and the linear layer."""
        return self.network and 2 * sum(self.network["depths"]) + 2

    @property
    def extra_warmup(self) -> bool:
        """Whether it warms up where the paper does not: below 110 layers (§4.2)."""
        warms_up = self.recipe["warmup_lr"] is not None
        return warms_up and (self.layers or 0) < 110

    @property
    def snapshots(self) -> list[int]:
        """The iterations whose weights were kept along the way."""
        paths = (self.folder / "snapshots").glob("iteration-*.pt")
        return sorted(int(path.stem.removeprefix("iteration-")) for path in paths)

    def model(self, iteration: int | None = None) -> ResNet:
        """The trained network, on the CPU and in evaluation mode.

        With an `iteration` of `snapshots`, the network as it was then. Raises
        ValueError for an iteration without kept weights, RuntimeError for weights that
        are damaged or of another network.
        """
        path = self.folder / "weights.pt"
        lacks = (
            "keeps no weights, only its history. Train it anew with `python -m "
            "resnet_lib.train`, or choose a run that has them."
        )
        if iteration is not None:
            path = self.folder / "snapshots" / f"iteration-{iteration:06d}.pt"
            choice = f"choose from {self.snapshots}"
            lacks = f"has no weights of iteration {iteration}: {choice}."
        if not path.exists():
            raise ValueError(f"{self.name} {lacks}")
        if self.network is None:
            raise ValueError(
                f"{self.name} trained a network, {self.about['model']}, that is not "
                "rebuilt from its record. Build it yourself and load the state_dict in "
                f"{path}."
            )
        weights = load_weights(path)
        try:
            if sum(self.network["depths"]) > len(weights):
                raise RuntimeError("there are more blocks than weights")
            model = ResNet(**self.network)
            model.load_state_dict(weights)  # half precision becomes float32
        except RuntimeError as error:
            raise RuntimeError(
                f"{path} does not hold the weights of {self.network}, the network that "
                "recipe.json beside it names. Restore both, or train the run anew in "
                "another folder."
            ) from error
        model.name = self.about["model"]
        return model.eval()


def recorded_runs(folder: Path | str | None = None) -> dict[str, Run]:
    """The finished runs in `data/runs`, or in another folder, by name.

    A damaged folder is passed over: `load_run` says what is wrong with it.
    """
    folder = expanded(folder or data_home() / "runs")
    runs = {}
    for path in sorted(folder.glob("*/recipe.json")):
        with contextlib.suppress(RuntimeError, OSError):
            if Run(path.parent).finished:
                runs[path.parent.name] = Run(path.parent)
    return runs


def load_run(name: str, folder: Path | str | None = None) -> Run:
    """One recorded run; KeyError names the others, RuntimeError tells of damage."""
    run = Run(expanded(folder or data_home() / "runs") / str(name))
    if not run.finished:
        others = ", ".join(recorded_runs(folder)) or "none"
        raise KeyError(f"No recorded run {name!r}. There are: {others}.")
    return run


def longest_study(runs: Mapping[str, Run]) -> dict[str, Run]:
    """Plain and residual nets of the paper's family, trained alike. Paper §4.2, Fig. 6.

    Runs are alike if their data and recipes differ in nothing but the seed, the warm-up
    of the deepest nets, and what was logged. A study has two depths or more at which
    both nets are recorded; a depth with one of them is left out. Of several studies,
    the one with the most iterations, ordered by layers, net and seed.

    Raises ValueError where there are no two such depths.
    """
    groups = defaultdict(list)  # the longest runs first
    for run in sorted(runs.values(), key=lambda run: -run.recipe["iterations"]):
        same = {k: v for k, v in run.recipe.items() if k not in MAY_DIFFER}
        family = run.about["model"] in (f"resnet{run.layers}", f"plain{run.layers}")
        # 18 layers are of another family.
        if family and run.layers % 6 == 2 and not run.extra_warmup:
            groups[json.dumps([run.about["data"], same])].append(run)
    for group in groups.values():
        nets = {(run.net, run.layers) for run in group}
        twins = {n for _, n in nets if nets >= {("plain", n), ("residual", n)}}
        if len(twins) >= 2:
            study = [run for run in group if run.layers in twins]
            study.sort(key=lambda run: (run.layers, run.net, run.recipe["seed"]))
            return {run.name: run for run in study}
    raise ValueError(
        "No two depths are recorded with a plain and a residual net each. Run `make "
        "reproduce`."
    )


def histories(runs: Mapping[str, Run]) -> "pd.DataFrame":
    """Every error of every run: a row per run, iteration and part, for seaborn.

    Columns: run, net ("plain", "residual"), layers, seed, iteration, part ("train",
    "validation", "test"), error (%).
    """
    import pandas as pd

    tables = []
    for run in runs.values():
        table = run.history.set_index("iteration")[[f"{part}_error" for part in PARTS]]
        table.columns = PARTS
        names = {"var_name": "part", "value_name": "error (%)"}
        table = (100 * table).melt(**names, ignore_index=False)
        about = {"run": run.name, "net": run.net, "layers": run.layers}
        tables.append(table.assign(**about, seed=run.recipe["seed"]).dropna())
    return pd.concat(tables).reset_index()
