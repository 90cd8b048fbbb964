import pytest


@pytest.fixture
def says(capsys):
    """Run a check of `resnet_lib.checks`; returns its verdict and its one line."""

    def run(check, *answer) -> tuple[bool, str]:
        verdict = check(*answer)
        line = capsys.readouterr().out
        assert line.count("\n") == 1, f"a check prints one line, not {line!r}"
        return verdict, line.strip()

    return run
