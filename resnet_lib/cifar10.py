"""CIFAR-10 on disk: find, download, verify."""

import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from resnet_lib.paths import data_root
from resnet_lib.progress import progress_bar

__all__ = ["download_cifar10", "find_cifar10"]

URL = CIFAR10.url

ARCHIVE, ARCHIVE_MD5 = CIFAR10.filename, CIFAR10.tgz_md5

FOLDER = CIFAR10.base_folder

FILES = dict([*CIFAR10.train_list, *CIFAR10.test_list])

FILES[CIFAR10.meta["filename"]] = CIFAR10.meta["md5"]


def find_cifar10(root: Path | str | None = None) -> Path | None:
    """The folder with CIFAR-10's files, or None where there is no such folder.

    Raises RuntimeError, naming the file and the remedy, if a file is missing or
    damaged.
    """
    folder = Path(root or data_root()) / FOLDER
    if not folder.is_dir():
        return None
    for name, md5 in FILES.items():
        if not (folder / name).is_file():
            problem = "is missing"
        elif not check_integrity(folder / name, md5):
            problem = "is damaged (its md5 sum is wrong)"
        else:
            continue
        raise RuntimeError(
            f"{folder / name} {problem}. Delete the folder {folder} and run again to "
            "download CIFAR-10 afresh."
        )
    return folder


def download_cifar10(root: Path | str | None = None, url: str | None = None) -> Path:
    """Download, verify and unpack CIFAR-10 (170 MB); returns its folder.

    `url` is another address of the same archive, `file:///…` for one already on disk;
    by default `RESNET_LIB_CIFAR10_URL`, else the official one. What was downloaded
    before an interruption is kept and the next call goes on from there. The archive is
    unpacked beside its final place and renamed at the end, so a half-written set is
    never found.

    Raises OSError if the address cannot be read or the archive is not CIFAR-10.
    """
    root = Path(root or data_root())
    if folder := find_cifar10(root):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    archive = root / ARCHIVE
    if not check_integrity(archive, ARCHIVE_MD5):
        _fetch(url or os.environ.get("RESNET_LIB_CIFAR10_URL") or URL, archive)
    unpacked = root / (FOLDER + ".part")
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    with tarfile.open(archive) as tar:
        # Only the files we know, each to a path that we choose.
        for name in FILES:
            source = tar.extractfile(f"{FOLDER}/{name}")
            with source, open(unpacked / name, "wb") as target:
                shutil.copyfileobj(source, target)
    unpacked.rename(root / FOLDER)
    archive.unlink()
    return find_cifar10(root)


def _fetch(url: str, path: Path) -> None:
    """Download `url` to `path`, going on from a `.part` file, and check the md5 sum."""
    part = path.with_name(path.name + ".part")
    start = part.stat().st_size if part.exists() else 0
    help = (
        "Run again to go on from there, or give another address of the same archive in "
        "RESNET_LIB_CIFAR10_URL (file:///… for one on disk)."
    )
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "resnet_lib"})
        if start:
            request.add_header("Range", f"bytes={start}-")
        with urllib.request.urlopen(request, timeout=20) as response:
            if response.status != 206:  # the server sends the whole file
                start = 0
            size = response.headers.get("Content-Length")
            bar = progress_bar(
                desc="CIFAR-10",
                initial=start,
                total=start + int(size) if size else None,
                unit="B",
                unit_scale=True,
            )
            with bar, open(part, "ab" if start else "wb") as file:
                while chunk := response.read(1 << 18):
                    file.write(chunk)
                    bar.update(len(chunk))
            if size and part.stat().st_size < start + int(size):
                raise OSError("the connection closed early")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is left to send; the md5 sum decides
            raise OSError(f"{url} could not be read: {error}. {help}") from error
    # ValueError: an address without a scheme; HTTPException is no OSError.
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise OSError(f"{url} could not be read: {error}. {help}") from error
    if not check_integrity(part, ARCHIVE_MD5):
        found = hashlib.md5(part.read_bytes()).hexdigest()
        part.unlink()
        raise OSError(
            f"{url} is not the CIFAR-10 archive (md5 {found}, expected {ARCHIVE_MD5}); "
            "the file was deleted. Run again, or give another address in "
            "RESNET_LIB_CIFAR10_URL."
        )
    part.rename(path)


if __name__ == "__main__":
    print(f"CIFAR-10 is in {download_cifar10()}")
