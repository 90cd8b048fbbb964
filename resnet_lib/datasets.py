"""The data sets: CIFAR-10, and the digits that stand in where it is not at hand."""

import pickle
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR10

from resnet_lib.cifar10 import FOLDER, download_cifar10, find_cifar10
from resnet_lib.data import Dataset, Images
from resnet_lib.paths import data_root

__all__ = ["load_cifar10", "load_data", "load_digits"]


def load_data(root: Path | str | None = None, download: bool = True) -> Dataset:
    """CIFAR-10 from disk, else downloaded, else the embedded digits, saying which.

    Raises RuntimeError for CIFAR-10 files that are there but damaged: they are never
    replaced in silence.
    """
    try:
        return _read(download_cifar10(root)) if download else load_cifar10(root)
    except OSError as error:
        print(f"CIFAR-10 is not at hand: {error}")
        print("Going on with scikit-learn's digits: same code, other numbers.")
        return load_digits()


def load_cifar10(root: Path | str | None = None) -> Dataset:
    """CIFAR-10 from disk: 50,000 training and 10,000 test images of ten classes.

    Raises FileNotFoundError where it is not on disk; see `download_cifar10`.
    """
    folder = find_cifar10(root)
    if folder is None:
        raise FileNotFoundError(
            f"No CIFAR-10 in {root or data_root()}. Run `python -m resnet_lib.cifar10` "
            "to download it, or point RESNET_LIB_DATA at the folder that holds "
            f"{FOLDER}."
        )
    return _read(folder)


def _read(folder: Path) -> Dataset:
    """The set in a folder whose files were just checked; torchvision would again."""
    names = pickle.loads((folder / CIFAR10.meta["filename"]).read_bytes())
    parts = [
        _images(folder, files) for files in (CIFAR10.train_list, CIFAR10.test_list)
    ]
    return Dataset("cifar10", tuple(names[CIFAR10.meta["key"]]), *parts)


def _images(folder: Path, files: list[list[str]]) -> Images:
    batches = [
        pickle.loads((folder / name).read_bytes(), encoding="latin1")
        for name, _ in files
    ]
    pixels = np.concatenate([batch["data"] for batch in batches])
    labels = [label for batch in batches for label in batch["labels"]]
    return Images(torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.tensor(labels))


def load_digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits as uint8 (N, 3, 32, 32): 1,437 train, 360
    test.

    The embedded default, for a machine without CIFAR-10: each 8×8 image is enlarged
    four times and its one channel repeated.
    """
    from sklearn.datasets import load_digits as load

    digits = load()
    small = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)
    images = small[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    images = images.expand(-1, 3, -1, -1).contiguous()  # (1797, 3, 32, 32)
    labels = torch.from_numpy(np.asarray(digits.target, dtype=np.int64))
    # Every fifth is a test image: all writers and all classes on both sides.
    test = torch.arange(len(labels)) % 5 == 0
    names = tuple(str(digit) for digit in range(10))
    digits = Images(images, labels)
    return Dataset("digits", names, train=digits[~test], test=digits[test])
