"""Checks of notebook 04, training on CIFAR-10."""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from checks.base import Hint, check, compare, near, number, unchanged, values


@check
def check_crop_and_flip(crop_and_flip: Callable) -> str:
    """Judge `crop_and_flip(image, top, left, flip)` on a random image (3, 32, 32)."""
    image = torch.rand(3, 32, 32)

    def right(top: int, left: int, flip: bool, image: Tensor = image) -> Tensor:
        height, width = image.shape[1:]
        crop = F.pad(image, (4, 4, 4, 4))[:, top : top + height, left : left + width]
        return crop.flip(2) if flip else crop

    rows = "the crop moves the wrong way: row 0 starts in the padding above."
    swapped = "row and column are swapped: `top` counts along H, the second dim."
    no_flip = "`flip` has no effect: mirror the crop along W where it is true."
    upside = "the flip turns the image upside down: mirror along W, not H."
    early = "you flip before you crop: crop first, then mirror the crop."
    upright = right(2, 1, False)
    turned = {no_flip: upright, upside: upright.flip(1), early: right(2, 7, True)}
    for where, mistakes in {
        (4, 4, False): {},
        (0, 4, False): {rows: right(8, 4, False), swapped: right(4, 0, False)},
        (2, 1, True): turned,
        (0, 0, False): {},
        (8, 3, True): {},
        (5, 8, False): {},
    }.items():
        given, wanted = image.clone(), right(*where)
        found = values(
            crop_and_flip(given, *where),
            "the result should have the image's shape (3, 32, 32), not {}.",
            image.shape,
        )
        blame = "your function changes the image it was given; work on a copy."
        unchanged([given], [image], blame)
        inside = right(*where, torch.ones_like(image)).bool()
        border = "the padding should be zeros, not pixels of the image."
        hint = "a crop from row 4, column 4 is the image itself: pad by 4 first."
        if where != (4, 4, False):
            top, left, flip = where
            hint = f"the crop from row {top}, column {left}, flip {flip} is wrong."
            mistakes[border] = torch.where(inside, wanted, found)
        compare(found, wanted, mistakes, hint)
    wide = image[:, :8, :12]
    hint = "an image of 8×12 pixels comes out wrong: read H and W off its shape."
    found = values(crop_and_flip(wide, 2, 7, False), hint)
    compare(found, right(2, 7, False, wide), {}, hint)
    return "Right: the padded image, cut and mirrored, for every position."


@check
def check_smoothed_loss(smoothed_loss: Callable) -> str:
    """Judge `smoothed_loss(logits, labels, smoothing)` against torch's."""
    logits = 3 * torch.randn(16, 10)
    labels = torch.randint(10, (16,))

    def mine(*given: object) -> float:
        found = values(smoothed_loss(*given), "return the loss, not a {}.")
        if found.numel() == len(given[0]):
            raise Hint("you return one loss per image: take their mean.")
        return number(found, "the loss should be one number.")

    same = functools.partial(near, rtol=1e-4, atol=1e-8)
    right = F.cross_entropy(logits, labels, label_smoothing=0.1)
    target = F.one_hot(labels, 10)
    others = target * 0.9 + (1 - target) * 0.1 / 9
    compare(
        mine(logits, labels, 0.1),
        right,
        {
            "you return the sum over the batch: take the mean.": 16 * right,
            "you average over the classes: sum over them, average over images.": right
            / 10,
            "the sign is wrong: the loss is minus the log-probability.": -right,
            "ε has no effect: the target should be 1 - ε + ε/K at the true "
            "class.": F.cross_entropy(logits, labels),
            "ε is spread over the wrong classes only; all K share it here.": -(
                others * logits.log_softmax(1)
            )
            .sum(1)
            .mean(),
        },
        "the value is off: is it log-softmax, and does the target sum to 1?",
        same,
    )
    few, theirs = logits[:, :4], labels % 4
    right = F.cross_entropy(few, theirs, label_smoothing=0.3)
    if not same(mine(few, theirs, 0.3), right):
        raise Hint("with 4 classes and ε = 0.3 it is off: are 10 or 0.1 built in?")
    if not math.isfinite(mine(1e4 * logits, labels, 0.1)):
        raise Hint("large logits overflow: use log_softmax, not the log of softmax.")
    return "Right: equal to torch's, and stable for large logits."


@check
def check_ramped_rate(ramped_rate: Callable) -> str:
    """Judge `ramped_rate(iteration, lr, ramp, milestones)`."""

    def off(right: float, iteration: int, **other: object) -> bool:
        """Whether the reader's rate is another, but for a rounding."""
        given = {"lr": 0.1, "ramp": 100, "milestones": (1_000, 2_000)} | other
        answer = ramped_rate(iteration, *given.values())
        hint = f"for update {iteration} you return {answer!r}: a number is wanted."
        return not math.isclose(number(answer, hint), right, rel_tol=1e-5)

    if not off(0, 0):
        raise Hint(
            "update 0 has rate 0 and learns nothing: count it as step 1 of ramp."
        )
    if off(0.001, 0):
        raise Hint("update 0 should get lr / ramp.")
    if off(0.1, 500):
        raise Hint("the rate should stay at lr between the ramp and the first drop.")
    if off(0.1, 99) or off(0.1, 100):
        raise Hint("the ramp should reach lr at update ramp - 1 and stay there.")
    if off(0.05, 49):
        raise Hint("the ramp should rise in equal steps.")
    if not off(0.1, 1_000):
        raise Hint("update 1,000 already gets the lower rate: use >=, not >.")
    if off(0.1, 999) or off(0.01, 1_000):
        raise Hint("the first drop should come exactly at the first milestone.")
    if off(0.001, 2_500):
        raise Hint("after two milestones the rate should be lr / 100.")
    if off(0.01, 1_999) or off(0.001, 2_000):
        raise Hint("the second drop should come exactly at the second milestone.")
    other = {"lr": 0.4, "ramp": 10, "milestones": (20, 30, 40)}
    if off(0.2, 4, **other) or off(4e-4, 45, **other):
        raise Hint("another lr, ramp or number of milestones comes out wrong.")
    return "Right: a ramp to lr, then the paper's drops."


@check
def check_training(training: Callable) -> str:
    """Judge `training(net, batches, rates)`: SGD, one update for each rate."""
    rates = [0.1, 0.1, 0.05, 0.01]
    net = _small_net()
    losses = training(net, iter(_batches(6)), list(rates))
    if not isinstance(losses, list) or len(losses) != len(rates):
        count = f"{len(losses)} numbers" if isinstance(losses, list) else losses
        raise Hint(f"for four rates you return {count}: a list of four is wanted.")
    if not all(isinstance(loss, float) for loss in losses):
        raise Hint(
            f"the losses are of type {type(losses[0]).__name__}: take `.item()`, or "
            "each of them keeps its whole graph in memory."
        )
    right = _trained(rates)
    if _alike(net, _small_net()):
        raise Hint("the weights are as before: is `optimizer.step()` called?")
    for hint, options in _WRONG_TRAININGS.items():
        wrong = _trained(rates, **options)
        if _alike(net, wrong) and not _alike(wrong, right):
            raise Hint(hint)
    if not net.training:
        raise Hint("the net is in evaluation mode at the end: train in training mode.")
    if not _alike(net, right):
        raise Hint(
            "the weights are not those of SGD with momentum 0.9 and weight decay "
            "0.0001, one batch for each rate: go through the order of the loop."
        )
    first = F.cross_entropy(_small_net()(_batches(1)[0][0]), _batches(1)[0][1]).item()
    if not math.isclose(losses[0], first, rel_tol=1e-4):
        raise Hint("the first loss should be that of the first batch, before any step.")
    return "A whole training: every update is the one that torch's own would make."


def _small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 5),
    )


def _batches(count: int) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(8, 3, 8, 8, generator=draw),
            torch.randint(5, (8,), generator=draw),
        )
        for _ in range(count)
    ]


def _trained(
    rates: list[float],
    momentum: float = 0.9,
    decay: float = 1e-4,
    keep_gradients: bool = False,
    forget: bool = False,
    same_batch: bool = False,
    fixed_rate: bool = False,
    mode: bool = True,
) -> nn.Module:
    """The small net after the right training; the options are known mistakes."""
    net = _small_net().train(mode)
    velocity = [torch.zeros_like(p) for p in net.parameters()]
    batches = _batches(len(rates))
    for rate, (images, labels) in zip(rates, batches, strict=True):
        if same_batch:
            images, labels = batches[0]
        if not keep_gradients:
            net.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        with torch.no_grad():
            for v, p in zip(velocity, net.parameters(), strict=True):
                v.mul_(0 if forget else momentum).add_(p.grad + decay * p)
                p.sub_((rates[0] if fixed_rate else rate) * v)
    return net


_WRONG_TRAININGS: dict[str, dict] = {
    "every update is made with the first rate: set `lr` in each of "
    "`optimizer.param_groups`.": {"fixed_rate": True},
    "gradients add up from batch to batch: `zero_grad` is missing.": {
        "keep_gradients": True
    },
    "there is no momentum: is it given, and is there one optimiser for all updates?": {
        "forget": True
    },
    "there is no weight decay: give `weight_decay=1e-4`.": {"decay": 0.0},
    "each update sees the first batch: take `next(batches)` inside the loop.": {
        "same_batch": True
    },
    "you train in evaluation mode: leave `eval()` out.": {"mode": False},
}


def _alike(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in pairs)


@check
def check_curves(diagnoses: Callable[[], dict[str, str]]) -> str:
    """Judge the reader's diagnosis of four recorded trainings."""
    said = diagnoses()
    if not isinstance(said, dict) or set(said) != set(_CURVES):
        raise Hint('return a dictionary with the keys "A", "B", "C" and "D".')
    words = {right for right, _ in _CURVES.values()}
    for name, answer in said.items():
        if answer not in words:
            raise Hint(f"{name}: {answer!r} is not one of DIAGNOSES.")
    for name, (right, hint) in _CURVES.items():
        if said[name] != right:
            raise Hint(f"{name}: {hint}")
    return (
        "All four. Rates that are too small and too large look alike only at a glance."
    )


_CURVES = {
    "A": (
        "the rate is too small",
        "both errors are high, but they sink steadily. What would speed that up?",
    ),
    "B": (
        "it is time for a smaller rate",
        "the test error jumps up and down and no longer falls. Section 5 shows what "
        "happened next.",
    ),
    "C": (
        "it learns by heart",
        "one of the two errors still falls, the other does not. Which one?",
    ),
    "D": (
        "the rate is too large",
        "the error is that of guessing, and it stays. Does such a net only need time?",
    ),
}


@check
def check_temperature(temperature: Callable[[Tensor, Tensor], float]) -> str:
    """Judge `temperature(logits, labels)`: the T with the least loss of logits / T."""
    draw = torch.Generator().manual_seed(0)
    honest = 2 * torch.randn(5_000, 10, generator=draw)
    labels = torch.multinomial(honest.softmax(1), 1, generator=draw).flatten()
    for right in (2.0, 0.6):
        logits = right * honest
        before = logits.clone()
        hint = "return the temperature, one number, not {}."
        found = number(temperature(logits, labels), hint)
        if not torch.equal(logits, before):
            raise Hint("your function changes the logits it is given: work on a copy.")
        if not found > 0:
            raise Hint(f"a temperature is above 0, and you return {found:g}.")
        if math.isclose(found, 1 / right, rel_tol=0.1):
            raise Hint(
                f"you return {found:.2f}, and it is {right}: logits are divided by T."
            )
        if not math.isclose(found, right, rel_tol=0.1):
            raise Hint(
                f"these logits are {right} times as large as honest ones, and you "
                f"return {found:.2f}. Try a grid of T from 0.1 to 10, and take the one "
                "with the smallest cross-entropy of logits / T."
            )
    return "Right for a net that is too sure, and for one that is too modest."
