"""Answers to appendix A2's exercises: every wrong one has a message of its own."""

import dataclasses

import checks
import numpy as np
import torch


def average(gradients, counts):
    pairs = zip(gradients, counts, strict=True)
    return sum(g * n for g, n in pairs) / sum(counts)


def in_place(gradients, counts):
    for gradient, count in zip(gradients, counts, strict=True):
        gradient *= count / sum(counts)
    return sum(gradients)


def casts(gradients, counts):
    gradients[:] = [gradient.double() for gradient in gradients]
    return average(gradients, counts)


def stacked(gradients, counts, dtype=torch.float32):
    weights = torch.tensor(counts, dtype=dtype) / sum(counts)
    return torch.einsum("r,rp->p", weights, torch.stack(gradients).to(dtype))


AVERAGES = {
    "got list": lambda g, n: [average(g, n)],
    "changes the gradients": [in_place, casts],
    "the shape is ()": lambda g, n: average(g, n).mean(),
    "every device counts the same": lambda g, n: sum(g) / len(g),
    "the plain sum": lambda g, n: sum(g),
    "is not divided": lambda g, n: average(g, n) * sum(n),
    "by the number of devices": lambda g, n: average(g, n) * sum(n) / len(n),
    "turn that round": lambda g, n: average(g, [1 / count for count in n]),
    "without multiplying": lambda g, n: sum(g) / sum(n),
    "the first device's": lambda g, n: g[0].clone(),
    "not the mean over": lambda g, n: 2 * average(g, n),
    "wrong for two": lambda g, n: average(g, [96, 32, 64][: len(g)]),
}


def scale(recipe, k, **change):
    scaled = recipe.scaled(recipe.iterations // k)
    right = {"batch_size": k * recipe.batch_size, "lr": k * recipe.lr}
    return dataclasses.replace(scaled, **{**right, **change})


def with_fraction(recipe):
    object.__setattr__(recipe, "iterations", float(recipe.iterations))
    return recipe


RECIPES = {
    "got dict": lambda r, k: dataclasses.asdict(scale(r, k)),
    "has 128 images": lambda r, k: scale(r, k, batch_size=128),
    "the rate is the old one": lambda r, k: scale(r, k, lr=r.lr),
    "square root": lambda r, k: scale(r, k, lr=r.lr * k**0.5),
    "goes down": lambda r, k: scale(r, k, lr=r.lr / k),
    "the rate is 1.6": lambda r, k: scale(r, k, lr=r.lr * k**2),
    "updates is the old one": lambda r, k: scale(r, k, iterations=r.iterations),
    "there are 32,000": lambda r, k: scale(r, k, iterations=32_000),
    "they move along": lambda r, k: scale(r, k, milestones=(16_000,)),
    "`momentum` has changed": lambda r, k: scale(r, k, momentum=0.8),
    "`weight_decay` has": lambda r, k: scale(r, k, weight_decay=k * r.weight_decay),
    "to a fraction": lambda r, k: with_fraction(scale(r, k)),
    "k = 3": lambda r, k: scale(r, 4),
}


RIGHT_AVERAGES = [average, stacked, lambda g, n: stacked(g, n, torch.float64)]
RIGHT_RECIPES = [
    scale,
    lambda r, k: scale(r, k, lr=r.lr / r.batch_size * (k * r.batch_size)),
    lambda r, k: scale(r, k, iterations=np.int64(r.iterations // k)),
]
EXERCISES = [
    (checks.check_average, AVERAGES, RIGHT_AVERAGES),
    (checks.check_scaled_recipe, RECIPES, RIGHT_RECIPES),
]
