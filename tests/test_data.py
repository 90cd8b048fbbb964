import hashlib
import http.server
import io
import tarfile
import threading

import pytest
import torch
import torchvision.transforms.v2.functional as oracle

from resnet_lib import data
from resnet_lib.data import Augmenter, Batches, Dataset, Images, Normalisation


def random_images(count=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator)
    return Images(pixels.to(torch.uint8), torch.arange(count) % 10)


# --- augmentation against torchvision, image by image -------------------------------


@pytest.mark.parametrize("per_pixel", [False, True])
@pytest.mark.parametrize("black_border", [False, True])
def test_augmentation_is_torchvisions_crop_and_flip(per_pixel, black_border):
    images = random_images().images
    norm = Normalisation.of(images, per_pixel, black_border)
    plan = data.plan_epoch(len(images), torch.Generator().manual_seed(1))
    result = Augmenter(images, norm)(plan)
    for row, ours in zip(plan.tolist(), result, strict=True):
        index, top, left, flip = row
        if black_border:  # pad in uint8, normalise afterwards
            padded = oracle.pad(images[index], [4]).float()
            border = norm.mean.expand(3, 32, 32).mean((1, 2)).view(3, 1, 1)
            mean = border.expand(3, 40, 40).clone()
            mean[:, 4:-4, 4:-4] = norm.mean
            padded = (padded - mean) / norm.std
        else:  # normalise, then pad with zeros
            padded = oracle.pad(norm(images[index : index + 1])[0], [4])
        theirs = oracle.crop(padded, top, left, 32, 32)
        if flip:
            theirs = oracle.horizontal_flip(theirs)
        torch.testing.assert_close(ours, theirs)


def test_every_image_draws_its_own_crop_and_flip():
    plan = data.plan_epoch(500, torch.Generator().manual_seed(0))
    assert sorted(plan[:, 0].tolist()) == list(range(500))
    for column, values in ((1, 9), (2, 9), (3, 2)):
        assert plan[:, column].unique().numel() == values
    assert plan[:, 1].ne(plan[:, 2]).any()


def test_batches_stream_across_the_end_of_an_epoch():
    images = random_images(count=20)
    images = Images(images.images, torch.arange(20))  # a label of its own for each
    norm = Normalisation.of(images.images)
    batches = Batches(images, 8, norm, seed=3)
    seen = torch.cat([next(batches)[1] for _ in range(5)])  # 40 images, two epochs
    assert sorted(seen[:20].tolist()) == list(range(20))
    assert sorted(seen[20:].tolist()) == list(range(20))
    assert seen[:20].tolist() != seen[20:].tolist()
    x, y = next(Batches(images, 50, norm))  # a batch larger than the set
    assert x.shape == (50, 3, 32, 32) and y.shape == (50,)


def test_batches_resume_at_the_next_picture():
    images = random_images()
    norm = Normalisation.of(images.images)
    batches = Batches(images, 8, norm, seed=3)
    for _ in range(4):
        next(batches)
    state = batches.state_dict()
    ahead = [next(batches) for _ in range(6)]
    other = Batches(images, 8, norm, seed=99)
    other.load_state_dict(state)
    for (x, y), (x2, y2) in zip(ahead, other, strict=False):
        assert torch.equal(x, x2) and torch.equal(y, y2)


def test_seed_fixes_the_pictures():
    images = random_images()
    norm = Normalisation.of(images.images)
    first, same, other = (next(Batches(images, 8, norm, s))[0] for s in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_normalisation_matches_plain_statistics():
    images = random_images(200).images
    values = images.double()
    norm = Normalisation.of(images)
    torch.testing.assert_close(norm.mean.view(3), values.mean((0, 2, 3)).float())
    std = values.std((0, 2, 3), correction=0).float()
    torch.testing.assert_close(norm.std.view(3), std)
    result = norm(images)
    assert result.dtype == torch.float32
    assert abs(result.mean().item()) < 1e-4 and abs(result.std().item() - 1) < 1e-3
    per_pixel = Normalisation.of(images, per_pixel=True)
    torch.testing.assert_close(per_pixel.mean, values.mean(0).float())
    assert torch.equal(per_pixel.std, torch.ones(3, 1, 1))


# --- the sets ------------------------------------------------------------------------


def test_digits_have_the_types_of_cifar10():
    digits = data.load_digits()
    assert digits.train.images.shape == (1437, 3, 32, 32)
    assert digits.test.images.shape == (360, 3, 32, 32)
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.images.max() == 255
    assert "digits" in digits.note and "CIFAR-10 was not" in digits.note


def test_cifar10_when_at_hand():
    if data.find_cifar10() is None:
        pytest.skip("CIFAR-10 is not at hand")
    cifar = data.load_cifar10()
    assert cifar.train.images.shape == (50_000, 3, 32, 32)
    assert torch.bincount(cifar.test.labels).tolist() == [1000] * 10
    assert cifar.classes[3] == "cat" and len(cifar.classes) == 10
    train, validation = cifar.split(5_000)
    assert (len(train), len(validation)) == (45_000, 5_000)
    # The set's well-known channel means.
    mean = Normalisation.of(cifar.train.images).mean.flatten() / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)


def test_wrong_images_and_labels_say_the_remedy():
    good = random_images()
    with pytest.raises(ValueError, match="permute"):
        Images(good.images.permute(0, 2, 3, 1), good.labels)
    with pytest.raises(ValueError, match="uint8"):
        Images(good.images.float(), good.labels)
    with pytest.raises(ValueError, match="one class number per image"):
        Images(good.images, good.labels[:-1])
    with pytest.raises(ValueError, match="from 0 to 2; found 0 to 9"):
        Dataset("mine", ("a", "b", "c"), good, good)
    with pytest.raises(ValueError, match="Choose a number"):
        Dataset("mine", tuple("abcdefghij"), good, good).split(20)


# --- download: a server on this machine, an archive of our own ----------------------


@pytest.fixture
def archive(monkeypatch):
    """A small archive in CIFAR-10's layout, taken for the real one."""
    files = {"data_batch_1": b"train" * 200_000, "batches.meta": b"meta"}
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=0) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{data.FOLDER}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        evil = tarfile.TarInfo("../outside")
        tar.addfile(evil, io.BytesIO())
    content = buffer.getvalue()
    monkeypatch.setattr(data, "FILES", sums)
    monkeypatch.setattr(data, "ARCHIVE_MD5", hashlib.md5(content).hexdigest())
    return content


@pytest.fixture
def server(archive):
    """Serves `content`, with ranges; `cut` ends the reply after so many bytes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        content, cut, ranges, asked = archive, None, True, []

        def do_GET(self):
            body = Handler.content
            asked = self.headers.get("Range")
            Handler.asked.append(asked)
            start = int(asked[6:-1]) if asked and Handler.ranges else 0
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start:][: Handler.cut])

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=[0.02], daemon=True).start()
    Handler.url = f"http://127.0.0.1:{httpd.server_port}/cifar.tar.gz"
    yield Handler
    httpd.shutdown()
    httpd.server_close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_download_verifies_and_leaves_only_the_set(tmp_path, server):
    folder = data.download_cifar10(tmp_path / "new", server.url)
    assert names(folder) == ["batches.meta", "data_batch_1"]
    assert names(tmp_path / "new") == [data.FOLDER]
    assert names(tmp_path) == ["new"]  # nothing was unpacked outside
    assert data.download_cifar10(tmp_path / "new", "http://127.0.0.1:9/") == folder


def test_broken_download_is_never_taken_for_whole_and_goes_on(tmp_path, server):
    server.cut = 400_000
    with pytest.raises(OSError, match="Run again to go on"):
        data.download_cifar10(tmp_path, server.url)
    assert data.find_cifar10(tmp_path) is None
    server.cut = None
    data.download_cifar10(tmp_path, server.url)
    assert server.asked == [None, "bytes=400000-"]
    assert data.find_cifar10(tmp_path)


def test_server_without_ranges_starts_over(tmp_path, server):
    server.cut, server.ranges = 400_000, False
    with pytest.raises(OSError):
        data.download_cifar10(tmp_path, server.url)
    server.cut = None
    assert data.download_cifar10(tmp_path, server.url)


def test_part_that_is_whole_already(tmp_path, server, archive):
    (tmp_path / (data.ARCHIVE + ".part")).write_bytes(archive)
    assert data.download_cifar10(tmp_path, server.url)


def test_another_file_is_refused_and_deleted(tmp_path, server):
    server.content = b"a login page"
    with pytest.raises(OSError, match="not the CIFAR-10 archive"):
        data.download_cifar10(tmp_path, server.url)
    assert names(tmp_path) == []


def test_an_address_without_a_scheme_gets_the_sentence(tmp_path):
    with pytest.raises(OSError, match="could not be read"):
        data.download_cifar10(tmp_path, "/tmp/cifar-10-python.tar.gz")


def test_archive_on_disk_by_file_url(tmp_path, archive):
    path = tmp_path / "mine.tar.gz"
    path.write_bytes(archive)
    assert data.download_cifar10(tmp_path / "root", path.as_uri())


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_damaged_file_is_named_with_the_remedy(tmp_path, server, damage):
    folder = data.download_cifar10(tmp_path, server.url)
    file = folder / "data_batch_1"
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[:1000])
    elif damage == "flip":
        content[500] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    with pytest.raises(RuntimeError, match=r"data_batch_1.*Delete the folder"):
        data.load_data(tmp_path)


def test_without_cifar10_the_digits_and_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESNET_LIB_DATA", str(tmp_path))
    monkeypatch.setenv("RESNET_LIB_CIFAR10_URL", (tmp_path / "none").as_uri())
    assert data.load_data().name == "digits"
    assert "digits" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="RESNET_LIB_DATA"):
        data.load_cifar10()
