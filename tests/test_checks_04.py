"""Wrong answers to notebook 04's exercises, each caught with a message of its own."""

import checks
import pytest
import torch
import torch.nn.functional as F


def crop_and_flip(image, top, left, flip, pad=4, mode="constant", dim=2):
    height, width = image.shape[1:]
    padded = F.pad(image[None], (pad,) * 4, mode)[0]
    crop = padded[:, top : top + height, left : left + width]
    return crop.flip(dim) if flip else crop


def flip_first(image, top, left, flip):
    padded = F.pad(image, (4, 4, 4, 4))
    padded = padded.flip(2) if flip else padded
    return padded[:, top : top + 32, left : left + 32]


def always_32(image, top, left, flip):
    crop = F.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
    return crop.flip(2) if flip else crop


def in_place(image, top, left, flip):
    result = crop_and_flip(image, top, left, flip)
    return image.copy_(result)


CROPS = {
    "(3, 32, 32), not (3, 40, 40)": lambda i, t, le, f: F.pad(i, (4, 4, 4, 4)),
    "changes the image": lambda i, t, le, f: in_place(i, t + 1, le, f),
    "moves the wrong way": lambda i, t, le, f: crop_and_flip(i, 8 - t, 8 - le, f),
    "swapped": lambda i, t, le, f: crop_and_flip(i, le, t, f),
    "zeros, not pixels": lambda i, t, le, f: crop_and_flip(i, t, le, f, mode="reflect"),
    "no effect": lambda i, t, le, f: crop_and_flip(i, t, le, False),
    "upside down": lambda i, t, le, f: crop_and_flip(i, t, le, f, dim=1),
    "flip before you crop": flip_first,
    "8×12": always_32,
    "image itself": lambda i, t, le, f: torch.roll(i, (4 - t, 5 - le), (1, 2)),
}


def smoothed_loss(logits, labels, smoothing):
    classes = logits.shape[1]
    target = F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    return -(target * logits.log_softmax(1)).sum(1).mean()


def others_only(logits, labels, smoothing):
    target = F.one_hot(labels, 10)
    target = target * (1 - smoothing) + (1 - target) * smoothing / 9
    return -(target * logits.log_softmax(1)).sum(1).mean()


def always_ten(logits, labels, smoothing):
    target = F.one_hot(labels, 10) * 0.9 + 0.01
    return -(target[:, : logits.shape[1]] * logits.log_softmax(1)).sum(1).mean()


def unstable(logits, labels, smoothing):
    classes = logits.shape[1]
    target = F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    return -(target * logits.softmax(1).log()).sum(1).mean()


LOSSES = {
    "one loss per image": lambda x, y, e: F.cross_entropy(
        x, y, label_smoothing=e, reduction="none"
    ),
    "sum over the batch": lambda x, y, e: 16 * smoothed_loss(x, y, e),
    "average over the classes": lambda x, y, e: smoothed_loss(x, y, e) / 10,
    "sign": lambda x, y, e: -smoothed_loss(x, y, e),
    "no effect": lambda x, y, e: F.cross_entropy(x, y),
    "wrong classes only": others_only,
    "4 classes": always_ten,
    "overflow": unstable,
    "value is off": lambda x, y, e: smoothed_loss(x, y, 2 * e),
}


def ramped_rate(iteration, lr, ramp, milestones, first=1, late=0):
    if iteration < ramp:
        return lr * (iteration + first) / ramp
    return lr * 0.1 ** sum(iteration >= milestone + late for milestone in milestones)


RATES = {
    "learns nothing": lambda *a: ramped_rate(*a, first=0),
    "should get lr / ramp": lambda *a: ramped_rate(*a, first=2),
    "between the ramp": lambda i, lr, r, m: ramped_rate(i, lr, r, [r + 50, *m]),
    "at update ramp - 1": lambda i, lr, r, m: (
        ramped_rate(i, lr, r + 1, m) * ((r + 1) / r if i == 0 else 1)
    ),
    "equal steps": lambda i, lr, r, m: (
        lr * r ** ((i + 1 - r) / (r - 1)) if 0 < i < r - 1 else ramped_rate(i, lr, r, m)
    ),
    "use >=": lambda *a: ramped_rate(*a, late=1),
    "exactly at the first": lambda *a: ramped_rate(*a, late=-1),
    "second drop": lambda i, lr, r, m: (
        ramped_rate(i, lr, r, m) * (10 if i == m[1] else 1)
    ),
    "another lr": lambda i, lr, r, m: ramped_rate(i, 0.1, r, m),
    "lr / 100": lambda i, lr, r, m: ramped_rate(i, lr, r, m[:1]),
}


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (checks.check_crop_and_flip, crop_and_flip),
        (checks.check_smoothed_loss, smoothed_loss),
        (checks.check_ramped_rate, ramped_rate),
    ],
)
def test_right_answers_pass(says, check, answer):
    verdict, line = says(check, answer)
    assert verdict and line.startswith("✓ Right")


@pytest.mark.parametrize(
    ("check", "table"),
    [
        (checks.check_crop_and_flip, CROPS),
        (checks.check_smoothed_loss, LOSSES),
        (checks.check_ramped_rate, RATES),
    ],
)
def test_wrong_answers_are_told_apart(told_apart, check, table):
    told_apart(check, table)
