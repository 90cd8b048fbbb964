"""Checks of appendix A2, outgrowing one machine."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from checks.base import Hint, check, compare, near, number, unchanged, values
from resnet_lib.recipe import Recipe


@check
def check_average(average: Callable[[list[Tensor], list[int]], Tensor]) -> str:
    """`average(gradients, counts)`: the gradient of the mean over all images."""
    counts = [96, 32, 64]
    gradients = [torch.randn(5) for _ in counts]
    given = [gradient.clone() for gradient in gradients]
    found = values(
        average(given, list(counts)),
        "expected one tensor like each of the gradients, got {}: see your `return`.",
    )
    blame = "your function changes the gradients it is given: make a new one."
    unchanged(given, gradients, blame)
    if found.shape != (5,):
        raise Hint(
            f"the shape is {tuple(found.shape)} instead of (5,): add up over the "
            "devices and leave the parameters alone."
        )
    stacked, weights = torch.stack(gradients).double(), torch.tensor(counts)[:, None]
    total = weights.sum()
    images = (stacked * weights).sum(0)
    compare(
        found,
        images / total,
        {
            "every device counts the same here, whether it saw 96 images or 32: an "
            "image on the small share then weighs three times as "
            "much.": stacked.mean(0),
            "this is the plain sum: what each device sends is a mean.": stacked.sum(0),
            "the weights are right, the sum is not divided by the number of "
            "images.": images,
            "you divide by the number of devices: the weights are images, so divide by "
            "their total.": images / len(counts),
            "the smaller the share, the larger its weight: turn that round.": (
                stacked / weights
            ).sum(0)
            / (1 / weights).sum(),
            "you divide by the images without multiplying by each device's first: its "
            "gradient is a mean over them.": stacked.sum(0) / total,
            "this is the first device's gradient: the others count, too.": stacked[0],
        },
        "not the mean over all images: turn each device's mean into a sum over its "
        "images, add these, and divide once.",
    )
    hint = "right for three shares, wrong for two equal ones: use `counts`."
    compare(values(average(given[:2], [64, 64]), hint), stacked[:2].mean(0), {}, hint)
    kernels = [torch.randn(2, 3, 3, 3) for _ in counts]
    right = sum(n * kernel.double() for n, kernel in zip(counts, kernels, strict=True))
    hint = (
        "right for one row of numbers, wrong for a kernel's gradient (2, 3, 3, 3): let "
        "the counts multiply whole tensors."
    )
    compare(values(average(kernels, list(counts)), hint), right / total, {}, hint)
    return "Every image counts the same, wherever it was computed."


@check
def check_scaled_recipe(scale: Callable[[Recipe, int], Recipe]) -> str:
    """`scale(recipe, k)`: k times the batch and the rate, a k-th of the updates."""
    recipe = Recipe(iterations=64_000, lr=0.1, batch_size=128, seed=3)
    found = scale(recipe, 4)
    if not isinstance(found, Recipe):
        raise Hint(
            f"expected a Recipe, got {type(found).__name__}: `dataclasses.replace` "
            "makes one."
        )
    if found.batch_size != 512:
        raise Hint(
            f"for k = 4 the batch has {found.batch_size} images and should have 512."
        )
    rate = number(found.lr, "the rate is {}: a number is wanted.")
    compare(
        rate,
        0.4,
        {
            "the rate is the old one: each update is then as short as before, and "
            "there are fewer of them.": 0.1,
            "this is the square root of k: the linear rule wants k itself.": 0.2,
            "the rate goes down with k where the rule takes it up.": 0.025,
        },
        f"for k = 4 the rate is {rate:g} and should be 0.4.",
    )
    if found.iterations == 64_000:
        raise Hint(
            "the number of updates is the old one: with batches of 512 each image is "
            "then seen four times as often."
        )
    if found.iterations != 16_000:
        raise Hint(
            f"for k = 4 there are {found.iterations:,} updates and should be 16,000: "
            "as many images in all as before."
        )
    if found.milestones != (8_000, 12_000):
        raise Hint(
            f"the milestones are {found.milestones}: they count updates, so they move "
            "along; `Recipe.scaled` does both."
        )
    same = dataclasses.replace(
        found,
        batch_size=128,
        lr=0.1,
        iterations=64_000,
        milestones=(32_000, 48_000),
    )
    for field in dataclasses.fields(Recipe):
        if getattr(same, field.name) != getattr(recipe, field.name):
            raise Hint(f"`{field.name}` has changed as well: the rule leaves it alone.")
    other = Recipe(iterations=900, milestones=(450, 600), lr=0.05, batch_size=32)
    right = dataclasses.replace(other.scaled(300), batch_size=96, lr=0.05 * 3)
    found = scale(other, 3)
    # However it was computed: 3 / (1 / 0.05) is another float than 0.05 * 3.
    if not near(found.lr, right.lr) or dataclasses.replace(found, lr=right.lr) != right:
        raise Hint(
            "right for this recipe and k = 4, wrong for a recipe of 900 updates and "
            "k = 3: take every number from `recipe` and `k`."
        )
    return "Larger steps, fewer of them, and as many images in all."
