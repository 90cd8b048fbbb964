import os
import shutil
from pathlib import Path

import pytest

# Before PyTorch is loaded: another number of threads rounds to other bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files that take long begin first, so that no worker waits for another at the end.
FIRST = ["run_folder", "training", "reproduce", "distributed", "checks_07", "blocks"]


def pytest_collection_modifyitems(items: list) -> None:
    def place(item) -> int:
        name = item.path.stem.removeprefix("test_")
        return FIRST.index(name) if name in FIRST else len(FIRST)

    items.sort(key=place)


@pytest.fixture
def checkout() -> None:
    """Skip where the project came as an archive, without git."""
    if not (shutil.which("git") and (Path(__file__).parents[1] / ".git").exists()):
        pytest.skip("needs a git checkout")


@pytest.fixture
def refused():
    """Demand that a call is refused in these words (a pattern), in one line."""

    def run(words, call, *given, error=ValueError, **more) -> None:
        with pytest.raises(error, match=words) as refusal:
            call(*given, **more)
        assert "\n" not in str(refusal.value)

    return run
