"""The loop around a training: run folder, signals, deadline, progress, ranks."""

import contextlib
import copy
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from resnet_lib.checkpoints import RunFolder, network_name
from resnet_lib.data import Dataset
from resnet_lib.progress import progress_bar
from resnet_lib.recipe import Recipe, image_size_at
from resnet_lib.training import Training

__all__ = ["Fit", "expected_minutes", "fit", "stop_requests"]


@dataclass
class Fit:
    """What `fit` returns: where it stopped, why, and the rows of its history.

    `status` is "finished", "interrupted" or "out of time". Each row is a dict with the
    keys of `runs.COLUMNS`; what was not measured at an iteration is NaN.
    """

    status: str
    iteration: int
    history: list[dict]

    @property
    def finished(self) -> bool:
        return self.status == "finished"


def fit(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    run: Path | str | None = None,
    *,
    device: str | None = None,
    max_minutes: float = math.inf,
    checkpoint_seconds: float = 60,
    snapshots: Sequence[int] = (),
    compile: bool = False,
    on_row: Callable[[list[dict]], None] | None = None,
    progress: bool = True,
) -> Fit:
    """Train `model` by `recipe`, in place.

    With a folder `run`, the recipe, the environment, the history and the final weights
    are written there, and a checkpoint every `checkpoint_seconds`. The same call goes
    on where it was cut short, to the same bits on the same machine. `snapshots` keeps
    the weights of those iterations in half precision. `on_row` is called with the
    history at each new row.

    In a process group (see `distributed`) every rank makes this call and trains on its
    share of each batch; rank 0 writes the folder, shows progress and calls `on_row`. A
    run goes on with as many ranks as it began with.

    Ctrl-C (SIGINT), SIGTERM and `max_minutes` stop after the running iteration, with a
    checkpoint. Raises FloatingPointError when the loss is no longer finite, ValueError
    for a run folder of another network or recipe, RuntimeError for a damaged one and
    for one that another process is writing to, OSError for one that cannot be written.
    """
    state = Training(model, data, recipe, device, compile)
    ranks = state.ranks
    folder = RunFolder(Path(run), state, snapshots) if run else None
    if folder and folder.open():
        return Fit("finished", state.iteration, state.rows)
    clock = time.monotonic() - state.seconds
    deadline = state.seconds + 60 * max_minutes
    saved = state.seconds
    status = "finished"
    bar = progress_bar(
        desc=network_name(model),
        total=recipe.iterations,
        initial=state.iteration,
        unit="it",
        disable=not (progress and ranks.first),
        mininterval=0.5,
    )
    try:
        if folder:
            folder.snapshot()
        with bar, stop_requests() as requests:
            while not state.at_end:
                state.step()
                bar.update()
                if state.iteration % 20 == 0:  # reading the loss makes a GPU wait
                    bar.set_postfix_str(state.postfix(bar), refresh=False)
                state.seconds = time.monotonic() - clock
                if state.row_due:
                    row = state.add_row()
                    state.seconds = time.monotonic() - clock
                    row["seconds"] = round(state.seconds, 2)
                    if folder:
                        folder.append(row)
                    if on_row and ranks.first:
                        on_row(state.rows)
                if folder:
                    folder.snapshot()
                if state.at_end:
                    break
                # A signal or a clock is one rank's; all have to act on it together.
                interrupted, late, due = ranks.any(
                    bool(requests),
                    state.seconds >= deadline,
                    state.seconds - saved >= checkpoint_seconds,
                )
                if interrupted or late:
                    status = "interrupted" if interrupted else "out of time"
                    break
                if folder and due:
                    folder.save()
                    saved = state.seconds
        ranks.lead(state.check_weights)
        if folder:
            folder.close() if state.at_end else folder.save()
    except FloatingPointError as error:
        kept = f" {folder.kept()}" if folder else ""
        remedy = "Lower the recipe's lr"
        if state.profile.dtype == torch.bfloat16:
            remedy += ", or set precision='fp32' to see whether bf16 is the cause"
        raise FloatingPointError(f"{error}{kept} {remedy}.") from None
    finally:
        if folder:
            folder.release()
    return Fit(status, state.iteration, state.rows)


def expected_minutes(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    device: str | None = None,
    steps: int = 10,
) -> float:
    """How long `fit` will take from its start, judged by `steps` updates of a copy."""
    full = dataclasses.replace(recipe, small_until=(), small_size=())
    trial = Training(copy.deepcopy(model), data, full, device, compile=False)
    trial.step()  # the first update is slow: libraries are loaded, kernels are chosen
    trial.loss_sum.item()  # a GPU answers when it has done its work
    start = time.perf_counter()
    for _ in range(steps):
        trial.step()
    trial.loss_sum.item()
    update = (time.perf_counter() - start) / steps
    judged = sum(len(images) for images in trial.judged.values() if images)
    looks = math.ceil(recipe.iterations / recipe.eval_every)
    # A look at an image is a forward pass, a third of an update's work.
    evaluation = update * judged / recipe.batch_size / 3
    side = data.test.images.shape[-1]
    updates = sum(
        (image_size_at(iteration, recipe, side) / side) ** 2
        for iteration in range(recipe.iterations)
    )
    return (updates * update + looks * evaluation) / 60


@contextlib.contextmanager
def stop_requests() -> Iterator[list]:
    """Collect SIGINT and SIGTERM in a list instead of dying in the middle of an update.

    A second signal acts at once. Signals reach only the main thread; elsewhere nothing
    is changed.
    """
    requests: list[int] = []

    def note(number, frame) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):
            previous[number] = signal.signal(number, note)
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
