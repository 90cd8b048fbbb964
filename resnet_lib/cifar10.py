"""CIFAR-10 and its sister CIFAR-100 on disk: find, download, verify."""

import http.client
import os
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torchvision
from torchvision.datasets.utils import check_integrity

from resnet_lib.paths import data_root
from resnet_lib.progress import progress_bar

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Source",
    "download",
    "download_cifar10",
    "find",
    "find_cifar10",
]


@dataclass(frozen=True)
class Source:
    """A set as its authors serve it: one archive with a folder of files."""

    title: str
    folder: str
    url: str
    archive: str  # the archive's name
    md5: str  # the archive's
    files: dict[str, str]  # the md5 sum of each file in the folder
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: tuple[str, str]  # a file and the key in it: the names of the classes
    variable: str  # of the environment: another address

    @classmethod
    def of(cls, known: type[torchvision.datasets.CIFAR10]) -> "Source":
        """What torchvision knows about a set."""
        train, test, meta = dict(known.train_list), dict(known.test_list), known.meta
        return cls(
            title=known.__name__.replace("CIFAR", "CIFAR-"),
            folder=known.base_folder,
            url=known.url,
            archive=known.filename,
            md5=known.tgz_md5,
            files=train | test | {meta["filename"]: meta["md5"]},
            train=tuple(train),
            test=tuple(test),
            meta=(meta["filename"], meta["key"]),
            variable=f"RESNET_LIB_{known.__name__}_URL",
        )


CIFAR10 = Source.of(torchvision.datasets.CIFAR10)
CIFAR100 = Source.of(torchvision.datasets.CIFAR100)


def find_cifar10(root: Path | str | None = None) -> Path | None:
    """The folder with CIFAR-10's files; see `find`."""
    return find(CIFAR10, root)


def download_cifar10(root: Path | str | None = None, url: str | None = None) -> Path:
    """Download, verify and unpack CIFAR-10 (170 MB); see `download`."""
    return download(CIFAR10, root, url)


def find(source: Source, root: Path | str | None = None) -> Path | None:
    """The folder with a set's files, or None where there is no such folder.

    `root` is the folder around it; see `paths.data_root`. Raises RuntimeError, naming
    the file and the remedy, if a file is missing or damaged.
    """
    folder = data_root(root) / source.folder
    if not folder.is_dir():
        return None
    for name, md5 in source.files.items():
        if not check_integrity(folder / name, md5):
            damaged = "is damaged (its md5 sum is wrong)"
            problem = damaged if (folder / name).is_file() else "is missing"
            raise RuntimeError(
                f"{folder / name} {problem}. Delete the folder {folder} and run again "
                f"to download {source.title} afresh."
            )
    return folder


def download(
    source: Source, root: Path | str | None = None, url: str | None = None
) -> Path:
    """Download, verify and unpack a set (170 MB); returns its folder.

    `url` is another address of the same archive, `file:///…` for one already on disk;
    by default `RESNET_LIB_CIFAR10_URL` (or `…_CIFAR100_URL`), else the official one.
    What was downloaded before an interruption is kept and the next call goes on from
    there. The archive is unpacked beside its final place and renamed at the end, so a
    half-written set is never found.

    Raises OSError if the address cannot be read or the archive is not the set's.
    """
    root = data_root(root)
    if folder := find(source, root):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    archive = root / source.archive
    if not check_integrity(archive, source.md5):
        url = url or os.environ.get(source.variable) or source.url
        _fetch(source, url, archive)
    unpacked = root / (source.folder + ".part")
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    with tarfile.open(archive) as tar:
        # Only the files we know, each to a path that we choose.
        for name in source.files:
            packed = tar.extractfile(f"{source.folder}/{name}")
            with packed, open(unpacked / name, "wb") as target:
                shutil.copyfileobj(packed, target)
    unpacked.rename(root / source.folder)
    archive.unlink()
    return find(source, root)


def _fetch(source: Source, url: str, path: Path) -> None:
    """Download `url` to `path`, going on from a `.part` file, and check the md5 sum."""
    part = path.with_name(path.name + ".part")
    another = f"give another address of the same archive in {source.variable}"
    try:
        _append(url, part, source.title)
    # ValueError: an address without a scheme; HTTPException is no OSError.
    except (OSError, ValueError, http.client.HTTPException) as error:
        nothing_left = isinstance(error, urllib.error.HTTPError) and error.code == 416
        if not nothing_left:  # else the md5 sum decides
            raise OSError(
                f"{url} could not be read: {error}. Run again to go on from there, or "
                f"{another} (file:///… for one on disk)."
            ) from error
    if not check_integrity(part, source.md5):
        part.unlink()
        raise OSError(
            f"{url} is not the {source.title} archive, whose md5 sum is {source.md5}; "
            f"the file was deleted. Run again, or {another}."
        )
    part.rename(path)


def _append(url: str, part: Path, title: str) -> None:
    """Download what `part` lacks of the file at `url`."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "resnet_lib"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=20) as response:
        if response.status != 206:  # the server sends the whole file
            start = 0
        size = response.headers.get("Content-Length")
        end = start + int(size) if size else None
        options = {"unit": "B", "unit_scale": True}
        bar = progress_bar(desc=title, initial=start, total=end, **options)
        with bar, open(part, "ab" if start else "wb") as file:
            while chunk := response.read(1 << 18):
                file.write(chunk)
                bar.update(len(chunk))
    if end and part.stat().st_size < end:
        raise OSError("the connection closed early")


if __name__ == "__main__":
    wanted = CIFAR100 if sys.argv[1:] == ["cifar100"] else CIFAR10
    print(f"{wanted.title} is in {download(wanted)}")
