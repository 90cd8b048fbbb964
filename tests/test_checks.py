"""The checks of 01 to 06 and A2, whose answers stand in answers_*.py.

Every wrong answer has a message of its own. The form of an answer does not decide, and
nothing leaks.
"""

import ast
import pathlib

import answers_01
import answers_02
import answers_03
import answers_05
import answers_06
import answers_A2
import checks
import numpy as np
import pytest
import torch
from checks import base
from torch import Tensor, nn

NOTEBOOKS = (answers_01, answers_02, answers_03, answers_05, answers_06, answers_A2)
EXERCISES = [exercise for notebook in NOTEBOOKS for exercise in notebook.EXERCISES]
# Answers that are numbers; the others are networks, sentences, recipes.
NUMBERS = {
    *(checks.check_identity_weights, checks.check_stack_jacobian),
    *(checks.check_parameter_count, checks.check_receptive_field),
    *(checks.check_branch_ratio, checks.check_average, checks.check_activation),
}


def every(exercises):
    names = [exercise[0].__name__ for exercise in exercises]
    return pytest.mark.parametrize(("check", "wrong", "right"), exercises, ids=names)


every_exercise = every(EXERCISES)


@every_exercise
def test_answers_are_told_apart(told_apart, check, wrong, right):
    told_apart(check, wrong, *right)


def test_a_bottleneck_is_told_what_it_saves(says):
    for answer in answers_02.RIGHT_BOTTLENECKS:
        _, line = says(checks.check_bottleneck, answer)
        assert "70,400" in line and "1,180,672" in line


def test_the_formula_meets_the_networks():
    for depth in (8, 20, 56):
        assert answers_03.count(depth) == answers_03.built(depth)


# --- the form of an answer ------------------------------------------------------------


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def dressed(answer, coat):
    """The same numbers in another form; what is no number stays as it is."""
    if isinstance(answer, Tensor) or is_number(answer):
        return coat(answer)
    if isinstance(answer, list | tuple):
        whole = all(map(is_number, answer))
        return coat(answer) if whole else [dressed(part, coat) for part in answer]
    return answer


def float64(value):
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return np.float64(value) if is_number(value) else list(map(np.float64, value))


def numpy(value):
    is_tensor = isinstance(value, Tensor)
    return value.detach().numpy().copy() if is_tensor else np.array(value)


def torch_0d(value):
    if isinstance(value, list | tuple):
        return [torch.tensor(number, dtype=torch.float64) for number in value]
    return value if isinstance(value, Tensor) else torch.tensor(value).double()


def listed(value):
    return value.tolist() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("coat", [float64, numpy, torch_0d, listed])
@every([exercise for exercise in EXERCISES if exercise[0] in NUMBERS])
def test_numbers_say_the_same_in_every_form(says, check, wrong, right, coat):
    def in_form(answer):
        return says(check, lambda *given: dressed(answer(*given), coat))

    for answer in right:
        verdict, line = in_form(answer)
        assert verdict, line
    needs_form = ("carries a gradient", "you return [")  # a tensor, a list
    for words, answers in wrong.items():
        if coat is listed or words in needs_form:
            continue
        for answer in answers if isinstance(answers, list) else [answers]:
            verdict, line = in_form(answer)
            assert not verdict and words in line, line


@every_exercise
def test_the_readers_defaults_do_not_matter(says, check, wrong, right):
    try:
        torch.set_default_dtype(torch.float64)
        assert says(check, right[0])[0]
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert says(check, right[0])[0]


@every_exercise
def test_random_numbers_and_unsolved_exercises(says, check, wrong, right):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert says(check, right[0]) == says(check, right[0])
    assert torch.equal(torch.rand(1), expected)

    class Unsolved(nn.Module):
        def __init__(self, *_):
            raise NotImplementedError

    verdict, line = says(check, Unsolved)
    assert not verdict and line.startswith("○ Not yet: replace `raise NotImpl")


def test_a_judge_draws_the_same_numbers_each_time(says):
    drawing = base.check(lambda answer: f"{torch.rand(()).item()}")
    assert (
        len({says(drawing, int)[1] for seed in (1, 2) if torch.manual_seed(seed)}) == 1
    )


# --- errors, and what is no answer ----------------------------------------------------


def test_an_error_of_that_name_that_is_not_the_readers(hint):
    class Misspelt(nn.Module):
        def foward(self, x):
            return x

    judge = base.check(lambda answer: answer()(torch.ones(2)))
    assert "your class has no method forward." in hint(judge, Misspelt)
    line = hint(judge, lambda: lambda x: torch.eq(x.to_sparse(), x))
    assert line.startswith("✗ Your code stopped with NotImplementedE")
    line = hint(judge, lambda: nn.Sequential(nn.Identity(), Misspelt()))
    assert "has no method forward" in line


def test_a_sparse_answer_that_cannot_be_read_is_no_number(hint):
    sparse = torch.arange(3).to_sparse().to(torch.uint16)
    judge = base.check(lambda answer: base.number(answer(), "one number, not {}."))
    assert "one number, not Tensor." in hint(judge, lambda: sparse)


def test_an_error_says_whose_it_is(hint):
    def mine(jacobians):
        return jacobians[0] @ torch.ones(7)

    line = hint(checks.check_stack_jacobian, mine)
    assert line.startswith("✗ Your code stopped with RuntimeError: ")
    for library in (sum, int, nn.Identity(), nn.Conv2d):  # without a line of mine
        line = hint(checks.check_activation, library)
        assert line.startswith("✗ Your code stopped with TypeError: ")
    judge = {}
    code = compile("def judge(answer): answer(); return 1 / 0", base.__file__, "exec")
    exec(code, judge)
    line = hint(base.check(judge["judge"]), lambda: 1)
    assert "check of your answer stopped with ZeroDivisionError: " in line
    unclear = np.array(["neither", "overfitting"])
    line = hint(checks.check_diagnosis, lambda shallow, deep: unclear)
    assert "return one of degradation, " in line


def test_what_is_no_function_is_told_so(hint):
    """Nothing, too much, and what the function returns in place of the function."""
    called = "✗ Not yet: the check is called as checks.check_diagnosis(diagnose)."
    for answer in ((), (len, len)):
        assert hint(checks.check_diagnosis, *answer) == called
    for answer, kind in (("neither", "str"), ([1.0], "list"), (None, "NoneType")):
        line = hint(checks.check_diagnosis, answer)
        assert "as in checks.check_diagnosis(diagnose)" in line
        assert line.endswith(f"this is of type {kind}.")


def test_what_is_no_number_is_told_so(hint):
    """With braces repeated as they are, and a long answer not repeated whole."""
    braces = ["{}", "{mean}", "a{0}b", {"a": 1}, "}{"]
    others = [[], "warm", {"T": 2.0}, torch.ones(3), None]
    for check, answers, words in (
        (checks.check_parameter_count, braces, "wanted."),
        (checks.check_receptive_field, braces, "wanted."),
        (checks.check_temperature, others, "one number, not "),
        (checks.check_gradient_ratio, others, "one number, not "),
        (checks.check_parameter_count, [torch.zeros(9, 9, 9)], ""),
    ):
        for answer in answers:
            line = hint(check, lambda *given, f=answer: f)
            assert line.startswith("✗ Not yet: ") and len(line) <= 600
            assert words in line and (answers is not braces or line.endswith(words))


def test_every_check_is_exported():
    for path in pathlib.Path(checks.__file__).parent.glob("notebook_*.py"):
        for statement in ast.parse(path.read_text()).body:
            name = getattr(statement, "name", "_")
            assert name.startswith("_") or name in checks.__all__, (path, name)
