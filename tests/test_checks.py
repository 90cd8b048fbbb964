"""The judges. The answers to their exercises stand in answers.py, a table for each.

A table maps words of the line that a judge prints to the answer that earns it, or to a
list of such. The right answers come first, under a pattern that begins with ✓. Every
wrong answer has a message of its own, whatever form it comes in, and nothing leaks.
"""

import re

import answers
import checks
import numpy as np
import pytest
import torch
from checks import base
from torch import Tensor, nn

TABLES = {
    name: table for name, table in vars(answers).items() if name.startswith("check_")
}
CHECKS = {name: getattr(checks, name) for name in TABLES}
NOISE = torch.randn(256, 12, generator=torch.Generator().manual_seed(0))
CHECKS["check_identity_start"] = lambda start: checks.check_identity_start(
    start, NOISE, torch.arange(256) % 10
)
SLOW = ("identity_start", "clipped_shares", "silent_start", "training", "temperature")
# Answers that are numbers; the others are networks, sentences, recipes.
NUMBERS = ("check_identity_weights", "check_stack_jacobian", "check_parameter_count")
NUMBERS += ("check_receptive_field", "check_branch_ratio", "check_average")
NUMBERS += ("check_activation",)


def pairs(table):
    return [
        (words, answer)
        for words, answers in table.items()
        for answer in (answers if isinstance(answers, list) else [answers])
    ]


@pytest.fixture
def says(capsys):
    """Run a check; returns its one line, whose mark is its verdict."""

    def run(check, *answer) -> str:
        verdict = check(*answer)
        line = capsys.readouterr().out
        assert line.count("\n") == 1, f"a check prints one line, not {line!r}"
        assert verdict is line.startswith("✓ ")
        return line.strip()

    return run


@pytest.mark.parametrize("name", TABLES)
def test_answers_are_told_apart(says, monkeypatch, name):
    monkeypatch.setattr(checks.notebook_01, "UPDATES", 45)
    monkeypatch.setattr(torch, "manual_seed", None)  # it would seed a GPU, too
    hints = {}
    for words, answer in pairs(TABLES[name]):
        line = says(CHECKS[name], answer)
        if words.startswith("✓"):
            assert re.match(words, line), line
        else:
            assert line.startswith("✗ Not yet: ") and words in line, (words, line)
            assert line.endswith((".", "?"))
            hints[words] = line
    assert len(set(hints.values())) == len(TABLES[name]) - 1


def test_every_check_has_a_table():
    assert set(TABLES) == set(checks.__all__) - {"examine"}


def dressed(answer, coat):
    """The same numbers in another form; what is no number stays as it is."""
    if isinstance(answer, list | tuple):
        return [dressed(part, coat) for part in answer]
    if isinstance(answer, Tensor):
        return coat(answer.detach()) if answer.is_floating_point() else answer
    return coat(torch.tensor(answer)) if type(answer) in (int, float) else answer


FORMS = (Tensor.double, lambda tensor: tensor.numpy()[()], Tensor.tolist)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_say_the_same_in_every_form(says, name, form):
    for words, answer in pairs(TABLES[name]):
        # A list for a tensor may be wrong in itself.
        needs_form = form == FORMS[2] or words in ("carries a gradient", "you return [")
        if needs_form and not words.startswith("✓"):
            continue
        line = says(CHECKS[name], lambda *g, f=answer: dressed(f(*g), form))
        assert words in line, line


@pytest.mark.parametrize("name", [name for name in TABLES if not name.endswith(SLOW)])
def test_what_surrounds_the_reader_does_not_matter(says, name):
    """Defaults, the device, random numbers; an exercise that is not yet solved."""
    (_, right), *_ = pairs(TABLES[name])
    before = torch.get_rng_state()
    praise = says(CHECKS[name], right)
    assert praise.startswith("✓")
    try:
        torch.set_default_dtype(torch.float64)
        assert says(CHECKS[name], right).startswith("✓")
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"), torch.no_grad():
        assert says(CHECKS[name], right) == praise
    assert torch.equal(torch.get_rng_state(), before)

    class Unsolved(nn.Module):
        def __init__(self, *_):
            raise NotImplementedError

    line = says(CHECKS[name], Unsolved)
    assert line.startswith("○ Not yet: replace `raise NotImpl")


def test_a_judge_draws_the_same_numbers_each_time(says):
    drawing = base.check(lambda answer: f"{torch.rand(()).item()}")
    drawn = says(drawing, int)
    torch.rand(1)
    assert says(drawing, int) == drawn


def test_an_error_says_whose_it_is(says):
    class Misspelt(nn.Module):
        def foward(self, x):
            return x

    class NoInput(answers.Block):
        def forward(self):
            return 1

    def in_double(net):
        nn.init.zeros_(net.layer1[0].bn2.double().weight)

    code = compile("def judge(answer): answer(); return 1 / 0", base.__file__, "exec")
    exec(code, ours := {})
    faulty, called = map(base.check, (ours["judge"], lambda a: a()(torch.ones(2))))
    jacobian, activation = checks.check_stack_jacobian, checks.check_activation
    mine, method = "Your code stopped with ", "Not yet: your class has no method forw"
    for check, answer, told in (
        (jacobian, lambda js: js[0] @ torch.ones(7), mine + "RuntimeError: "),
        # without a line of mine:
        (activation, sum, mine + "TypeError: "),
        (activation, nn.Identity(), mine + "TypeError: "),
        (called, Misspelt, method),
        (called, lambda: nn.Sequential(nn.Identity(), Misspelt()), method),
        # their signature, and what a library says of what they built:
        (checks.check_average, lambda gradients: gradients, mine + "TypeError: "),
        (checks.check_basic_block, NoInput, mine + "TypeError: "),
        (checks.check_silent_start, in_double, mine + "RuntimeError: "),
        # PyTorch's own error of that name:
        (called, lambda: lambda x: x.to_sparse() == x, mine + "NotImplementedError: "),
        (faulty, lambda: 1, "The check of your answer stopped with ZeroDivision"),
    ):
        assert says(check, answer).startswith(f"✗ {told}")


def test_what_is_no_function_is_told_so(says):
    """Nothing, too much, and what the function returns in place of the function."""
    call = "checks.check_diagnosis(diagnose)"
    for answer in ((), (len, len)):
        line = says(checks.check_diagnosis, *answer)
        assert line == f"✗ Not yet: the check is called as {call}."
    for answer, kind in (("neither", "str"), ([1.0], "list"), (None, "NoneType")):
        line = says(checks.check_diagnosis, answer)
        assert f"as in {call}" in line and line.endswith(f"this is of type {kind}.")


def test_what_is_no_number_is_told_so(says):
    """With braces repeated as they are, and a long answer not repeated whole."""
    braces = ["{}", "{mean}", "a{0}b", {"a": 1}, "}{"]
    others = [[], "warm", {"T": 2.0}, torch.ones(3), None]
    others += [torch.arange(3).to_sparse().to(torch.uint16)]  # which none can read
    for check, given, words in (
        (checks.check_parameter_count, braces, "wanted."),
        (checks.check_receptive_field, braces, "wanted."),
        (checks.check_temperature, others, "one number, not "),
        (checks.check_gradient_ratio, others, "one number, not "),
        (checks.check_parameter_count, [torch.zeros(9, 9, 9)], ""),
        (checks.check_diagnosis, [np.array(["neither", "overfitting"])], "return one "),
    ):
        for answer in given:
            line = says(check, lambda *given, f=answer: f)
            assert line.startswith("✗ Not yet: ") and len(line) <= 600
            assert words in line and (given is not braces or line.endswith(words))
