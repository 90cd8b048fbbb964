"""Carry out a plan of many runs: python -m workshop.reproduce --help."""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from resnet_lib.cifar10 import download_cifar10
from resnet_lib.fit import stop_requests
from resnet_lib.paths import data_home
from resnet_lib.progress import progress_bar
from resnet_lib.recipe import Recipe
from resnet_lib.resnet import get_model
from resnet_lib.runs import Run, halved, load_weights, read_history
from resnet_lib.train import RECIPES

__all__ = ["Planned", "read_plan", "reproduce", "status_of"]

MOST_BYTES = 4_000_000  # larger weights are recorded in half precision


# --- the plan -------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """One run of a plan: a network, its data, a recipe, and a name made of them."""

    model: str
    network: str  # its full name, with another shortcut
    base: str
    recipe: Recipe
    shortcut: str | None = None
    data: str = "cifar10"
    snapshots: bool = False

    @property
    def name(self) -> str:
        """resnet18-paper-32k; what else differs between recorded runs shows too."""
        iterations, standard = self.recipe.iterations, RECIPES[self.base]
        parts = [
            self.network,
            self.base,
            f"{iterations // 1000}k" if iterations % 1000 == 0 else str(iterations),
            self.data if self.data != "cifar10" else "",
            f"lr{self.recipe.lr:g}" if self.recipe.lr != standard.lr else "",
            "constant" if standard.milestones and not self.recipe.milestones else "",
            self.recipe.precision if self.recipe.precision != "auto" else "",
            "warmup" if self.recipe.warmup_lr else "",
            f"seed{self.recipe.seed}" if self.recipe.seed else "",
        ]
        return "-".join(filter(None, parts))

    def command(self, folder: Path) -> list[str]:
        """The call of `resnet_lib.train` that carries out this run in `folder`."""
        words = [sys.executable, "-m", "resnet_lib.train", "--quiet"]
        words += ["--run", str(folder)]
        words += ["--model", self.model, "--recipe", self.base, "--data", self.data]
        if self.shortcut:
            words += ["--shortcut", self.shortcut]
        if self.snapshots:
            words += ["--snapshots"]
        standard = RECIPES[self.base]
        for field in dataclasses.fields(Recipe):
            value = getattr(self.recipe, field.name)
            if value != getattr(standard, field.name):
                words += _option(field.name, value)
        return words

    def is_same_run(self, run: Run) -> bool:
        """Whether `run` is a record of this very network, data and recipe."""
        about = json.loads(json.dumps(dataclasses.asdict(self.recipe)))
        return run.about == {"model": self.network, "data": self.data, "recipe": about}


def _option(name: str, value: object) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, tuple):
        return [flag, *map(str, value)]
    return [flag, str(value)]


def read_plan(path: Path | str) -> list[Planned]:
    """The runs of a TOML plan, in its order.

    Each entry of `runs` names a `model` and may give `recipe` ("paper", "quick", …),
    `shortcut`, `data`, `snapshots`, and any field of `Recipe`; `iterations` moves the
    milestones along. `defaults` holds what most of them share. Raises ValueError, with
    the entry, for one that cannot be carried out and for one that stands there twice.
    """
    try:
        plan = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"The plan {path} cannot be read: {error}.") from error
    entries = [plan.get("defaults", {}) | entry for entry in plan.get("runs", [])]
    runs: dict[str, Planned] = {}
    for entry in entries:
        try:
            run = _planned(**entry)
            if run.name in runs:
                raise ValueError(
                    f"another run has its name, {run.name}; only network, recipe, "
                    "length, data, precision, warm-up and seed show in it"
                )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: the run {entry}: {error}.") from error
        runs[run.name] = run
    return list(runs.values())


def _planned(
    model: str,
    recipe: str = "paper",
    shortcut: str | None = None,
    data: str = "cifar10",
    snapshots: bool = False,
    **fields: object,
) -> Planned:
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}; there are {', '.join(RECIPES)}")
    standard = RECIPES[recipe]
    standard = standard.scaled(fields.get("iterations", standard.iterations))
    network = get_model(model, shortcut).name
    full = dataclasses.replace(standard, **fields)
    return Planned(model, network, recipe, full, shortcut, data, snapshots)


# --- where a run stands ---------------------------------------------------------------


@dataclass(frozen=True)
class Places:
    """Where runs are carried out, and where finished ones are recorded."""

    work: Path
    records: Path


def _iteration(folder: Path) -> int:
    """How far the run in `folder` has come, by its history."""
    try:
        return read_history(folder / "history.csv")[-1]["iteration"]
    except (OSError, IndexError, ValueError):  # none yet, or its last line is half done
        return 0


def status_of(planned: Planned, places: Places) -> str:
    """ "done", "partial" or "missing"; ValueError if another run has its name."""
    recorded = places.records / planned.name
    if (recorded / "recipe.json").exists():
        if not planned.is_same_run(Run(recorded)):
            raise ValueError(
                f"{recorded} holds another run than the plan's {planned.name}. "
                "Rename it, or change the plan."
            )
        return "done"
    return "partial" if (places.work / planned.name).exists() else "missing"


def describe(plan: list[Planned], places: Places) -> str:
    """The plan's state as text: a line per run, and a count."""
    lines, counts = [], {"done": 0, "partial": 0, "missing": 0}
    for planned in plan:
        where = status_of(planned, places)
        counts[where] += 1
        total = planned.recipe.iterations
        if where == "done":
            final = Run(places.records / planned.name).final
            note = f"test error {final['test_error']:.2%}"
        else:
            at = _iteration(places.work / planned.name)
            note = f"{at:,} of {total:,} iterations" if where == "partial" else ""
        lines.append(f"{where:8} {planned.name:28} {note}".rstrip())
    counted = ", ".join(f"{count} {where}" for where, count in counts.items())
    return "\n".join([*lines, counted])


def publish(folder: Path, target: Path) -> None:
    """Copy a finished run to the records, whole or not at all."""
    part = target.parent.parent / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder, part, ignore=shutil.ignore_patterns("*.log", ".lock"))
    weights = part / "weights.pt"
    if weights.stat().st_size > MOST_BYTES:
        torch.save(halved(load_weights(weights)), weights)
    target.parent.mkdir(parents=True, exist_ok=True)
    part.rename(target)


# --- carrying it out ------------------------------------------------------------------


class Job:
    """One training process, and the progress line that follows its history.

    A process left over from a call that was killed still holds the folder's lock. It is
    watched like one of our own, so that no run is carried out twice at a time.
    """

    def __init__(
        self, planned: Planned, folder: Path, options: Sequence[str], threads: int
    ) -> None:
        self.planned, self.folder = planned, folder
        self.log = folder / "train.log"
        self.process = None
        self.stopping = False
        folder.mkdir(parents=True, exist_ok=True)
        if not _is_held(folder):
            with open(self.log, "w") as log:
                # A session of its own: Ctrl-C reaches it once, through `stop`.
                self.process = subprocess.Popen(
                    planned.command(folder) + list(options),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={"OMP_NUM_THREADS": str(threads), **os.environ},
                )
        self.bar = progress_bar(
            desc=planned.name,
            total=planned.recipe.iterations,
            initial=_iteration(folder),
            unit="it",
        )

    def show(self) -> None:
        if new := max(0, _iteration(self.folder) - self.bar.n):
            self.bar.update(new)

    @property
    def running(self) -> bool:
        if self.process:
            return self.process.poll() is None
        return not self.stopping and _is_held(self.folder)

    def stop(self) -> None:
        """Ask for a checkpoint and an end, once: a second signal would act at once."""
        if self.process and not self.stopping:
            self.process.send_signal(signal.SIGTERM)
        self.stopping = True

    def close(self) -> str | None:
        """End the progress line; returns the error of a process that failed."""
        self.show()
        self.bar.close()
        code = self.process.returncode if self.process else 0
        # Asked to stop while Python was still starting, it ends by the signal itself.
        if code == 0 or (self.stopping and code == -signal.SIGTERM):
            return None
        lines = self.log.read_text(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {code}"
        return f"{self.planned.name}: {reason}"

    def record(self, records: Path) -> str | None:
        """Publish the run if it is finished; returns the error if that fails."""
        if (self.folder / "weights.pt").exists():
            try:
                publish(self.folder, records / self.planned.name)
            except (OSError, RuntimeError) as error:
                return f"{self.planned.name} is finished but not recorded: {error}"
        return None


def _is_held(folder: Path) -> bool:
    """Whether a process is training in a run folder; see `checkpoints.RunFolder`."""
    with contextlib.suppress(NotImplementedError):  # a file system without locks
        try:
            with FileLock(folder / ".lock", timeout=0):
                pass
        except Timeout:
            return True
    return False


def reproduce(
    plan: Sequence[Planned],
    places: Places,
    *,
    jobs: int = 1,
    max_minutes: float = math.inf,
    options: Sequence[str] = (),
) -> list[str]:
    """Carry out what is missing, go on with what is partial; returns the errors.

    `jobs` runs go on side by side, each in a process of its own with its share of the
    cores. After `max_minutes`, on Ctrl-C and on SIGTERM they stop with a checkpoint,
    and the next call goes on. `options` are handed to every `resnet_lib.train`.
    """
    if jobs < 1:
        raise ValueError(f"{jobs} jobs at a time: give 1 or more.")
    waiting = deque(run for run in plan if status_of(run, places) != "done")
    deadline = time.monotonic() + 60 * max_minutes
    threads = max(1, (os.cpu_count() or 1) // jobs)
    running: list[Job] = []
    errors: list[str | None] = []
    with stop_requests() as requests, contextlib.ExitStack() as at_end:
        at_end.callback(lambda: [job.stop() for job in running])
        while running or waiting:
            if requests or time.monotonic() >= deadline:
                waiting.clear()
                for job in running:
                    job.stop()
            while waiting and len(running) < jobs:
                run = waiting.popleft()
                running.append(Job(run, places.work / run.name, options, threads))
            for job in list(running):
                job.show()
                if not job.running:
                    running.remove(job)
                    errors += [job.close(), job.record(places.records)]
            time.sleep(0.2)
    return [error for error in errors if error]


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m workshop.reproduce",
        description="Carry out the runs of a plan: what is missing, and what was cut "
        "short. Finished runs are recorded and never repeated. Ctrl-C stops with "
        "checkpoints; the same command goes on.",
    )
    add = options.add_argument
    add("plan", type=Path, nargs="?", help="a TOML file; default: data/plans/cpu.toml")
    add("--status", action="store_true", help="say what is done, partial, missing")
    add("--only", nargs="+", metavar="NAME", help="these runs of the plan")
    add("--jobs", type=int, default=1, help="runs side by side")
    add("--max-minutes", type=float, default=math.inf, help="stop then, go on later")
    add("--device", help="cuda, mps or cpu; default: the best there is")
    add("--compile", action="store_true", help="torch.compile the networks")
    add("--work", type=Path, help="where runs are carried out; default: runs/")
    add("--records", type=Path, help="where finished ones go; default: data/runs/")
    return options


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    home = data_home()
    places = Places(
        arguments.work or home.parent / "runs", arguments.records or home / "runs"
    )
    try:
        plan = read_plan(arguments.plan or home / "plans" / "cpu.toml")
        plan = _chosen(plan, arguments.only)
        if not arguments.status:
            if any(run.data == "cifar10" for run in plan):
                download_cifar10()  # once, and not in every job
            options = ["--compile"] if arguments.compile else []
            options += ["--device", arguments.device] if arguments.device else []
            errors = reproduce(
                plan,
                places,
                jobs=arguments.jobs,
                max_minutes=arguments.max_minutes,
                options=options,
            )
            for error in errors:
                print(error, file=sys.stderr)
        print(describe(plan, places))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"python -m workshop.reproduce: {error}", file=sys.stderr)
        return 1
    return 1 if not arguments.status and errors else 0


def _chosen(plan: list[Planned], names: list[str] | None) -> list[Planned]:
    by_name = {run.name: run for run in plan}
    for name in names or ():
        if name not in by_name:
            raise ValueError(
                f"The plan has no run {name!r}. It has: {', '.join(by_name)}."
            )
    return [by_name[name] for name in names] if names else plan


if __name__ == "__main__":
    sys.exit(main())
