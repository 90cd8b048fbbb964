"""Answers to notebook 06's exercises: every wrong one has a message of its own."""

import copy

import checks
import torch
import torch.nn.functional as F


def activation(
    model, layer, images, keep=lambda out: out.detach().clone(), which=2, end="finally"
):
    kept = []
    handle = layer.register_forward_hook(
        lambda *seen: kept.append(keep(seen[which] if which == 2 else seen[which][0]))
    )
    try:
        model(images)
        if end == "after":
            handle.remove()
    finally:
        if end == "finally":
            handle.remove()
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
    "carries a gradient": lambda *a: activation(*a, keep=lambda out: out),
    "what the model returns": lambda m, la, x: m(x).detach(),
    "the layer's input": lambda *a: activation(*a, which=1),
    "in place": lambda *a: activation(*a, keep=lambda out: out.detach()),
    "the shape is (4, 8, 8)": lambda *a: activation(*a)[0],
    "not the layer's outputs": lambda *a: 2 * activation(*a),
    "still there": lambda *a: activation(*a, end="never"),
    "in a `finally`": lambda *a: activation(*a, end="after"),
    "another mode": other_mode,
}


def norm(values):
    return values.flatten(1).norm(dim=1)


@torch.no_grad()
def branch_ratio(block, x, f=lambda f, x: f, below=lambda block, x: block.shortcut(x)):
    around = below(block, x)
    return norm(f(block.residual(x), block.shortcut(x))) / norm(around)


def in_double(block, x):
    return branch_ratio(copy.deepcopy(block).double(), x.double())


RATIOS = {
    "not a NoneType": lambda b, x: None,
    "one number for each image": [
        lambda b, x: b.residual(x).norm() / x.norm(),
        lambda b, x: branch_ratio(b, x).mean().item(),
    ],
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
    "where the block keeps shape, the ratios are not": lambda b, x: (
        3 * branch_ratio(b, x)
    ),
}


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


RIGHT_RATIOS = [branch_ratio, lambda b, x: list(branch_ratio(b, x)), in_double]
DOUBLE = [lambda *a: activation(*a, lambda out: out.detach().double())]
EXERCISES = [
    (checks.check_activation, ACTIVATIONS, [activation, *DOUBLE]),
    (checks.check_branch_ratio, RATIOS, RIGHT_RATIOS),
    (checks.check_recalibrated, RECALIBRATED, [recalibrate]),
]
