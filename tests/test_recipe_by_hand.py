"""Every field of the recipe, held by training with pencil and paper.

A few updates are worked out in float64: which pictures, how they are cropped, what the
network makes of them, what each update does to each weight. Nothing here comes from the
library but the recipe's values; gradients are PyTorch's. `fit` has to arrive at the
same numbers, for each field at two values, and a field that made no difference here
would be held by nothing, so it fails too.
"""

import dataclasses
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import Dataset, Images, Recipe, fit

SIDE, PAD, COUNT = 8, 4, 20
DRAW = torch.Generator().manual_seed(0)


def pictures(count, dim=0):
    pixels = torch.randint(dim, 256, (count, 3, SIDE, SIDE), generator=DRAW)
    return Images(pixels.to(torch.uint8), torch.arange(count) % 4)


DATA = Dataset("random", tuple("abcd"), pictures(COUNT, 90), pictures(6))
BASE = Recipe(
    iterations=3,
    milestones=(),
    batch_size=8,
    validation=4,
    precision="fp32",
    log_every=1,
    eval_every=3,
)


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(20, 4),
    )
    with torch.no_grad():  # so that decay on γ and β shows
        net[1].weight.uniform_(0.5, 1.5)
        net[1].bias.uniform_(-0.5, 0.5)
    return net


# --- the same training, by hand -------------------------------------------------------


def picks(recipe, count):
    """For each update the rows (image, crop row, crop column, flip) of its batch."""
    draw = torch.Generator().manual_seed(recipe.seed)
    rows = []
    while len(rows) < recipe.iterations * recipe.batch_size:
        order = torch.randperm(count, generator=draw)
        places = torch.randint(2 * PAD + 1, (count,), generator=draw)
        columns = torch.randint(2 * PAD + 1, (count,), generator=draw)
        flips = torch.randint(2, (count,), generator=draw)
        rows += torch.stack([order, places, columns, flips], 1).tolist()
    size = recipe.batch_size
    return [rows[i * size : (i + 1) * size] for i in range(recipe.iterations)]


def normaliser(recipe, train):
    """(x - mean) / std of the training images, and the colour around them."""
    if recipe.per_pixel_mean:
        mean, std = train.mean(0), torch.ones(3, 1, 1).double()
    else:
        mean = train.mean((0, 2, 3)).view(3, 1, 1)
        std = ((train - mean) ** 2).mean((0, 2, 3)).sqrt().view(3, 1, 1)
    around = torch.zeros(3, 1, 1).double()
    if recipe.black_border:
        around = -mean.mean((1, 2)).view(3, 1, 1) / std
    return (lambda x: (x - mean) / std), around


def augmented(x, around, row, column, flip):
    padded = around.expand(3, SIDE + 2 * PAD, SIDE + 2 * PAD).clone()
    padded[:, PAD:-PAD, PAD:-PAD] = x
    crop = padded[:, row : row + SIDE, column : column + SIDE]
    return crop.flip(2) if flip else crop


def forward(w, x, running=None):
    """Convolution, BN (by the batch, or by running statistics), ReLU, pool, linear."""
    x = F.conv2d(x, w[0], w[1], padding=1)
    if running is None:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    else:
        mean, var = running
    at = (1, -1, 1, 1)
    normal = (x - mean.view(at)) / (var.view(at) + 1e-5).sqrt()
    x = (normal * w[2].view(at) + w[3].view(at)).relu()
    pooled = F.adaptive_avg_pool2d(x, 2).flatten(1) @ w[4].T + w[5]
    return pooled, (mean, var * x[:, 0].numel() / (x[:, 0].numel() - 1))


def loss_and_error(logits, labels, smoothing=0.0):
    log = logits - logits.logsumexp(1, keepdim=True)
    right = -log.gather(1, labels[:, None]).mean()
    even = -log.mean()
    wrong = (logits.argmax(1) != labels).double().mean().item()
    return (1 - smoothing) * right + smoothing * even, wrong


def rate(recipe, iteration, warming):
    if warming:
        return recipe.warmup_lr
    if recipe.schedule == "triangular":
        (peak,) = recipe.milestones
        end = recipe.iterations
        return recipe.lr * min((iteration + 1) / peak, (end - iteration) / (end - peak))
    return recipe.lr / 10 ** sum(iteration >= step for step in recipe.milestones)


@functools.cache
def by_hand(recipe):
    """The final weights and running statistics, and the rows of the history."""
    cut = COUNT - recipe.validation
    train = DATA.train.images[:cut].double()
    normal, around = normaliser(recipe, train)
    sets = {"test": (DATA.test.images, DATA.test.labels)}
    if recipe.validation:
        sets["validation"] = (DATA.train.images[cut:], DATA.train.labels[cut:])
    w = [p.detach().double().requires_grad_() for p in network().parameters()]
    speed = [torch.zeros_like(p) for p in w]
    running = [torch.zeros(5).double(), torch.ones(5).double()]
    warming, rows, window = recipe.warmup_lr is not None, [], []
    for iteration, batch in enumerate(picks(recipe, cut)):
        x = torch.stack([augmented(normal(train[i]), around, *p) for i, *p in batch])
        labels = DATA.train.labels[[i for i, *_ in batch]]
        for until, size in zip(recipe.small_until, recipe.small_size, strict=True):
            if iteration < until:
                size = (size, size)
                x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
                break
        logits, batch_statistics = forward(w, x)
        loss, wrong = loss_and_error(logits, labels, recipe.label_smoothing)
        gradients = torch.autograd.grad(loss, w)
        lr = rate(recipe, iteration, warming)
        with torch.no_grad():
            for p, v, g in zip(w, speed, gradients, strict=True):
                g = g + recipe.weight_decay * p
                v.mul_(recipe.momentum).add_(g)
                p -= lr * (g + recipe.momentum * v if recipe.nesterov else v)
            for r, new in zip(running, batch_statistics, strict=True):
                r.mul_(0.9).add_(0.1 * new)
        window.append((loss.item(), wrong))
        done = iteration + 1
        looked = done % recipe.eval_every == 0 or done == recipe.iterations
        if looked or done % recipe.log_every == 0:
            row = {"iteration": done, "lr": lr}
            row["train_loss"], row["train_error"] = (
                torch.tensor(window).mean(0).tolist()
            )
            window = []
            warming = warming and row["train_error"] >= recipe.warmup_error
            for name, (images, truth) in sets.items() if looked else ():
                logits, _ = forward(w, normal(images.double()), running)
                loss, row[f"{name}_error"] = loss_and_error(logits, truth)
                row[f"{name}_loss"] = loss.item()
            rows.append(row)
    return torch.cat([x.detach().flatten() for x in [*w, *running]]), rows


def by_the_library(recipe):
    net = network()
    rows = fit(net, DATA, recipe, device="cpu", progress=False).history
    values = [*net.parameters(), net[1].running_mean, net[1].running_var]
    rows = [{k: v for k, v in row.items() if not math.isnan(v)} for row in rows]
    for row in rows:
        del row["seconds"]
    return torch.cat([v.detach().flatten().double() for v in values]), rows


# --- each field at two values and more ------------------------------------------------

CASES = {
    "iterations": [{"iterations": 2}, {"iterations": 4}],
    "milestones": [{"milestones": m} for m in [(1,), (2,), (1, 2)]],
    "schedule": [{"schedule": "triangular", "milestones": (m,)} for m in (1, 2)],
    "lr": [{"lr": 0.05}, {"lr": 0.3}],
    "momentum": [{"momentum": 0.0}, {"momentum": 0.5}],
    "nesterov": [{"nesterov": True}, {"nesterov": True, "momentum": 0.5}],
    "weight_decay": [{"weight_decay": 0.02}, {"weight_decay": 0.1}],
    "batch_size": [{"batch_size": 4}, {"batch_size": 12}],  # over an epoch's end
    "label_smoothing": [{"label_smoothing": 0.1}, {"label_smoothing": 0.4}],
    "small_until": [{"small_until": (u,), "small_size": (4,)} for u in (1, 2)],
    "small_size": [{"small_until": (1, 2), "small_size": s} for s in [(4, 6), (6, 4)]],
    "warmup_lr": [{"warmup_lr": lr, "warmup_error": 0.0} for lr in (0.01, 0.4)],
    "warmup_error": [{"warmup_lr": 0.01, "warmup_error": e} for e in (1.1, 0.7)],
    "validation": [{"validation": 0}, {"validation": 7}],
    "per_pixel_mean": [{"per_pixel_mean": True, "lr": 1e-4}],
    "black_border": [
        {"black_border": True},
        {"black_border": True, "per_pixel_mean": True, "lr": 1e-4},
    ],
    "seed": [{"seed": 1}, {"seed": 2}],
    "log_every": [{"log_every": 2}, {"log_every": 3}],
    "eval_every": [{"eval_every": 1}, {"eval_every": 2}],
}
TABLE = [(name, change) for name, changes in CASES.items() for change in changes]
TABLE = [("no field", {}), *TABLE]


def close(ours, theirs, rel=1e-4):
    """Whether weights, statistics and histories agree."""
    (ours, our_rows), (theirs, their_rows) = ours, theirs
    same = torch.allclose(ours, theirs, rtol=rel, atol=1e-5)
    same = same and len(our_rows) == len(their_rows)
    return same and all(
        a.keys() == b.keys() and a == pytest.approx(b, rel=rel, abs=1e-6)
        for a, b in zip(our_rows, their_rows, strict=True)
    )


@pytest.mark.parametrize(("field", "change"), TABLE, ids=str)
def test_fit_arrives_where_pencil_and_paper_do(field, change):
    recipe = dataclasses.replace(BASE, **change)
    ours = by_the_library(recipe)
    assert close(ours, by_hand(recipe))
    if field == "no field":
        return
    # And elsewhere, if the field were ignored; one without the other may be refused.
    ignored = {k: v for k, v in change.items() if k != field}
    if field == "schedule":
        ignored["schedule"] = "steps"
    if field in ("small_until", "small_size", "warmup_lr"):
        ignored = {}
    assert not close(ours, by_hand(dataclasses.replace(BASE, **ignored)))


def test_every_field_has_its_case():
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert fields == CASES.keys() | {"precision"}


def test_precision_is_what_the_recipe_says():
    """bf16 keeps 8 bits of the mantissa: near the paper's numbers, and not at them."""
    exact, rounded = (
        by_the_library(dataclasses.replace(BASE, precision=precision))[1]
        for precision in ("fp32", "bf16")
    )
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.02)
        assert ours["train_loss"] != theirs["train_loss"]
