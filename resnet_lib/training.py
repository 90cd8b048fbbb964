"""One update, a look at the result, and the state of a training. Notebook 04."""

import contextlib
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_lib.data import Batches, Images, Normalisation, shrunk
from resnet_lib.device import DeviceProfile, device_profile
from resnet_lib.distributed import Ranks
from resnet_lib.recipe import image_size_at, learning_rate_at
from resnet_lib.resnet import evaluating

__all__ = ["Evaluation", "Training", "evaluate", "train_step"]

# What is measured: a row of a run's history.
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


class Training:
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
