"""Every notebook as Colab runs it: `make colab`.

Colab's versions, a fresh clone of the last commit, each notebook alone in an empty
folder, its set-up cell run twice. At the end no package may have moved. Only the live
trainings in notebooks 04 and 08 are shortened.
"""

import copy
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PINS = (ROOT / "tests" / "colab-constraints.txt").read_text("utf-8").splitlines()


def fetchable(folder: Path) -> Path:
    """A clone of the last commit with the tag that the set-up cells ask for."""
    clone = folder / "repository"
    git = ["git", "-c", "advice.detachedHead=false"]
    subprocess.run([*git, "clone", "-q", "--no-local", ROOT, clone], check=True)
    tag = [*git, "-C", clone, "tag", "--force", f"v{PROJECT['version']}"]
    subprocess.run(tag, check=True, stdout=subprocess.DEVNULL)
    return clone


def environment(clone: Path) -> dict[str, str]:
    """Colab's marker, and git told to read the public address from the clone."""
    return {
        "COLAB_RELEASE_TAG": "release-colab",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{clone.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": PROJECT["urls"]["Repository"],
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # Python 3.13 is new to the old debugger
        "RESNET_LIB_DATA": os.environ.get("RESNET_LIB_DATA", str(ROOT / "data")),
    }


def execute(notebook: Path, folder: Path) -> str:
    """Run a notebook in the folder; returns the error, or nothing."""
    content = nbformat.read(notebook, as_version=4)
    code = [cell.cell_type for cell in content.cells].index("code")
    content.cells.insert(code + 1, copy.deepcopy(content.cells[code]))
    content.cells[code + 1].id = "again"
    where = {"metadata": {"path": str(folder)}}
    try:
        NotebookClient(content, timeout=1800, resources=where).execute()
    except CellExecutionError as error:
        return str(error)
    return ""


def versions() -> dict[str, str]:
    return {package.name.lower(): package.version for package in distributions()}


def main(names: list[str]) -> None:
    before = versions()
    failed = False
    with tempfile.TemporaryDirectory() as place:
        clone = fetchable(Path(place))
        os.environ.update(environment(clone))
        for notebook in sorted(clone.glob("notebooks/**/*.ipynb")):
            if names and notebook.stem not in names:
                continue
            folder = Path(place, notebook.stem)
            folder.mkdir()
            start = time.monotonic()
            error = execute(notebook, folder)
            seconds = time.monotonic() - start
            print(f"{notebook.stem:28} {seconds:5.0f} s  {error or 'ok'}", flush=True)
            failed |= bool(error)
    pins = dict(pin.lower().split("==") for pin in PINS if "==" in pin)
    # A local build is a version too: 2.11.0+cpu.
    moved = {name for name in pins if before[name].split("+")[0] != pins[name]}
    if moved or versions() != before:
        sys.exit(f"Packages have moved: {moved or 'see pip freeze'}.")
    print(f"{len(pins)} pinned packages as in Colab, before and after.")
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1:])
