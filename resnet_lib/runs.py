"""Recorded runs: write, read and tabulate the folders that `training.fit` fills."""

import contextlib
import csv
import io
import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from resnet_lib.data import data_home
from resnet_lib.resnet import ResNet, get_model

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "Run", "load_run", "recorded_runs", "runs_table"]

COLUMNS = (
    "iteration",
    "lr",
    "train_loss",
    "train_error",
    "validation_loss",
    "validation_error",
    "test_loss",
    "test_error",
    "seconds",
)


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
        return json.loads((self.folder / "recipe.json").read_text())

    @property
    def recipe(self) -> dict:
        """The fields of the `training.Recipe` that was carried out."""
        return self.about["recipe"]

    @cached_property
    def environment(self) -> dict:
        """environment.json: hardware, versions, commit."""
        return json.loads((self.folder / "environment.json").read_text())

    @cached_property
    def history(self) -> "pd.DataFrame":
        """history.csv: one row per `log_every` iterations; NaN where not evaluated."""
        import pandas as pd

        return pd.read_csv(self.folder / "history.csv")

    @property
    def finished(self) -> bool:
        return self.history["iteration"].max() == self.recipe["iterations"]

    @property
    def final(self) -> "pd.Series":
        """The last row of the history: the result of the run."""
        return self.history.iloc[-1]

    def model(self) -> ResNet:
        """The trained network, on the CPU and in evaluation mode."""
        name, _, shortcut = self.about["model"].partition("-")
        model = get_model(name, shortcut or None)
        model.load_state_dict(load_weights(self.folder / "weights.pt"))
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


def runs_table(runs: dict[str, Run]) -> "pd.DataFrame":
    """One row per run: its conditions and its final errors in percent."""
    import pandas as pd

    rows = []
    for run in runs.values():
        conditions = ("iterations", "validation", "label_smoothing", "weight_decay")
        row = {"run": run.name, "model": run.about["model"]}
        row |= {key: run.recipe[key] for key in conditions}
        for part in ("train", "validation", "test"):
            row[f"{part} error (%)"] = round(100 * run.final[f"{part}_error"], 2)
        rows.append(row | {"minutes": round(run.final["seconds"] / 60)})
    return pd.DataFrame(rows)
