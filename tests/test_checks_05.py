"""Wrong answers to notebook 05's exercises, each caught with a message of its own."""

import statistics

import checks
import pytest
import torch


def diagnosis(shallow, deep, worse="train", then="test"):
    if deep[worse] > shallow[worse]:
        return "degradation"
    return "overfitting" if deep[then] > shallow[then] else "neither"


def by_gap(shallow, deep):
    if deep["train"] > shallow["train"]:
        gap = deep["test"] - deep["train"]
        return "overfitting" if gap > 0.9 else "degradation"
    return diagnosis(shallow, deep)


def both(shallow, deep):
    if all(deep[part] > shallow[part] for part in deep):
        return "degradation"
    return "overfitting" if deep["test"] > shallow["test"] else "neither"


def mostly(shallow, deep):
    answer = diagnosis(shallow, deep)
    return "neither" if deep["train"] == 10.0 else answer


def at_least(shallow, deep):
    if deep["train"] >= shallow["train"]:
        return "degradation"
    return diagnosis(shallow, deep)


def wider(shallow, deep):
    gaps = [errors["test"] - errors["train"] for errors in (shallow, deep)]
    if deep["train"] < shallow["train"] and gaps[1] > 2 * gaps[0]:
        return "overfitting"
    return diagnosis(shallow, deep)


DIAGNOSES = {
    "return one of": lambda s, d: deep_is_worse(s, d),
    "by heart": lambda s, d: diagnosis(s, d, worse="test"),
    "not learning by heart": lambda s, d: (
        "overfitting" if d["test"] > s["test"] else "neither"
    ),
    "simply better": lambda s, d: (
        "degradation" if d["train"] > s["train"] else "overfitting"
    ),
    "whatever the test error does": both,
    "not the test error with": mostly,
    "two equal nets": at_least,
    "gap is wider": wider,
    "another one built in": lambda s, d: diagnosis({"train": 9.0, "test": 12.0}, d),
}


def deep_is_worse(shallow, deep):
    return deep["train"] > shallow["train"]


def summary(errors, centre=statistics.mean, spread=statistics.stdev):
    if len(errors) == 1:
        return centre(errors), float("nan"), 1
    return centre(errors), spread(errors), len(errors)


SUMMARIES = {
    "three numbers": statistics.mean,
    "n is 3": lambda e: (*summary(e)[:2], len(e) - 1),
    "best run": lambda e: summary(e, centre=min),
    "median": lambda e: summary(e, centre=statistics.median),
    "mean of": lambda e: summary(e, centre=sum),
    "variance": lambda e: summary(e, spread=statistics.variance),
    "n − 1": lambda e: summary(e, spread=statistics.pstdev),
    "standard error": lambda e: summary(
        e, spread=lambda v: statistics.stdev(v) / len(v) ** 0.5
    ),
    "range": lambda e: summary(e, spread=lambda v: max(v) - min(v)),
    "standard deviation of": lambda e: summary(e, spread=lambda v: 0.1),
    "ZeroDivisionError": lambda e: (
        statistics.mean(e),
        (statistics.pvariance(e) * len(e) / (len(e) - 1)) ** 0.5,
        len(e),
    ),
    "not 0.0": lambda e: (
        statistics.mean(e),
        statistics.stdev(e) if len(e) > 1 else 0.0,
        len(e),
    ),
}


@torch.no_grad()
def transparent(bn, gamma=None, beta=1.0):
    bn.weight.copy_((bn.running_var + bn.eps).sqrt() if gamma is None else gamma(bn))
    bn.bias.copy_(beta * bn.running_mean)


def resetting(bn):
    bn.reset_running_stats()
    transparent(bn)


TRANSPARENT = {
    "evaluation mode": lambda bn: (transparent(bn), bn.train()),
    "running statistics": resetting,
    "still 1": lambda bn: transparent(bn, lambda bn: torch.ones(3)),
    "with its ε": lambda bn: transparent(bn, lambda bn: bn.running_var.sqrt()),
    "square root": lambda bn: transparent(bn, lambda bn: bn.running_var + bn.eps),
    "divides once more": lambda bn: transparent(
        bn, lambda bn: (bn.running_var + bn.eps).rsqrt()
    ),
    "γ is off": lambda bn: transparent(bn, lambda bn: 3 + bn.running_var),
    "wrong sign": lambda bn: transparent(bn, beta=-1),
    "β is off": lambda bn: transparent(bn, beta=0),
}


@pytest.mark.parametrize(
    ("check", "wrong", "right"),
    [
        (checks.check_diagnosis, DIAGNOSES, diagnosis),
        (checks.check_seed_summary, SUMMARIES, summary),
        (checks.check_transparent, TRANSPARENT, transparent),
    ],
)
def test_wrong_answers_are_told_apart(says, told_apart, check, wrong, right):
    told_apart(check, wrong)
    verdict, line = says(check, right)
    assert verdict and line.startswith("✓")


def test_a_correct_answer_in_other_words(says):
    def by_sign(shallow, deep):
        signs = (deep["train"] > shallow["train"], deep["test"] > shallow["test"])
        return {(False, False): "neither", (False, True): "overfitting"}.get(
            signs, "degradation"
        )

    assert says(checks.check_diagnosis, by_sign)[0]
    assert says(checks.check_seed_summary, lambda e: list(summary(e)))[0]
