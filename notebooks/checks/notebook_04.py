"""Checks of notebook 04, training on CIFAR-10."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from checks.base import Hint, check


@check
def check_crop_and_flip(crop_and_flip: Callable) -> str:
    """Judge `crop_and_flip(image, top, left, flip)` on a random image (3, 32, 32)."""
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    padded = F.pad(image, (4, 4, 4, 4))

    def right(top, left, flip):
        crop = padded[:, top : top + 32, left : left + 32]
        return crop.flip(2) if flip else crop

    before = image.clone()
    middle = crop_and_flip(image, 4, 4, False)
    if not isinstance(middle, Tensor) or middle.shape != image.shape:
        shape = tuple(middle.shape) if isinstance(middle, Tensor) else middle
        raise Hint(
            f"the result should have the image's shape (3, 32, 32), not {shape}."
        )
    if not torch.equal(image, before):
        raise Hint("your function changes the image it was given; work on a copy.")
    if torch.equal(crop_and_flip(image, 0, 4, False), right(8, 4, False)):
        raise Hint("the crop moves the wrong way: row 0 starts in the padding above.")
    if torch.equal(crop_and_flip(image, 0, 8, False), right(8, 0, False)):
        raise Hint("row and column are swapped: `top` counts along H, the second dim.")
    corner = crop_and_flip(image, 0, 0, False)
    if not torch.equal(middle, image):
        raise Hint("a crop from row 4, column 4 is the image itself: pad by 4 first.")
    if corner[:, :4].abs().sum() > 0:
        raise Hint("the padding should be zeros, not pixels of the image.")
    mirrored = crop_and_flip(image, 2, 1, True)
    if torch.equal(mirrored, right(2, 1, False)):
        raise Hint("`flip` has no effect: mirror the crop along W where it is true.")
    if torch.equal(mirrored, right(2, 1, False).flip(1)):
        raise Hint("the flip turns the image upside down: mirror along W, not H.")
    if torch.equal(mirrored, right(2, 7, True)):
        raise Hint("you flip before you crop: crop first, then mirror the crop.")
    for top, left, flip in ((0, 0, False), (8, 3, True), (5, 8, False)):
        if not torch.equal(
            crop_and_flip(image, top, left, flip), right(top, left, flip)
        ):
            raise Hint(f"the crop from row {top}, column {left}, flip {flip} is wrong.")
    wide = image[:, :8, :12]
    if not torch.equal(
        crop_and_flip(wide, 2, 7, False), F.pad(wide, (4, 4, 4, 4))[:, 2:10, 7:19]
    ):
        raise Hint(
            "an image of 8×12 pixels comes out wrong: read H and W off its shape."
        )
    return "Right: the padded image, cut and mirrored, for every position."


@check
def check_smoothed_loss(smoothed_loss: Callable) -> str:
    """Judge `smoothed_loss(logits, labels, smoothing)` against torch's."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(16, 10, generator=generator)
    labels = torch.randint(10, (16,), generator=generator)

    def close(ours, theirs):
        return torch.allclose(torch.as_tensor(ours).float(), theirs, rtol=1e-4)

    ours = smoothed_loss(logits, labels, 0.1)
    right = F.cross_entropy(logits, labels, label_smoothing=0.1)
    if isinstance(ours, Tensor) and ours.numel() == 16:
        raise Hint("you return one loss per image: take their mean.")
    if close(ours, 16 * right):
        raise Hint("you return the sum over the batch: take the mean.")
    if close(ours, right / 10):
        raise Hint("you average over the classes: sum over them, average over images.")
    if close(-torch.as_tensor(ours), right):
        raise Hint("the sign is wrong: the loss is minus the log-probability.")
    if close(ours, F.cross_entropy(logits, labels)):
        raise Hint(
            "ε has no effect: the target should be 1 - ε + ε/K at the true class."
        )
    target = F.one_hot(labels, 10)
    others = target * 0.9 + (1 - target) * 0.1 / 9
    if close(ours, -(others * logits.log_softmax(1)).sum(1).mean()):
        raise Hint("ε is spread over the wrong classes only; all K share it here.")
    if not close(ours, right):
        raise Hint("the value is off: is it log-softmax, and does the target sum to 1?")
    few, theirs = logits[:, :4], labels % 4
    right = F.cross_entropy(few, theirs, label_smoothing=0.3)
    if not close(smoothed_loss(few, theirs, 0.3), right):
        raise Hint("with 4 classes and ε = 0.3 it is off: are 10 or 0.1 built in?")
    large = smoothed_loss(1e4 * logits, labels, 0.1)
    if not torch.isfinite(torch.as_tensor(large)):
        raise Hint("large logits overflow: use log_softmax, not the log of softmax.")
    return "Right: equal to torch's, and stable for large logits."


@check
def check_ramped_rate(ramped_rate: Callable) -> str:
    """Judge `ramped_rate(iteration, lr, ramp, milestones)`."""

    def rate(iteration, ramp=100, milestones=(1_000, 2_000)):
        return ramped_rate(iteration, 0.1, ramp, milestones)

    def off(ours, theirs):
        return not math.isclose(ours, theirs, rel_tol=1e-6, abs_tol=1e-12)

    if rate(0) == 0:
        raise Hint(
            "update 0 has rate 0 and learns nothing: count it as step 1 of ramp."
        )
    if off(rate(0), 0.001):
        raise Hint("update 0 should get lr / ramp.")
    if off(rate(500), 0.1):
        raise Hint("the rate should stay at lr between the ramp and the first drop.")
    if off(rate(99), 0.1) or off(rate(100), 0.1):
        raise Hint("the ramp should reach lr at update ramp - 1 and stay there.")
    if off(rate(49), 0.05):
        raise Hint("the ramp should rise in equal steps.")
    if not off(rate(1_000), 0.1):
        raise Hint("update 1,000 already gets the lower rate: use >=, not >.")
    if off(rate(999), 0.1) or off(rate(1_000), 0.01):
        raise Hint("the first drop should come exactly at the first milestone.")
    if off(rate(2_500), 0.001):
        raise Hint("after two milestones the rate should be lr / 100.")
    if off(rate(1_999), 0.01) or off(rate(2_000), 0.001):
        raise Hint("the second drop should come exactly at the second milestone.")
    three = (20, 30, 40)
    if off(ramped_rate(4, 0.4, 10, three), 0.2) or off(
        ramped_rate(45, 0.4, 10, three), 4e-4
    ):
        raise Hint("another lr, ramp or number of milestones comes out wrong.")
    return "Right: a ramp to lr, then the paper's drops."
