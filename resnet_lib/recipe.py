"""Every hyper-parameter of a training, and the rate at each update. Paper §4.2."""

import dataclasses
from dataclasses import dataclass, replace

from resnet_lib.inputs import (
    finite_number,
    one_of,
    truth_value,
    whole_number,
    whole_numbers,
)

__all__ = [
    "PAPER",
    "PREVIEW",
    "QUICK",
    "SMOOTHED",
    "Recipe",
    "image_size_at",
    "learning_rate_at",
]

# Fields that hold several whole numbers; JSON and the command line give lists.
SEQUENCES = ("milestones", "small_until", "small_size")
CHOICES = {
    "schedule": ("steps", "triangular"),
    "precision": ("auto", "bf16", "tf32", "fp32"),
}
ABOVE_ZERO = ("iterations", "lr", "batch_size", "warmup_lr", "log_every", "eval_every")
FLOAT32 = ("lr", "warmup_lr", "weight_decay")
BELOW_ONE = ("momentum", "label_smoothing")


@dataclass(frozen=True)
class Recipe:
    """Every hyper-parameter of a run; the defaults are the paper's (§4.2).

    Iterations, not epochs, are the unit. Vary a recipe with `dataclasses.replace`, and
    its length with `scaled`, which moves the steps along. Raises ValueError, naming the
    field and the remedy, for a value that no training could follow.
    """

    iterations: int = 64_000
    milestones: tuple[int, ...] = (32_000, 48_000)  # the rate is divided by 10 here
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
    # 110 layers start with lr 0.01 until the training error is under 80 %.
    warmup_lr: float | None = None
    warmup_error: float = 0.8
    # 45k/5k split: training images set aside to choose by. 0 trains on all of them.
    validation: int = 5_000
    per_pixel_mean: bool = False  # the paper's; see data.Normalisation
    black_border: bool = False
    # The order of the images and their crops. The first weights are drawn before: call
    # torch.manual_seed, then build the network.
    seed: int = 0
    precision: str = "auto"  # "bf16", "tf32", "fp32", or what suits the device
    log_every: int = 100  # a row of the history
    eval_every: int = 1_000  # validation and test error in that row

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _checked(field.name, field.type, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if self.nesterov and not self.momentum:
            raise ValueError("Recipe.nesterov needs a momentum above 0, such as 0.9.")
        self._check_steps()

    def _check_steps(self) -> None:
        for name in ("milestones", "small_until"):
            edges = [0, *getattr(self, name), self.iterations]
            if edges != sorted(edges):
                raise ValueError(
                    f"Recipe.{name} is {getattr(self, name)}: give iterations in "
                    f"rising order, from 0 to the end, {self.iterations}, as "
                    f"scaled({self.iterations}) of a longer recipe does."
                )
        peak_inside = [0 < m < self.iterations for m in self.milestones] == [True]
        if self.schedule == "triangular" and not peak_inside:
            raise ValueError(
                f"Recipe.milestones is {self.milestones}: a triangular schedule has "
                f"one, its peak, between 0 and {self.iterations}. Give milestones="
                f"({max(1, self.iterations // 5)},), and 2 iterations or more."
            )
        fits = len(self.small_size) == len(self.small_until)
        if not fits or min(self.small_size, default=1) < 1:
            raise ValueError(
                f"Recipe.small_size is {self.small_size}: give one number of pixels, 1 "
                f"or more, for each of small_until, {self.small_until}."
            )

    def scaled(self, iterations: int) -> "Recipe":
        """The same recipe over another number of iterations, its steps in
        proportion."""
        iterations = _checked("iterations", int, iterations)

        def moved(steps: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(round(step * iterations / self.iterations) for step in steps)

        milestones = moved(self.milestones)
        if self.schedule == "triangular" and iterations > 1:
            milestones = (min(max(milestones[0], 1), iterations - 1),)  # inside
        return replace(
            self,
            iterations=iterations,
            milestones=milestones,
            small_until=moved(self.small_until),
        )


def _checked(name: str, kind: type, value: object) -> object:
    """A field's value as plain Python has it, or ValueError with the remedy."""
    told = f"Recipe.{name}"
    if value is None and name == "warmup_lr":
        return None
    if name in SEQUENCES:
        return whole_numbers(told, value)
    if kind is str:
        return one_of(told, value, CHOICES[name])
    if kind is bool:
        return truth_value(told, value)
    if kind is int:
        return whole_number(told, value, int(name in ABOVE_ZERO))
    number = finite_number(told, value)
    for wrong, remedy in (
        (name in ABOVE_ZERO and number <= 0, "give a number above 0"),
        (number < 0, "give 0 or more"),
        (name in FLOAT32 and number > 3.4e38, "give what float32 holds"),
        (name in BELOW_ONE and number >= 1, "give 0 (off) or less than 1"),
    ):
        if wrong:
            raise ValueError(f"{told} is {value!r}: {remedy}.")
    return number


PAPER = Recipe()
# All 50k images, softer targets, five times the decay. With ten classes the smoothed
# loss cannot fall below 0.50.
SMOOTHED = Recipe(label_smoothing=0.1, weight_decay=5e-4, validation=0)
# Our own, short: the rate rises in a straight line and falls to nothing, and the images
# are small at first.
QUICK = replace(
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
PREVIEW = replace(PAPER.scaled(400), log_every=20, eval_every=100)


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
        return recipe.lr * max(0, min(up, down))
    drops = sum(iteration >= milestone for milestone in recipe.milestones)
    return recipe.lr * 0.1**drops
