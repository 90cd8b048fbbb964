"""The paper's recipe, the loop that carries it out, and checkpoints that lose nothing."""

import contextlib
import csv
import ctypes
import dataclasses
import hashlib
import io
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_lib.data import Batches, Dataset, Images, Normalisation
from resnet_lib.progress import progress_bar

__all__ = [
    "PAPER",
    "SMOOTHED",
    "DeviceProfile",
    "Evaluation",
    "Fit",
    "Recipe",
    "device_profile",
    "evaluate",
    "fit",
    "learning_rate_at",
    "train_step",
]


# --- the recipe ------------------------------------------------------------------------


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
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4  # on every parameter, BN and biases too
    batch_size: int = 128
    label_smoothing: float = 0.0
    # For 110 layers the paper starts with lr 0.01 until the training error is under 80 %.
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
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"Recipe.label_smoothing is {self.label_smoothing}: give 0 (off) to below 1."
            )
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ValueError(
                f"Recipe.precision is {self.precision!r}: choose 'auto', 'bf16' or 'fp32'."
            )

    def scaled(self, iterations: int) -> "Recipe":
        """The same recipe over another number of iterations, milestones in proportion."""
        milestones = tuple(
            round(m * iterations / self.iterations) for m in self.milestones
        )
        return dataclasses.replace(self, iterations=iterations, milestones=milestones)


PAPER = Recipe()
# All 50k images, softer targets, five times the decay. With ten classes the smoothed loss
# cannot fall below 0.50.
SMOOTHED = Recipe(label_smoothing=0.1, weight_decay=5e-4, validation=0)


def learning_rate_at(iteration: int, recipe: Recipe, warming_up: bool = False) -> float:
    """The learning rate of update number `iteration`, counted from 0.

    32,000 updates are done at the first rate: numbers 0 to 31,999. While `warming_up`, the
    recipe's `warmup_lr`. Built in notebook 04; paper §4.2.
    """
    if warming_up:
        return recipe.warmup_lr
    drops = sum(iteration >= milestone for milestone in recipe.milestones)
    return recipe.lr * 0.1**drops


# --- the device ------------------------------------------------------------------------


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

    CUDA: bf16, channels last. CPU: the same where the processor multiplies bf16 natively
    (AVX512-BF16 or AMX), else fp32, since emulated bf16 is several times slower. Apple's
    MPS: fp32, default format. `precision` "bf16" or "fp32" overrules, as does `device`.
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
            f"Device {device!r} is not usable here ({error}). Use 'cpu', or leave it out."
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


# --- one step, and a look at the result ------------------------------------------------


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
    number of wrong predictions as tensors on the device, so that nothing waits for them.
    Built in notebook 04.
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


# --- the loop --------------------------------------------------------------------------


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
CHECKPOINT_SECONDS = 60


@dataclass
class Fit:
    """What `fit` returns: where it stopped, why, and the rows of its history.

    `status` is "finished", "interrupted" or "out of time". Each row is a dict with the keys
    of COLUMNS; what was not measured at an iteration is NaN.
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
    snapshots: Sequence[int] = (),
    compile: bool = False,
    on_row: Callable[[list[dict]], None] | None = None,
    progress: bool = True,
) -> Fit:
    """Train `model` by `recipe`; the model is changed in place and left on the CPU or GPU.

    With a folder `run`, the recipe, the environment, the history and the final weights are
    written there, and a checkpoint about once a minute. The same call goes on where it
    was cut short, to the same bits on the same machine. `snapshots` keeps the weights of
    those iterations in half precision. `on_row` is called with the history at each new row.

    Ctrl-C (SIGINT), SIGTERM and `max_minutes` stop after the running iteration, with a
    checkpoint. Raises FloatingPointError when the loss is no longer finite, ValueError for a
    run folder of another network or recipe, OSError for one that cannot be written.
    """
    loop = _Loop(
        model, data, recipe, Path(run) if run else None, device, snapshots, compile
    )
    return loop.run(max_minutes, on_row, progress)


class _Loop:
    """The state of a run: all that a checkpoint holds, and the steps that change it."""

    def __init__(self, model, data, recipe, folder, device, snapshots, compile) -> None:
        self.model, self.data, self.recipe, self.folder = model, data, recipe, folder
        self.snapshots = set(snapshots)
        self.profile = device_profile(recipe.precision, device)
        where = self.profile.device
        model.to(where, memory_format=self.profile.memory_format).train()
        self.forward = torch.compile(model) if compile else model
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
            train, recipe.batch_size, self.normalisation, recipe.seed
        )
        self.judged = {"validation": validation, "test": data.test}
        self.iteration = 0
        self.warming_up = recipe.warmup_lr is not None
        self.rows: list[dict] = []
        self.seconds = 0.0  # of training and evaluation, over all sittings
        self._empty_window()

    # What has been seen since the last row of the history.
    def _empty_window(self) -> None:
        self.loss_sum = torch.zeros(
            (), dtype=torch.float64, device=self.batches.labels.device
        )
        self.wrong = torch.zeros_like(self.loss_sum, dtype=torch.int64)
        self.steps = 0

    def run(self, max_minutes, on_row, progress) -> Fit:
        if self.folder and self._open_folder():
            return Fit("finished", self.iteration, self.rows)
        if self.profile.device.type == "cuda":
            torch.backends.cudnn.deterministic = True  # the same bits after a resume
        self.clock = time.monotonic() - self.seconds
        deadline = self.seconds + 60 * max_minutes
        saved = self.seconds
        status = "finished"
        bar = progress_bar(
            desc=getattr(self.model, "name", type(self.model).__name__),
            total=self.recipe.iterations,
            initial=self.iteration,
            unit="it",
            disable=not progress,
            mininterval=0.5,
        )
        with bar, _stop_requests() as requests:
            if self.iteration == 0:
                self._evaluate(
                    self.data.test[:1]
                )  # tells a wrong number of classes at once
                self._snapshot()
            while self.iteration < self.recipe.iterations:
                self._step()
                self._show(bar)
                if self.iteration % self.recipe.log_every == 0 or self._at_end():
                    self._add_row(on_row)
                self._snapshot()
                self._tick()
                if self._at_end():
                    break
                if requests or self.seconds >= deadline:
                    status = "interrupted" if requests else "out of time"
                    break
                if self.seconds - saved >= CHECKPOINT_SECONDS:
                    self._save_checkpoint()
                    saved = self.seconds
        if self.folder:
            self._close_folder() if status == "finished" else self._save_checkpoint()
        return Fit(status, self.iteration, self.rows)

    def _tick(self) -> None:
        self.seconds = time.monotonic() - self.clock

    def _at_end(self) -> bool:
        return self.iteration == self.recipe.iterations

    def _step(self) -> None:
        lr = learning_rate_at(self.iteration, self.recipe, self.warming_up)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        images, labels = next(self.batches)
        images = images.contiguous(memory_format=self.profile.memory_format)
        smoothing, autocast = self.recipe.label_smoothing, self.profile.autocast()
        loss, wrong = train_step(
            self.forward, self.optimizer, images, labels, smoothing, autocast
        )
        self.loss_sum += loss
        self.wrong += wrong
        self.steps += 1
        self.iteration += 1

    def _window(self) -> tuple[float, float]:
        """Mean loss and error since the last row; stops the run if the loss has left R."""
        loss = self.loss_sum.item() / self.steps
        if not math.isfinite(loss):
            kept = ""
            if self.folder:
                last = _read_checkpoint(self.folder)
                kept = f" The checkpoint of iteration {last['iteration'] if last else 0} is kept."
            raise FloatingPointError(
                f"The loss is {loss} at iteration {self.iteration} or shortly before.{kept} "
                "Lower the recipe's lr, or set precision='fp32' to see whether bf16 is the cause."
            )
        return loss, self.wrong.item() / (self.steps * self.recipe.batch_size)

    def _add_row(self, on_row) -> None:
        row = dict.fromkeys(COLUMNS, math.nan)
        row["iteration"] = self.iteration
        row["lr"] = learning_rate_at(self.iteration - 1, self.recipe, self.warming_up)
        row["train_loss"], row["train_error"] = self._window()
        self._empty_window()
        if row["train_error"] < self.recipe.warmup_error:
            self.warming_up = False
        if self.iteration % self.recipe.eval_every == 0 or self._at_end():
            for name, images in self.judged.items():
                if images is not None:
                    result = self._evaluate(images)
                    row[f"{name}_loss"], row[f"{name}_error"] = (
                        result.loss,
                        result.error,
                    )
        self._tick()
        row["seconds"] = round(self.seconds, 2)
        self.rows.append(row)
        if self.folder:
            with open(self.folder / "history.csv", "a") as file:
                file.write(_history_text([row]).split("\n", 1)[1])
        if on_row:
            on_row(self.rows)

    def _evaluate(self, images: Images) -> Evaluation:
        result = evaluate(self.model, images, self.normalisation, self.profile)
        classes = len(self.data.classes)
        if result.logits.shape[1] != classes:
            raise ValueError(
                f"The network tells {result.logits.shape[1]} classes apart, {self.data.name} has "
                f"{classes}. Build it with classes={classes}."
            )
        return result

    def _show(self, bar) -> None:
        bar.update()
        if self.iteration % 20 == 0:  # reading the loss makes a GPU wait
            loss, error = self._window()
            rate = (bar.format_dict["rate"] or 0) * self.recipe.batch_size
            bar.set_postfix_str(
                f"loss {loss:.3f}, error {error:.1%}, {rate:,.0f} images/s",
                refresh=False,
            )

    def _snapshot(self) -> None:
        if self.folder and self.iteration in self.snapshots:
            (self.folder / "snapshots").mkdir(exist_ok=True)
            half = {
                name: value.half() if value.is_floating_point() else value
                for name, value in _plain_state(self.model).items()
            }
            path = self.folder / "snapshots" / f"iteration-{self.iteration:06d}.pt"
            _write_atomically(path, _to_bytes(half))

    # --- the run folder ----------------------------------------------------------------

    def _open_folder(self) -> bool:
        """Make or reopen the run folder; True if the run is finished already."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_recipe()
            if (self.folder / "weights.pt").exists():
                weights = torch.load(self.folder / "weights.pt", weights_only=True)
                self.model.load_state_dict(weights)
                self.rows = read_history(self.folder / "history.csv")
                self.iteration = self.rows[-1]["iteration"]
                return True
            if state := _read_checkpoint(self.folder):
                self.load_state_dict(state)
            # Rows written after the checkpoint will be written again.
            _write_atomically(
                self.folder / "history.csv", _history_text(self.rows).encode()
            )
        except OSError as error:
            raise OSError(
                f"The run folder {self.folder} cannot be written: {error}. Choose another one."
            ) from error
        return False

    def _check_recipe(self) -> None:
        """Write what this run is, or compare it with what the folder says."""
        mine = {
            "model": getattr(self.model, "name", type(self.model).__name__),
            "data": self.data.name,
            "recipe": dataclasses.asdict(self.recipe),
        }
        mine = json.loads(json.dumps(mine))  # tuples become lists, as in the file
        path = self.folder / "recipe.json"
        if path.exists():
            theirs = json.loads(path.read_text())
            ours = {**mine.pop("recipe"), **mine}
            theirs = {**theirs.pop("recipe"), **theirs}
            for key in ours:
                if ours[key] != theirs.get(key):
                    raise ValueError(
                        f"{self.folder} holds a run with {key} = {theirs.get(key)!r}, not "
                        f"{ours[key]!r}. Choose another folder, or go on with the same {key}."
                    )
        else:
            _write_atomically(path, (json.dumps(mine, indent=2) + "\n").encode())
            environment = (
                json.dumps(describe_environment(self.profile), indent=2) + "\n"
            )
            _write_atomically(self.folder / "environment.json", environment.encode())

    def _close_folder(self) -> None:
        _write_atomically(
            self.folder / "weights.pt", _to_bytes(_plain_state(self.model))
        )
        for name in CHECKPOINTS:
            (self.folder / name).unlink(missing_ok=True)

    def _save_checkpoint(self) -> None:
        if self.steps:
            self._window()  # never keep a state whose loss is not finite
        content = _to_bytes(self.state_dict())
        newest, previous = (self.folder / name for name in CHECKPOINTS)
        if newest.exists():
            newest.replace(previous)
        _write_atomically(newest, hashlib.sha256(content).digest() + content)

    def state_dict(self) -> dict:
        return {
            "network": str(self.model),
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

    def load_state_dict(self, state: dict) -> None:
        if state["network"] != str(self.model):
            raise ValueError(
                f"The checkpoint in {self.folder} is of another network. Choose another folder, "
                "or build the network that it was started with."
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batches"])
        torch.set_rng_state(state["random"])
        self.iteration, self.warming_up = state["iteration"], state["warming_up"]
        self.rows, self.seconds = state["rows"], state["seconds"]
        loss_sum, wrong, self.steps = state["window"]
        self.loss_sum, self.wrong = (
            loss_sum.to(self.loss_sum.device),
            wrong.to(self.wrong.device),
        )


# --- files -----------------------------------------------------------------------------

CHECKPOINTS = ("checkpoint.pt", "checkpoint.previous.pt")


def _read_checkpoint(folder: Path) -> dict | None:
    """The newest whole checkpoint, or None where there is none at all.

    Raises RuntimeError if there are checkpoints and every one is damaged.
    """
    damaged = []
    for path in (folder / name for name in CHECKPOINTS):
        if not path.exists():
            continue
        whole = path.read_bytes()
        digest, content = whole[:32], whole[32:]
        if hashlib.sha256(content).digest() == digest:
            if damaged:
                print(
                    f"{damaged[0]} is damaged; going on from {path.name}.",
                    file=sys.stderr,
                )
            return torch.load(
                io.BytesIO(content), map_location="cpu", weights_only=True
            )
        damaged.append(path)
    if damaged:
        raise RuntimeError(
            f"{damaged[0]} is damaged, and no older checkpoint is whole. Delete "
            f"{' and '.join(path.name for path in damaged)} to start this run afresh."
        )
    return None


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    """A `state_dict` on the CPU in the default memory format, for any other program."""
    return {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
    }


def _to_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _write_atomically(path: Path, content: bytes) -> None:
    """Write beside the file and rename: a reader finds the old file or the new, whole."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _history_text(rows: list[dict]) -> str:
    """The rows as CSV; what was not measured stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_row_text, rows))
    return text.getvalue()


def _row_text(row: dict) -> dict[str, str]:
    return {key: "" if value != value else f"{value:.7g}" for key, value in row.items()}


def read_history(path: Path | str) -> list[dict]:
    """The rows of a `history.csv`; what was not measured is NaN."""
    with open(path, newline="") as file:
        rows = [
            {k: float(v or "nan") for k, v in row.items()}
            for row in csv.DictReader(file)
        ]
    return [{**row, "iteration": int(row["iteration"])} for row in rows]


def describe_environment(profile: DeviceProfile) -> dict:
    """What a reader needs to judge or repeat a run: hardware, versions, commit."""
    device = profile.device.type
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(
            x.split(":")[1].strip() for x in lines if x.startswith("model name")
        )
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "computation": str(profile),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
        "commit": _commit(),
        "started": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str | None:
    """The commit of the checkout this library runs from, marked if files differ from it."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(
            git, capture_output=True, text=True, check=True
        ).stdout.strip()
    return None


@contextlib.contextmanager
def _stop_requests() -> Iterator[list]:
    """Collect SIGINT and SIGTERM in a list instead of dying in the middle of an update.

    A second Ctrl-C acts at once. Signals reach only the main thread; elsewhere nothing is
    changed.
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
