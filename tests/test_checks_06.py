"""Wrong answers to notebook 06's exercises, each caught with a message of its own."""

import math

import checks
import pytest
import torch
import torch.nn.functional as F


def activation(model, layer, images, detach=True, clone=True, which=2):
    kept = []

    def hook(*seen):
        out = seen[which] if which == 2 else seen[which][0]
        out = out.detach() if detach else out
        kept.append(out.clone() if clone else out)

    handle = layer.register_forward_hook(hook)
    try:
        model(images)
    finally:
        handle.remove()
    return kept[-1]


def no_finally(model, layer, images):
    kept = []
    handle = layer.register_forward_hook(
        lambda m, i, out: kept.append(out.detach().clone())
    )
    model(images)
    handle.remove()
    return kept[-1]


def hook_stays(model, layer, images):
    kept = []
    layer.register_forward_hook(lambda m, i, out: kept.append(out.detach().clone()))
    model(images)
    return kept[-1]


def other_mode(model, layer, images):
    found = activation(model, layer, images)
    model.train(not model.training)
    return found


def children_only(model, layer, images):
    for child in model:
        images = child(images).detach()
        if child is layer:
            return images


ACTIVATIONS = {
    "inside a block": children_only,
    "not a list": lambda *a: [activation(*a)],
    "carries a gradient": lambda *a: activation(*a, detach=False),
    "what the model returns": lambda m, la, x: m(x).detach(),
    "the layer's input": lambda *a: activation(*a, which=1).clone(),
    "in place": lambda *a: activation(*a, clone=False),
    "the shape is (4, 8, 8)": lambda *a: activation(*a)[0],
    "not the layer's outputs": lambda *a: 2 * activation(*a),
    "still there": hook_stays,
    "in a `finally`": no_finally,
    "another mode": other_mode,
}


def path_lengths(blocks, off):
    return [math.comb(blocks - off, k) for k in range(blocks - off + 1)]


LENGTHS = {
    "return a list": lambda n, off: 2 ** (n - off),
    "that are off: a path cannot": lambda n, off: path_lengths(n, 0),
    "k starts at 0": lambda n, off: path_lengths(n, off)[1:],
    "that is left is missing": lambda n, off: path_lengths(n, off)[:-1],
    "end there": lambda n, off: path_lengths(n, off) + [0] * off,
    "you count the paths of": lambda n, off: path_lengths(off, 0),
    "offers one way": lambda n, off: [2**off * c for c in path_lengths(n, off)],
    "these are shares": lambda n, off: [
        c / 2 ** (n - off) for c in path_lengths(n, off)
    ],
    "offers two ways": lambda n, off: [1] * (n - off + 1),
}


def norm(values):
    return values.flatten(1).norm(dim=1)


@torch.no_grad()
def branch_ratio(block, x, f=lambda f, x: f, below=lambda block, x: block.shortcut(x)):
    around = below(block, x)
    return norm(f(block.residual(x), block.shortcut(x))) / norm(around)


RATIOS = {
    "not a float": lambda b, x: branch_ratio(b, x).mean().item(),
    "one number for each image": lambda b, x: b.residual(x).norm() / x.norm(),
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
    "not right": lambda b, x: 3 * branch_ratio(b, x),
}


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (checks.check_activation, activation),
        (checks.check_path_lengths, path_lengths),
        (checks.check_branch_ratio, branch_ratio),
    ],
)
def test_right_answers_pass(says, check, answer):
    verdict, line = says(check, answer)
    assert verdict and line.startswith("✓ Right")


@pytest.mark.parametrize(
    ("check", "table"),
    [
        (checks.check_activation, ACTIVATIONS),
        (checks.check_path_lengths, LENGTHS),
        (checks.check_branch_ratio, RATIOS),
    ],
)
def test_wrong_answers_are_told_apart(told_apart, check, table):
    told_apart(check, table)


def recalibrate(model, images, reset=True, momentum=None, mode=True, end=True):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            if reset:
                module.reset_running_stats()
            module.momentum = momentum
    model.train(mode)
    with torch.no_grad():
        for batch in images.split(32):
            model(batch)
    if end:
        model.eval()


def trained(model, images):
    recalibrate(model, images)
    with torch.no_grad():
        model.fc.weight *= 1.01


def half(model, images):
    recalibrate(model, images)
    with torch.no_grad():
        model.layer3[0].bn1.running_var *= 3


RECALIBRATED = {
    "training mode": lambda *a: recalibrate(*a, end=False),
    "a weight changed": trained,
    "the old ones": lambda *a: None,
    "nothing was measured": lambda *a: recalibrate(*a, mode=False),
    "bn1 holds other": lambda *a: recalibrate(*a, reset=False, momentum=0.3),
    "layer3.0.bn1": half,
}


def test_recalibrated(says, told_apart):
    told_apart(checks.check_recalibrated, RECALIBRATED)
    assert says(checks.check_recalibrated, recalibrate)[0]
