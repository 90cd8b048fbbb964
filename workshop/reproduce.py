"""Carry out a plan of many runs: python -m workshop.reproduce --help."""

import argparse
import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from resnet_lib.device import cores
from resnet_lib.fit import stop_requests
from resnet_lib.paths import data_home, expanded, has_locks, rename
from resnet_lib.progress import progress_bar
from resnet_lib.runs import Run, halved, load_weights
from resnet_lib.train import (
    INTERRUPTED,
    check_fits,
    escape_unprintable,
    load,
    snapshot_marks,
)
from workshop.plans import Planned, read_plan

__all__ = ["Places", "publish", "reproduce", "status_of"]

RECORD = ("recipe.json", "environment.json", "history.csv")


# --- where a run stands ---------------------------------------------------------------


@dataclass(frozen=True)
class Places:
    """Where runs are carried out, and where finished ones are recorded."""

    work: Path
    records: Path


def status_of(planned: Planned, places: Places) -> str:
    """ "done", "partial" or "missing"; ValueError if a folder of its name holds another
    run, or half a run where records are."""
    record, work = (Run(p / planned.name) for p in (places.records, places.work))
    for run in (record, work):
        if (run.folder / "recipe.json").exists() and not planned.is_same_run(run):
            raise ValueError(
                f"{run.folder} holds another run than the plan's {planned.name}. "
                "Rename the folder, or change the plan."
            )
    if record.folder.exists() and not record.finished:
        raise ValueError(
            f"{record.folder} holds a run that is not finished. Move it to "
            f"{places.work}, and it goes on there, or delete it."
        )
    if record.folder.exists():
        return "done"
    return "partial" if work.folder.exists() else "missing"


def iteration_of(folder: Path) -> int:
    """How far the run in `folder` has come, by its history."""
    try:
        last = (folder / "history.csv").read_text().splitlines()[-1]
        return int(last.split(",")[0])
    except (OSError, IndexError, ValueError):  # no row yet
        return 0


def describe(plan: list[Planned], places: Places) -> str:
    """The plan's state as text: a line per run, and a count."""
    lines, counts = [], {"done": 0, "partial": 0, "missing": 0}
    for planned in plan:
        status, note = status_of(planned, places), ""
        counts[status] += 1
        if status == "done":
            error = Run(places.records / planned.name).final["test_error"]
            note = f"test error {error:.2%}"
        elif status == "partial":
            at = iteration_of(places.work / planned.name)
            note = f"{at:,} of {planned.recipe.iterations:,} iterations"
        lines.append(f"{status:8} {planned.name:28} {note}".rstrip())
    counted = ", ".join(f"{count} {status}" for status, count in counts.items())
    return "\n".join([*lines, counted])


def publish(planned: Planned, folder: Path, target: Path) -> None:
    """Copy what is recorded of a finished run, whole or not at all.

    Weights go along, in half precision, where the plan asks for them. Raises
    RuntimeError for a run that kept fewer snapshots than the plan asks for.
    """
    wanted = snapshot_marks(planned.recipe) if planned.snapshots else []
    if missing := set(wanted) - set(Run(folder).snapshots):
        raise RuntimeError(
            f"{folder} has no weights of iterations {sorted(missing)}, since it began "
            "without --snapshots. Leave snapshots out of the plan, or delete the "
            "folder and begin anew."
        )
    # On the records' drive, and too deep to count as one of them.
    part = target.parent / ".part" / target.name
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in RECORD:
        shutil.copy(folder / name, part)
    if planned.weights:
        torch.save(halved(load_weights(folder / "weights.pt")), part / "weights.pt")
    if planned.snapshots:
        shutil.copytree(folder / "snapshots", part / "snapshots")
    rename(part, target)
    with contextlib.suppress(OSError):  # another call may be at work in it
        part.parent.rmdir()


# --- carrying it out ------------------------------------------------------------------


class Job:
    """One training process. `fit` sees to it that no other trains in its folder."""

    def __init__(
        self, planned: Planned, folder: Path, options: Sequence[str], threads: int
    ) -> None:
        self.planned, self.folder, self.stopping = planned, folder, False
        self.log = folder / "train.log"
        own = {"OMP_NUM_THREADS": str(threads), "PYTHONIOENCODING": "utf-8"}
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):
            self.log.unlink()  # an orphan may still write to the one of before
        with open(self.log, "w") as log:
            # A session of its own: Ctrl-C reaches it once, through `stop`.
            self.process = subprocess.Popen(
                [*planned.command(folder), *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=own | os.environ,
            )

    def stop(self) -> None:
        """Ask for a checkpoint and an end, once: a second signal would act at once."""
        if not self.stopping:
            self.process.send_signal(signal.SIGTERM)
        self.stopping = True

    def end(self, records: Path) -> str | None:
        """Record the run if it is finished; returns what went wrong, if anything."""
        code = self.process.returncode
        # Asked to stop while Python was still starting, it ends by the signal itself.
        asked = self.stopping and code in (INTERRUPTED, -signal.SIGTERM)
        if code < 0 and not asked:
            return f"ended by signal {-code}; the same command goes on"
        if code > 0 and not asked:
            lines = self.log.read_text("utf-8", errors="replace").splitlines()
            return lines[-1] if lines else f"exit code {code}"
        try:
            if Run(self.folder).finished:
                publish(self.planned, self.folder, records / self.planned.name)
        except (OSError, RuntimeError) as error:
            return f"finished but not recorded: {error}"
        return None


def prepare(work: Path) -> None:
    """Make the folder of the runs; say so where no lock keeps a second call out."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        locks = has_locks(work / ".lock")
    except OSError as error:
        raise OSError(
            f"The run folder {work} cannot be written: {error}. Choose another place "
            "with --work."
        ) from error
    if not locks:
        print(
            f"{work} lies on a drive without file locks: see to it that no other call "
            "carries out this plan.",
            file=sys.stderr,
        )


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
    and the next call goes on; the signals raise KeyboardInterrupt then. `options` are
    handed to every `resnet_lib.train`.
    """
    if jobs < 1:
        raise ValueError(f"{jobs} jobs at a time: give 1 or more.")
    todo = [run for run in plan if status_of(run, places) != "done"]
    prepare(places.work)
    waiting, running, errors = deque(todo), [], []
    deadline = time.monotonic() + 60 * max_minutes
    threads = max(1, cores() // jobs)

    def iterations() -> int:
        return sum(iteration_of(places.work / run.name) for run in todo)

    total = sum(run.recipe.iterations for run in todo)
    bar = progress_bar(total=total, initial=iterations(), unit="it", mininterval=1)
    with bar, stop_requests() as requests:
        try:
            while running or waiting:
                if requests or time.monotonic() >= deadline:
                    waiting.clear()
                    for job in running:
                        job.stop()
                while waiting and len(running) < jobs:
                    run = waiting.popleft()
                    running.append(Job(run, places.work / run.name, options, threads))
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    if error := job.end(places.records):
                        errors.append(f"{job.planned.name}: {error}")
                names = ", ".join(job.planned.name for job in running)
                bar.set_postfix_str(names, refresh=False)
                bar.update(iterations() - bar.n)
                time.sleep(0.2)
        finally:  # an error or a second Ctrl-C leaves no job behind
            for job in running:
                job.stop()
    if requests:
        raise KeyboardInterrupt
    return errors


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m workshop.reproduce",
        description="Carry out the runs of a plan: what is missing, and what was cut "
        "short. Finished runs are recorded and never repeated. Ctrl-C stops with "
        "checkpoints; the same command goes on.",
    )
    add, home = options.add_argument, data_home()
    default = home / "plans" / "cpu.toml"
    add("plan", type=Path, nargs="?", default=default, help="default: cpu.toml")
    add("--status", action="store_true", help="say what is done, partial, missing")
    add("--only", nargs="+", metavar="NAME", help="these runs of the plan")
    add("--jobs", type=int, default=1, help="runs side by side")
    add("--max-minutes", type=float, default=math.inf, help="stop then, go on later")
    add("--device", help="cuda, mps or cpu; default: the best there is")
    add("--work", default=home.parent / "runs", help="default: runs/")
    add("--records", default=home / "runs", help="default: data/runs/")
    return options


def main(argv: list[str] | None = None) -> int:
    escape_unprintable()
    given, errors = parser().parse_args(argv), []
    try:
        places = Places(expanded(given.work), expanded(given.records))
        plan = {run.name: run for run in read_plan(expanded(given.plan))}
        if unknown := [name for name in given.only or () if name not in plan]:
            raise ValueError(
                f"{given.plan} has no run {unknown[0]}: {', '.join(plan)}."
            )
        chosen = [plan[name] for name in dict.fromkeys(given.only or plan)]
        state = describe(chosen, places)  # refused, if at all, before a download
        if given.status:
            print(state)
        else:
            # Downloaded once, and not in every job. The images of a folder are counted.
            todo = [run for run in chosen if status_of(run, places) != "done"]
            counts = {name: len(load(name).train) for name in {r.data for r in todo}}
            for run in todo:
                check_fits(run.recipe, run.data, counts[run.data], "validation = {}")
            options = ["--device", given.device] if given.device else []
            limits = {"jobs": given.jobs, "max_minutes": given.max_minutes}
            try:
                errors = reproduce(chosen, places, **limits, options=options)
            finally:
                print(describe(chosen, places))
    except (ValueError, OSError, RuntimeError) as error:
        errors = [f"python -m workshop.reproduce: {error}"]
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
    for error in errors:
        print(error, file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
