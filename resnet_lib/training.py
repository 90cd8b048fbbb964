"""One update, a look at the result, and the state of a training. Notebook 04."""

import contextlib
import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_lib.data import Batches, Dataset, Images, Normalisation, shrunk
from resnet_lib.device import (
    DeviceProfile,
    GraphedStep,
    RecordableSGD,
    can_record,
    device_profile,
    random_states,
    set_random_states,
)
from resnet_lib.inputs import as_logits, check_type, whole_number
from resnet_lib.recipe import Recipe, image_size_at, learning_rate_at
from resnet_lib.resnet import evaluating

__all__ = ["COLUMNS", "PARTS", "Evaluation", "Training", "evaluate", "train_step"]

# A row of a history: when, at which rate, and what is measured on each part.
PARTS = ("train", "validation", "test")
MEASURES = [f"{part}_{measure}" for part in PARTS for measure in ("loss", "error")]
COLUMNS = ("iteration", "lr", *MEASURES, "seconds")


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


@dataclass(frozen=True, eq=False)
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


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Images,
    normalisation: Normalisation,
    profile: DeviceProfile | None = None,
    batch_size: int | None = None,
) -> Evaluation:
    """Judge a whole set in evaluation mode; the model's mode is restored.

    The model may be on any device; without a `profile` it computes in fp32. Without a
    `batch_size`, a batch is 1,000 images, and fewer if they are larger than CIFAR's,
    for the memory. Returns logits on the CPU. Raises TypeError for what is no `Images`
    or no `Normalisation`.
    """
    check_type("model", model, nn.Module)
    check_type("data", data, Images, ", such as data.test")
    check_type("normalisation", normalisation, Normalisation, ".of(train.images)")
    if batch_size is None:
        batch_size = min(1_000, 1 + 1_000 * 32 * 32 // math.prod(data.images.shape[2:]))
    batch_size = whole_number("batch_size", batch_size, 1)
    if profile is None:
        some = next(model.parameters(), torch.empty(0))
        profile = device_profile("fp32", str(some.device))
        try:
            return evaluate(model, data, normalisation, profile, batch_size)
        except RuntimeError as error:
            if "view size" not in str(error):
                raise
        profile = profile.contiguous
    normalisation = normalisation.to(profile.device)
    logits = []
    with evaluating(model), profile.exactly(), profile.autocast():
        for images in data.images.split(batch_size):
            x = normalisation(images.to(profile.device))  # (B, C, H, W)
            x = x.contiguous(memory_format=profile.memory_format)
            logits.append(as_logits(model(x), len(x)))  # (B, classes)
    classes = logits[0].shape[1]
    if (data.labels >= classes).any():
        raise ValueError(
            f"The network tells {classes} classes apart, and a label is "
            f"{data.labels.max()}. Take a network of more classes."
        )
    return Evaluation(torch.cat(logits).cpu(), data.labels.cpu())


def check_training(model: nn.Module, data: Dataset, recipe: Recipe) -> None:
    """TypeError or ValueError for what no training can begin with."""
    check_type("model", model, nn.Module)
    check_type("data", data, Dataset)
    check_type("recipe", recipe, Recipe)
    kinds = {str(w.dtype) for w in model.parameters() if w.requires_grad}
    if kinds != {"torch.float32"}:
        raise ValueError(
            f"The weights to train are {', '.join(sorted(kinds)) or 'none'}: make them "
            "float32 with model.float(), and thaw them with model.requires_grad_()."
        )
    height, width = data.train.images.shape[-2:]
    if recipe.small_size and (height != width or max(recipe.small_size) > width):
        raise ValueError(
            f"small_size is {list(recipe.small_size)}, and the training images have "
            f"{height} × {width} pixels: it shrinks square images alone."
        )


# --- a training -----------------------------------------------------------------------


class Training:
    """All that a run must remember from one update to the next, and how it moves.

    Knows nothing of disks, clocks and other processes: `fit` does. One of several
    processes takes its `shard` of each batch. On a GPU the update is recorded as a CUDA
    graph and replayed, unless `graphed` is False.

    Raises ValueError for a network with another number of classes than the data.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        recipe: Recipe,
        device: str | None = None,
        shard: slice = slice(None),
        graphed: bool = True,
    ) -> None:
        self.data, self.recipe = data, recipe
        self.model, self.forward = unwrapped(model), model
        self.profile = device_profile(recipe.precision, device).suiting(model)
        where = self.profile.device
        train, validation = data.split(recipe.validation)
        # Counted where the images lie: Apple's GPUs are slow at it.
        self.normalisation = Normalisation.of(
            train.images, recipe.per_pixel_mean, recipe.black_border
        ).to(where)
        train = train.to(where)
        self.batches = Batches(
            train, recipe.batch_size, self.normalisation, recipe.seed, shard
        )
        self.eval_sets = {"test": data.test.to(where)}
        if validation is not None:
            self.eval_sets = {"validation": validation.to(where), **self.eval_sets}
        self._place()
        buffers = self.model.named_buffers()  # infinite from the start: no fault
        self.masks = {name for name, b in buffers if b.isinf().any()}
        self.iteration = 0
        self.warming_up = recipe.warmup_lr is not None
        self.rows: list[dict] = []
        self.seconds = 0.0  # of training and evaluation, over all sittings
        # Sums over the batches since the last row; on the device, so nothing waits.
        self.loss_sum = torch.zeros((), device=where)
        self.wrong = torch.zeros((), dtype=torch.int64, device=where)
        self.steps = 0
        split = isinstance(model, nn.DataParallel)  # over streams that none records
        self.graphed = graphed and can_record(where) and not split
        self.graphs: dict[int, GraphedStep] = {}  # one for each image size
        fields = ("lr", "momentum", "weight_decay", "nesterov")
        options = {name: getattr(recipe, name) for name in fields}
        recordable = can_record(where)
        self.optimizer = RecordableSGD(self.model.parameters(), recordable, **options)

    @property
    def at_end(self) -> bool:
        return self.iteration >= self.recipe.iterations

    @property
    def row_due(self) -> bool:
        """Every `log_every` iterations, and wherever the network is judged."""
        steps = (self.recipe.log_every, self.recipe.eval_every)
        return self.at_end or any(self.iteration % step == 0 for step in steps)

    def _place(self) -> None:
        """Put the network where it computes, in the layout that it can compute in, and
        see that it tells as many classes apart as the data has."""
        outputs = None
        with contextlib.suppress(RuntimeError):  # a fault of its own comes again below
            outputs = self._outputs()
        if outputs is None:
            self.profile = self.profile.contiguous
            outputs = self._outputs()
        classes = len(self.data.classes)
        if outputs != classes:
            raise ValueError(
                f"The network tells {outputs} classes apart, {self.data.name} has "
                f"{classes}. Build it with classes={classes}."
            )

    def _outputs(self) -> int:
        """How many classes it tells apart, by its answer to two pictures."""
        place = {"memory_format": self.profile.memory_format}
        self.model.to(self.profile.device, **place).train()
        first = self.data.test[:2]
        first = Images(first.images, torch.zeros_like(first.labels))  # any net has a 0
        answer = evaluate(self.model, first, self.normalisation, self.profile)
        return answer.logits.shape[1]

    # --- one update ---

    def step(self) -> None:
        """One update on the next batch of the plan; nothing waits for its result."""
        lr = learning_rate_at(self.iteration, self.recipe, self.warming_up)
        self.optimizer.set_rate(lr)
        full = self.data.train.images.shape[-1]
        size = image_size_at(self.iteration, self.recipe, full)
        plan = self.batches.next_plan()  # (B, 4)
        if self.graphed:
            self._graph(size)(plan)
        else:
            self.update(plan, size)
        self.steps += 1
        self.iteration += 1

    def update(self, plan: Tensor, size: int) -> None:
        """Augment, forward, loss, backward, step, count: all on the device, all at the
        same addresses each time, and no number is read back."""
        images, labels = self.batches.make(plan)  # (B, C, H, W), (B,)
        if size != images.shape[-1]:
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
        self._count(loss, wrong)

    def _count(self, loss: Tensor, wrong: Tensor) -> None:
        self.loss_sum += loss
        self.wrong += wrong

    def _graph(self, size: int) -> GraphedStep:
        if size not in self.graphs:
            step = partial(self.update, size=size)
            self.graphs[size] = GraphedStep(step, self._changing, self.model.zero_grad)
        return self.graphs[size]

    def forget_graphs(self) -> None:
        """Give a GPU its memory back: a graph keeps the training it was recorded of."""
        if self.graphs:
            self.graphs.clear()
            self.model.zero_grad()  # the gradients lie in a graph's memory

    def _changing(self) -> list[Tensor]:
        """Every tensor that an update changes."""
        net = [*self.model.parameters(), *self.model.buffers()]
        momentum = self.optimizer.momentum().values()
        return [*net, *momentum, self.loss_sum, self.wrong]

    # --- what is measured ---

    def _window(self) -> tuple[float, float]:
        """Mean loss and error since the last row; FloatingPointError if not finite."""
        loss = self.loss_sum.item() / self.steps
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss} at iteration {self.iteration} or shortly before."
            )
        return loss, self.wrong.item() / (self.steps * self.recipe.batch_size)

    def add_row(self) -> dict:
        """Close the window: its means, and an evaluation where the recipe wants one."""
        row = dict.fromkeys(COLUMNS, math.nan)
        row["iteration"] = self.iteration
        row["lr"] = learning_rate_at(self.iteration - 1, self.recipe, self.warming_up)
        row["train_loss"], row["train_error"] = self._window()
        self.loss_sum.zero_()
        self.wrong.zero_()
        self.steps = 0
        if row["train_error"] < self.recipe.warmup_error:
            self.warming_up = False
        if self.iteration % self.recipe.eval_every == 0 or self.at_end:
            for name, images in self.eval_sets.items():
                result = self.evaluate(images)
                row[f"{name}_loss"], row[f"{name}_error"] = result.loss, result.error
        self.rows.append(row)
        return row

    def evaluate(self, images: Images) -> Evaluation:
        return evaluate(self.model, images, self.normalisation, self.profile)

    def progress(self) -> str:
        """Loss and error since the last row, in words; waits for the device."""
        loss, error = self._window()
        return f"loss {loss:.3f}, error {error:.1%}"

    def check_weights(self) -> None:
        """FloatingPointError if the last update broke them; its loss came before."""
        state = self.model.state_dict()
        if not all(state[name].isfinite().all() for name in state.keys() - self.masks):
            raise FloatingPointError(
                f"The weights are not finite at iteration {self.iteration}."
            )

    # --- a checkpoint ---

    def state_dict(self) -> dict:
        """What a checkpoint holds; FloatingPointError for a state not worth keeping."""
        if self.steps:
            self._window()
        self.check_weights()
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "iteration": self.iteration,
            "warming_up": self.warming_up,
            "rows": self.rows,
            "seconds": self.seconds,
            "window": (self.loss_sum, self.wrong, self.steps),
            **random_states(self.profile.device),
        }

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batches"])
        set_random_states(state, self.profile.device)
        self.iteration, self.warming_up = state["iteration"], state["warming_up"]
        self.rows, self.seconds = state["rows"], state["seconds"]
        loss_sum, wrong, self.steps = state["window"]
        self.loss_sum.copy_(loss_sum)
        self.wrong.copy_(wrong)
        self.forget_graphs()


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside the wrappers of `torch.compile` and `DataParallel`."""
    inside = getattr(model, "_orig_mod", model)
    inside = inside.module if isinstance(inside, nn.DataParallel) else inside
    return model if inside is model else unwrapped(inside)
