"""Answers to the exercises of 01 and A1, as test_checks.py describes them."""

import copy
import functools

import torch
from answers import always, but, solutions
from torch import nn

solved = solutions("01")
identity, deepened, start = solved.my_identity, solved.my_deepened, solved.my_start
jacobian = solutions("A1").my_stack_jacobian


def halves(*signs, turn=0):
    """Blocks (a, b, c, d) of ±I: first = [aI; bI], second = [cI, dI]."""

    def make(width):
        a, b, c, d = (sign * torch.eye(width) for sign in signs)
        return torch.cat([a, b]), torch.cat([c, d], dim=1).roll(turn, 0)

    return make


def with_second(change):
    return lambda width: (identity(width)[0], change(identity(width)[1]))


check_identity_weights = {
    "✓": [identity, lambda width: list(halves(-2, 2, -0.5, 0.5)(width))],
    "return two matrices": [always(None), lambda width: [torch.eye(width)]],
    "should have the shape (6, 3), not (3, 3)": lambda width: 2 * [torch.eye(width)],
    "should have the shape (3, 6), not (6, 3)": with_second(torch.t),
    "not NoneType": with_second(always(None)),
    "not torch.bool": with_second(torch.Tensor.bool),
    "negative ones are lost": halves(1, 0, 1, 0),
    "the output is |v|": halves(1, -1, 1, 1),
    "the output is −v": halves(1, -1, -1, 1),
    "the output is −|v|": halves(1, -1, -1, -1),
    "zero whatever v is": halves(1, 1, 1, -1),
    "the output is 2v": halves(1, -1, 2, -2),
    "their order is not": halves(1, -1, 1, -1, turn=1),
    "for v = (": halves(1, -1, 1.001, -1.001),
}


def product(factors):
    return functools.reduce(lambda done, factor: factor @ done, factors)


def eye(jacobians):
    return torch.eye(len(jacobians[0]))


def factors(jacobians):
    return [eye(jacobians) + j for j in jacobians]


check_stack_jacobian = {
    "✓": jacobian,
    "where is the identity": product,
    "add 1 to every entry": lambda js: product([1 + j for j in js]),
    "order is reversed": lambda js: product(factors(js)[::-1]),
    "ways through a single branch": lambda js: eye(js) + sum(js),
    "added once, around the whole stack": lambda js: eye(js) + product(js),
    "the chain rule multiplies": lambda js: sum(factors(js)),
    "entry by entry": lambda js: functools.reduce(torch.mul, factors(js)),
    "transposed": lambda js: jacobian(js).T,
    "the first layer is left out": lambda js: product([eye(js), *factors(js)[1:]]),
    "the last layer is left out": lambda js: product([*factors(js)[:-1], eye(js)]),
    "one identity too many": lambda js: eye(js) + jacobian(js),
    "changes the Jacobians": [
        but(jacobian, lambda js: js[-1].add_(eye(js))),
        but(jacobian, list.pop),
        but(jacobian, lambda js: js.append(js.pop().double())),
    ],
    "should be one matrix (3, 3), not None": always(None),
    "should be one matrix (3, 3), not (2, 3, 3)": torch.stack,
    "for 2 layers the numbers are wrong": lambda js: 3 * jacobian(js),
    "for 1 layer the numbers": lambda js: jacobian(js) * (1 + (len(js) == 1)),
}


class Detached(solved.Residual):
    def forward(self, x):
        return self.branch(x).detach() + x


def zeroed(module, *names):
    for name in names:
        nn.init.zeros_(module.get_parameter(name))
    return module


def layer(width, *silent, wrap=solved.Residual):
    return wrap(zeroed(solved.layer(width, width), *silent))


def quiet(width, *more, **other):
    return layer(width, "2.weight", "2.bias", *more, **other)


def grown(old, make):
    """Old layers by `old(net, width)`, then new ones as `make(width)` builds them."""
    return lambda net, width, extra: nn.Sequential(
        *old(net, width), *(make(width) for _ in range(extra))
    )


def by(make):
    return grown(lambda net, _: copy.deepcopy(net), make)


def new_statistics(net, _):
    net = copy.deepcopy(net)
    net[0].branch[0].reset_running_stats()
    return net


check_deepened = {
    "✓": deepened,
    "lengthens `net` itself": [
        lambda net, *_: net,
        lambda net, *_: copy.deepcopy(net.append(nn.Identity())),
    ],
    "shares parameters with `net`": grown(lambda net, _: net, quiet),
    "stand in front": lambda net, width, extra: nn.Sequential(
        *(quiet(width) for _ in range(extra)), *copy.deepcopy(net)
    ),
    "one and the same object": lambda net, width, extra: nn.Sequential(
        *copy.deepcopy(net), *extra * [quiet(width)]
    ),
    "do not keep their weights": grown(lambda n, w: [layer(w) for _ in n], quiet),
    "`net` itself have changed": but(deepened, lambda n: zeroed(n, "0.branch.2.bias")),
    "running statistics": grown(new_statistics, quiet),
    "are frozen": lambda *given: deepened(*given).requires_grad_(False),
    "detach or no_grad": by(lambda w: quiet(w, wrap=Detached)),
    "branch is not zero at the start": by(layer),
    "has a bias too": by(lambda w: layer(w, "2.weight")),
    "gets no gradient": by(lambda w: quiet(w, "0.weight", "0.bias")),
    "nothing adds the input back": by(lambda w: quiet(w, wrap=nn.Sequential)),
    "no linear map": by(lambda w: nn.Identity()),
    "make 7, and yours has 8": lambda n, w, e: deepened(n, w, e + 1),
    "not list": lambda *given: list(deepened(*given)),
    "not those of `net`": grown(
        lambda n, w: [layer(w, wrap=nn.Sequential) for _ in n], quiet
    ),
    "to (32, 1)": by(lambda w: nn.Linear(w, 1)),
}

check_identity_start = {
    r"✓ .* \d+ % from .* \d+ % from yours.*residual.* \d+ %": start,
    "changes nothing": always(None),
    "other layers": but(start, lambda net: net.append(nn.Identity())),
    "the same to every image": but(start, lambda net: zeroed(net, "1.2.weight")),
    "negative numbers": but(start, lambda net: zeroed(net, "1.0.bias", "1.2.bias")),
    "does not pass on": but(
        start, lambda net: net[1][2].weight.data.copy_(torch.eye(64).roll(1, 0))
    ),
    "layer 30": but(start, lambda net: nn.init.normal_(net[30][2].weight)),
}
