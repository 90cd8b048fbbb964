"""The loop around a training: run folder, signals, deadline, progress, ranks."""

import contextlib
import copy
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

from torch import nn

from resnet_lib.checkpoints import RunFolder, network_name
from resnet_lib.data import Dataset
from resnet_lib.device import (
    cores,
    device_profile,
    faster_threads,
    keeping_freed_memory,
    keeping_random_states,
    threads,
    threads_given,
)
from resnet_lib.distributed import DataParallelTraining, Ranks
from resnet_lib.inputs import whole_numbers
from resnet_lib.paths import expanded
from resnet_lib.progress import in_notebook, progress_bar
from resnet_lib.recipe import Recipe
from resnet_lib.training import Training, check_training

__all__ = ["Fit", "expected_minutes", "fit", "stop_requests"]


@dataclass
class Fit:
    """What `fit` returns: where it stopped, why, and the rows of its history.

    `status` is "finished", "interrupted" or "out of time". Each row is a dict with the
    keys of `training.COLUMNS`; what was not measured at an iteration is NaN.
    """

    status: str
    iteration: int
    history: list[dict]

    @property
    def finished(self) -> bool:
        return self.status == "finished"


class StoppedByHand(KeyboardInterrupt):
    """What Ctrl-C leads to in a notebook, so that no later cell runs on half a result.

    `fit` holds what there is. Jupyter shows the sentence alone.
    """

    def __init__(self, sentence: str, result: Fit) -> None:
        super().__init__(sentence)
        self.fit = result

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [str(self)]


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
    graphed: bool = True,
    on_row: Callable[[list[dict]], None] | None = None,
    progress: bool = True,
) -> Fit:
    """Train `model` by `recipe`, in place and wholly in training mode.

    With a folder `run`, the recipe, the environment, the history and the final weights
    are written there, and a checkpoint every `checkpoint_seconds`. The same call goes
    on where it was cut short, to the same bits on the same machine. `snapshots` keeps
    the weights of those iterations, kernels in half precision. `on_row` is called with
    a copy of the history at each new row. On a GPU each update is one CUDA graph, so a
    network that decides anything in Python on the way (reads a number back, draws which
    blocks to skip), or that `on_row` changes, needs `graphed=False`.

    In a process group (see `distributed`) every rank makes this call and trains on its
    share of each batch; rank 0 writes the folder, shows progress and calls `on_row`. A
    run goes on with as many ranks as it began with.

    Ctrl-C (SIGINT), SIGTERM and `max_minutes` stop after the running iteration, with a
    checkpoint; in a notebook, Ctrl-C stops the cells that follow too. Raises
    FloatingPointError when the loss is no longer finite, TypeError or ValueError for
    arguments that cannot be followed, ValueError for a run folder of another network,
    recipe or data, RuntimeError for a damaged one and for one that another process is
    writing to, OSError for one that cannot be written.
    """
    times = {"max_minutes": max_minutes, "checkpoint_seconds": checkpoint_seconds}
    for name, value in times.items():
        if not isinstance(value, Real) or not value >= 0:  # NaN is no time either
            raise ValueError(f"{name} is {value!r}: give a number, 0 or more.")
    check_training(model, data, recipe)
    snapshots = whole_numbers("snapshots", snapshots, recipe.iterations)
    if snapshots and run is None:
        raise ValueError("snapshots need a folder to lie in: name one as `run`.")
    ranks = Ranks.here()
    if ranks.size > 1:
        state = DataParallelTraining(model, data, recipe, ranks, device)
    else:
        state = Training(model, data, recipe, device, graphed=graphed)
    folder = None
    if run is not None:
        folder = RunFolder(expanded(run), state, ranks, snapshots)
    progress = progress and ranks.first
    limits = (60 * max_minutes, checkpoint_seconds)
    try:
        with computing(state, folder.threads if folder else [], progress):
            if folder and folder.open():
                return Fit("finished", state.iteration, state.rows)
            status = _train(state, ranks, folder, on_row, *limits, progress)
    except FloatingPointError as error:
        kept = f" {folder.kept()}" if folder else ""
        raise FloatingPointError(f"{error}{kept} {_remedy(state)}.") from None
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            "Batch norm measures each channel over a batch, and a batch of "
            f"{recipe.batch_size} leaves it a single value where the maps are 1 pixel "
            "wide. Take a batch_size of 2 or more, or larger images."
        ) from None
    finally:
        state.forget_graphs()
        if folder:
            folder.release()
    result = Fit(status, state.iteration, state.rows)
    if status == "interrupted" and in_notebook():
        kept = "run this cell again to go on" if folder else "the model keeps its state"
        where = f"Interrupted at iteration {state.iteration:,} of {recipe.iterations:,}"
        raise StoppedByHand(f"{where}: {kept}.", result)
    return result


@contextlib.contextmanager
def computing(state: Training, so_far: Sequence[int], say: bool) -> Iterator[None]:
    """What a training does to its process, undone at the end: allocator, number of
    threads, order and precision of a GPU's kernels. A run keeps the first of the
    numbers `so_far` for which there are cores."""
    on_cpu = state.profile.device.type == "cpu"
    memory = keeping_freed_memory() if on_cpu else contextlib.nullcontext()
    with memory, state.profile.exactly():
        count = None
        if on_cpu and not threads_given():
            # A run begun on another machine may name more threads than cores here.
            usable = [n for n in so_far if n <= cores()]
            count = usable[0] if usable else _choose_threads(state, say)
        with threads(count):
            yield


def _choose_threads(state: Training, say: bool) -> int:
    """One thread or all, whichever is faster now; a run keeps it for life, since the
    number decides in which order sums are rounded."""
    with keeping_random_states(state.profile.device):
        trial = Training(copy.deepcopy(state.model), state.data, state.recipe, "cpu")
        (best, least), (other, more) = faster_threads(trial.step).items()
    if say:
        print(f"Threads: {best} ({least:.2g} s an update; {other}: {more:.2g} s).")
    return best


def _remedy(state: Training) -> str:
    """What to do about a loss or weights that are no longer finite."""
    if state.iteration == 0:
        return "Build the network anew, or load other weights"
    field = "weight_decay" if state.recipe.weight_decay > 1 else "lr"
    remedy = f"Lower the recipe's {field}"
    if state.profile.precision == "bf16":
        remedy += ", or set precision='fp32' to see whether bf16 is the cause"
    return remedy


def _train(
    state: Training,
    ranks: Ranks,
    folder: RunFolder | None,
    on_row: Callable[[list[dict]], None] | None,
    max_seconds: float,
    checkpoint_seconds: float,
    progress: bool,
) -> str:
    """Steps, rows and checkpoints, to the end or to a reason to stop: the status."""
    if state.iteration == 0:
        ranks.on_rank_zero(state.check_weights)
        if folder:  # or a second call would begin with weights that have moved
            folder.save()
    if folder:
        folder.snapshot()
    start = saved = time.monotonic()
    begun = start - state.seconds  # as if it had all been one sitting
    bar = progress_bar(
        desc=network_name(state.model),
        total=state.recipe.iterations,
        initial=state.iteration,
        unit="it",
        disable=not progress,
        mininterval=0.5,
    )
    with bar, stop_requests() as requests:
        while not state.at_end:
            state.step()
            bar.update()
            # Reading the loss makes a GPU wait; without a bar nobody would see it.
            if not bar.disable and state.iteration % 20 == 0:
                bar.set_postfix_str(state.progress(), refresh=False)
            if state.row_due:
                row = state.add_row()
                state.seconds = time.monotonic() - begun
                row["seconds"] = round(state.seconds, 2)
                # The on_row of a reader may look at, or change, the network; it gets a
                # copy of the rows, and may leave evaluation mode behind.
                if on_row and ranks.first:
                    on_row([dict(row) for row in state.rows])
                    if not state.model.training:
                        state.model.train()
                if state.at_end:
                    ranks.on_rank_zero(state.check_weights)
            if folder:
                folder.snapshot()  # the last one too, before the row that ends the run
                if state.row_due:
                    folder.append(row)
            if state.at_end:
                break
            now = time.monotonic()
            state.seconds = now - begun
            # A signal or a clock is one rank's; all have to act on it together.
            interrupted, late, due = ranks.any_rank(
                bool(requests),
                now - start >= max_seconds,
                now - saved >= checkpoint_seconds,
            )
            if folder and (interrupted or late or due):
                folder.save()
                saved = now
            if interrupted or late:
                return "interrupted" if interrupted else "out of time"
    if folder:
        folder.close()
    return "finished"


def expected_minutes(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    device: str | None = None,
    graphed: bool = True,
) -> float:
    """How long `fit` will take from its start, at the present speed of this machine.

    Times the real step on a copy, after three that warm up: ten updates, or on a CPU as
    many as fit into three seconds with the warm-up, one at least.
    """
    check_training(model, data, recipe)
    full = dataclasses.replace(recipe, small_until=(), small_size=())
    begun = time.perf_counter()
    where = device_profile(recipe.precision, device).device
    with keeping_random_states(where):
        trial = Training(copy.deepcopy(model), data, full, device, graphed=graphed)
        with computing(trial, [], say=False):
            until = begun + 3 if where.type == "cpu" else math.inf
            update = _seconds_per_step(trial, until)
        trial.forget_graphs()
    judged = sum(len(images) for images in trial.eval_sets.values())
    looks = math.ceil(recipe.iterations / recipe.eval_every)
    # A look at an image is a forward pass, a third of an update's work.
    evaluation = update * judged / recipe.batch_size / 3
    side = data.train.images.shape[-1]
    ends, sizes = (*recipe.small_until, recipe.iterations), (*recipe.small_size, side)
    pieces = zip((0, *recipe.small_until), ends, sizes, strict=True)
    updates = sum((end - start) * (size / side) ** 2 for start, end, size in pieces)
    return (updates * update + looks * evaluation) / 60


def _seconds_per_step(trial: Training, until: float) -> float:
    # First three: libraries are loaded, kernels chosen, a graph recorded.
    for count in (3, 10):
        start, done = time.perf_counter(), 0
        while done < count and (done == 0 or time.perf_counter() <= until):
            trial.step()
            done += 1
        trial.loss_sum.item()  # a GPU answers when it has done its work
    return (time.perf_counter() - start) / done


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
