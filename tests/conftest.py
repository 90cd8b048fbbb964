import pytest


@pytest.fixture
def says(capsys):
    """Run a check of `checks`; returns its verdict and its one line."""

    def run(check, *answer) -> tuple[bool, str]:
        verdict = check(*answer)
        line = capsys.readouterr().out
        assert line.count("\n") == 1, f"a check prints one line, not {line!r}"
        return verdict, line.strip()

    return run


@pytest.fixture
def told_apart(says):
    """Demand that a check catches every wrong answer, each by a hint of its own.

    The table maps words of the hint to the answer that should earn it.
    """

    def run(check, table: dict) -> None:
        hints = set()
        for words, answer in table.items():
            verdict, hint = says(check, answer)
            assert not verdict and hint.startswith("✗ Not yet: "), (words, hint)
            assert words in hint
            hints.add(hint)
        assert len(hints) == len(table) >= 6

    return run
