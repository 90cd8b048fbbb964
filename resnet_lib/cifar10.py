"""CIFAR-10 and its sister CIFAR-100 on disk: find, download, verify."""

import argparse
import contextlib
import http.client
import os
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from resnet_lib.paths import data_root, has_locks, rename
from resnet_lib.progress import progress_bar

__all__ = ["CIFAR10", "CIFAR100", "SOURCES", "download", "find", "title_of"]

Source = type[CIFAR10]  # torchvision's class knows a set's files; CIFAR100 is one too
SOURCES = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def title_of(source: Source) -> str:
    """ "CIFAR-10" or "CIFAR-100"."""
    return source.__name__.replace("CIFAR", "CIFAR-")


def _files(source: Source) -> dict[str, str]:
    """The md5 sum of each file in the set's folder."""
    meta = {source.meta["filename"]: source.meta["md5"]}
    return dict(source.train_list) | dict(source.test_list) | meta


def find(source: Source, root: Path | str | None = None) -> Path | None:
    """The folder with a set's files, or None where there is no such folder.

    `root` is the folder around it; see `paths.data_root`. Raises RuntimeError, naming
    the file and the remedy, if a file is missing or damaged.
    """
    folder = data_root(root) / source.base_folder
    if not folder.is_dir():
        return None
    for name, md5 in _files(source).items():
        if not check_integrity(folder / name, md5):
            damaged = "is damaged (its md5 sum is wrong)"
            problem = damaged if (folder / name).is_file() else "is missing"
            raise RuntimeError(
                f"{folder / name} {problem}. Delete the folder {folder} and run again "
                f"to download {title_of(source)} afresh."
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
    with _alone(source, root):
        return find(source, root) or _download(source, url, root)


@contextlib.contextmanager
def _alone(source: Source, root: Path) -> Iterator[None]:
    """Keep out others who download the same set: two notebooks begun at once."""
    path = root / f"{source.filename}.lock"
    lock = FileLock(path)
    if has_locks(path):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"Another program is downloading {title_of(source)}; waiting for it.")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):  # Windows: while somebody waits for it
            path.unlink(missing_ok=True)


def _download(source: Source, url: str | None, root: Path) -> Path:
    archive = root / source.filename
    if not check_integrity(archive, source.tgz_md5):
        _fetch(source, url, archive)
    unpacked = root / (source.base_folder + ".part")
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    with tarfile.open(archive) as tar:
        # Only the files we know, each to a path that we choose.
        for name in _files(source):
            packed = tar.extractfile(f"{source.base_folder}/{name}")
            with packed, open(unpacked / name, "wb") as target:
                shutil.copyfileobj(packed, target)
    rename(unpacked, root / source.base_folder)
    archive.unlink()
    return find(source, root)


def _fetch(source: Source, url: str | None, path: Path) -> None:
    """Download `url` to `path`, going on from a `.part` file, and check the md5 sum."""
    variable = f"RESNET_LIB_{source.__name__}_URL"
    url = url or os.environ.get(variable) or source.url
    part = path.with_name(path.name + ".part")
    another = f"give another address of the same archive in {variable}"
    try:
        _append(url, part, title_of(source))
    # ValueError: an address without a scheme; HTTPException is no OSError.
    except (OSError, ValueError, http.client.HTTPException) as error:
        nothing_left = isinstance(error, urllib.error.HTTPError) and error.code == 416
        if not nothing_left:  # else the md5 sum decides
            raise OSError(
                f"{url} could not be read: {error}. Run again to go on from there, or "
                f"{another} (file:///… for one on disk)."
            ) from error
    if not check_integrity(part, source.tgz_md5):
        part.unlink()
        raise OSError(
            f"{url} is not the {title_of(source)} archive, whose md5 sum is "
            f"{source.tgz_md5}; the file was deleted. Run again, or {another}."
        )
    part.replace(path)


def _append(url: str, part: Path, name: str) -> None:
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
        bar = progress_bar(desc=name, initial=start, total=end, **options)
        with bar, open(part, "ab" if start else "wb") as file:
            while chunk := response.read(1 << 18):
                file.write(chunk)
                bar.update(len(chunk))
    if end and part.stat().st_size < end:
        raise OSError("the connection closed early")


if __name__ == "__main__":
    command = argparse.ArgumentParser(
        "python -m resnet_lib.cifar10", description=__doc__
    )
    command.add_argument("set", nargs="?", choices=list(SOURCES), default="cifar10")
    wanted = SOURCES[command.parse_args().set]
    try:
        print(f"{title_of(wanted)} is in {download(wanted)}")
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(str(error))
