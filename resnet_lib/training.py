"""The paper's recipe, the loop that follows it, and checkpoints that lose nothing."""

import contextlib
import copy
import ctypes
import dataclasses
import functools
import hashlib
import io
import json
import math
import platform
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from torch import Tensor, nn

from resnet_lib.data import Batches, Dataset, Images, Normalisation
from resnet_lib.distributed import Ranks
from resnet_lib.progress import progress_bar
from resnet_lib.runs import (
    COLUMNS,
    describe_environment,
    history_text,
    load_weights,
    read_about,
    read_history,
    read_json,
    write_atomically,
    write_json,
)

__all__ = [
    "PAPER",
    "PREVIEW",
    "QUICK",
    "SMOOTHED",
    "DeviceProfile",
    "Evaluation",
    "Fit",
    "Recipe",
    "device_profile",
    "evaluate",
    "expected_minutes",
    "fit",
    "learning_rate_at",
    "train_step",
]


# --- the recipe -----------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """Every hyper-parameter of a run; the defaults are the paper's (§4.2).

    Iterations, not epochs, are the unit. Vary a recipe with `dataclasses.replace`.
    """

    iterations: int = 64_000
    milestones: tuple[int, ...] = (
        32_000,
        48_000,
    )  # the learning rate is divided by 10 here
    # "steps", or "triangular": up in a straight line to lr at the one milestone, then
    # down to nothing at the end.
    schedule: str = "steps"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4  # on every parameter, BN and biases too
    batch_size: int = 128
    label_smoothing: float = 0.0
    # For 110 layers the paper starts with lr 0.01 until the training error is under 80
    # %.
    warmup_lr: float | None = None
    warmup_error: float = 0.8
    # 45k/5k split: training images set aside to choose by. 0 trains on all of them.
    validation: int = 5_000
    per_pixel_mean: bool = False  # the paper's; see data.Normalisation
    black_border: bool = False
    seed: int = 0
    precision: str = "auto"  # "bf16", "fp32", or what suits the device
    log_every: int = 100  # a row of the history
    eval_every: int = 1_000  # validation and test error in that row

    def __post_init__(self) -> None:
        # JSON and the command line give lists.
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for name in ("iterations", "batch_size", "log_every", "eval_every", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"Recipe.{name} is {getattr(self, name)}: give a number above 0."
                )
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(
                f"Recipe.milestones {self.milestones}: give them in rising order."
            )
        if self.schedule not in ("steps", "triangular"):
            raise ValueError(
                f"Recipe.schedule is {self.schedule!r}: choose 'steps' or 'triangular'."
            )
        peak_inside = [0 < m < self.iterations for m in self.milestones] == [True]
        if self.schedule == "triangular" and not peak_inside:
            raise ValueError(
                f"Recipe.milestones {self.milestones}: a triangular schedule has one, "
                f"its peak, between 0 and {self.iterations}."
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"Recipe.label_smoothing is {self.label_smoothing}: "
                "give 0 (off) or a number below 1."
            )
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ValueError(
                f"Recipe.precision is {self.precision!r}: "
                "choose 'auto', 'bf16' or 'fp32'."
            )

    def scaled(self, iterations: int) -> "Recipe":
        """The same recipe over another number of iterations, milestones in
        proportion."""
        milestones = tuple(
            round(m * iterations / self.iterations) for m in self.milestones
        )
        return dataclasses.replace(self, iterations=iterations, milestones=milestones)


PAPER = Recipe()
# All 50k images, softer targets, five times the decay. With ten classes the smoothed
# loss cannot fall below 0.50.
SMOOTHED = Recipe(label_smoothing=0.1, weight_decay=5e-4, validation=0)
# Our own, short: the rate rises in a straight line and falls to nothing.
QUICK = dataclasses.replace(
    SMOOTHED,
    iterations=5_000,
    milestones=(1_000,),
    schedule="triangular",
    lr=0.2,
    nesterov=True,
    eval_every=500,
)
# The paper's recipe in about a minute on two CPU cores: a look, not a result.
PREVIEW = dataclasses.replace(PAPER.scaled(400), log_every=20, eval_every=100)


def learning_rate_at(iteration: int, recipe: Recipe, warming_up: bool = False) -> float:
    """The learning rate of update number `iteration`, counted from 0.

    32,000 updates are done at the first rate: numbers 0 to 31,999. While `warming_up`,
    the recipe's `warmup_lr`. Built in notebook 04; paper §4.2.
    """
    if warming_up:
        return recipe.warmup_lr
    if recipe.schedule == "triangular":
        (peak,) = recipe.milestones
        up = (iteration + 1) / peak
        down = (recipe.iterations - iteration) / (recipe.iterations - peak)
        return recipe.lr * min(up, down)
    drops = sum(iteration >= milestone for milestone in recipe.milestones)
    return recipe.lr * 0.1**drops


# --- the device -----------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceProfile:
    """Where and how a network computes: device, precision, memory format."""

    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format

    def autocast(self) -> contextlib.AbstractContextManager:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    def __str__(self) -> str:
        layout = (
            "channels_last"
            if self.memory_format == torch.channels_last
            else "contiguous"
        )
        precision = "bf16" if self.dtype == torch.bfloat16 else "fp32"
        return f"{self.device.type}, {precision}, {layout}"


def device_profile(precision: str = "auto", device: str | None = None) -> DeviceProfile:
    """The fastest honest way to train on this machine.

    CUDA: bf16, channels last. CPU: the same where the processor multiplies bf16
    natively (AVX512-BF16 or AMX), else fp32, since emulated bf16 is several times
    slower. Apple's MPS: fp32, default format. `precision` "bf16" or "fp32" overrules,
    as does `device`.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.backends.mps.is_available():
            device = "mps"
    try:
        target = torch.device(device)
        torch.empty(1, device=target)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"Device {device!r} is not usable here ({error}). "
            "Use 'cpu', or leave it out."
        ) from error
    native = {"cuda": True, "cpu": _cpu_has_bf16()}.get(target.type, False)
    if precision == "auto":
        precision = "bf16" if native else "fp32"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    layout = torch.contiguous_format if target.type == "mps" else torch.channels_last
    if target.type == "cpu":
        _keep_freed_memory()
    return DeviceProfile(target, dtype, layout)


def _cpu_has_bf16() -> bool:
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of returning them to the system.

    Each step frees its activations and asks for them again; handing every page back and
    forth costs several percent of the time. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # from malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, (1 << 31) - 1)
    libc.mallopt(top_pad, 64 << 20)


# --- one step, and a look at the result -----------------------------------------------


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    autocast: contextlib.AbstractContextManager | None = None,
) -> tuple[Tensor, Tensor]:
    """One update on a batch: forward, loss, backward, step.

    Takes float images (N, 3, H, W) and int64 labels (N,). Returns the mean loss and the
    number of wrong predictions as tensors on the device, so that nothing waits for
    them. Built in notebook 04.
    """
    with autocast or contextlib.nullcontext():
        logits = model(images)  # (N, classes)
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach(), (logits.argmax(1) != labels).sum()


@dataclass(frozen=True)
class Evaluation:
    """A network's logits (N, classes) on a set of images, and the labels (N,)."""

    logits: Tensor
    labels: Tensor

    @property
    def predictions(self) -> Tensor:
        """The class of the largest logit: int64 (N,)."""
        return self.logits.argmax(1)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats, without label smoothing."""
        return F.cross_entropy(self.logits.double(), self.labels).item()

    @property
    def error(self) -> float:
        """The share of wrong predictions, 0 to 1."""
        return (self.predictions != self.labels).double().mean().item()

    @property
    def confusion(self) -> Tensor:
        """int64 (classes, classes): true class in rows, predicted class in columns."""
        classes = self.logits.shape[1]
        cells = self.labels * classes + self.predictions
        return torch.bincount(cells, minlength=classes**2).view(classes, classes)

    @property
    def class_errors(self) -> Tensor:
        """float64 (classes,): the share of each class's images that is misjudged."""
        confusion = self.confusion.double()
        return 1 - confusion.diag() / confusion.sum(1)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Images,
    normalisation: Normalisation,
    profile: DeviceProfile | None = None,
    batch_size: int = 1_000,
) -> Evaluation:
    """Judge a whole set in evaluation mode; the model's mode is restored."""
    profile = profile or device_profile("fp32", str(next(model.parameters()).device))
    was_training = model.training
    model.eval()
    logits = []
    with profile.autocast():
        for images in data.images.to(profile.device).split(batch_size):
            x = normalisation(images).contiguous(memory_format=profile.memory_format)
            logits.append(model(x).float())
    model.train(was_training)
    return Evaluation(torch.cat(logits).cpu(), data.labels.cpu())


# --- the loop -------------------------------------------------------------------------


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
    state = _Training(model, data, recipe, device, compile)
    ranks = state.ranks
    folder = _RunFolder(Path(run), state, snapshots) if run else None
    if folder and folder.open():
        return Fit("finished", state.iteration, state.rows)
    clock = time.monotonic() - state.seconds
    deadline = state.seconds + 60 * max_minutes
    saved = state.seconds
    status = "finished"
    bar = progress_bar(
        desc=_name(model),
        total=recipe.iterations,
        initial=state.iteration,
        unit="it",
        disable=not (progress and ranks.first),
        mininterval=0.5,
    )
    try:
        if folder:
            folder.snapshot()
        with bar, _stop_requests() as requests:
            while not state.at_end:
                state.step()
                bar.update()
                if state.iteration % 20 == 0:  # reading the loss makes a GPU wait
                    bar.set_postfix_str(state.postfix(bar), refresh=False)
                state.seconds = time.monotonic() - clock
                if state.iteration % recipe.log_every == 0 or state.at_end:
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
        raise FloatingPointError(
            f"{error}{kept} Lower the recipe's lr, or set precision='fp32' to see "
            "whether bf16 is the cause."
        ) from None
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
    trial = _Training(copy.deepcopy(model), data, recipe, device, compile=False)
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
    return (recipe.iterations * update + looks * evaluation) / 60


class _Training:
    """All that a run must remember from one iteration to the next, and how it moves."""

    def __init__(self, model, data, recipe, device, compile) -> None:
        self.model, self.data, self.recipe = model, data, recipe
        self.ranks = Ranks.here()
        share = self.ranks.equal_share(recipe.batch_size)
        self.profile = device_profile(recipe.precision, device)
        where = self.profile.device
        if where.type == "cuda":
            torch.backends.cudnn.deterministic = True  # the same bits after a resume
        model.to(where, memory_format=self.profile.memory_format).train()
        graphs = "reduce-overhead" if where.type == "cuda" else "default"
        trial = torch.zeros(2, *data.test.images.shape[1:], device=where)
        wrapped = self.ranks.wrap(model, trial)
        self.forward = torch.compile(wrapped, mode=graphs) if compile else wrapped
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            recipe.lr,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
        )
        train, validation = data.split(recipe.validation)
        train = train.to(where)
        self.normalisation = Normalisation.of(
            train.images, recipe.per_pixel_mean, recipe.black_border
        )
        self.batches = Batches(
            train, recipe.batch_size, self.normalisation, recipe.seed, share
        )
        self.judged = {"validation": validation, "test": data.test}
        self.iteration = 0
        self.warming_up = recipe.warmup_lr is not None
        self.rows: list[dict] = []
        self.seconds = 0.0  # of training and evaluation, over all sittings
        self._empty_window()
        self._check_classes()

    @property
    def at_end(self) -> bool:
        return self.iteration == self.recipe.iterations

    def _check_classes(self) -> None:
        classes = len(self.data.classes)
        outputs = self._judge(self.data.test[:1]).logits.shape[1]
        if outputs != classes:
            raise ValueError(
                f"The network tells {outputs} classes apart, {self.data.name} has "
                f"{classes}. Build it with classes={classes}."
            )

    def _empty_window(self) -> None:
        """Forget the batches seen since the last row of the history."""
        where = self.profile.device
        self.loss_sum = torch.zeros((), device=where)
        self.wrong = torch.zeros((), dtype=torch.int64, device=where)
        self.steps = 0

    def _window(self) -> tuple[float, float]:
        """Mean loss and error since the last row; FloatingPointError if not finite."""
        loss = self.loss_sum.item() / self.steps
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss} at iteration {self.iteration} or shortly before."
            )
        return loss, self.wrong.item() / (self.steps * self.recipe.batch_size)

    def step(self) -> None:
        lr = learning_rate_at(self.iteration, self.recipe, self.warming_up)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        images, labels = next(self.batches)
        images = images.contiguous(memory_format=self.profile.memory_format)
        loss, wrong = train_step(
            self.forward,
            self.optimizer,
            images,
            labels,
            self.recipe.label_smoothing,
            self.profile.autocast(),
        )
        loss, wrong = self.ranks.total(loss, wrong)
        self.loss_sum += loss / self.ranks.size  # equal shares: the mean of the means
        self.wrong += wrong
        self.steps += 1
        self.iteration += 1

    def add_row(self) -> dict:
        """Close the window: its means, and an evaluation where the recipe wants one."""
        row = dict.fromkeys(COLUMNS, math.nan)
        row["iteration"] = self.iteration
        row["lr"] = learning_rate_at(self.iteration - 1, self.recipe, self.warming_up)
        row["train_loss"], row["train_error"] = self._window()
        self._empty_window()
        if row["train_error"] < self.recipe.warmup_error:
            self.warming_up = False
        if self.iteration % self.recipe.eval_every == 0 or self.at_end:
            for name, images in self.judged.items():
                if images is not None:
                    result = self._evaluate(images)
                    row[f"{name}_loss"] = result.loss
                    row[f"{name}_error"] = result.error
        self.rows.append(row)
        return row

    def _judge(self, images: Images) -> Evaluation:
        return evaluate(self.model, images, self.normalisation, self.profile)

    def _evaluate(self, images: Images) -> Evaluation:
        """Judge a whole set; the ranks share each part of it, so that none waits
        long."""
        if self.ranks.size == 1:
            return self._judge(images)
        self.ranks.share_buffers(self.model)
        logits = []
        for start in range(0, len(images), 1_000):
            part = images[start : start + 1_000]
            mine = self._judge(part[self.ranks.share(len(part))])
            logits.append(self.ranks.gather(mine.logits))
        return Evaluation(torch.cat(logits), images.labels.cpu())

    def postfix(self, bar) -> str:
        loss, error = self._window()
        rate = (bar.format_dict["rate"] or 0) * self.recipe.batch_size
        return f"loss {loss:.3f}, error {error:.1%}, {rate:,.0f} images/s"

    def check_weights(self) -> None:
        """FloatingPointError if the last update broke them; its loss came before."""
        weights = self.model.state_dict().values()
        if not all(value.isfinite().all() for value in weights):
            raise FloatingPointError(
                f"The weights are no longer finite at iteration {self.iteration}."
            )

    def state_dict(self) -> dict:
        if self.steps:
            self._window()  # a state whose loss is not finite is never kept
        self.check_weights()
        return {
            "network": str(self.model),
            "ranks": self.ranks.size,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "random": torch.get_rng_state(),  # for networks with dropout
            "iteration": self.iteration,
            "warming_up": self.warming_up,
            "rows": self.rows,
            "seconds": self.seconds,
            "window": (self.loss_sum, self.wrong, self.steps),
        }

    def follow(self) -> None:
        """Every rank goes on from where rank 0 stands."""
        if self.ranks.size == 1:
            return
        content = self.ranks.lead(lambda: _to_bytes(self.state_dict()))
        if not self.ranks.first:
            self.load_state_dict(_from_bytes(content))

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batches"])
        torch.set_rng_state(state["random"])
        self.iteration, self.warming_up = state["iteration"], state["warming_up"]
        self.rows, self.seconds = state["rows"], state["seconds"]
        loss_sum, wrong, self.steps = state["window"]
        self.loss_sum = loss_sum.to(self.profile.device)
        self.wrong = wrong.to(self.profile.device)


@contextlib.contextmanager
def _stop_requests() -> Iterator[list]:
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


# --- the run folder -------------------------------------------------------------------


def _led(method: Callable) -> Callable:
    """Rank 0 alone touches the disk; its answer and its errors reach every rank."""

    @functools.wraps(method)
    def led(folder: "_RunFolder", *arguments):
        return folder.state.ranks.lead(lambda: method(folder, *arguments))

    return led


class _RunFolder:
    """Keeps a training in a folder, so that a kill loses a minute at most.

    While it runs: recipe.json, environment.json, history.csv and two checkpoints, the
    newest and the one before it. At the end: weights.pt in place of the checkpoints.
    """

    def __init__(self, path: Path, state: _Training, snapshots: Sequence[int]) -> None:
        self.path, self.state, self.snapshots = path, state, set(snapshots)
        self.history = path / "history.csv"
        self.weights = path / "weights.pt"
        self.checkpoints = (path / "checkpoint.pt", path / "checkpoint.previous.pt")
        self.newest_is_damaged = False
        self.lock = FileLock(path / ".lock", timeout=0)

    def open(self) -> bool:
        """Make the folder or go on with it; True if its run is finished already."""
        finished = self._open()
        self.state.follow()
        return finished

    @_led
    def _open(self) -> bool:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.weights.exists():
                self._claim()
                self.state.model.load_state_dict(load_weights(self.weights))
                self.state.rows = read_history(self.history)
                self.state.iteration = self.state.rows[-1]["iteration"]
                self._sweep()  # if it was killed before it could
                self.release()
                return True
            self._hold()
            self._claim()
            self._resume()
            self._note_machine()
            # Rows written after the checkpoint will be measured again.
            write_atomically(self.history, history_text(self.state.rows).encode())
        except OSError as error:
            raise OSError(
                f"The run folder {self.path} cannot be written: {error}. "
                "Choose another one."
            ) from error
        except (ValueError, RuntimeError):
            self.lock.release()
            raise
        return False

    def _hold(self) -> None:
        """Keep other processes out; the system lets go when this one dies."""
        try:
            # Some network drives have no locks; a run there is on its own.
            with contextlib.suppress(NotImplementedError):
                self.lock.acquire()
        except Timeout:
            raise RuntimeError(
                f"Another process is training in {self.path}. Let it finish or stop "
                "it, or choose another folder."
            ) from None

    def release(self) -> None:
        self.lock.release()
        if self.state.at_end and self.state.ranks.first:
            self.path.joinpath(".lock").unlink(missing_ok=True)

    def _claim(self) -> None:
        """Write what this run is, or compare it with what the folder says."""
        about = {
            "model": _name(self.state.model),
            "data": self.state.data.name,
            "recipe": dataclasses.asdict(self.state.recipe),
        }
        about = json.loads(json.dumps(about))  # tuples as lists, as in the file
        path = self.path / "recipe.json"
        if not path.exists():
            # Last, since a folder with a recipe.json has to be whole after a kill.
            write_json(self.path / "environment.json", self._machine())
            write_json(path, about)
            return
        theirs = read_about(self.path)
        ours, theirs = ({**x, **x["recipe"], "recipe": 0} for x in (about, theirs))
        for key in ours:
            if theirs.get(key) != ours[key]:
                raise ValueError(
                    f"{self.path} holds a run with {key} = {theirs.get(key)!r}, not "
                    f"{ours[key]!r}. Choose another folder, or the same {key}."
                )

    def _machine(self) -> dict:
        profile, size = self.state.profile, self.state.ranks.size
        processes = f", {size} processes" if size > 1 else ""
        return describe_environment(profile.device.type, f"{profile}{processes}")

    def _note_machine(self) -> None:
        """A run that goes on under other conditions says from where, and which."""
        path = self.path / "environment.json"
        recorded = read_json(path)
        known = recorded | (recorded.get("resumed") or [{}])[-1]
        now = self._machine()
        changed = {key: now[key] for key in now if now[key] != known.get(key)}
        if self.state.iteration and changed.keys() - {"started"}:
            changed = {"iteration": self.state.iteration, **changed}
            recorded["resumed"] = [*recorded.get("resumed", []), changed]
            write_json(path, recorded)

    def _resume(self) -> None:
        state = self._newest_checkpoint()
        if state is None:
            return
        if state.get("network") != str(self.state.model):
            raise ValueError(
                f"The checkpoint in {self.path} is of another network. Choose another "
                "folder, or build the network that it was started with."
            )
        ranks = state.get("ranks", 1)  # runs from before there could be several
        if ranks != self.state.ranks.size:
            raise ValueError(
                f"The run in {self.path} was begun with {_processes(ranks)}, not "
                f"{self.state.ranks.size}, and each takes its own share of a batch. Go "
                f"on with {_processes(ranks)}, or choose another folder."
            )
        try:
            self.state.load_state_dict(state)
        except (KeyError, TypeError, ValueError) as error:
            raise RuntimeError(
                f"The checkpoint in {self.path} is not one of this version of the "
                f"library ({error!r}). Choose another folder, or delete it to start "
                "this run anew."
            ) from error

    def _newest_checkpoint(self) -> dict | None:
        """The newest whole checkpoint, or None where there is none at all."""
        damaged = []
        for path in filter(Path.exists, self.checkpoints):
            state = _checkpoint(path)
            if state is not None:
                if damaged:
                    print(f"{damaged[0]} is damaged; going on from {path.name}.")
                    self.newest_is_damaged = True
                return state
            damaged.append(path)
        if damaged:
            raise RuntimeError(
                f"{damaged[0]} is damaged, and no older checkpoint is whole. Delete "
                f"{' and '.join(path.name for path in damaged)} to start this run anew."
            )
        return None

    @_led
    def kept(self) -> str:
        state = self._newest_checkpoint()
        if state is None:
            return "There is no checkpoint from before."
        return f"The checkpoint of iteration {state['iteration']} is kept."

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """The system's "No space left on device" names neither folder nor remedy."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"The run folder {self.path} cannot be written: {error}. What was "
                "saved before is kept; the same call goes on from there."
            ) from error

    @_led
    def append(self, row: dict) -> None:
        with self._writing(), open(self.history, "a") as file:
            file.write(history_text([row], header=False))

    @_led
    def save(self) -> None:
        content = _to_bytes(self.state.state_dict())
        newest, previous = self.checkpoints
        with self._writing():
            # A damaged file must not take the place of the only whole one: a kill
            # before the new one is written would leave nothing.
            if newest.exists() and not self.newest_is_damaged:
                newest.replace(previous)
            # The digest tells a damaged file from a whole one before it is loaded.
            write_atomically(newest, hashlib.sha256(content).digest() + content)
        self.newest_is_damaged = False

    def snapshot(self) -> None:
        if self.state.iteration in self.snapshots:
            self._snapshot()

    @_led
    def _snapshot(self) -> None:
        weights = _plain_state(self.state.model)
        half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
        path = self.path / "snapshots" / f"iteration-{self.state.iteration:06d}.pt"
        with self._writing():
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, _to_bytes(half))

    @_led
    def close(self) -> None:
        content = _to_bytes(_plain_state(self.state.model))
        with self._writing():
            write_atomically(self.weights, content)
            self._sweep()

    def _sweep(self) -> None:
        """A finished run keeps no checkpoints, nor what a kill left of one (.part)."""
        for path in self.path.glob("checkpoint*"):
            path.unlink(missing_ok=True)


def _checkpoint(path: Path) -> dict | None:
    """What a checkpoint holds, or None if it is damaged."""
    whole = path.read_bytes()
    digest, content = whole[:32], whole[32:]
    if hashlib.sha256(content).digest() != digest:
        return None
    # Anyone can compute a digest. A file that would run code is refused like a damaged
    # one; torch.load raises whatever its bytes lead to.
    with contextlib.suppress(Exception):
        state = _from_bytes(content)
        return state if isinstance(state, dict) else None
    return None


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _name(model: nn.Module) -> str:
    return getattr(model, "name", type(model).__name__)


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    """A `state_dict` on the CPU in the default memory format, for any other program."""
    state = model.state_dict()
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _to_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _from_bytes(content: bytes) -> object:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
