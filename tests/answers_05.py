"""Answers to notebook 05's exercises: every wrong one has a message of its own."""

import checks
import numpy as np
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
    (checks.check_transparent, TRANSPARENT, [transparent, in_double]),
]
