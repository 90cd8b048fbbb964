"""The data sets: CIFAR-10 and CIFAR-100, the digits, and pictures of your own.

Your own pictures lie in a folder with one folder per class; `data/README.md` shows how
to train on them.
"""

import contextlib
import io
import os
import warnings
import zlib
from collections import Counter
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from resnet_lib.cifar10 import CIFAR10, CIFAR100, download, find, title_of
from resnet_lib.data import Dataset, Images
from resnet_lib.inputs import truth_value, whole_number
from resnet_lib.paths import data_root, expanded

__all__ = [
    "load_cifar10",
    "load_cifar100",
    "load_data",
    "load_digits",
    "load_folder",
    "read_picture",
]


def load_data(root: Path | str | None = None, download: bool = True) -> Dataset:
    """CIFAR-10 from disk, else downloaded, else the embedded digits, saying which.

    Raises RuntimeError for CIFAR-10 files that are there but damaged: they are never
    replaced in silence. Raises ValueError for a `root` that cannot be a folder.
    """
    try:
        return load_cifar10(root, download)
    except OSError as error:
        print(f"CIFAR-10 is not at hand: {error}")
        print("Going on with scikit-learn's digits: same code, other numbers.")
        return load_digits()


def load_cifar10(root: Path | str | None = None, download: bool = False) -> Dataset:
    """CIFAR-10 from disk: 50,000 training and 10,000 test images of ten classes.

    Raises FileNotFoundError where it is not on disk, unless `download` is true.
    """
    return _load(CIFAR10, root, download)


def load_cifar100(root: Path | str | None = None, download: bool = False) -> Dataset:
    """CIFAR-100 from disk: 50,000 training and 10,000 test images of a hundred classes.

    Raises FileNotFoundError where it is not on disk, unless `download` is true.
    """
    return _load(CIFAR100, root, download)


def _load(source: type[CIFAR10], root: Path | str | None, fetch: bool) -> Dataset:
    name = source.__name__.lower()
    folder = download(source, root) if fetch else find(source, root)
    if folder is None:
        raise FileNotFoundError(
            f"No {title_of(source)} in {data_root(root)}. Run `python -m "
            f"resnet_lib.cifar10{' cifar100' * (name == 'cifar100')}` to download it, "
            f"or point RESNET_LIB_DATA at the folder that holds {source.base_folder}."
        )
    train, test = (source(folder.parent, train) for train in (True, False))
    images = (Images(part.data, part.targets) for part in (train, test))
    return Dataset(name, tuple(train.classes), *images)


def load_digits() -> Dataset:
    """scikit-learn's digits as uint8 (N, 3, 32, 32): 1,437 to train on, 360 to test.

    The embedded default, for a machine without CIFAR-10: each 8×8 image is enlarged
    four times and its one channel repeated.
    """
    from sklearn.datasets import load_digits as load

    digits = load()
    small = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)
    images = small[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    images = images.expand(-1, 3, -1, -1).contiguous()  # (1797, 3, 32, 32)
    all_of_them = Images(images, digits.target)
    # Every fifth is a test image: all writers and all classes on both sides.
    test = torch.arange(len(images), device="cpu") % 5 == 0
    train, test = all_of_them[~test], all_of_them[test]
    return Dataset("digits", tuple("0123456789"), train, test)


# --- a folder of pictures -------------------------------------------------------------

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
ENDINGS = ".png .jpg .jpeg .jpe .jfif .webp .gif .bmp .tif .tiff .ppm .pgm .pbm"
# In small letters; the first that holds class folders is taken.
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
LARGEST = 4096  # pixels a side
Files = dict[str, list[Path]]  # those of each class, by its name


def load_folder(
    path: Path | str, size: int = 32, test: float = 0.2, grey: bool = False
) -> Dataset:
    """Pictures of any sizes, in one folder per class, as uint8 (N, 3, size, size).

    Of each picture the middle square is kept and resized; `grey` makes one channel of
    three. The folder holds the folders of the classes, or `train` and `test` (or `val`)
    folders that hold them. Without a test folder the share `test` of every class is set
    aside, always the same pictures. Prints one sentence on what was done and on which
    files were left out.

    The training images are shuffled, so that the last of them are a fair validation
    set. Raises ValueError, naming the files, for a folder of another layout and for
    pictures that cannot be read.
    """
    path = expanded(path)
    if not path.is_dir():
        what = "is a file" if path.is_file() else "does not exist"
        raise ValueError(f"{path} {what}. Give the folder that holds the classes.")
    size = whole_number("size, in pixels,", size, 1, LARGEST)
    grey = truth_value("grey", grey)
    inside, given = _parts(path)
    files = _files_by_class(inside)
    if given:
        test_files = _files_by_class(given, known=files)
    else:
        files, test_files = _set_aside(files, test)
    problems: list[str] = []
    train = _read_all(files, size, grey, problems)
    tests = _read_all(test_files, size, grey, problems)
    if problems:
        told = "; ".join(problems[:3]) + "; …" * (len(problems) > 3)
        raise ValueError(
            f"{len(problems)} pictures of {path} cannot be read. Save them anew or "
            f"take them away: {told}."
        )
    order = torch.Generator().manual_seed(0)
    train = train[torch.randperm(len(train), generator=order, device="cpu")]
    name = f"folder {_printable(path.resolve().name)}"
    data = Dataset(name, tuple(map(_printable, files)), train, tests)
    share = len(tests) / (len(train) + len(tests))
    done = f"{share:.0%} of all, some of each class, were set aside to test on"
    if given:
        done = f"{_printable(given.name)} is the test set"
    left = _left_out(path, set().union(*files.values(), *test_files.values()))
    print(
        f"{data.name}: {len(files)} classes, {len(train):,} training and "
        f"{len(tests):,} test pictures, the middle square of each at {size} by "
        f"{size} pixels, {'grey' if grey else 'RGB'}; {done}{left}."
    )
    return data


def _printable(name: str) -> str:
    """A file's name as it can be printed: of another encoding, bytes as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _class_folders(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without the hidden ones; none in none."""
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.iterdir() if f.is_dir() and not _is_hidden(f.name))


def _is_hidden(name: str) -> bool:
    """Whether it was put there by a program, as __MACOSX was."""
    return name.startswith((".", "__"))


def _parts(folder: Path) -> tuple[Path, Path | None]:
    """The folder that holds the classes, and the one that holds them to test on.

    A class may be called test: a part is known by the folders inside. Raises ValueError
    where one part has them and the other lacks them.
    """
    named = {place.name.lower(): place for place in _class_folders(folder)}
    trains = [named[name] for name in TRAIN_FOLDERS if name in named]
    tests = [named[name] for name in TEST_FOLDERS if name in named]
    train, test = (next(filter(_class_folders, of), None) for of in (trains, tests))
    if tests and bool(train) != bool(test):
        other = tests[0].name if train else "train"
        raise ValueError(
            f"{train or test} holds folders of classes and {other} does not. Give both "
            "the same folders, or take the test set away."
        )
    return train or folder, test


def _hidden(file: Path) -> bool:
    """Whether a program put it there, or the folder it lies in."""
    *places, name = file.parts
    return name[0] == "." or any(map(_is_hidden, places))


def _left_out(folder: Path, taken: set[Path]) -> str:
    """How many files of the folder are not among those taken, in words; "" for none."""
    parts = {file.relative_to(folder).parts[0] for file in taken}
    kinds = Counter()
    for file in sorted(set(folder.rglob("*")) - taken):
        places = file.relative_to(folder).parts[:-1]
        if file.is_file() and not _hidden(file.relative_to(folder)):
            apart = places and places[0] not in parts
            kinds[f"in {places[0]}" if apart else file.suffix or "others"] += 1
    told = ", ".join(f"{count} {_printable(kind)}" for kind, count in kinds.items())
    return f"; left out: {told}" if told else ""


def _files_by_class(folder: Path, known: Files | None = None) -> Files:
    """The picture files of each class folder, by name; of the `known` classes alone."""
    files: Files = {name: [] for name in known or ()}
    for place in _class_folders(folder):
        if known and place.name not in known:
            raise ValueError(
                f"{place} is a class without training pictures. Give both parts the "
                "same folders."
            )
        found = (f for f in place.rglob("*") if f.suffix.lower() in ENDINGS.split())
        shown = (f for f in found if not _hidden(f.relative_to(place)))
        files[place.name] = sorted(f for f in shown if f.is_file())
        if not files[place.name]:
            raise ValueError(
                f"{place} holds no pictures. Put some there ({ENDINGS}), or take the "
                "folder away."
            )
    if len(files) < 2:
        raise ValueError(
            f"{folder} holds {len(files)} folders of pictures. Give it one folder per "
            "class, 2 or more, with the pictures of the class inside."
        )
    return files


def _set_aside(files: Files, share: float) -> tuple[Files, Files]:
    """The files to train and to test on; the same ones for the same folder."""
    if not isinstance(share, Real) or not 0 < share < 1:
        raise ValueError(
            f"test is {share!r}: give the share of the pictures that is set aside, "
            "between 0 and 1, as 0.2."
        )
    generator = torch.Generator().manual_seed(0)
    train, test = {}, {}
    for name, found in files.items():
        if len(found) < 2:
            raise ValueError(
                f"The class {name} has 1 picture. Give it 2 or more, one to train and "
                "one to test on."
            )
        count = min(max(1, round(share * len(found))), len(found) - 1)
        order = torch.randperm(len(found), generator=generator, device="cpu").tolist()
        test[name] = [found[i] for i in sorted(order[:count])]
        train[name] = [found[i] for i in sorted(order[count:])]
    return train, test


def _read_all(files: Files, size: int, grey: bool, problems: list[str]) -> Images:
    """The pictures of all classes; those that cannot be read go to `problems`."""
    channels = 1 if grey else 3
    images = [torch.empty(0, channels, size, size, dtype=torch.uint8, device="cpu")]
    labels: list[int] = []
    for number, found in enumerate(files.values()):
        for file in found:
            try:
                image = read_picture(file, size)
                images.append((_grey(image) if grey else image)[None])
                labels.append(number)
            except ValueError as error:
                problems.append(f"{file}: {error}")
    return Images(
        torch.cat(images), torch.tensor(labels, dtype=torch.int64, device="cpu")
    )


def _grey(image: Tensor) -> Tensor:
    """uint8 (3, H, W) to (1, H, W), by the eye's weights for red, green and blue."""
    weights = torch.tensor([0.299, 0.587, 0.114], device="cpu").view(3, 1, 1)
    return (image * weights).sum(0, keepdim=True).round().to(torch.uint8)


# --- one picture ----------------------------------------------------------------------


def read_picture(source: Path | str | bytes, size: int | None = None) -> Tensor:
    """A picture, a file or its content, as uint8 (3, H, W).

    With a `size`, the middle square at (3, size, size). The picture stands as its EXIF
    data says; what is transparent becomes white; grey values of more than 8 bits are
    scaled to 255, and 12 bits are told from 16 by the largest value. Raises ValueError,
    in words to put behind "cannot be read:", for anything that is no picture.
    """
    if size is not None:
        size = whole_number("size, in pixels,", size, 1, LARGEST)
    if isinstance(source, bytes | bytearray | memoryview):  # as widgets hand it over
        source = bytes(source)
    else:
        try:
            source = expanded(source).read_bytes()
        except (OSError, TypeError, ValueError) as error:  # of no path at all, too
            why = getattr(error, "strerror", error)
            raise ValueError(f"it cannot be opened ({why})") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged data that do not draw
            # A picture too large for the memory is an error, not a line on stderr.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            content = io.BytesIO(_without_extras(source))
            picture = Image.open(content, formats=FORMATS)
            if size:
                picture.draft("RGB", (8 * size, 8 * size))  # a large JPEG, coarsely
            picture.load()
            with contextlib.suppress(Exception):  # damaged EXIF data turn nothing
                picture = ImageOps.exif_transpose(picture)
            picture = _rgb(picture)
    except UnidentifiedImageError:
        if source.lstrip()[:5].lower() in (b"<svg ", b"<?xml"):
            raise ValueError("it is a drawing (SVG); save it as a PNG first") from None
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError("it has too many pixels") from None
    except Exception as error:  # a damaged file fails wherever the damage lies
        raise ValueError(f"it cannot be decoded ({error})") from None
    if size:
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _rgb(picture: Image.Image) -> Image.Image:
    """Any kind of picture as red, green and blue, on white."""
    if picture.mode[0] in "IF":  # "I;16", "I", "F": grey, of more than 8 bits
        hole = picture.info.get("transparency")
        values = np.array(picture)
        levels = Image.fromarray(_to_8_bits(values))
        if isinstance(hole, int):
            levels.paste(255, mask=Image.fromarray(values == hole))
        return levels.convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Grey values as uint8, 0 to 255.

    White is the largest number of 8, 12 or 16 bits: the first that no value exceeds. A
    camera's 12 bits lie in files of 16. Floats up to 1 have their white at 1.
    """
    floats = values.dtype.kind == "f"
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0).clip(min=0)
    top = values.max()
    whites = (255, 4095, 65535, top)
    white = 1 if floats and top <= 1 else next(w for w in whites if top <= w)
    return (values * (255 / white)).round().astype(np.uint8)


def _without_extras(content: bytes) -> bytes:
    """A PNG file without the chunks that do not draw; other files as they are.

    Long texts and damaged EXIF data make Pillow refuse pictures that are whole.
    """
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    start, kept = 8, [content[:8]]
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        chunk = content[start:end]
        kind, start = chunk[4:8], end
        whole = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        # A capital first letter: a decoder cannot do without it.
        if kind[:1].isupper() or kind == b"tRNS" or (kind == b"eXIf" and whole):
            kept.append(chunk)
    return b"".join([*kept, content[start:]])
