"""The paper's recipe, and the loop that follows it."""

import contextlib
import copy
import ctypes
import dataclasses
import math
import platform
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_lib.checkpoints import RunFolder, from_bytes, network_name, to_bytes
from resnet_lib.data import Batches, Dataset, Images, Normalisation, shrunk
from resnet_lib.distributed import Ranks
from resnet_lib.progress import progress_bar
from resnet_lib.resnet import evaluating
from resnet_lib.runs import COLUMNS

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
    "image_size_at",
    "learning_rate_at",
    "train_step",
]


# --- the recipe -----------------------------------------------------------------------

# Fields of a recipe that hold several numbers; JSON and the command line give lists.
SEQUENCES = ("milestones", "small_until", "small_size")


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
    # Small images first: before iteration small_until[0], training images are shrunk to
    # small_size[0] pixels a side, then before small_until[1] to small_size[1], … 24 in
    # place of 32 leave nine sixteenths of the work, 16 a quarter.
    small_until: tuple[int, ...] = ()
    small_size: tuple[int, ...] = ()
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
        for name in SEQUENCES:
            object.__setattr__(self, name, tuple(getattr(self, name)))
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
        edges = [0, *self.small_until, self.iterations]
        if edges != sorted(edges):
            raise ValueError(
                f"Recipe.small_until {self.small_until}: give iterations up to "
                f"{self.iterations} in rising order, or none."
            )
        fits = len(self.small_size) == len(self.small_until)
        if not fits or min(self.small_size, default=1) < 1:
            raise ValueError(
                f"Recipe.small_size {self.small_size}: give one number of pixels, 1 or "
                f"more, for each of small_until, {self.small_until}."
            )
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ValueError(
                f"Recipe.precision is {self.precision!r}: "
                "choose 'auto', 'bf16' or 'fp32'."
            )

    def scaled(self, iterations: int) -> "Recipe":
        """The same recipe over another number of iterations, its steps in
        proportion."""

        def moved(steps: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(round(step * iterations / self.iterations) for step in steps)

        return dataclasses.replace(
            self,
            iterations=iterations,
            milestones=moved(self.milestones),
            small_until=moved(self.small_until),
        )


PAPER = Recipe()
# All 50k images, softer targets, five times the decay. With ten classes the smoothed
# loss cannot fall below 0.50.
SMOOTHED = Recipe(label_smoothing=0.1, weight_decay=5e-4, validation=0)
# Our own, short: the rate rises in a straight line and falls to nothing, and the images
# are small at first.
QUICK = dataclasses.replace(
    SMOOTHED,
    iterations=24_000,
    milestones=(4_800,),
    schedule="triangular",
    lr=0.2,
    nesterov=True,
    small_until=(8_400, 19_200),
    small_size=(16, 24),
    eval_every=500,
)
# The paper's recipe in a few minutes on two CPU cores: a look, not a result.
PREVIEW = dataclasses.replace(PAPER.scaled(400), log_every=20, eval_every=100)


def image_size_at(iteration: int, recipe: Recipe, full: int = 32) -> int:
    """The side, in pixels, of the training images of update number `iteration`."""
    for until, size in zip(recipe.small_until, recipe.small_size, strict=True):
        if iteration < until:
            return size
    return full


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

    CUDA and CPU: channels last, and bf16 where it is multiplied natively (GPUs from
    Ampere on, processors with AVX512-BF16 or AMX), else fp32, since emulated bf16 is
    several times slower. Apple's MPS: fp32, default format. `precision` "bf16" or
    "fp32" overrules, as does `device`.
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
    if precision == "auto":
        precision = "bf16" if _has_bf16(target.type) else "fp32"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    layout = torch.contiguous_format if target.type == "mps" else torch.channels_last
    if target.type == "cpu":
        _keep_freed_memory()
    return DeviceProfile(target, dtype, layout)


def _has_bf16(device: str) -> bool:
    """Whether it multiplies bf16 natively; a GPU before Ampere, as a T4, does not."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
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
    logits = []
    with evaluating(model), profile.autocast():
        for images in data.images.to(profile.device).split(batch_size):
            x = normalisation(images).contiguous(memory_format=profile.memory_format)
            logits.append(model(x).float())
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
    trial = _Training(copy.deepcopy(model), data, full, device, compile=False)
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

    @property
    def row_due(self) -> bool:
        """Every `log_every` iterations, and wherever the network is judged."""
        steps = (self.recipe.log_every, self.recipe.eval_every)
        return self.at_end or any(self.iteration % step == 0 for step in steps)

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
        full = images.shape[-1]
        size = image_size_at(self.iteration, self.recipe, full)
        if size != full:
            images = shrunk(images, size)
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
            "random": torch.get_rng_state(),  # for networks with dropout, on the CPU
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
        content = self.ranks.lead(lambda: to_bytes(self.state_dict()))
        if not self.ranks.first:
            self.load_state_dict(from_bytes(content))

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
