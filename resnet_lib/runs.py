"""Recorded runs: write, read and tabulate the folders that `training.fit` fills."""

import contextlib
import csv
import io
import json
import os
import platform
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resnet_lib.paths import data_home
from resnet_lib.resnet import ResNet, get_model
from resnet_lib.training import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Run",
    "histories",
    "load_run",
    "longest_study",
    "recorded_runs",
    "runs_table",
]

PARTS = ("train", "validation", "test")

# Fields of a recipe in which the runs of one study may differ.
OWN = ("seed", "warmup_lr", "warmup_error", "log_every", "eval_every")

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
    part.replace(path)


def write_json(path: Path, value: dict) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def history_text(rows: list[dict], header: bool = True) -> str:
    """The rows as CSV; what was not measured (NaN) stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if v != v else f"{v:.7g}" for k, v in row.items()})
    return text.getvalue()


def describe_environment(device: str, computation: str) -> dict:
    """What a reader needs to judge or repeat a run: hardware, versions, commit."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
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
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this library's checkout, marked "-dirty" if files differ."""
    here = str(Path(__file__).parent)
    git = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        answer = subprocess.run(git, capture_output=True, text=True, check=True)
        return answer.stdout.strip()
    return None


# --- reading --------------------------------------------------------------------------


def read_about(folder: Path) -> dict:
    """A run folder's recipe.json: the model, the data and the recipe."""
    about = read_json(folder / "recipe.json", "model", "data", "recipe")
    recipe = OLDER | about["recipe"]
    if isinstance(recipe["small_until"], int):  # there was one small size at most
        some = recipe["small_until"] > 0
        for name in ("small_until", "small_size"):
            recipe[name] = [recipe[name]] if some else []
    return about | {"recipe": recipe}


def read_json(path: Path, *keys: str) -> dict:
    """What `write_json` wrote; RuntimeError if it is damaged or one of `keys` lacks."""
    try:
        content = json.loads(path.read_bytes())
        return content | {key: content[key] for key in keys}
    except (FileNotFoundError, ValueError, TypeError, KeyError) as error:
        raise RuntimeError(
            f"{path} is damaged ({error}). Restore it, or choose another folder."
        ) from error


def read_history(path: Path) -> list[dict]:
    """The rows of a history.csv; what was not measured is NaN."""
    with open(path, newline="") as file:
        table = list(csv.DictReader(file))
    rows = [{key: float(cell or "nan") for key, cell in row.items()} for row in table]
    return [{**row, "iteration": int(row["iteration"])} for row in rows]


def load_weights(path: Path) -> dict[str, Tensor]:
    """A `state_dict` from a file; RuntimeError if the file is damaged."""
    content = io.BytesIO(path.read_bytes())
    try:
        return torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever a damaged byte leads to
        raise RuntimeError(
            f"{path} is damaged. Restore it, or delete it to train this run anew."
        ) from error


def halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A `state_dict` in half precision; counters stay integers."""
    return {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}


@dataclass(frozen=True)
class Run:
    """One run folder: what was trained, how, where, and what came of it."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def about(self) -> dict:
        """recipe.json: the model, the data and the recipe."""
        return read_about(self.folder)

    @property
    def recipe(self) -> dict:
        """The fields of the `training.Recipe` that was carried out."""
        return self.about["recipe"]

    @cached_property
    def environment(self) -> dict:
        """environment.json: hardware, versions, commit."""
        return read_json(self.folder / "environment.json")

    @cached_property
    def history(self) -> "pd.DataFrame":
        """history.csv: one row per `log_every` iterations; NaN where not evaluated."""
        import pandas as pd

        return pd.read_csv(self.folder / "history.csv")

    @property
    def finished(self) -> bool:
        if not (self.folder / "history.csv").exists():  # killed before the first row
            return False
        return self.history["iteration"].max() == self.recipe["iterations"]

    @property
    def final(self) -> "pd.Series":
        """The last row of the history: the result of the run."""
        return self.history.iloc[-1]

    @property
    def net(self) -> str:
        """ "plain" or "residual"."""
        return "plain" if self.about["model"].startswith("plain") else "residual"

    @property
    def layers(self) -> int:
        """The number in the network's name: 20 for resnet20."""
        return int(re.search(r"\d+", self.about["model"])[0])

    @property
    def extra_warmup(self) -> bool:
        """Whether it warms up where the paper does not: below 110 layers (§4.2)."""
        return self.recipe["warmup_lr"] is not None and self.layers < 110

    @property
    def snapshots(self) -> list[int]:
        """The iterations whose weights were kept along the way."""
        paths = (self.folder / "snapshots").glob("iteration-*.pt")
        return sorted(int(path.stem.removeprefix("iteration-")) for path in paths)

    def model(self, iteration: int | None = None) -> ResNet:
        """The trained network, on the CPU and in evaluation mode.

        With an `iteration` of `snapshots`, the network as it was then. Raises
        ValueError for an iteration without kept weights.
        """
        path = self.folder / "weights.pt"
        if iteration is not None:
            path = self.folder / "snapshots" / f"iteration-{iteration:06d}.pt"
            if not path.exists():
                raise ValueError(
                    f"{self.name} has no weights of iteration {iteration}: choose from "
                    f"{self.snapshots}."
                )
        name, _, shortcut = self.about["model"].partition("-")
        model = get_model(name, shortcut or None)
        model.load_state_dict(load_weights(path))  # half precision becomes float32
        return model.eval()


def recorded_runs(folder: Path | str | None = None) -> dict[str, Run]:
    """The finished runs in `data/runs`, or in another folder, by name."""
    folder = Path(folder or data_home() / "runs")
    runs = [Run(path.parent) for path in sorted(folder.glob("*/recipe.json"))]
    return {run.name: run for run in runs if run.finished}


def load_run(name: str, folder: Path | str | None = None) -> Run:
    """One recorded run by its name; KeyError names the others."""
    runs = recorded_runs(folder)
    if name not in runs:
        others = ", ".join(runs) or "none"
        raise KeyError(f"No recorded run {name!r}. There are: {others}.")
    return runs[name]


def longest_study(runs: Mapping[str, Run]) -> dict[str, Run]:
    """Plain and residual nets of the paper's family, trained alike. Paper §4.2, Fig. 6.

    Runs are alike if their data and recipes differ in nothing but the seed, the warm-up
    of the deepest nets, and what was logged. A study has two depths or more at which
    both nets are recorded; a depth with one of them is left out. Of several studies,
    the one with the most iterations, ordered by layers, net and seed.

    Raises ValueError where there are no two such depths.
    """
    groups = defaultdict(list)
    for run in runs.values():
        same = {k: v for k, v in run.recipe.items() if k not in OWN}
        # 18 layers are of another family, and a "-" stands for another shortcut.
        family = run.layers % 6 == 2 and "-" not in run.about["model"]
        if family and not run.extra_warmup:
            groups[json.dumps([run.about["data"], same])].append(run)
    studies = []
    for group in groups.values():
        nets = {(run.net, run.layers) for run in group}
        twins = {n for _, n in nets if nets >= {("plain", n), ("residual", n)}}
        if len(twins) >= 2:
            studies.append([run for run in group if run.layers in twins])
    if not studies:
        raise ValueError(
            "No two depths are recorded with a plain and a residual net each. Run "
            "`make reproduce`."
        )
    longest = max(studies, key=lambda study: study[0].recipe["iterations"])
    longest.sort(key=lambda run: (run.layers, run.net, run.recipe["seed"]))
    return {run.name: run for run in longest}


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
        table = (100 * table).melt(
            var_name="part", value_name="error (%)", ignore_index=False
        )
        about = {"run": run.name, "net": run.net, "layers": run.layers}
        tables.append(table.assign(**about, seed=run.recipe["seed"]).dropna())
    return pd.concat(tables).reset_index()


def runs_table(runs: dict[str, Run]) -> "pd.DataFrame":
    """One row per run: its conditions and its final errors in percent."""
    import pandas as pd

    rows = []
    for run in runs.values():
        conditions = ("iterations", "validation", "label_smoothing", "weight_decay")
        row = {"run": run.name, "model": run.about["model"]}
        row |= {key: run.recipe[key] for key in conditions}
        for part in PARTS:
            row[f"{part} error (%)"] = round(100 * run.final[f"{part}_error"], 2)
        rows.append(row | {"minutes": round(run.final["seconds"] / 60)})
    return pd.DataFrame(rows)
