"""Answers to notebook 04's exercises: every wrong one has a message of its own."""

import checks
import numpy as np
import pytest
import torch
import torch.nn.functional as F


def crop(image, top, left, flip, mode="constant", dim=2, size=None):
    height, width = size or image.shape[1:]
    padded = F.pad(image[None], (4,) * 4, mode)[0]
    cut = padded[:, top : top + height, left : left + width]
    return cut.flip(dim) if flip else cut


def flip_first(image, top, left, flip):
    return crop(image.flip(2) if flip else image, top, left, False)


def in_numpy(image, top, left, flip):
    padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)))
    cut = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
    return cut[..., ::-1] if flip else cut


CROPS = {
    "(3, 32, 32), not (3, 40, 40)": lambda i, t, le, f: F.pad(i, (4, 4, 4, 4)),
    "(3, 32, 32), not NoneType": lambda *given: None,
    "changes the image": lambda i, t, le, f: i.copy_(crop(i, t + 1, le, f)),
    "moves the wrong way": lambda i, t, le, f: crop(i, 8 - t, 8 - le, f),
    "swapped": lambda i, t, le, f: crop(i, le, t, f),
    "zeros, not pixels": [
        lambda *given: crop(*given, mode="reflect"),
        lambda *given: crop(*given, mode="replicate"),
    ],
    "no effect": lambda i, t, le, f: crop(i, t, le, False),
    "upside down": lambda *given: crop(*given, dim=1),
    "flip before you crop": flip_first,
    "8×12": lambda *given: crop(*given, size=(32, 32)),
    "image itself": lambda i, t, le, f: torch.roll(i, (4 - t, 5 - le), (1, 2)),
    "from row 0, column 4, flip False is wrong": lambda i, t, le, f: crop(i, 4, le, f),
    "from row 8, column 3, flip True is wrong": lambda i, t, le, f: crop(
        i, min(t, 7), le, f
    ),
    "from row 5, column 8, flip False is wrong": lambda i, t, le, f: crop(
        i, t, min(le, 7), f
    ),
}


def smoothed(logits, labels, smoothing, log=lambda x: x.log_softmax(1), others=None):
    classes = logits.shape[1]
    true, spread = F.one_hot(labels, classes), smoothing / classes
    target = true * (1 - smoothing) + spread
    if others:
        target = true * (1 - smoothing) + (1 - true) * smoothing / (classes - 1)
    return -(target * log(logits)).sum(1).mean()


def always_ten(logits, labels, smoothing):
    target = F.one_hot(labels, 10) * 0.9 + 0.01
    return -(target[:, : logits.shape[1]] * logits.log_softmax(1)).sum(1).mean()


LOSSES = {
    "not a NoneType": lambda *given: None,
    "one loss per image": lambda x, y, e: F.cross_entropy(
        x, y, label_smoothing=e, reduction="none"
    ),
    "one number": lambda x, y, e: x,
    "sum over the batch": lambda x, y, e: len(x) * smoothed(x, y, e),
    "average over the classes": lambda x, y, e: smoothed(x, y, e) / x.shape[1],
    "sign": lambda x, y, e: -smoothed(x, y, e),
    "no effect": lambda x, y, e: F.cross_entropy(x, y),
    "wrong classes only": lambda *given: smoothed(*given, others=True),
    "4 classes": [always_ten, lambda x, y, e: smoothed(x, y, 0.1)],
    "overflow": lambda *given: smoothed(*given, log=lambda x: x.softmax(1).log()),
    "value is off": lambda x, y, e: smoothed(x, y, 2 * e),
}


def rate(iteration, lr, ramp, milestones, first=1, late=0):
    if iteration < ramp:
        return lr * (iteration + first) / ramp
    return lr * 0.1 ** sum(iteration >= milestone + late for milestone in milestones)


def at(where, factor):
    """The right rate, but for one update `where(ramp, milestones)`."""
    return lambda i, lr, r, m: rate(i, lr, r, m) * (factor if i == where(r, m) else 1)


RATES = {
    "for update 0 you return None": lambda *given: None,
    "for update 0 you return [": lambda *given: [rate(*given)],
    "learns nothing": lambda *given: rate(*given, first=0),
    "should get lr / ramp": lambda *given: rate(*given, first=2),
    "between the ramp": lambda i, lr, r, m: rate(i, lr, r, [r + 50, *m]),
    "at update ramp - 1": [at(lambda r, m: r - 1, 0.99), at(lambda r, m: r, 1.01)],
    "equal steps": lambda i, lr, r, m: (
        lr * r ** ((i + 1 - r) / (r - 1)) if 0 < i < r - 1 else rate(i, lr, r, m)
    ),
    "use >=": lambda *given: rate(*given, late=1),
    "exactly at the first": [
        lambda *given: rate(*given, late=-1),
        at(lambda r, m: m[0], 2),
    ],
    "second drop": [at(lambda r, m: m[1], 10), at(lambda r, m: m[1] - 1, 0.1)],
    "another lr": [
        lambda i, lr, r, m: rate(i, 0.1, r, m),
        lambda i, lr, r, m: rate(i, lr, 100, m),
        lambda i, lr, r, m: rate(i, lr, r, m[:2]),
    ],
    "lr / 100": lambda i, lr, r, m: rate(i, lr, r, m[:1]),
}

EXERCISES = [
    (checks.check_crop_and_flip, CROPS, [crop, in_numpy]),
    (
        checks.check_smoothed_loss,
        LOSSES,
        [smoothed, lambda x, y, e: smoothed(x.double(), y, e)[None]],
    ),
    (
        checks.check_ramped_rate,
        RATES,
        [rate, lambda *given: torch.tensor([rate(*given)])],
    ),
]


@pytest.mark.parametrize(("check", "wrong", "right"), EXERCISES)
def test_answers_are_told_apart(told_apart, check, wrong, right):
    told_apart(check, wrong, *right)
