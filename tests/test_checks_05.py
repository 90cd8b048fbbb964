"""Answers to notebook 05's exercises: every wrong one has a message of its own."""

import math
import statistics

import checks
import numpy as np
import pytest
import torch


def diagnosis(shallow, deep, worse="train", then="test"):
    if deep[worse] > shallow[worse]:
        return "degradation"
    return "overfitting" if deep[then] > shallow[then] else "neither"


def by_sign(shallow, deep):
    signs = tuple(deep[part] > shallow[part] for part in ("train", "test"))
    names = {(False, False): "neither", (False, True): "overfitting"}
    return np.str_(names.get(signs, "degradation"))


def unless(strange, answer):
    """The right diagnosis, but for some pairs of nets."""
    return lambda s, d: answer if strange(s, d) else diagnosis(s, d)


def gap(errors):
    return errors["test"] - errors["train"]


DIAGNOSES = {
    "return one of degradation, overfitting, neither, not True": lambda s, d: True,
    "by heart": lambda s, d: diagnosis(s, d, worse="test"),
    "not learning by heart": lambda s, d: (
        "overfitting" if d["test"] > s["test"] else "neither"
    ),
    "simply better": lambda s, d: (
        "degradation" if d["train"] > s["train"] else "overfitting"
    ),
    "whatever the test error does": unless(
        lambda s, d: d["train"] > s["train"] and d["test"] < s["test"], "neither"
    ),
    "not the test error with": unless(
        lambda s, d: d["train"] > s["train"] and gap(d) == 1, "overfitting"
    ),
    "two equal nets": unless(lambda s, d: d["train"] == s["train"], "degradation"),
    "gap is wider": unless(
        lambda s, d: d["train"] < s["train"] and gap(d) > 2 * gap(s), "overfitting"
    ),
    "another one built in": lambda s, d: diagnosis({"train": 9.0, "test": 12.0}, d),
}


def summary(errors, centre=statistics.mean, spread=statistics.stdev, single=math.nan):
    alone = len(errors) == 1
    return centre(errors), single if alone else spread(errors), len(errors)


def by_hand(errors):
    mean = sum(errors) / len(errors)
    squares = sum((error - mean) ** 2 for error in errors)
    return mean, math.sqrt(squares / (len(errors) - 1)), len(errors)


def in_float32(errors):
    errors = torch.tensor(errors)
    spread = errors.std() if len(errors) > 1 else torch.tensor(math.nan)
    return torch.stack([errors.mean(), spread, torch.tensor(float(len(errors)))])


def wrong_spread(spread):
    return lambda errors: summary(errors, spread=spread)


SUMMARIES = {
    "three numbers": [statistics.mean, lambda e: summary(e)[:2], lambda e: "mean"],
    "n is 3": lambda e: (*summary(e)[:2], len(e) - 1),
    "best run": lambda e: summary(e, centre=min),
    "median": lambda e: summary(e, centre=statistics.median),
    "the mean of [8.0, 9.5, 8.6, 7.9] is not 34": lambda e: summary(e, centre=sum),
    "variance": wrong_spread(statistics.variance),
    "n − 1": wrong_spread(statistics.pstdev),
    "standard error": wrong_spread(lambda e: statistics.stdev(e) / len(e) ** 0.5),
    "range": wrong_spread(lambda e: max(e) - min(e)),
    "standard deviation of [8.0, 9.5, 8.6, 7.9] is not 0.1": wrong_spread(
        lambda e: 0.1
    ),
    "ZeroDivisionError": by_hand,
    "StatisticsError": lambda e: (statistics.mean(e), statistics.stdev(e), len(e)),
    "return nan, not 0.0": lambda e: summary(e, single=0.0),
}


def transparent(bn, gamma=lambda var, eps: (var + eps).sqrt(), beta=1.0):
    with torch.no_grad():
        bn.weight.copy_(gamma(bn.running_var, bn.eps))
        bn.bias.copy_(beta * bn.running_mean)


def in_double(bn):
    """What comes of numpy: an array in float64 becomes a parameter in float64."""
    gamma = np.sqrt(bn.running_var.numpy().astype(np.float64) + bn.eps)
    bn.weight = torch.nn.Parameter(torch.from_numpy(gamma))
    bn.bias.data = bn.running_mean.double()


def wrong_gamma(gamma):
    return lambda bn: transparent(bn, gamma)


TRANSPARENT = {
    "evaluation mode": lambda bn: (transparent(bn), bn.train()),
    "running statistics": [
        lambda bn: (bn.reset_running_stats(), transparent(bn)),
        lambda bn: bn.running_mean.zero_(),
        lambda bn: bn.running_var.fill_(0.9),
    ],
    "still 1": wrong_gamma(lambda var, eps: torch.ones(3)),
    "with its ε": wrong_gamma(lambda var, eps: var.sqrt()),
    "square root": wrong_gamma(lambda var, eps: var + eps),
    "divides once more": wrong_gamma(lambda var, eps: (var + eps).rsqrt()),
    "γ is off": wrong_gamma(lambda var, eps: 3 + var),
    "wrong sign": lambda bn: transparent(bn, beta=-1),
    "β is off": [
        lambda bn: transparent(bn, beta=0),
        lambda bn: transparent(bn, beta=2),
    ],
}

EXERCISES = [
    (checks.check_diagnosis, DIAGNOSES, [diagnosis, by_sign]),
    (
        checks.check_seed_summary,
        SUMMARIES,
        [summary, in_float32, lambda e: np.array(summary(e))],
    ),
    (checks.check_transparent, TRANSPARENT, [transparent, in_double]),
]


@pytest.mark.parametrize(("check", "wrong", "right"), EXERCISES)
def test_answers_are_told_apart(told_apart, check, wrong, right):
    told_apart(check, wrong, *right)
