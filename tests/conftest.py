import pytest

# Files that take long begin first, so that no worker waits for another at the end.
FIRST = ["training", "reproduce", "distributed", "engine", "checks_07", "blocks"]


def pytest_collection_modifyitems(items: list) -> None:
    def place(item) -> int:
        name = item.path.stem.removeprefix("test_")
        return FIRST.index(name) if name in FIRST else len(FIRST)

    items.sort(key=place)


@pytest.fixture
def refused():
    """Demand that a call is refused in these words (a pattern), in one line."""

    def run(words, call, *given, error=ValueError, **more) -> None:
        with pytest.raises(error, match=words) as refusal:
            call(*given, **more)
        assert "\n" not in str(refusal.value)

    return run


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
def hint(says):
    """Run a check that should refuse the answer; returns its line."""

    def run(check, *answer) -> str:
        verdict, line = says(check, *answer)
        assert not verdict, line
        return line

    return run


@pytest.fixture
def told_apart(says):
    """Demand that a check catches every wrong answer, each by a hint of its own.

    The table maps words of the hint to the answer that should earn it, or to a list of
    answers. The right answers, if any, should pass.
    """

    def run(check, wrong: dict, *right) -> None:
        hints = set()
        for words, answers in wrong.items():
            for answer in answers if isinstance(answers, list) else [answers]:
                verdict, hint = says(check, answer)
                assert not verdict and hint.startswith("✗ Not yet: "), (words, hint)
                assert words in hint and hint.endswith((".", "?"))
            hints.add(hint)
        assert len(hints) == len(wrong) >= 5
        for answer in right:
            verdict, line = says(check, answer)
            assert verdict and line.startswith("✓ "), line

    return run
