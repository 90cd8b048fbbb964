"""Answers to the exercises of 01 and A1: every wrong one has a message of its own."""

import copy
import functools

import checks
import torch
from torch import nn

# --- the identity ---------------------------------------------------------------------


def halves(*signs, turn=0):
    """Blocks (a, b, c, d) of ±I: first = [aI; bI], second = [cI, dI]."""

    def make(width):
        a, b, c, d = (sign * torch.eye(width) for sign in signs)
        return torch.cat([a, b]), torch.cat([c, d], dim=1).roll(turn, 0)

    return make


right_identity = halves(1, -1, 1, -1)


def fitted(width):
    """Least squares with random first weights: close, not equal."""
    first = torch.randn(2 * width, width)
    v = torch.randn(width, 200)
    return first, torch.linalg.lstsq((first @ v).relu().T, v.T).solution.T


def with_second(change):
    return lambda w: (right_identity(w)[0], change(right_identity(w)[1]))


IDENTITIES = {
    "return two matrices": [lambda w: right_identity(w)[0], lambda w: None],
    "first matrix should have the shape (6, 3), not (3, 3)": lambda w: (
        [torch.eye(w)] * 2
    ),
    "second matrix should have the shape (3, 6), not (6, 3)": with_second(torch.t),
    "not NoneType": with_second(lambda second: None),
    "not torch.bool": with_second(torch.Tensor.bool),
    "negative ones are lost": halves(1, 0, 1, 0),
    "the output is |v|": halves(1, -1, 1, 1),
    "the output is −v": halves(1, -1, -1, 1),
    "the output is −|v|": halves(1, -1, -1, -1),
    "zero whatever v is": halves(1, 1, 1, -1),
    "the output is 2v": halves(1, -1, 2, -2),
    "their order is not": halves(1, -1, 1, -1, turn=1),
    "for v = (": fitted,
}


# --- A1: many layers backward ---------------------------------------------------------


def product(factors):
    return functools.reduce(lambda done, factor: factor @ done, factors)


def eye(jacobians):
    return torch.eye(len(jacobians[0]))


def factors(jacobians):
    return [eye(jacobians) + j for j in jacobians]


def jacobian(jacobians):
    return product(factors(jacobians))


def in_place(jacobians):
    for j in jacobians:
        j += torch.eye(len(j))
    return product(jacobians)


def pops(jacobians):
    total = eye(jacobians)
    while jacobians:
        total = total + jacobians.pop(0) @ total
    return total


def casts(jacobians):
    jacobians[:] = [j.double() for j in jacobians]
    return product([torch.eye(len(j)) + j for j in jacobians])


JACOBIANS = {
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
    "changes the Jacobians": [in_place, pops, casts],
    "should be one matrix (3, 3), not None": lambda js: None,
    "should be one matrix (3, 3), not (2, 3, 3)": torch.stack,
    "for 2 layers the numbers are wrong": lambda js: 3 * jacobian(js),
    "for 1 layer the numbers": lambda js: jacobian(js) * (1 + (len(js) == 1)),
}


# --- growing a net --------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return self.branch(x) + x


class Detached(Residual):
    def forward(self, x):
        return self.branch(x).detach() + x


def layer(width, *rest):
    return nn.Sequential(
        nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), *rest
    )


def zeroed(width, bias=True, everything=False, wrap=Residual):
    branch = layer(width)
    for name, parameter in branch.named_parameters():
        if everything or name == "2.weight" or (bias and name == "2.bias"):
            nn.init.zeros_(parameter)
    return wrap(branch)


def last_gamma(width):
    """Another BN with γ = 0 keeps the function too, but is not what was asked."""
    last = nn.BatchNorm1d(width)
    nn.init.zeros_(last.weight)
    return Residual(layer(width, last))


def deepened(net, width, extra, make=zeroed):
    return nn.Sequential(*copy.deepcopy(net), *(make(width) for _ in range(extra)))


def by(make):
    return functools.partial(deepened, make=make)


def lengthened(net, width, extra):
    for _ in range(extra):
        net.append(zeroed(width))
    return net


def fresh(net, width, extra):
    return deepened([Residual(layer(width)) for _ in net], width, extra)


def zeroes_the_original(net, width, extra):
    deep = deepened(net, width, extra)
    nn.init.zeros_(net[0].branch[-1].weight)
    return deep


def parameters_only(net, width, extra):
    deep = fresh(net, width, extra)
    nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(net.parameters()), deep[: len(net)].parameters()
    )
    return deep


def in_front(net, width, extra):
    return nn.Sequential(*deepened(net, width, extra)[-extra:], *copy.deepcopy(net))


DEEPER = {
    "lengthens `net` itself": [
        lengthened,
        lambda *given: copy.deepcopy(lengthened(*given)),
    ],
    "shares parameters with `net`": lambda n, w, e: nn.Sequential(
        *n, *deepened(n, w, e)[-e:]
    ),
    "stand in front": in_front,
    "one and the same object": lambda n, w, e: nn.Sequential(
        *copy.deepcopy(n), *[zeroed(w)] * e
    ),
    "do not keep their weights": fresh,
    "`net` itself have changed": zeroes_the_original,
    "running statistics": parameters_only,
    "are frozen": lambda *given: deepened(*given).requires_grad_(False),
    "detach or no_grad": by(functools.partial(zeroed, wrap=Detached)),
    "branch is not zero at the start": by(lambda w: Residual(layer(w))),
    "has a bias too": by(functools.partial(zeroed, bias=False)),
    "gets no gradient": [
        by(functools.partial(zeroed, everything=True)),
        by(last_gamma),
    ],
    "nothing adds the input back": by(functools.partial(zeroed, wrap=nn.Sequential)),
    "no linear map": by(lambda w: nn.Identity()),
    "make 7, and yours has 8": lambda n, w, e: deepened(n, w, e + 1),
    "not list": lambda *given: list(deepened(*given)),
    "not those of `net`": lambda n, w, e: deepened([layer(w) for _ in n], w, e),
    "to (32, 1)": by(lambda w: nn.Linear(w, 1)),
}


RIGHT_IDENTITIES = [right_identity, lambda w: list(halves(-2, 2, -0.5, 0.5)(w))]
EXERCISES = [
    (checks.check_identity_weights, IDENTITIES, RIGHT_IDENTITIES),
    (checks.check_stack_jacobian, JACOBIANS, [jacobian]),
    (checks.check_deepened, DEEPER, [deepened]),
]
