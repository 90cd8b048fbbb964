"""Answers to the exercises of 06, 07, 08 and A2, as test_checks.py describes them."""

import copy
import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F
from answers import always, but, patched, solutions
from checks.patients import BEDS

from resnet_lib import learning_rate_at

solved, solved_a2 = solutions("06"), solutions("A2")
activation, recalibrate = solved.my_activation, solved.my_recalibrate


def hooked(model, layer, images, keep=lambda inputs, output: output.clone()):
    """What the hook keeps; it is removed, but not in a `finally`."""
    kept = []
    handle = layer.register_forward_hook(lambda _, *seen: kept.append(keep(*seen)))
    model(images)
    handle.remove()
    return kept[-1].detach()


def children_only(model, layer, images):
    for child in model:
        images = child(images).detach()
        if child is layer:
            return images


check_activation = {
    "✓": [activation, lambda *given: activation(*given).double()],
    "inside a block": children_only,
    "not a list": lambda *a: [activation(*a)],
    "carries a gradient": patched(
        activation, "torch.Tensor.detach", torch.Tensor.clone
    ),
    "what the model returns": lambda m, la, x: m(x).detach(),
    "the layer's input": lambda *a: hooked(*a, lambda inputs, _: inputs[0].clone()),
    "in place": patched(activation, "torch.Tensor.clone", torch.Tensor.detach),
    "the shape is (4, 8, 8)": lambda *a: activation(*a)[0],
    "not the layer's outputs": lambda *a: 2 * activation(*a),
    "still there": patched(
        activation, "torch.utils.hooks.RemovableHandle.remove", always(None)
    ),
    "in a `finally`": hooked,
    "another mode": but(activation, lambda m: m.train(not m.training)),
}


def norm(values):
    return values.flatten(1).norm(dim=1)


@torch.no_grad()
def branch_ratio(block, x, f=lambda f, x: f, below=lambda block, x: block.shortcut(x)):
    return norm(f(block.residual(x), block.shortcut(x))) / norm(below(block, x))


check_branch_ratio = {
    "✓": [
        solved.my_branch_ratio,
        lambda *given: list(branch_ratio(*given)),
        lambda b, x: branch_ratio(copy.deepcopy(b).double(), x.double()),
    ],
    "not a NoneType": always(None),
    "one number for each image": lambda b, x: branch_ratio(b, x).mean().item(),
    "the shape is (5, 6)": lambda b, x: b.residual(x).norm(dim=(2, 3)),
    "turn it round": lambda b, x: 1 / branch_ratio(b, x),
    "take the root": lambda b, x: branch_ratio(b, x) ** 2,
    "before adding": lambda b, x: branch_ratio(b, x, lambda f, x: f + x),
    "the block's output": lambda b, x: branch_ratio(b, x, lambda f, x: F.relu(f + x)),
    "no ReLU behind it": lambda b, x: branch_ratio(b, x, lambda f, x: F.relu(f)),
    "divide by": lambda b, x: norm(b.residual(x)),
    "absolute values": lambda b, x: (
        b.residual(x).abs().sum((1, 2, 3)) / b.shortcut(x).abs().sum((1, 2, 3))
    ),
    "what the shortcut makes": lambda b, x: branch_ratio(b, x, below=lambda b, x: x),
    "where the block keeps shape, the ratios": lambda b, x: 3 * branch_ratio(b, x),
}


def scaled_by(name, factor):
    return lambda model: model.state_dict()[name].mul_(factor)


check_recalibrated = {
    "✓": recalibrate,
    "training mode": but(recalibrate, torch.nn.Module.train),
    "a weight changed": but(recalibrate, scaled_by("fc.weight", 1.01)),
    "the old ones": always(None),
    "nothing was measured": patched(recalibrate, "torch.nn.Module.train", always(None)),
    "bn1 holds other": lambda model, x: (
        [model.train()(x) for _ in range(4)] and model.eval()
    ),
    "layer3.0.bn1": but(recalibrate, scaled_by("layer3.0.bn1.running_var", 3)),
}

check_beds = {
    "✓": always(BEDS),
    "a dict from the": [always(BEDS["A"]), always({"A": BEDS["A"]})],
    "no patient of this ward": always(BEDS | {"A": "flu"}),
    "is not healthy": always(BEDS | {"A": "healthy"}),
    "has nothing": always(BEDS | {"B": "flat_rate"}),
    "no bed is right": always(dict.fromkeys(BEDS, "best_epoch")),
    "1 of 4": always(BEDS | {"A": "cropped_test"}),
}


def rates(recipe, warmup, longer=0, late=0, low=lambda i: 1.0, **change):
    """The schedule, with a warm-up `longer` and drops `late` by so many updates."""
    other = dataclasses.replace(recipe, **change)
    return [
        recipe.warmup_lr * low(i)
        if i < warmup + longer
        else learning_rate_at(i - late, other)
        for i in range(recipe.iterations)
    ]


def told_by_the_rate(recipe, warmup):
    return [
        recipe.lr if i >= warmup and math.isclose(rate, recipe.warmup_lr) else rate
        for i, rate in enumerate(rates(recipe, warmup))
    ]


check_repaired_rates = {
    "✓": [solutions("07").rates_of, rates],
    "number of the update": told_by_the_rate,
    "who writes the full rate back": lambda r, w: rates(r, w, lr=r.warmup_lr),
    "the warm-up is gone": lambda r, w: rates(r, w, longer=-w),
    "wipes out": lambda r, w: rates(r, w, milestones=()),
    "8 updates late": lambda r, w: rates(r, w, late=w),
    "one update late": lambda r, w: rates(r, w, longer=1),
    "one update early": lambda r, w: rates(r, w, longer=-1),
    "climbs or falls": lambda r, w: rates(r, w, low=lambda i: (i + 1) / w),
    "off by one": lambda r, w: rates(r, w, late=1),
    "divides by 10": lambda r, w: rates(r, w, milestones=r.milestones[:1]),
    "64 updates": lambda r, w: rates(r, w)[1:],
    "other numbers": lambda r, w: rates(r, w, lr=0.1),
    "grey curve": lambda r, w: [*rates(r, w)[:12], r.lr / 2, *rates(r, w)[13:]],
    "list of numbers": always(None),
}


def column(history, name):
    return [row[name] for row in history]


def error_where(history, name):
    return min(history, key=lambda row: row[name])["test_error"]


report = solutions("07").report

check_repaired_report = {
    "✓": [report, lambda h: error_where(h, "validation_error")],
    "smallest of all": lambda h: min(column(h, "test_error")),
    "shorter window": lambda h: min(column(h, "test_error")[-3:]),
    "test loss": lambda h: error_where(h, "test_loss"),
    "a validation error": lambda h: min(column(h, "validation_error")),
    "training images": lambda h: error_where(h, "train_error"),
    "average": lambda h: sum(column(h, "test_error")) / len(h),
    "first row": lambda h: h[0]["test_error"],
    "largest": lambda h: max(column(h, "test_error")),
    "accuracy": lambda h: 1 - report(h),
    "per cent": lambda h: 100 * report(h),
    "neither": lambda h: h[-2]["test_error"] + 1e-4,
    "got dict": lambda h: h[-1],
    "changes from run to run": lambda h: min(
        report(h), error_where(h, "validation_error")
    ),
}

STEADY = [2.0 + number for number in range(9)]  # as a fresh net of 2016 gives them

check_stream = {
    "✓ .*from 2.00 to 10.00, about 1.0 more with every": [
        always(form(STEADY)) for form in (list, tuple, np.array)
    ],
    "in a list, not float": always(9.0),
    "nine blocks, and here are 3": always(STEADY[::3]),
    "a variance is above 0": always([0.0, *STEADY[1:]]),
    "is the first block first": always(STEADY[::-1]),
    "Call net.train() first": always([2.0**number for number in range(9)]),
    "Take the square": always(np.sqrt(STEADY)),
    "has a ReLU in it": always([0.7 + number / 2 for number in range(9)]),
}

average, scaled = solved_a2.my_average, solved_a2.my_scaled_recipe

check_average = {
    "✓": average,
    "got list": lambda g, n: [average(g, n)],
    "changes the gradients": but(average, lambda g: g[0].zero_()),
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
    return dataclasses.replace(scaled(recipe, k), **change)


def with_fraction(recipe, k):
    found = scaled(recipe, k)
    object.__setattr__(found, "iterations", float(found.iterations))
    return found


check_scaled_recipe = {
    "✓": [
        scaled,
        lambda r, k: scale(r, k, lr=k / (1 / r.lr)),  # 0.15 where k * lr rounds up
        lambda r, k: scale(r, k, iterations=np.int64(r.iterations // k)),
    ],
    "got dict": lambda r, k: dataclasses.asdict(scaled(r, k)),
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
    "to a fraction": with_fraction,
    "k = 3": lambda r, k: scale(r, 4),
}
