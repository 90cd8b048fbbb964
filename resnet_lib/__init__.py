"""Residual learning from scratch: the library behind the notebooks.

The everyday names stand here; `plots`, `probes`, `runs` and `explorer` are
imported by their own names, so that training needs neither Jupyter nor matplotlib.
"""

import sys
from signal import SIGINT, signal
from warnings import filterwarnings

# A command of ours starts, and PyTorch takes seconds to load.
if sys.argv[:1] == ["-m"] and any(a.startswith("resnet_lib.") for a in sys.orig_argv):
    signal(SIGINT, lambda *_: sys.exit(print("Stopped.", file=sys.stderr) or 130))
    # `cifar10` is a command, and is imported below as well.
    filterwarnings("ignore", "'resnet_lib.cifar10' found", RuntimeWarning)

from resnet_lib.basic_block import (
    BasicBlock,
    PaddedIdentity,
    PlainBlock,
    make_shortcut,
)
from resnet_lib.data import Augmenter, Batches, Dataset, Images, Normalisation
from resnet_lib.datasets import load_data
from resnet_lib.device import device_profile
from resnet_lib.fit import fit
from resnet_lib.recipe import PAPER, PREVIEW, QUICK, SMOOTHED, Recipe, learning_rate_at
from resnet_lib.resnet import ResNet, get_model
from resnet_lib.training import evaluate, train_step

__all__ = [
    "PAPER",
    "PREVIEW",
    "QUICK",
    "SMOOTHED",
    "Augmenter",
    "BasicBlock",
    "Batches",
    "Dataset",
    "Images",
    "Normalisation",
    "PaddedIdentity",
    "PlainBlock",
    "Recipe",
    "ResNet",
    "device_profile",
    "evaluate",
    "fit",
    "get_model",
    "learning_rate_at",
    "load_data",
    "make_shortcut",
    "train_step",
]
