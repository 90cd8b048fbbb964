"""What the set-up cell calls once it has fetched the project into a Colab runtime."""

import importlib.util
import os
import subprocess
import sys

import torch

from resnet_lib.paths import data_home

__all__ = ["set_up"]


def set_up() -> None:
    """Go to the notebooks' folder, as Jupyter does, and say what will compute."""
    os.chdir(data_home().parent / "notebooks")
    if importlib.util.find_spec("anywidget") is None:  # the explorer's only need
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "anywidget>=0.11"]
        subprocess.run(pip, check=False)  # notebook 06 alone would stop without it
    if torch.cuda.is_available():
        print(f"GPU: {torch.cuda.get_device_name()}.")
    else:
        print(
            "No GPU here. With one, notebook 04 trains by the whole schedule: choose "
            "Runtime, Change runtime type, T4 GPU, then run this cell again."
        )
