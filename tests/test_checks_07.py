"""Wrong repairs of notebook 07's six bugs, each caught with a message of its own."""

import inspect
import math

import checks
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import BasicBlock, Normalisation, ResNet, learning_rate_at

# --- 1: where the net halves its maps -------------------------------------------------


def net(
    halves, widths, depth, *, stem_stride=1, pools=(), factor=2, classes=10, more=0
):
    """A net whose block (stage, index) halves if `halves(stage, index)`, from 0."""
    layers = [nn.Conv2d(3, widths[0], 3, stem_stride, padding=1)]
    in_channels = widths[0]
    for stage, out_channels in enumerate(widths):
        if stage in pools:
            layers.append(nn.MaxPool2d(2))
        for index in range(depth + more):
            stride = factor if halves(stage, index) else 1
            layers.append(BasicBlock(in_channels, out_channels, stride, "A"))
            in_channels = out_channels
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(in_channels, classes))


def right_place(stage, index):
    return stage > 0 and index == 0


NETS = {
    "no later stage does": lambda w, d: net(lambda s, i: s == i == 0, w, d),
    "4×4": lambda w, d: net(lambda s, i: i == 0, w, d),
    "one pixel": lambda w, d: net(lambda s, i: True, w, d),
    "no block halves": lambda w, d: net(lambda s, i: False, w, d),
    "the last block of a stage": lambda w, d: net(
        lambda s, i: s < len(w) - 1 and i == d - 1, w, d
    ),
    "the last block of each": lambda w, d: net(lambda s, i: i == d - 1, w, d),
    "stage 3 goes on at 16×16": lambda w, d: net(lambda s, i: s == 1 and i == 0, w, d),
    "stage 2 stays at 32×32": lambda w, d: net(lambda s, i: s == 2 and i == 0, w, d),
    "numbers 5 8": lambda w, d: net(lambda s, i: s > 0 and i == 1, w, d),
    "outside your blocks": lambda w, d: net(lambda s, i: False, w, d, pools=(1, 2)),
    "wrong factor": lambda w, d: net(right_place, w, d, factor=4),
    "put out": lambda w, d: net(right_place, [w[0]] * 3, d),
    "12 BasicBlocks": lambda w, d: net(right_place, w, d, more=1),
    "(1, 7)": lambda w, d: net(right_place, w, d, classes=7),
    "four stages of two": lambda w, d: net(
        lambda s, i: (3 if w[2] == 16 else d) * s + i in (3, 6), w, d
    ),
    "NoneType": lambda w, d: None,
}


# --- 2: the stem ----------------------------------------------------------------------


def stem(first, rest=lambda net, x: x, last=lambda net, x: x):
    """A ResNet with another stem, and something else behind the stages."""

    class Answer(ResNet):
        def forward(self, x):
            x = first(self, x)
            for stage in self.stages:
                x = rest(self, getattr(self, stage)(x))
            x = torch.flatten(self.avgpool(x), 1)
            return last(self, self.fc(x))

    return Answer


def right_stem(net, x):
    return F.relu(net.bn1(net.conv1(x)))


class OtherLayers(ResNet):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.extra = nn.Linear(2, 2)


STEMS = {
    "still enter": stem(lambda n, x: n.bn1(n.conv1(x))),
    "behind the first stage": stem(
        lambda n, x: n.bn1(n.conv1(x)), rest=lambda n, x: n.relu(x)
    ),
    "exchange the two": stem(lambda n, x: n.bn1(F.relu(n.conv1(x)))),
    "one ReLU too many": stem(lambda n, x: F.relu(n.bn1(F.relu(n.conv1(x))))),
    "not the stem's output": stem(lambda n, x: n.bn1(n.conv1(F.relu(x)))),
    "is cut as well": stem(lambda n, x: right_stem(n, F.relu(x))),
    "BN has gone": stem(lambda n, x: F.relu(n.conv1(x))),
    "smaller negative": stem(lambda n, x: F.leaky_relu(n.bn1(n.conv1(x)), 0.1)),
    "leaves positive": stem(lambda n, x: n.bn1(n.conv1(x)).abs()),
    "shape": stem(lambda n, x: F.max_pool2d(right_stem(n, x), 2)),
    "not ResNet's": stem(right_stem, last=lambda n, x: F.relu(x)),
    "wrong in train mode": stem(
        lambda n, x: F.relu(n.bn1(n.conv1(x)) + 0.1 * n.training)
    ),
    "change `forward` only": OtherLayers,
}


# --- 3: the learning rate -------------------------------------------------------------


def rates(recipe, warmup, longer=0, late=0, low=lambda i: 1.0):
    """The schedule, with a warm-up `longer` and drops `late` by so many updates."""
    return [
        recipe.warmup_lr * low(i)
        if i < warmup + longer
        else learning_rate_at(i - late, recipe)
        for i in range(recipe.iterations)
    ]


def stuck(recipe, warmup):
    factor = recipe.warmup_lr / recipe.lr
    return [factor * learning_rate_at(i, recipe) for i in range(recipe.iterations)]


def overwritten(recipe, warmup):
    return [
        recipe.warmup_lr if i < warmup else recipe.lr for i in range(recipe.iterations)
    ]


def one_drop(recipe, warmup):
    return [max(rate, 0.1 * recipe.lr) for rate in rates(recipe, warmup)]


def typed_in(recipe, warmup):
    low, full = [recipe.warmup_lr] * warmup, [0.1] * (32 - warmup)
    found = low + full + [0.01] * 16 + [0.001] * (recipe.iterations - 48)
    return found[: recipe.iterations]


def half_way(recipe, warmup):
    found = rates(recipe, warmup)
    found[warmup + 4] = recipe.lr / 2
    return found


def told_by_the_rate(recipe, warmup):
    found = rates(recipe, warmup)
    over = [
        i >= warmup and math.isclose(r, recipe.warmup_lr) for i, r in enumerate(found)
    ]
    return [recipe.lr if wrong else r for r, wrong in zip(found, over, strict=True)]


RATES = {
    "number of the update": told_by_the_rate,
    "who writes the full rate back": stuck,
    "the warm-up is gone": lambda r, w: rates(r, w, longer=-w),
    "wipes out": overwritten,
    "8 updates late": lambda r, w: rates(r, w, late=w),
    "one update late": lambda r, w: rates(r, w, longer=1),
    "one update early": lambda r, w: rates(r, w, longer=-1),
    "climbs or falls": lambda r, w: rates(r, w, low=lambda i: (i + 1) / w),
    "off by one": lambda r, w: rates(r, w, late=1),
    "divides by 10": one_drop,
    "64 updates": lambda r, w: rates(r, w)[1:],
    "other numbers": typed_in,
    "grey curve": half_way,
    "list of numbers": lambda r, w: None,
}


# --- 4: normalisation -----------------------------------------------------------------


def three(*values):
    return torch.tensor(values).view(3, 1, 1)


def moments(images):
    x = images.float()
    return x.mean((0, 2, 3)).view(3, 1, 1), x.std((0, 2, 3)).view(3, 1, 1)


def spread(data, change):
    """The right mean, and a standard deviation that `change` has been at."""
    mean, std = moments(data.train.images)
    return Normalisation(mean, change(data.train.images.float(), std))


def pooled(data):
    return torch.cat([data.train.images, data.test.images])


IMAGENET = three(0.485, 0.456, 0.406), three(0.229, 0.224, 0.225)
CIFAR10 = three(0.4914, 0.4822, 0.4465), three(0.247, 0.2435, 0.2616)

NORMALISATIONS = {
    "still ImageNet's": lambda d: Normalisation(*(255 * v for v in IMAGENET)),
    "typed in": lambda d: Normalisation(*(255 * v for v in CIFAR10)),
    "may not shape": lambda d: Normalisation(*moments(d.test.images)),
    "pooled": lambda d: Normalisation(*moments(pooled(d))),
    "units": lambda d: Normalisation(*moments(d.train.images / 255)),
    "serves all three": lambda d: Normalisation(
        d.train.images.float().mean(), d.train.images.float().std()
    ),
    "share one number": lambda d: Normalisation(
        *(v.mean().expand(3, 1, 1) for v in moments(d.train.images))
    ),
    "mean picture": lambda d: Normalisation.of(d.train.images, per_pixel=True),
    "nothing is divided": lambda d: spread(d, lambda x, std: std / std),
    "variance": lambda d: spread(d, lambda x, std: std**2),
    "each image's own": lambda d: spread(
        d, lambda x, std: x.std((2, 3)).mean(0).view(3, 1, 1)
    ),
    "R, G, B": lambda d: Normalisation(*(v.flip(0) for v in moments(d.train.images))),
    "(1, 3)": lambda d: Normalisation(*(v.view(1, 3) for v in moments(d.train.images))),
    "mean is not": lambda d: Normalisation(three(127.5, 127.5, 127.0), three(1, 1, 1)),
    "std is not": lambda d: spread(d, lambda x, std: 1.5 * std),
    "return a Normalisation": lambda d: moments(d.train.images),
}


# --- 5: the penalty -------------------------------------------------------------------


def loss(penalty, scale=1.0, reduction="mean"):
    """Cross-entropy plus λ times the sum of `penalty(w)` over all parameters."""

    def answer(net, images, labels, weight_decay):
        total = scale * F.cross_entropy(net(images), labels, reduction=reduction)
        for name, w in net.named_parameters():
            given = (
                (w, name) if len(inspect.signature(penalty).parameters) > 1 else (w,)
            )
            total = total + weight_decay * penalty(*given)
        return total

    return answer


def square(w):
    return (w**2).sum()


def no_gradient(net, images, labels, weight_decay):
    with torch.no_grad():
        penalty = sum(square(w) for w in net.parameters())
    return F.cross_entropy(net(images), labels) + weight_decay / 2 * penalty


def whole_norm(net, images, labels, weight_decay):
    norm = torch.cat([w.flatten() for w in net.parameters()]).norm()
    return F.cross_entropy(net(images), labels) + weight_decay / 2 * norm


def shrinks(net, images, labels, weight_decay):
    with torch.no_grad():
        for w in net.parameters():
            w *= 1 - weight_decay
    return F.cross_entropy(net(images), labels)


def fixed(net, images, labels, weight_decay):
    return loss(lambda w: square(w) / 2)(net, images, labels, 0.3)


LOSSES = {
    "adds λw": loss(square),
    "halved twice": loss(lambda w: square(w) / 4),
    "the sign": loss(lambda w: -square(w) / 2),
    "no penalty is left": loss(lambda w: 0.0),
    "cuts it off": no_gradient,
    "the cross-entropy is gone": loss(lambda w: square(w) / 2, scale=0.0),
    "summed over the batch": loss(lambda w: square(w) / 2, reduction="sum"),
    "feel no penalty: SGD": loss(lambda w: square(w) / 2 * (w.ndim > 1)),
    "feel no penalty, and with twice": loss(lambda w: square(w) * (w.ndim > 1)),
    "|w|": loss(lambda w: w.abs().sum()),
    "norm ‖w‖": loss(lambda w: w.norm() / 2),
    "average the squares": loss(lambda w: (w**2).mean()),
    "0.25": loss(lambda w: square(w) / 8),
    "change": shrinks,
    "wrong for another": fixed,
    "lost its graph": lambda *a: loss(square)(*a).detach(),
    "one number": lambda n, x, y, d: F.cross_entropy(n(x), y, reduction="none"),
}


# --- 6: the report --------------------------------------------------------------------


def column(history, name):
    return [row[name] for row in history]


def test_where(history, name):
    return min(history, key=lambda row: row[name])["test_error"]


test_where.__test__ = False


def whichever_is_smaller(history):
    return min(history[-1]["test_error"], test_where(history, "validation_error"))


REPORTS = {
    "smallest of all": lambda h: min(column(h, "test_error")),
    "shorter window": lambda h: min(column(h, "test_error")[-3:]),
    "test loss": lambda h: test_where(h, "test_loss"),
    "a validation error": lambda h: min(column(h, "validation_error")),
    "training images": lambda h: test_where(h, "train_error"),
    "average": lambda h: sum(column(h, "test_error")) / len(h),
    "first row": lambda h: h[0]["test_error"],
    "largest": lambda h: max(column(h, "test_error")),
    "accuracy": lambda h: 1 - h[-1]["test_error"],
    "per cent": lambda h: 100 * h[-1]["test_error"],
    "neither": lambda h: h[-2]["test_error"] + 1e-4,
    "got dict": lambda h: h[-1],
    "changes from run to run": whichever_is_smaller,
}


# --- the tests ------------------------------------------------------------------------


TABLES = [
    (checks.check_repaired_net, NETS),
    (checks.check_repaired_stem, STEMS),
    (checks.check_repaired_rates, RATES),
    (checks.check_repaired_normalisation, NORMALISATIONS),
    (checks.check_repaired_loss, LOSSES),
    (checks.check_repaired_report, REPORTS),
]
IDS = [judge.__name__.removeprefix("check_repaired_") for judge, _ in TABLES]


@pytest.mark.parametrize(("judge", "table"), TABLES, ids=IDS)
def test_wrong_repairs_are_told_apart(told_apart, judge, table):
    told_apart(judge, table)


@pytest.mark.parametrize(
    ("judge", "answer"),
    [
        (checks.check_repaired_net, lambda w, d: net(right_place, w, d)),
        (checks.check_repaired_net, lambda w, d: ResNet(w, [d] * len(w), "B")),
        (checks.check_repaired_stem, stem(right_stem)),
        (checks.check_repaired_stem, ResNet),
        (checks.check_repaired_rates, rates),
        (
            checks.check_repaired_normalisation,
            lambda d: Normalisation.of(d.train.images),
        ),
        (
            checks.check_repaired_normalisation,
            lambda d: Normalisation(*moments(d.train.images)),
        ),
        (checks.check_repaired_loss, loss(lambda w: square(w) / 2)),
        (checks.check_repaired_report, lambda h: h[-1]["test_error"]),
        (checks.check_repaired_report, lambda h: test_where(h, "validation_error")),
    ],
)
def test_right_repairs_pass(says, judge, answer):
    verdict, line = says(judge, answer)
    assert verdict and line.startswith("✓ ")
