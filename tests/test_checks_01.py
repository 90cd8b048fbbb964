"""Wrong answers to notebook 01's exercises, each caught with a message of its own."""

import copy
import functools

import checks
import pytest
import torch
from torch import nn


class Residual(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return self.branch(x) + x


def layer(inputs, outputs):
    return nn.Sequential(nn.BatchNorm1d(inputs), nn.ReLU(), nn.Linear(inputs, outputs))


# --- the identity ---------------------------------------------------------------------


def two_halves(width, *signs):
    """Blocks (a, b, c, d) of ±I: first = [aI; bI], second = [cI, dI]."""
    a, b, c, d = (sign * torch.eye(width) for sign in signs)
    return torch.cat([a, b]), torch.cat([c, d], dim=1)


def permuted(width):
    first, second = two_halves(width, 1, -1, 1, -1)
    return first, second.roll(1, 0)


def fitted(width):
    """Least squares with random first weights: close, not equal."""
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(2 * width, width, generator=generator)
    v = torch.randn(width, 200, generator=generator)
    return first, torch.linalg.lstsq((first @ v).relu().T, v.T).solution.T


IDENTITIES = {
    "return two matrices": lambda w: two_halves(w, 1, -1, 1, -1)[0],
    "first matrix should have the shape (6, 3), not (3, 3)": lambda w: (
        torch.eye(w),
        torch.eye(w),
    ),
    "second matrix should have the shape (3, 6), not (6, 3)": lambda w: (
        two_halves(w, 1, -1, 1, -1)[0],
        two_halves(w, 1, -1, 1, -1)[1].T,
    ),
    "not ndarray": lambda w: (
        two_halves(w, 1, -1, 1, -1)[0].numpy(),
        two_halves(w, 1, -1, 1, -1)[1],
    ),
    "negative ones are lost": lambda w: two_halves(w, 1, 0, 1, 0),
    "the output is |v|": lambda w: two_halves(w, 1, -1, 1, 1),
    "the output is −v": lambda w: two_halves(w, 1, -1, -1, 1),
    "the output is −|v|": lambda w: two_halves(w, 1, -1, -1, -1),
    "zero whatever v is": lambda w: two_halves(w, 1, 1, 1, -1),
    "the output is 2v": lambda w: two_halves(w, 1, -1, 2, -2),
    "their order is not": permuted,
    "for v = (": fitted,
}


@pytest.mark.parametrize("message", IDENTITIES)
def test_wrong_identities(says, message):
    verdict, line = says(checks.check_identity_weights, IDENTITIES[message])
    assert not verdict and message in line, line


@pytest.mark.parametrize(
    "right",
    [
        lambda w: two_halves(w, 1, -1, 1, -1),
        lambda w: list(two_halves(w, -2, 2, -0.5, 0.5)),
        lambda w: tuple(m.double() for m in two_halves(w, 1, -1, 1, -1)),
    ],
)
def test_right_identities(says, right):
    verdict, line = says(checks.check_identity_weights, right)
    assert verdict, line


# --- many layers backward -------------------------------------------------------------


def stack_jacobian(jacobians, order=1):
    eye = torch.eye(len(jacobians[0]))
    factors = [eye + j for j in jacobians][::order]
    return functools.reduce(lambda done, factor: factor @ done, factors)


def plain(jacobians):
    return functools.reduce(lambda done, j: j @ done, jacobians)


def in_place(jacobians):
    for j in jacobians:
        j += torch.eye(len(j))
    return plain(jacobians)


def pops(jacobians):
    total = torch.eye(len(jacobians[0]))
    while jacobians:
        j = jacobians.pop(0)
        total = total + j @ total
    return total


def eye_of(jacobians):
    return torch.eye(len(jacobians[0]))


JACOBIANS = {
    "where is the identity": plain,
    "add 1 to every entry": lambda js: plain([1 + j for j in js]),
    "order is reversed": lambda js: stack_jacobian(js, -1),
    "ways through a single branch": lambda js: eye_of(js) + sum(js),
    "added once, around the whole stack": lambda js: eye_of(js) + plain(js),
    "the chain rule multiplies": lambda js: sum(eye_of(js) + j for j in js),
    "entry by entry": lambda js: functools.reduce(
        torch.mul, [eye_of(js) + j for j in js]
    ),
    "transposed": lambda js: stack_jacobian(js).T,
    "the first layer is left out": lambda js: stack_jacobian(
        [torch.zeros_like(js[0]), *js[1:]]
    ),
    "the last layer is left out": lambda js: stack_jacobian(
        [*js[:-1], torch.zeros_like(js[0])]
    ),
    "one identity too many": lambda js: eye_of(js) + stack_jacobian(js),
    "changes the Jacobians": in_place,
    "should be one matrix (3, 3), not None": lambda js: None,
    "should be one matrix (3, 3), not (2, 3, 3)": lambda js: torch.stack(js),
    "for 2 layers the numbers are wrong": lambda js: 3 * stack_jacobian(js),
}


@pytest.mark.parametrize("message", JACOBIANS)
def test_wrong_jacobians(says, message):
    verdict, line = says(checks.check_stack_jacobian, JACOBIANS[message])
    assert not verdict and message in line, line


def test_emptying_the_list_is_noticed(says):
    verdict, line = says(checks.check_stack_jacobian, pops)
    assert not verdict and "changes the Jacobians" in line


def test_right_jacobian(says):
    verdict, line = says(checks.check_stack_jacobian, stack_jacobian)
    assert verdict, line


# --- growing a net --------------------------------------------------------------------


def zeroed(width, bias=True, everything=False, residual=True):
    branch = layer(width, width)
    nn.init.zeros_(branch[-1].weight)
    if bias:
        nn.init.zeros_(branch[-1].bias)
    if everything:
        for parameter in branch.parameters():
            nn.init.zeros_(parameter)
    return Residual(branch) if residual else branch


def deepened(net, width, extra, make=zeroed):
    return nn.Sequential(*copy.deepcopy(net), *(make(width) for _ in range(extra)))


def lengthened(net, width, extra):
    for _ in range(extra):
        net.append(zeroed(width))
    return net


def lengthened_copy_returned(net, width, extra):
    return copy.deepcopy(lengthened(net, width, extra))


def shared(net, width, extra):
    return nn.Sequential(*net, *(zeroed(width) for _ in range(extra)))


def in_front(net, width, extra):
    return nn.Sequential(*(zeroed(width) for _ in range(extra)), *copy.deepcopy(net))


def one_object(net, width, extra):
    return nn.Sequential(*copy.deepcopy(net), *[zeroed(width)] * extra)


def fresh(net, width, extra):
    old = (Residual(layer(width, width)) for _ in net)
    return nn.Sequential(*old, *(zeroed(width) for _ in range(extra)))


def zeroes_the_original(net, width, extra):
    deep = deepened(net, width, extra)
    nn.init.zeros_(net[0].branch[-1].weight)
    return deep


def parameters_only(net, width, extra):
    deep = fresh(net, width, extra)
    with torch.no_grad():
        for mine, theirs in zip(deep.parameters(), net.parameters(), strict=False):
            mine.copy_(theirs)
    return deep


def frozen(net, width, extra):
    return deepened(net, width, extra).requires_grad_(False)


class Detached(Residual):
    def forward(self, x):
        return self.branch(x).detach() + x


def detached(net, width, extra):
    return deepened(net, width, extra, lambda w: Detached(zeroed(w).branch))


DEEPER = {
    "lengthens `net` itself": lengthened,
    "shares parameters with `net`": shared,
    "stand in front": in_front,
    "one and the same object": one_object,
    "do not keep their weights": fresh,
    "`net` itself have changed": zeroes_the_original,
    "running statistics": parameters_only,
    "are frozen": frozen,
    "detach or no_grad": detached,
    "branch is not zero at the start": lambda n, w, e: deepened(
        n, w, e, lambda w: Residual(layer(w, w))
    ),
    "has a bias too": lambda n, w, e: deepened(
        n, w, e, functools.partial(zeroed, bias=False)
    ),
    "gets no gradient": lambda n, w, e: deepened(
        n, w, e, functools.partial(zeroed, everything=True)
    ),
    "nothing adds the input back": lambda n, w, e: deepened(
        n, w, e, functools.partial(zeroed, residual=False)
    ),
    "no linear map": lambda n, w, e: deepened(n, w, e, lambda w: nn.Identity()),
    "make 7, and yours has 8": lambda n, w, e: deepened(n, w, e + 1),
    "not list": lambda n, w, e: list(deepened(n, w, e)),
    "not those of `net`": lambda n, w, e: nn.Sequential(
        *(layer(w, w) for _ in n), *(zeroed(w) for _ in range(e))
    ),
    "to (32, 1)": lambda n, w, e: deepened(n, w, e, lambda w: nn.Linear(w, 1)),
}


@pytest.mark.parametrize("message", DEEPER)
def test_wrong_deepening(says, message):
    verdict, line = says(checks.check_deepened, DEEPER[message])
    assert not verdict and message in line, line


def test_a_copy_of_a_lengthened_net(says):
    verdict, line = says(checks.check_deepened, lengthened_copy_returned)
    assert not verdict and "lengthens `net` itself" in line


def test_right_deepening(says):
    verdict, line = says(checks.check_deepened, deepened)
    assert verdict, line


def test_a_zeroed_gamma_leaves_the_weights_without_a_gradient(says):
    """Zeroing another BN's γ and β keeps the function, but is not what was asked."""

    def make(width):
        last = nn.BatchNorm1d(width)
        nn.init.zeros_(last.weight)
        return Residual(nn.Sequential(*layer(width, width), last))

    verdict, line = says(checks.check_deepened, lambda n, w, e: deepened(n, w, e, make))
    assert not verdict and "gets no gradient" in line


# --- all ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [
        checks.check_identity_weights,
        checks.check_stack_jacobian,
        checks.check_deepened,
    ],
)
def test_an_unsolved_exercise(says, check):
    def unsolved(*_):
        raise NotImplementedError

    verdict, line = says(check, unsolved)
    assert not verdict and line.startswith("○ Not yet")


@pytest.mark.parametrize(
    ("check", "answers"),
    [
        (checks.check_identity_weights, IDENTITIES),
        (checks.check_stack_jacobian, JACOBIANS),
        (checks.check_deepened, DEEPER),
    ],
)
def test_every_mistake_has_a_message_of_its_own(says, check, answers):
    lines = [says(check, answer)[1] for answer in answers.values()]
    assert len(set(lines)) == len(lines)
