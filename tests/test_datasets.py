"""Where pictures come from: the sets, their download, folders, files of any kind."""

import hashlib
import http.server
import io
import os
import pickle
import re
import struct
import tarfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_lib import datasets
from resnet_lib.cifar10 import CIFAR10, CIFAR100, download, find
from resnet_lib.data import Normalisation
from resnet_lib.datasets import load_cifar10, load_data, load_folder, read_picture
from resnet_lib.identity import data_digest
from resnet_lib.paths import data_home, data_root

# --- the sets -------------------------------------------------------------------------


def test_without_cifar10_the_digits_and_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESNET_LIB_DATA", str(tmp_path))
    monkeypatch.setenv("RESNET_LIB_CIFAR10_URL", (tmp_path / "none").as_uri())
    with pytest.raises(FileNotFoundError, match="RESNET_LIB_DATA"):
        load_cifar10()
    digits = load_data()
    assert "digits" in capsys.readouterr().out
    assert digits.name == "digits" and "CIFAR-10 was not" in digits.note
    train, test = digits.train.images, digits.test.images
    assert (train.shape, test.shape) == ((1437, 3, 32, 32), (360, 3, 32, 32))
    assert train.dtype == torch.uint8 and train.max() == 255
    with torch.device("meta"):  # as a default of the reader's
        assert torch.equal(load_data().train.images, train)


def test_cifar10_when_at_hand():
    if find(CIFAR10) is None:
        pytest.skip("CIFAR-10 is not at hand")
    cifar = load_cifar10()
    assert cifar.train.images.shape == (50_000, 3, 32, 32)
    assert torch.bincount(cifar.test.labels).tolist() == [1000] * 10
    assert cifar.classes[3] == "cat" and len(cifar.classes) == 10
    # The set's well-known channel means.
    mean = Normalisation.of(cifar.train.images).mean.flatten() / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)


# --- download: a server on this machine, an archive of our own ----------------------


def planted(monkeypatch, source, files):
    """An archive of these files that is taken for the set's."""
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    about = source.meta | {"md5": sums.pop(source.meta["filename"])}
    tests = [(name, sums.pop(name)) for name, _ in source.test_list if name in sums]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=0) as tar:
        for file, content in files.items():
            member = tarfile.TarInfo(f"{source.base_folder}/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        tar.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    content = buffer.getvalue()
    monkeypatch.setattr(source, "tgz_md5", hashlib.md5(content).hexdigest())
    monkeypatch.setattr(source, "meta", about)
    monkeypatch.setattr(source, "train_list", list(sums.items()))
    monkeypatch.setattr(source, "test_list", tests)
    return content


@pytest.fixture
def server(monkeypatch):
    """Serves a small archive as CIFAR-10's; `cut` ends a reply after so many bytes."""
    files = {"data_batch_1": b"train" * 200_000, "batches.meta": b"meta"}
    archive = planted(monkeypatch, CIFAR10, files)

    class Handler(http.server.BaseHTTPRequestHandler):
        content, cut, ranges, asked, wait = archive, None, True, [], 0

        def do_GET(self):
            body, asked = Handler.content, self.headers.get("Range")
            Handler.asked.append(asked)
            time.sleep(Handler.wait)
            start = int(asked[6:-1]) if asked and Handler.ranges else 0
            if start >= len(body):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start:][: Handler.cut])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=[0.02], daemon=True).start()
        Handler.url = f"http://127.0.0.1:{httpd.server_port}/cifar.tar.gz"
        yield Handler
        httpd.shutdown()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_and_is_checked(tmp_path, server, ranges, refused):
    root, archive = tmp_path / "new", server.content

    def told(words, url):
        refused(words, download, CIFAR10, root, url, error=OSError)

    server.content = b"a login page"
    told("not the CIFAR-10 archive", server.url)
    told("could not be read", "/tmp/cifar-10-python.tar.gz")  # without a scheme
    assert os.listdir(root) == []
    server.content, server.cut, server.ranges = archive, 400_000, ranges
    told("Run again to go on", server.url)
    assert find(CIFAR10, root) is None
    server.cut = None
    folder = download(CIFAR10, root, server.url)
    assert server.asked == [None, None, "bytes=400000-"]
    assert sorted(os.listdir(folder)) == ["batches.meta", "data_batch_1"]
    assert os.listdir(root) == [folder.name]
    assert os.listdir(tmp_path) == ["new"]  # nothing outside
    assert download(CIFAR10, root, "http://127.0.0.1:9/") == folder
    assert find(CIFAR10, root) == folder
    # A part that is whole already.
    (tmp_path / (CIFAR10.filename + ".part")).write_bytes(archive)
    file = download(CIFAR10, tmp_path, server.url) / "data_batch_1"
    content = file.read_bytes()
    for damaged in (content[:-1], content[:1000] + b"?" + content[1001:], None):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        words = f"data_batch_1 is {'damaged' if damaged else 'missing'}.*Delete the fol"
        refused(words, load_data, tmp_path, error=RuntimeError)


def test_two_notebooks_may_ask_for_a_download_at_once(tmp_path, server, capsys):
    server.wait = 0.3
    with ThreadPoolExecutor() as pool:
        both = pool.map(lambda _: download(CIFAR10, tmp_path, server.url), range(2))
        assert {*both} == {tmp_path / CIFAR10.base_folder}
    assert len(server.asked) == 1
    assert capsys.readouterr().out.count("downloading CIFAR-10; waiting for it.") == 1
    assert os.listdir(tmp_path) == [CIFAR10.base_folder]  # no lock is left


def rows(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


# --- paths ----------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder of our own, with nothing in it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("RESNET_LIB_DATA", str(tmp_path / "elsewhere"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_a_data_folder_as_people_write_it(home, monkeypatch):
    (home / "both" / "cifar-10-batches-py" / "cifar-10-batches-py").mkdir(parents=True)
    for written, meant in {
        **{"~": "", "~/a$HOME": "a$HOME"},
        "~/with a space/cifar-10-batches-py/": "with a space",
        "~/deep/cifar-100-python": "deep",
        # A folder of that name that holds the set.
        "~/both/cifar-10-batches-py": "both/cifar-10-batches-py",
    }.items():
        assert data_root(written) == home / meant
        monkeypatch.setenv("RESNET_LIB_DATA", written)
        assert data_root() == home / meant
    monkeypatch.setenv("RESNET_LIB_DATA", "")
    assert data_root() == data_home()  # empty is as if unset


def test_cifar100_is_downloaded_and_read(home, tmp_path, monkeypatch, refused):
    names = [f"fine {number}" for number in range(100)]
    files = {
        "train": {"data": rows(3), "fine_labels": [0, 99, 5], "coarse_labels": [0]},
        "test": {"data": rows(3, 1), "fine_labels": [1, 2, 99], "coarse_labels": [0]},
        "meta": {"fine_label_names": names, "coarse_label_names": ["all"]},
    }
    files = {name: pickle.dumps(value) for name, value in files.items()}
    archive = tmp_path / "here.tar.gz"
    archive.write_bytes(planted(monkeypatch, CIFAR100, files))
    monkeypatch.setenv("RESNET_LIB_CIFAR100_URL", archive.as_uri())
    root = "~/with a space/cifar-100-python"
    missing = r"No CIFAR-100 in .* cifar100`.* cifar-100-python"
    refused(missing, datasets.load_cifar100, root, error=FileNotFoundError)
    data = datasets.load_cifar100(root, download=True)
    assert (data.name, data.note) == ("cifar100", "Data: CIFAR-100.")
    assert data.classes == tuple(names)
    assert data.train.labels.tolist() == [0, 99, 5]
    assert data.test.images.shape == (3, 3, 32, 32)
    assert torch.equal(data.test.images.flatten(1), torch.from_numpy(rows(3, 1)))
    (home / "with a space" / "cifar-100-python" / "test").write_bytes(b"broken")
    monkeypatch.setenv("RESNET_LIB_DATA", root)
    told = r"test is damaged.*download CIFAR-100"
    refused(told, datasets.load_cifar100, error=RuntimeError)


@pytest.mark.parametrize("inside", ["", "/deeper/still"])
def test_a_file_is_no_data_folder(home, monkeypatch, inside, refused):
    file = home / "cifar-10-python.tar.gz"
    monkeypatch.setenv("RESNET_LIB_DATA", f"{file}{inside}")
    for name in (file.name, "notes.txt", "cifar-10-batches-py"):
        (home / name).write_bytes(b"")
    told = f"cannot be RESNET_LIB_DATA.*RESNET_LIB_CIFAR10_URL={file.as_uri()}"
    for load in (load_data, load_cifar10, partial(find, CIFAR10)):
        refused(told, load)
    told = r"notes\.txt is a file and cannot be the"
    refused(told, load_data, "~/notes.txt" + inside)
    refused("batches-py is a file", load_cifar10, home / "cifar-10-batches-py")


# --- one picture ----------------------------------------------------------------------


def saved(picture, kind="PNG", **options):
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(bits, kind=np.uint16):
    """A grey ramp of 16 × 16 pixels over all values of so many bits."""
    return np.linspace(0, 2**bits - 1, 256).round().astype(kind).reshape(16, 16)


def colours(mode):
    """Left half red, right half blue, in some mode."""
    picture = Image.new("RGB", (8, 8), "red")
    picture.paste((0, 0, 255), (4, 0, 8, 8))
    return picture.convert(mode)


def grey(*values):
    return torch.tensor(values, dtype=torch.uint8).expand(3, -1, -1)


RAMP = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
HOLE = torch.where(RAMP > 0, RAMP, 255)  # where black is transparent, on white
RED_BLUE = torch.zeros(3, 8, 8, dtype=torch.uint8)
RED_BLUE[0, :, :4], RED_BLUE[2, :, 4:] = 255, 255
MODES = {"PNG": "RGBA", "GIF": "P", "BMP": "RGB", "WEBP": "RGB"}
MODES |= {"TIFF": "CMYK", "JPEG": "CMYK"}
PICTURES = [  # a picture, how it is saved, and what comes of it
    *[(ramp(b), k, RAMP) for b in (8, 12, 16) for k in ("PNG", "TIFF", "PPM")],
    # Mid grey: a ramp alone would look right if it wrapped around.
    (np.uint16([[65_535, 32_768]]), "PNG", grey([255, 128])),
    # Other numbers in a TIFF.
    (ramp(8, np.float32) / 255, "TIFF", RAMP),
    (ramp(8, np.float32), "TIFF", RAMP),
    (ramp(16, np.int32) * 1_000, "TIFF", RAMP),
    (np.zeros((1, 2), np.float32), "TIFF", grey([0, 0])),
    (np.int32([[0, 1]]), "TIFF", grey([0, 1])),  # a 1 is no white among whole numbers
    (np.float32([[1, np.nan]]), "TIFF", grey([255, 0])),
    # Black and white, and what is transparent, on white.
    (Image.new("1", (2, 1), 1), "PNG", grey([255, 255])),
    (Image.new("LA", (2, 1), (0, 128)), "PNG", grey([127, 127])),
    *[(p, {"transparency": 0}, HOLE) for p in (ramp(16), ramp(8, np.uint8))],
    *[(colours(mode), kind, RED_BLUE) for kind, mode in MODES.items()],
]


@pytest.mark.parametrize(("picture", "kind", "expected"), PICTURES)
def test_pictures_of_any_depth_and_mode(picture, kind, expected):
    options = {"kind": kind} if isinstance(kind, str) else kind
    found = read_picture(saved(picture, quality=100, **options))
    assert found.shape == expected.shape and found.dtype == torch.uint8
    off = (found.int() - expected.int()).abs()
    limit = 140 if kind in ("JPEG", "WEBP") else 0  # chroma is stored coarsely
    assert off.max() <= limit and off[..., [0, -1]].max() <= min(limit, 40)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_picture_stands_as_its_exif_data_say(kind):
    exif = Image.Exif()
    exif[274] = 6  # turn a quarter, clockwise
    content = saved(colours("RGB").resize((32, 32)), kind, exif=exif)
    top, bottom = read_picture(content, 2).float().split(1, 1)
    assert top[0].mean() > 220 and bottom[2].mean() > 220


def with_chunk(kind, content, crc=None):
    """A PNG file of red and blue with one more chunk before its pixels."""
    png = saved(colours("RGB"))
    place = png.index(b"IDAT") - 4
    size, end = len(content), crc or zlib.crc32(kind + content)
    chunk = struct.pack(f">I4s{size}sI", size, kind, content, end)
    return png[:place] + chunk + png[place:]


def test_what_does_not_draw_does_not_damage(recwarn):
    for content in (
        with_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(70 << 20))),
        with_chunk(b"eXIf", b"Exif\0\0II*\0\xff\xff"),
        with_chunk(b"eXIf", b""),
        with_chunk(b"eXIf", b"MM\0*", crc=1),
        with_chunk(b"abCd", b"?"),  # of no known kind
        saved(colours("RGB")) + b"trailing",
    ):
        assert torch.equal(read_picture(content), RED_BLUE)
    exif = b"Exif\0\0MM\0*\xff\xff\xff\xff"  # which leads nowhere
    jpeg = saved(colours("RGB"), "JPEG", exif=exif)
    assert read_picture(jpeg).shape == (3, 8, 8)
    assert not recwarn.list


NOISE = rows(64).reshape(256, 256, 3)
NO_PICTURES = [
    (b"", "it is none of PNG, JPEG"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is a drawing .SVG.; save"),
    (b'<?xml version="1.0"?><svg/>', "it is a drawing"),
    *[(saved(NOISE, k)[:-300], "it cannot be decoded") for k in ("PNG", "JPEG")],
    *[(p, "it cannot be opened") for p in ("~/nowhere/x.png", Path("/"), "\0")],
    ([1, 2], r"it cannot be opened \(\[1, 2\] is no path"),
]


def test_what_is_no_picture_is_said_in_words(refused):
    for content, words in NO_PICTURES:
        refused(words, read_picture, content)


def test_a_size_that_is_none_and_too_many_pixels(monkeypatch, refused):
    for size in (0, 2.5, True, 4097):
        told = "size, in pixels, is .*: give a whole number from 1 to 4096"
        refused(told, read_picture, saved(NOISE), size)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for side in (11, 40):
        content = saved(Image.new("L", (side, side)))
        refused("it has too many pixels", read_picture, content)


@pytest.mark.parametrize("shape", [(8, 8), (300, 20), (7, 500), (1, 1)])
def test_a_size_keeps_the_middle_square(shape):
    side = min(shape)
    picture = Image.new("RGB", shape, "red")
    left, top = ((length - side) // 2 for length in shape)
    picture.paste((0, 255, 0), (left, top, left + side, top + side))
    square = read_picture(saved(picture), size=16)
    assert square.shape == (3, 16, 16) and square.is_contiguous()
    assert square[1].float().mean() > 235 and square[0].float().mean() < 20


def test_bytes_paths_and_home(home):
    content = saved(colours("RGB"))
    (home / "a b.png").write_bytes(content)
    paths = (home / "a b.png", str(home / "a b.png"), "~/a b.png")
    for source in (content, memoryview(content), bytearray(content), *paths):
        assert torch.equal(read_picture(source), RED_BLUE)


# --- a folder of pictures -------------------------------------------------------------


def fill(folder, counts, kind="png"):
    """Pictures of one colour for each class: its place among the classes, times 40."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture = Image.new("RGB", (20 + i, 30), (40 * number, i, 0))
            picture.save(folder / name / f"{i:03}.{kind}")


def test_class_folders_are_split_and_the_split_is_said(home, capsys):
    fill(home / "pets", {"dogs": 10, "cats": 15})
    data = load_folder("~/pets")
    assert capsys.readouterr().out == (
        "folder pets: 2 classes, 20 training and 5 test pictures, the middle square of "
        "each at 32 by 32 pixels, RGB; 20% of all, some of each class, were set aside "
        "to test on.\n"
    )
    assert data.classes == ("cats", "dogs")
    assert torch.bincount(data.train.labels).tolist() == [12, 8]
    assert torch.bincount(data.test.labels).tolist() == [3, 2]
    assert data.train.images.shape == (20, 3, 32, 32)
    seen = set()  # no picture is on both sides, and every one is on one
    for part in (data.train, data.test):
        first, second, _ = part.images[:, :, 5, 5].unbind(1)
        assert torch.equal(first, (40 * (1 - part.labels)).byte())  # by the class
        seen |= set(zip(part.labels.tolist(), second.tolist(), strict=True))
    assert len(seen) == 25
    # Shuffled, so that the last ones are a fair validation set, and always alike.
    assert set(data.split(8)[1].labels.tolist()) == {0, 1}
    with torch.device("meta"):  # as a default of the reader's
        again = load_folder(home / "pets")
    assert data_digest(again) == data_digest(data)


def test_a_given_test_set_is_taken(tmp_path, refused):
    fill(tmp_path / "train", {"a": 3, "b": 4, "c": 5})
    fill(tmp_path / "valid", {"a": 1, "c": 2})
    data = load_folder(tmp_path, size=8)
    assert (len(data.train), data.test.labels.tolist()) == (12, [0, 2, 2])
    assert data.train.images.shape[2:] == (8, 8)
    fill(tmp_path / "valid", {"z": 2})
    refused("z is a class without training pictures", load_folder, tmp_path)
    # One part holds classes and the other does not.
    fill(tmp_path / "1", {"Training/a": 2, "Training/b": 2, "Val": 1})
    refused("and Val does not. Give both the", load_folder, tmp_path / "1")
    fill(tmp_path / "2", {"a": 2, "b": 2, "Test/a": 2})
    refused("classes and train does not.", load_folder, tmp_path / "2")


PAIR = {"train/a": 2, "train/b": 2}
PARTS = [  # pictures in folders, and what is said of them
    ({"Train/a": 2, "Train/b": 2, "Test/a": 1}, "RGB; Test is the test set.\n"),
    ({"training/a": 2, "training/b": 2, "testing/b": 1}, "; testing is the test set."),
    ({"TRAIN/a": 2, "TRAIN/b": 2, "Validation/b": 1}, "; Validation is the test set."),
    (PAIR | {"valid/b": 1}, "; valid is the test set."),
    (
        PAIR | {"val/a": 3, "test/b": 2, "test": 1},
        "; test is the test set; left out: 1 .png, 3 in val.",
    ),
    (
        PAIR | {"val/a": 1, "test": 4, "c": 3},
        "; val is the test set; left out: 3 in c, 4 in test.",
    ),
    (
        {"a": 3, "b": 3, ".": 2},
        "33% of all, some of each class, were set aside to test on; left out: 2 .png.",
    ),
    ({"train/a": 5, "train/b": 5}, "8 training and 2 test pictures"),
    # Vehicles and an exam: classes of these names.
    ({"train": 5, "car": 5, "test": 5}, "3 classes, 12 training and 3 test pictures"),
]


@pytest.mark.parametrize(("folders", "said"), PARTS)
def test_the_parts_are_known_and_the_rest_is_said(tmp_path, capsys, folders, said):
    fill(tmp_path, folders)
    load_folder(tmp_path)
    assert said in capsys.readouterr().out


def test_pictures_of_many_kinds_and_what_is_none(tmp_path, capsys):
    hidden = {".git": 0, "__MACOSX": 0, "a/.thumbnails": 2}
    fill(tmp_path, {"a": 2, "_b": 2, "a/deeper": 0} | hidden)
    fill(tmp_path, {"a": 2, "_b": 2}, "JPG")
    (tmp_path / "a" / "deeper" / "grey.png").write_bytes(saved(ramp(16)))
    others = ("a/Thumbs.db", "a/notes.txt", "a/.hidden.png", "a/._001.png")
    for name in (*others, "_b/x.heic", "readme"):
        (tmp_path / name).write_bytes(b"no picture")
    data = load_folder(tmp_path)
    assert len(data.train) + len(data.test) == 9
    said = capsys.readouterr().out
    assert said.endswith("; left out: 1 .heic, 1 .db, 1 .txt, 1 others.\n")


def test_one_channel_of_three(tmp_path, capsys):
    fill(tmp_path, {"a": 4, "b": 4})
    data = load_folder(tmp_path, size=16, grey=True)
    assert data.train.images.shape == (6, 1, 16, 16)
    assert "pixels, grey;" in capsys.readouterr().out
    # A pixel of (40, i, 0), by the eye's weights.
    expected = {round(0.299 * 40 * n + 0.587 * i) for n in (0, 1) for i in range(4)}
    found = torch.cat([data.train.images, data.test.images]).unique()
    assert set(found.tolist()) == expected
    assert torch.equal(datasets._grey(RAMP), RAMP[:1])


def test_names_in_another_encoding_can_be_printed(tmp_path, capsysbinary):
    """As an archive made on another system leaves them."""
    try:
        place = tmp_path / os.fsdecode(b"gr\xfcn")
        place.mkdir()
    except (OSError, ValueError):  # macOS and Windows
        pytest.skip("needs a file system that takes any bytes for a name")
    fill(place, {os.fsdecode(b"b\xe4r"): 3, "Größe": 3})
    data = load_folder(place)
    assert data.name == "folder gr\\xfcn" and data.classes == ("Größe", "b\\xe4r")
    assert "gr\\xfcn: 2 classes" in capsysbinary.readouterr().out.decode()


def test_folders_that_cannot_be_used(tmp_path, refused):
    place = tmp_path / "x"

    def told(words, **options):
        refused(words, load_folder, place, **options)

    told("does not exist")
    fill(place, {"a": 3})
    told("holds 1 folders of pictures. Give it one folder per class, 2 or more")
    fill(place, {"b": 0})
    told("b holds no pictures. Put some there")
    fill(place, {"b": 1})
    told("class b has 1 picture. Give it 2 or more")
    fill(place, {"b": 2})
    for share in (0, 1, "0.2", float("nan"), 1j):
        told("between 0 and 1, as 0.2", test=share)
    told("a whole number from 1 to 4096", size=None)
    told("grey is 1: give True or False", grey=1)
    for share in (0.5, Fraction(1, 2), np.float32(0.5)):
        assert len(load_folder(place, np.int64(8), share).test) == 3
    for name in "pqrs":
        (place / "a" / f"{name}.png").write_bytes(b"no picture")
    told(r"4 pictures of .*x cannot be read.*p\.png: it is none of.*; …")
    refused("is a file", load_folder, place / "a" / "p.png")
    refused(r"'' is no path\.", load_folder, "")
    refused(r"3 is no path\. Give text, as in '~/p", load_folder, 3, error=TypeError)


# --- the example ----------------------------------------------------------------------


def test_the_example_trains(home, monkeypatch, capsys):
    fill(home / "pets", {"cats": 10, "dogs": 10, "fish": 10})
    monkeypatch.chdir(home)
    text = (Path(__file__).parent.parent / "data" / "README.md").read_text("utf-8")
    text = text[text.index("from dataclasses import replace") :]
    code = text[: text.index("\n```")]
    assert len([line for line in code.splitlines() if line]) <= 10
    short = code.replace("2_000", "2").replace("resnet20", "resnet8")
    short = short.replace("validation=0", "validation=0, batch_size=8")
    assert short != code
    exec(short, {})
    out = capsys.readouterr().out
    assert re.search(r"\d+% of the test pictures are misjudged", out)
    assert (home / "runs" / "pets" / "weights.pt").exists()
