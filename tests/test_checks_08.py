"""The answer to notebook 08's exercise: every wrong one has a message of its own."""

import checks
import numpy as np
import pytest

STEADY = [2.0 + number for number in range(9)]  # as a fresh net of 2016 gives them

WRONG = {
    "in a list, not float": 9.0,
    "nine blocks, and here are 3": STEADY[::3],
    "a variance is above 0": [0.0, *STEADY[1:]],
    "is the first block first": STEADY[::-1],
    "Call net.train() first": [2.0**number for number in range(9)],
    "Take the square": np.sqrt(STEADY),
    "has a ReLU in it": [0.7 + number / 2 for number in range(9)],
}


@pytest.mark.parametrize("hint", WRONG)
def test_wrong_streams(capsys, hint):
    assert not checks.check_stream(lambda: WRONG[hint])
    assert hint in capsys.readouterr().out


@pytest.mark.parametrize("form", [list, tuple, np.array])
def test_a_steady_stream(capsys, form):
    assert checks.check_stream(lambda: form(STEADY))
    assert "from 2.00 to 10.00, about 1.0 more with every" in capsys.readouterr().out
