"""Checks of notebook 01, adding the input back."""

import copy
import functools
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from checks.base import Hint, check, compare, near, tell, values


@check
def check_identity_weights(make: Callable[[int], tuple[Tensor, Tensor]]) -> str:
    """Judge two matrices with `second @ (first @ v).relu() == v` for every v."""
    for width in (3, 5):
        answer = make(width)
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            raise Hint("return two matrices: `return first, second`.")
        shapes = {"first": (2 * width, width), "second": (width, 2 * width)}
        first, second = (
            values(
                matrix,
                f"for width {width} the {name} matrix should have the shape {shape}, "
                "not {}.",
                shape,
            )
            for matrix, (name, shape) in zip(answer, shapes.items(), strict=True)
        )
        _look_at_identity(first, second, width)
    return "The identity, for any sign and any size: v = relu(v) − relu(−v)."


def _look_at_identity(first: Tensor, second: Tensor, width: int) -> None:
    v = torch.randn(width, 64, dtype=torch.double)  # 64 vectors
    out = second @ (first @ v).relu()
    ordered = near(out.sort(0).values, v.sort(0).values, atol=1e-4)
    compare(
        out,
        v,
        {
            "the output is zero whatever v is.": 0 * v,
            "positive numbers pass and negative ones are lost: let half of the hidden "
            "units see −v.": v.relu(),
            "the output is |v|: what the units for −v found must be "
            "subtracted.": v.abs(),
            "the output is −v: swap the signs in the second matrix.": -v,
            "the output is −|v|: subtract only one of the two halves.": -v.abs(),
            "the output is 2v.": 2 * v,
        },
        "the numbers are right and their order is not."
        if ordered
        else f"for v = {_numbers(v[:, 0])} the output is {_numbers(out[:, 0])}. Start "
        "from width 1: which two hidden units does one number need?",
        functools.partial(near, atol=1e-4),
    )


def _numbers(values: Tensor) -> str:
    return "(" + ", ".join(f"{value:.2g}" for value in values.tolist()) + ")"


@check
def check_deepened(deepen: Callable[[nn.Sequential, int, int], nn.Sequential]) -> str:
    """Judge a function (net, width, extra) that adds layers and keeps the function."""
    width, extra = 6, 3
    net = nn.Sequential(*(_ResidualLayer(width) for _ in range(4)))
    x = torch.randn(32, width)
    net(3 * x + 1)  # BN's running statistics are now worth keeping
    before = copy.deepcopy(net)
    deep = deepen(net, width, extra)
    if len(net) != len(before) or deep is net:
        raise Hint("your function lengthens `net` itself: copy it first.")
    _look_at_deep_layers(deep, net, before, extra)
    _look_at_deep_outputs(deep, before, x)
    _look_at_deep_gradients(deep, x, len(before))
    return (
        f"{len(deep)} layers compute exactly what {len(before)} did, and every new "
        "one can learn."
    )


class _ResidualLayer(nn.Module):
    """A layer like notebook 01's, with the same names inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + x


def _same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[key], theirs[key]) for key in mine
    )


def _places(layers: Iterable[nn.Module]) -> set[int]:
    """Where in memory their parameters lie."""
    parameters = (p for layer in layers for p in layer.parameters())
    return {parameter.untyped_storage().data_ptr() for parameter in parameters}


def _look_at_deep_layers(deep, net, before, extra: int) -> None:
    if not isinstance(deep, nn.Sequential):
        raise Hint(f"return an nn.Sequential, not {type(deep).__name__}.")
    old, wanted = len(before), len(before) + extra
    new = list(deep)[old:]
    theirs, grown = _places([net]), _places(new)
    if len(deep) != wanted:
        raise Hint(
            f"{old} layers and extra = {extra} make {wanted}, and yours has "
            f"{len(deep)}."
        )
    if not _same(net, before):
        raise Hint(
            "`net` itself has changed, its weights or BN's statistics: leave it as it "
            "is, and do not run it."
        )
    if not all(module.training for each in (net, deep) for module in each.modules()):
        raise Hint("`net` is in training mode: leave it so, and the deep net as well.")
    if len(grown) < sum(len([*layer.parameters()]) for layer in new):
        raise Hint(
            "the new layers are one and the same object, or share their weights: build "
            "each of them."
        )
    if _places([deep]) & theirs:
        raise Hint(
            "the deep net shares parameters with `net`, so training one changes the "
            "other: copy.deepcopy."
        )
    if _same(nn.Sequential(*list(deep)[extra:]), before):
        raise Hint("the new layers stand in front: put them after the old ones.")
    for layer, kept in zip(before, deep, strict=False):
        names = [dict(one.named_parameters()).keys() for one in (layer, kept)]
        tell(
            {
                "the first layers are not those of `net`: copy them.": (
                    names[0] != names[1]
                ),
                "the old layers do not keep their weights, or not their places: zero "
                "only new ones, and put these after the old ones.": (
                    not all(map(torch.equal, layer.parameters(), kept.parameters()))
                ),
                "BN's running statistics in the old layers are not those of `net`: "
                "copy the buffers as well, as copy.deepcopy does, and do not run the "
                "copy in training mode.": not _same(layer, kept),
            }
        )

    def all_have(kind: type[nn.Module]) -> bool:
        return all(any(isinstance(m, kind) for m in layer.modules()) for layer in new)

    if not all_have(nn.Linear):
        raise Hint(
            "a new layer has no linear map, so it can never learn: use "
            "Residual(layer(…))."
        )
    for part, kept in {
        "have a BN": all_have(nn.BatchNorm1d),
        "have a ReLU": all(map(_bends, new)),
    }.items():
        if not kept:
            raise Hint(
                f"a new layer is of another kind than those of `net`, which {part}: "
                "use Residual(layer(…))."
            )


@torch.no_grad()
def _bends(layer: nn.Module) -> bool:
    """Whether it is more than a linear map, once its numbers are random."""
    layer = copy.deepcopy(layer).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(32, next(layer.parameters()).shape[-1])
    return not near(layer(x) + layer(-x), 2 * layer(0 * x), 1e-3, 1e-3)


def _look_at_deep_outputs(deep, before, x: Tensor) -> None:
    old = len(before)
    for training in (True, False):
        h = copy.deepcopy(before).train(training)(x)
        for layer in list(copy.deepcopy(deep).train(training))[old:]:
            out = layer(given := h.clone())
            if given._version:
                raise Hint("a new layer changes its input: look for += and inplace.")
            if out.shape != h.shape:
                raise Hint(f"a new layer maps {tuple(h.shape)} to {tuple(out.shape)}.")
            change = out - h
            slight = 1e-3 * change.abs().max().item()
            tell(
                {
                    "a new layer answers 0 to every input: its branch is zero and "
                    "nothing adds the input back.": not out.any(),
                    "a new layer adds the same numbers to every input: its linear map "
                    "has a bias too.": change.any()
                    and near(change, change[:1].expand_as(change), atol=slight),
                    "a new layer changes what it is given: its branch is not zero at "
                    "the start.": change.any(),
                }
            )


def _look_at_deep_gradients(deep, x: Tensor, old: int) -> None:
    deep = copy.deepcopy(deep).train()
    if not all(parameter.requires_grad for parameter in deep.parameters()):
        raise Hint("some parameters are frozen: leave requires_grad on.")
    deep(x).square().sum().backward()
    for layer in list(deep)[old:]:
        linear = [m for m in layer.modules() if isinstance(m, nn.Linear)][-1]
        gradient = linear.weight.grad
        if gradient is None:
            raise Hint(
                "no gradient reaches the new weights: is there a detach or no_grad?"
            )
        if not gradient.any():
            raise Hint(
                "the new linear map gets no gradient: what feeds or scales it is zero, "
                "too. Zero only the last step of the branch."
            )


UPDATES = 200


@check
def check_identity_start(
    start: Callable[[nn.Module], None], x: Tensor, y: Tensor
) -> str:
    """Judge a start of a plain net at the identity, and train it beside a random one.

    `start` changes the numbers of a plain net of 32 layers in place. `x` (N, C) and `y`
    (N,) are what both nets then learn, and a residual net with the random weights too.
    """
    net = _plain_net(x.shape[1], int(y.max()) + 1)
    random = copy.deepcopy(net)
    start(net)
    _look_at_start(net, random, x)
    residual = copy.deepcopy(random)
    for i, branch in enumerate(residual[1:-1], start=1):
        residual[i] = _ResidualLayer(64)
        residual[i].branch = branch
    nets = (random, net, residual)
    errors = [100 * _trained_error(model, x, y) for model in nets]
    return (
        f"Training error of 32 plain layers: {errors[0]:.0f} % from the random start, "
        f"{errors[1]:.0f} % from yours. With 32 residual layers: {errors[2]:.0f} %."
    )


def _plain_net(inputs: int, outputs: int) -> nn.Sequential:
    def layer(width: int, to: int) -> nn.Sequential:
        return nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, to))

    hidden = [layer(64, 64) for _ in range(30)]
    return nn.Sequential(nn.Linear(inputs, 64), *hidden, layer(64, outputs))


@torch.no_grad()
def _look_at_start(net: nn.Sequential, before: nn.Sequential, x: Tensor) -> None:
    if all(map(torch.equal, net.parameters(), before.parameters())):
        raise Hint(
            "your function changes nothing: write into the net that it is given."
        )
    if str(net) != str(before):
        raise Hint("the net has other layers than before: change its numbers only.")
    if not (_same(net[0], before[0]) and _same(net[-1], before[-1])):
        raise Hint("the first or the last layer has changed: only the 30 between them.")
    if len(_places(net)) < len(_places(before)):
        raise Hint("some layers share their numbers: write into them, with `copy_`.")
    if not all(parameter.requires_grad for parameter in net.parameters()):
        raise Hint("some parameters are frozen: leave requires_grad on.")
    h = copy.deepcopy(net[0])(x)
    for number, layer in enumerate(copy.deepcopy(net)[1:-1], start=1):
        out = layer(h)
        if not torch.isfinite(out).all() or out.std(0).min() == 0:
            raise Hint(f"layer {number} gives the same to every image, or no number.")
        # BN shifts and scales, so what counts is that every feature follows its input.
        one, other = (a - a.mean(0) for a in (h, out))
        alike = (one * other).sum(0) / (one.norm(dim=0) * other.norm(dim=0))
        if alike.min() > 0.98:  # a lift of 1 gives 0.96
            h = out
            continue
        if not layer[0].bias.abs().max() > 0.5:
            raise Hint(
                f"layer {number} loses negative numbers at its ReLU: lift them with "
                "BN's β."
            )
        raise Hint(
            f"layer {number} does not pass on what it receives: the correlation of one "
            f"feature before and after is only {alike.min():.2f}. Is the matrix the "
            "identity, and the lift large enough?"
        )


def _trained_error(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Notebook 01's training: the mean error of the last 40 batches."""
    draw, errors = torch.Generator().manual_seed(0), []
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=1e-4)
    for _ in range(UPDATES):
        batch = torch.randint(len(x), (128,), generator=draw)
        logits = net(x[batch])
        optimizer.zero_grad()
        F.cross_entropy(logits, y[batch]).backward()
        optimizer.step()
        errors.append((logits.argmax(1) != y[batch]).float().mean().item())
    return sum(errors[-40:]) / 40
