"""Where the project's folders lie."""

import os
from pathlib import Path

__all__ = ["data_home", "data_root"]


def data_home() -> Path:
    """The project's `data/` folder, which holds the recorded runs."""
    checkout = Path(__file__).resolve().parent.parent
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / "data"


def data_root() -> Path:
    """The folder that holds `cifar-10-batches-py`: `RESNET_LIB_DATA`, else `data/`."""
    path = os.environ.get("RESNET_LIB_DATA")
    return Path(path).expanduser() if path else data_home()
