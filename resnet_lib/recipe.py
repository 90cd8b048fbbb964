"""Every hyper-parameter of a training, and the rate at each update. Paper §4.2."""

import dataclasses
from dataclasses import dataclass

__all__ = [
    "PAPER",
    "PREVIEW",
    "QUICK",
    "SMOOTHED",
    "Recipe",
    "image_size_at",
    "learning_rate_at",
]

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
