"""Where the project's folders lie, and what their drives can do."""

import contextlib
import os
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has locks of its own
    fcntl = None

__all__ = ["data_home", "data_root", "expanded", "has_locks", "rename"]


def data_home() -> Path:
    """The project's `data/` folder, which holds the recorded runs."""
    checkout = Path(__file__).resolve().parent.parent
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / "data"


def expanded(path: Path | str) -> Path:
    """A path that a person wrote: ~ is the home folder, as it is in a shell.

    Raises ValueError for an empty text or an unknown user's home, TypeError for what is
    no path.
    """
    if path == "":  # as an unset variable leaves it
        raise ValueError("'' is no path. For the folder you are in, write '.'.")
    try:
        return Path(path).expanduser()
    except TypeError as error:
        raise TypeError(
            f"{repr(path)[:60]} is no path. Give text, as in '~/pets', or a Path."
        ) from error
    except RuntimeError:
        raise ValueError(
            f"{path}: there is no such home folder. Write it in full."
        ) from None


def data_root(root: Path | str | None = None) -> Path:
    """The folder that holds `cifar-10-batches-py`: `root`, else `RESNET_LIB_DATA`, else
    `data/`.

    A path to `cifar-10-batches-py` itself counts as the folder around it. A folder that
    does not exist yet is fine: a download makes it. Raises ValueError for a file.
    """
    path = expanded(root or os.environ.get("RESNET_LIB_DATA") or data_home())
    sets = ("cifar-10-batches-py", "cifar-100-python")
    if path.name in sets and not (path / path.name).is_dir() and not path.is_file():
        path = path.parent
    for place in (path, *path.parents):
        if place.is_file():
            source = "the data folder" if root else "RESNET_LIB_DATA"
            raise ValueError(
                f"{place} is a file and cannot be {source}. Give the folder that holds "
                "cifar-10-batches-py, or is to hold it; if this is the archive, set "
                f"RESNET_LIB_CIFAR10_URL={place.resolve().as_uri()}."
            )
    return path


def has_locks(path: Path) -> bool:
    """Whether the file system can lock a file; some network drives cannot."""
    if fcntl is None:
        return True
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)  # another process holds it
    return True


def rename(source: Path, target: Path) -> None:
    """Over what is there. On Windows whoever reads the target refuses it for a moment:
    a virus scanner, a synchronised folder."""
    for _ in range(10):
        with contextlib.suppress(PermissionError):
            source.replace(target)
            return
        time.sleep(0.05)
    source.replace(target)
