"""What holds for every check: the form of an answer does not decide, nothing leaks."""

import ast
import pathlib

import checks
import numpy as np
import pytest
import test_checks_01
import test_checks_02
import test_checks_03
import test_checks_05
import test_checks_06
import test_checks_A2
import torch
from checks import base
from torch import Tensor, nn

import resnet_lib

NOTEBOOKS = (
    *(test_checks_01, test_checks_02, test_checks_03),
    *(test_checks_05, test_checks_06, test_checks_A2),
)
EXERCISES = [exercise for notebook in NOTEBOOKS for exercise in notebook.EXERCISES]
# Answers that are numbers; the others are networks, sentences, recipes.
NUMBERS = {
    *(checks.check_identity_weights, checks.check_stack_jacobian),
    *(checks.check_parameter_count, checks.check_receptive_field),
    *(checks.check_branch_ratio, checks.check_average, checks.check_activation),
}
every_exercise = pytest.mark.parametrize(
    ("check", "wrong", "right"), EXERCISES, ids=lambda it: getattr(it, "__name__", "")
)


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
    return (
        value.detach().numpy().copy() if isinstance(value, Tensor) else np.array(value)
    )


def torch_0d(value):
    if isinstance(value, list | tuple):
        return [torch.tensor(number, dtype=torch.float64) for number in value]
    return value if isinstance(value, Tensor) else torch.tensor(value).double()


@pytest.mark.parametrize("coat", [float64, numpy, torch_0d])
@every_exercise
def test_numbers_say_the_same_in_every_form(says, check, wrong, right, coat):
    if check not in NUMBERS:
        return
    for answer in right:
        verdict, line = says(check, lambda *given, f=answer: dressed(f(*given), coat))
        assert verdict, (coat, line)
    needs_form = ("carries a gradient", "you return [")  # a tensor, a list
    for words, answers in wrong.items():
        for answer in answers if isinstance(answers, list) else [answers]:
            verdict, line = says(
                check, lambda *given, f=answer: dressed(f(*given), coat)
            )
            assert words in needs_form or (not verdict and words in line), line


@every_exercise
def test_lists_are_as_good_as_tensors(says, check, wrong, right):
    def listed(value):
        return value.tolist() if isinstance(value, Tensor) else value

    if check in NUMBERS:
        verdict, line = says(check, lambda *given: dressed(right[0](*given), listed))
        assert verdict, line


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


def test_an_error_of_that_name_that_is_not_the_readers(says):
    class Misspelt(nn.Module):
        def foward(self, x):
            return x

    judge = base.check(lambda answer: answer()(torch.ones(2)))
    verdict, line = says(judge, Misspelt)
    assert not verdict and "your class has no method forward." in line
    verdict, line = says(judge, lambda: lambda x: torch.eq(x.to_sparse(), x))
    assert not verdict and line.startswith("✗ Your code stopped with NotImplementedE")
    verdict, line = says(judge, lambda: nn.Sequential(nn.Identity(), Misspelt()))
    assert not verdict and "has no method forward" in line


def test_an_error_says_whose_it_is(says):
    def mine(jacobians):
        return jacobians[0] @ torch.ones(7)

    verdict, line = says(checks.check_stack_jacobian, mine)
    assert not verdict and line.startswith("✗ Your code stopped with RuntimeError: ")
    for library in (sum, int, nn.Identity(), nn.Conv2d):  # without a line of mine
        _, line = says(checks.check_activation, library)
        assert line.startswith("✗ Your code stopped with TypeError: ")
    judge = {}
    code = compile("def judge(answer): answer(); return 1 / 0", base.__file__, "exec")
    exec(code, judge)
    verdict, line = says(base.check(judge["judge"]), lambda: 1)
    assert not verdict
    assert "check of your answer stopped with ZeroDivisionError: " in line
    unclear = np.array(["neither", "overfitting"])
    verdict, line = says(checks.check_diagnosis, lambda shallow, deep: unclear)
    assert not verdict and "return one of degradation, " in line


def test_what_is_no_function_is_told_so(says):
    """Nothing, too much, and what the function returns in place of the function."""
    for answer in ((), (len, len)):
        verdict, line = says(checks.check_diagnosis, *answer)
        assert not verdict
        assert line == (
            "✗ Not yet: the check is called as checks.check_diagnosis(diagnose)."
        )
    for answer, kind in (("neither", "str"), ([1.0], "list"), (None, "NoneType")):
        verdict, line = says(checks.check_diagnosis, answer)
        assert not verdict and "as in checks.check_diagnosis(diagnose)" in line
        assert line.endswith(f"this is of type {kind}.")


@pytest.mark.parametrize("answer", ["{}", "{mean}", "a{0}b", {"a": 1}, "}{"])
def test_an_answer_with_braces_is_repeated_as_it_is(says, answer):
    for check in (checks.check_parameter_count, checks.check_receptive_field):
        verdict, line = says(check, lambda *given: answer)
        assert (
            not verdict and line.startswith("✗ Not yet: ") and line.endswith("wanted.")
        )


def test_a_long_answer_is_not_repeated_whole(says):
    verdict, line = says(
        checks.check_parameter_count, lambda depth: torch.zeros(9, 9, 9)
    )
    assert not verdict and len(line) <= 600 and line.startswith("✗ Not yet: ")


@pytest.mark.parametrize("answer", [[], "warm", {"T": 2.0}, torch.ones(3), None])
def test_what_is_no_number_is_told_so(says, answer):
    for check in (checks.check_temperature, checks.check_gradient_ratio):
        verdict, line = says(check, lambda *given: answer)
        assert not verdict and "one number, not " in line


def test_every_check_is_exported_and_the_library_knows_none():
    folder = pathlib.Path(checks.__file__).parent
    for path in folder.glob("notebook_*.py"):
        for statement in ast.parse(path.read_text()).body:
            name = getattr(statement, "name", "_")
            assert name.startswith("_") or name in checks.__all__, (path, name)
    for path in pathlib.Path(resnet_lib.__file__).parent.rglob("*.py"):
        for statement in ast.walk(ast.parse(path.read_text())):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                names = [getattr(statement, "module", "")]
                names += [alias.name for alias in statement.names]
                assert not {"checks", "notebooks"} & {
                    str(n).split(".")[0] for n in names
                }
