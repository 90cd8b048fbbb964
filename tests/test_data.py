"""Pictures as tensors: what is taken, what is told, what a batch is made of."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as oracle

from resnet_lib import data
from resnet_lib.data import Augmenter, Batches, Dataset, Images, Normalisation
from resnet_lib.identity import data_digest


def random_images(count=20, seed=0, channels=3):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, channels, 32, 32), generator=generator)
    return Images(pixels.to(torch.uint8), torch.arange(count) % 10)


# --- augmentation against torchvision, image by image -------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("per_pixel", [False, True])
@pytest.mark.parametrize("black_border", [False, True])
def test_augmentation_is_torchvisions_crop_and_flip(per_pixel, black_border, channels):
    images = random_images(channels=channels).images
    norm = Normalisation.of(images, per_pixel, black_border)
    plan = data.plan_epoch(len(images), torch.Generator().manual_seed(1))
    result = Augmenter(images, norm)(plan)
    for row, ours in zip(plan.tolist(), result, strict=True):
        index, top, left, flip = row
        if black_border:  # pad in uint8, normalise afterwards
            padded = oracle.pad(images[index], [4]).float()
            border = norm.mean.expand(-1, 32, 32).mean((1, 2)).view(-1, 1, 1)
            mean = border.expand(-1, 40, 40).clone()
            mean[:, 4:-4, 4:-4] = norm.mean
            padded = (padded - mean) / norm.std
        else:  # normalise, then pad with zeros
            padded = oracle.pad(norm(images[index : index + 1])[0], [4])
        theirs = oracle.crop(padded, top, left, 32, 32)
        if flip:
            theirs = oracle.horizontal_flip(theirs)
        torch.testing.assert_close(ours, theirs)


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


def test_a_plan_is_all_that_a_batch_depends_on():
    images = random_images()
    norm = Normalisation.of(images.images)
    whole, again = (Batches(images, 8, norm, seed=3) for _ in range(2))
    for _ in range(6):
        plan = whole.next_plan()
        assert plan.shape == (8, 4) and plan.dtype == torch.int64
        x, y = next(again)
        for _ in range(2):  # made twice, it is the same
            made, labels = again.make(plan)
            assert torch.equal(made, x) and torch.equal(labels, y)
        assert torch.equal(labels, images.labels[plan[:, 0]])
    assert whole.state_dict()["position"] == again.state_dict()["position"]


def test_each_process_plans_its_share():
    images = random_images()
    norm = Normalisation.of(images.images)
    shares = [slice(None), slice(0, 4), slice(4, 8)]
    whole, *parts = (Batches(images, 8, norm, 3, share) for share in shares)
    for _ in range(6):
        both = torch.cat([part.next_plan() for part in parts])
        assert torch.equal(whole.next_plan(), both)


def test_what_cannot_be_drawn_from_is_refused_at_once():
    images = random_images()
    norm = Normalisation.of(images.images)
    with pytest.raises(ValueError, match="There are no images to draw from"):
        Batches(images[:0], 8, norm)
    for size in (0, -4, 2.0, "8", None):
        with pytest.raises(ValueError, match="give a whole number from 1 to 20000"):
            Batches(images, size, norm)


@pytest.mark.parametrize("position", [25, 1_000_000, -1])
def test_the_state_of_another_set_is_refused(position):
    images = random_images(count=20)
    batches = Batches(images, 8, Normalisation.of(images.images))
    state = batches.state_dict() | {"position": position}
    with pytest.raises(ValueError, match=f"number {position} of an epoch.*another set"):
        batches.load_state_dict(state)
    batches.position = 25  # and if it were there, it would not go on for ever
    assert next(batches)[0].shape == (8, 3, 32, 32)


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


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_a_channel_of_one_value_becomes_zero(channels):
    images = random_images(channels=channels).images
    images[:, 0] = 7
    norm = Normalisation.of(images)
    assert norm.mean[0] == 7 and norm.std[0] == 1
    values = norm(images)
    assert values.isfinite().all() and not values[:, 0].any()
    plan = data.plan_epoch(20, torch.Generator())
    assert Augmenter(images, norm)(plan).isfinite().all()
    for value in (0, 255):
        flat = torch.full((3, channels, 8, 8), value, dtype=torch.uint8)
        assert not Normalisation.of(flat)(flat).any()


def test_a_normalisation_goes_to_the_images():
    images = random_images().images
    norm = Normalisation.of(images, black_border=True)
    there = norm.to("meta")
    assert there.mean.is_meta and there.std.is_meta and there.black_border
    # As if the model and its images were on a GPU and the training set was not.
    assert norm(images.to("meta")).is_meta
    assert Augmenter(images.to("meta"), norm).means.is_meta
    assert norm.to("cpu").mean is norm.mean  # nothing is copied in vain


def test_pictures_that_a_normalisation_was_not_measured_on():
    images = random_images().images
    norms = [Normalisation.of(images), Normalisation.of(images, per_pixel=True)]
    wrong = [images[:, :1], images[:, [0, 1, 2, 0]], images[..., 1:]]
    for norm, other in [
        (norms[0], wrong[0]),
        (norms[0], wrong[1]),
        (norms[1], wrong[2]),
    ]:
        with pytest.raises(ValueError, match=r"Normalisation\.of\(images\)") as caught:
            norm(other)
        assert str(tuple(other.shape)) in str(caught.value)
        Normalisation.of(other)(other)  # the remedy
        with pytest.raises(ValueError, match="were measured on others"):
            Augmenter(other, norm)
    assert norms[0](wrong[2]).shape == wrong[2].shape  # per channel fits any size
    assert norms[1](images[0]).shape == (3, 32, 32)


def test_what_cannot_be_measured():
    images = random_images()
    with pytest.raises(ValueError, match="no images to measure"):
        Normalisation.of(images.images[:0])
    with pytest.raises(ValueError, match=r"Give their \.images"):
        Normalisation.of(images)
    with pytest.raises(ValueError, match="must be uint8"):
        Normalisation.of(images.images / 255)


# --- images ---------------------------------------------------------------------------

PIXELS = random_images().images
ARRAY = PIXELS.numpy()
LAST = ARRAY.transpose(0, 2, 3, 1)  # (20, 32, 32, 3)
LABELS = torch.arange(20) % 10


@pytest.mark.parametrize(
    "images",
    [
        ARRAY,
        LAST,
        np.ascontiguousarray(LAST),
        ARRAY[::-1][::-1],
        np.frombuffer(ARRAY.tobytes(), np.uint8).reshape(ARRAY.shape),  # read-only
    ],
    ids=["NCHW", "NHWC", "NHWC in memory", "a view", "read-only"],
)
def test_arrays_are_taken_as_they_are(images, recwarn):
    taken = Images(images, LABELS.numpy())
    assert torch.equal(taken.images, PIXELS) and taken.images.is_contiguous()
    assert taken.labels.dtype == torch.int64
    assert not recwarn.list


@pytest.mark.parametrize(
    ("shape", "taken"),
    [
        ((20, 28, 28), (20, 1, 28, 28)),
        ((20, 28, 28, 1), (20, 1, 28, 28)),
        ((20, 9, 7, 4), (20, 4, 9, 7)),
        ((20, 1, 28, 28), (20, 1, 28, 28)),
        ((20, 13, 28, 28), (20, 13, 28, 28)),
        ((20, 3, 5, 3), (20, 3, 5, 3)),
    ],
    ids=str,
)
def test_arrays_of_other_shapes(shape, taken):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = Images(array, LABELS).images
    assert images.shape == taken
    moved = images if shape[1] == taken[1] else images.permute(0, 2, 3, 1)
    assert torch.equal(moved.reshape(-1), torch.from_numpy(array).reshape(-1))


def test_an_array_that_changes_later_changes_no_images():
    array = ARRAY.copy()
    images = Images(array, LABELS)
    array[:] = 0
    assert torch.equal(images.images, PIXELS)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.tolist(),
        tuple(LABELS.tolist()),
        LABELS.numpy().astype(np.uint8),
        LABELS.numpy().astype(">i4"),
        LABELS.to(torch.int32),
        LABELS.to(torch.uint8),
    ],
    ids=["list", "tuple", "uint8 array", "big-endian", "int32", "uint8"],
)
def test_labels_of_any_whole_numbers(labels):
    images = Images(PIXELS, labels)
    assert images.labels.dtype == torch.int64 and torch.equal(images.labels, LABELS)


MEAN, STD = PIXELS.float().mean(), PIXELS.float().std()
# Wrong images, words of the sentence, and whether its remedy gives the pixels again.
WRONG = {
    "floats to 1": (PIXELS / 255, "float32 from 0 to 1: convert", True),
    "float64 to 1, channels last": (LAST / 255, "float64 from 0 to 1: conv", True),
    "halves to 1": (ARRAY.astype("f2") / 255, "float16 from 0 to 1: convert", False),
    "floats to 255": (PIXELS.float(), "float32 from 0 to 255: convert", True),
    "whole numbers": (PIXELS.long(), "int64 from 0 to 255: convert", True),
    "an array of them": (LAST.astype(np.int32), "int32 from 0 to 255: conv", True),
    "12 bits": ((PIXELS.int() * 4095 / 255).round().int(), "from 0 to 4095", True),
    "16 bits": (ARRAY.astype(np.uint16) * 257, "uint16 from 0 to 65535", True),
    "16 bits in torch": ((PIXELS.int() * 257).to(torch.uint16), "to 65535", True),
    "more bits": (PIXELS.long() * 1_000, "from 0 to 2.55e+05", True),
    "a mask": (PIXELS > 127, "bool from 0 to 1: convert", False),
    "an array of masks": (LAST > 127, "bool from 0 to 1: convert", False),
    "a mask in numbers": ((PIXELS > 127).long(), "int64 from 0 to 1: conve", False),
    "channels last": (PIXELS.permute(0, 2, 3, 1), "got (20, 32, 32, 3). Move", True),
    "rows": (PIXELS.flatten(1), "got (20, 3072). Rows take", True),
    "an array of rows": (ARRAY.reshape(20, -1), "got (20, 3072). Rows take", True),
}


def mended(images, labels):
    """What comes of wrong images where each sentence is followed, and the sentences."""
    told = []
    while len(told) < 4:
        try:
            return Images(images, labels).images, told
        except ValueError as error:
            told.append(str(error))
            code = re.search(r"(\(?images[\[. ].*)\.$", told[-1])[1]
            images = eval(code, {"torch": torch}, {"images": images})
    raise AssertionError(told)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_images_are_told_what_mends_them(name):
    images, words, same = WRONG[name]
    result, told = mended(images, LABELS)
    assert words in told[0] and "\n" not in told[0]
    assert result.shape == PIXELS.shape
    assert result.min() == 0 and result.max() == 255
    assert not same or torch.equal(result, PIXELS)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (PIXELS[0], "got (3, 32, 32). Add the batch dimension"),
        (PIXELS[0, :1], "got (1, 32, 32). Add the batch dimension"),
        (PIXELS[0].permute(1, 2, 0), "got (32, 32, 3). Add the batch"),
        (ARRAY[0].transpose(1, 2, 0), "got (32, 32, 3). Add the batch"),
        (PIXELS[0, 0, :, :, None].numpy(), "got (32, 32, 1)"),
        (PIXELS[:, 0], "got (20, 32, 32). Add the channel"),
    ],
    ids=["CHW", "grey", "HWC", "array HWC", "array HW1", "grey set"],
)
def test_a_missing_dimension_is_named(images, words):
    count = 20 if "channel" in words else 1
    result, told = mended(images, LABELS[:count])
    assert words in told[0] and "\n" not in told[0]
    assert len(result) == count and torch.equal(result[0], PIXELS[0, : result.shape[1]])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ((PIXELS - MEAN) / STD, "give the pixels as they were before"),
        (PIXELS / 0.0, "mend what is not finite"),
        (PIXELS * float("nan"), "mend what is not finite"),
        (list(ARRAY), "Got list: stack the pictures in one array"),
        (ARRAY.astype(object), "Got object: stack the pictures"),
        ("pictures", "Got str"),
        (None, "Got NoneType"),
        (Images(PIXELS, LABELS), "Give their .images"),
        (PIXELS[:, :, :0], "have no pixels"),
        (PIXELS[:, :0], "have no pixels"),
        (torch.tensor(3, dtype=torch.uint8), "got ()"),
    ],
)
def test_other_wrong_images(images, words):
    with pytest.raises(ValueError) as caught:
        Images(images, LABELS)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_sparse_pictures_are_told_how_to_become_dense():
    for pixels in (PIXELS.to_sparse(), (PIXELS / 255).to_sparse()):
        with pytest.raises(ValueError, match=r"sparse.*Convert it with \.to_dense\(\)"):
            Images(pixels, LABELS)
    assert torch.equal(Images(PIXELS.to_sparse().to_dense(), LABELS).images, PIXELS)


HOT = torch.nn.functional.one_hot(LABELS)
CONVERTED = "labels.reshape(-1).long()"
TAKEN = "torch.from_numpy(np.array(labels, 'int64')).reshape(-1)"


@pytest.mark.parametrize(
    ("labels", "words", "code"),
    [
        (LABELS[:-1], "20 whole numbers, got int64 of shape (19,)", None),
        (LABELS[:, None], "of shape (20, 1)", CONVERTED),
        (LABELS.numpy()[:, None], "of shape (20, 1)", TAKEN),
        (HOT, "of shape (20, 10)", "labels.argmax(1)"),
        (HOT.float().numpy(), "of shape (20, 10)", "labels.argmax(1)"),
        (LABELS.float(), "got float32", CONVERTED),
        (LABELS.numpy() / 1.0, "got float64", TAKEN),
        (np.ones(20)[::-1] * LABELS.numpy(), "got float64", TAKEN),
        (["cat"] * 20, "got <U3 of shape (20,). Give one class number", None),
        (None, "got object of shape ()", None),
        ([[1], [1, 2]] * 10, "got object of shape (). Give one class num", None),
        ([torch.ones(2), 3] * 10, "got object of shape (). Give one class", None),
        (LABELS.to_sparse(), "sparse. Convert it with .to_dense()", None),
    ],
)
def test_wrong_labels_are_told_what_mends_them(labels, words, code):
    with pytest.raises(ValueError) as caught:
        Images(PIXELS, labels)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    if code:
        assert code in str(caught.value)
        assert torch.equal(Images(PIXELS, eval(code)).labels, LABELS)


def test_images_and_labels_are_on_one_device():
    with pytest.raises(ValueError, match="on meta, the labels on cpu"):
        Images(PIXELS.to("meta"), LABELS)


# --- one by one -----------------------------------------------------------------------


@pytest.mark.parametrize("index", [3, -17, np.int64(3), torch.tensor(3), np.array(3)])
def test_a_number_gives_a_picture_and_its_label(index):
    image, label = Images(PIXELS, LABELS)[index]
    assert torch.equal(image, PIXELS[3]) and label == 3 and label.shape == ()


@pytest.mark.parametrize(
    "index", [slice(2, 5), [2, 3, 4], torch.tensor([2, 3, 4]), np.array([2, 3, 4])]
)
def test_other_indices_give_images(index):
    part = Images(PIXELS, LABELS)[index]
    assert isinstance(part, Images) and torch.equal(part.images, PIXELS[2:5])


def test_a_loop_and_a_loader_go_over_the_pictures():
    images = Images(PIXELS, LABELS)
    seen = [label.item() for _, label in images]
    assert seen == LABELS.tolist()
    loader = torch.utils.data.DataLoader(images, batch_size=8, shuffle=True)
    batches = list(loader)
    assert [len(y) for _, y in batches] == [8, 8, 4]
    assert batches[0][0].dtype == torch.uint8
    assert sorted(torch.cat([y for _, y in batches]).tolist()) == sorted(seen)
    with pytest.raises(IndexError):
        images[20]


# --- a data set -----------------------------------------------------------------------

TEN = tuple("abcdefghij")
GOOD = Images(PIXELS, LABELS)


@pytest.mark.parametrize(("count", "kept"), [(20, 16), (4, 3), (2, 1)])
def test_a_set_without_test_images_is_told_how_to_get_some(count, kept):
    train = GOOD[:count]
    with pytest.raises(ValueError, match=r"mine's test set is empty\.") as caught:
        Dataset("mine", TEN, train, GOOD[:0])
    told = r"aside: (.+), then (.+) to train and (.+) to test"
    found = re.search(told, str(caught.value))
    names = {"torch": torch, "train": train}
    exec(found[1], names)
    mended = Dataset("mine", TEN, *(eval(found[n], names) for n in (2, 3)))
    assert (len(mended.train), len(mended.test)) == (kept, count - kept)
    labels = torch.cat([mended.train.labels, mended.test.labels])
    assert labels.sort().values.equal(train.labels.sort().values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": None}, "mine's training set is of type NoneType. Give Images("),
        ({"train": GOOD[:0]}, "mine's training set is empty. Give"),
        ({"test": PIXELS}, "mine's test set is of type Tensor. Give Images("),
        ({"train": (PIXELS, LABELS)}, "training set is of type tuple"),
        ({"test": Images(PIXELS[:, :1], LABELS)}, "have 3 channels, its test images 1"),
        (
            {"classes": TEN[:3]},
            "0 to 9, and 3 classes are numbered from 0 to 2. Give 10 class names",
        ),
        (
            {"train": Images(PIXELS, LABELS + 1)},
            "from 1 to 10, and 10 classes are numbered from 0 to 9. Count them",
        ),
        (
            {"train": Images(PIXELS, LABELS + LABELS // 9 + 1)},
            "from 1 to 11, and 10 classes are numbered from 0 to 9. Give 12",
        ),
        (
            {"train": Images(PIXELS, LABELS - 1)},
            "numbered from 0 to 9. Leave the others out",
        ),
        ({"classes": 10}, "classes are 10: list a name for each, as in ('cat', 'dog')"),
        ({"classes": "catalogues"}, "classes are 'catalogues': list a name for each"),
        ({"classes": set("ab")}, "list a name for each"),
        ({"classes": []}, "list a name for each"),
        ({"classes": None}, "list a name for each"),
        ({"name": None}, "A data set's name is None: give text"),
        ({"name": Path("pets")}, "give text"),
    ],
)
def test_wrong_parts_are_named(change, words):
    parts = {"name": "mine", "classes": TEN, "train": GOOD, "test": GOOD} | change
    with pytest.raises(ValueError) as caught:
        Dataset(**parts)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_caption_spells_the_name_of_the_data():
    spelt = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "pets": "pets"}
    for name, words in spelt.items():
        assert Dataset(name, TEN, GOOD, GOOD).note == f"Data: {words}."


def test_the_remedies_for_labels_hold():
    labels = LABELS + 1
    assert Dataset("mine", TEN, Images(PIXELS, labels - 1), GOOD)
    images = Images(PIXELS, LABELS - 1)
    assert Dataset("mine", TEN, images[images.labels >= 0], GOOD)
    assert Dataset("mine", list(TEN), GOOD, GOOD).classes == TEN
    assert Dataset("mine", np.array(TEN), GOOD, GOOD).classes == TEN
    assert Dataset("mine", range(10), GOOD, GOOD).classes == tuple("0123456789")


@pytest.mark.parametrize("validation", [20, -5, 0.1, 4.0, "4", None])
def test_a_split_takes_a_whole_number(validation):
    with pytest.raises(ValueError, match="Choose a whole number from 0 to 19"):
        Dataset("mine", TEN, GOOD, GOOD).split(validation)


def test_the_digest_tells_data_apart():
    def digest(images=PIXELS, labels=LABELS, test=GOOD, classes=TEN, name="mine"):
        return data_digest(Dataset(name, classes, Images(images, labels), test))

    first = digest()
    assert len(first) == 16 and int(first, 16) >= 0
    # The same content in another form, or under another name, is the same data.
    assert first == digest(ARRAY) == digest(LAST) == digest(name="yours")
    assert first == digest(labels=LABELS.to(torch.int32))
    assert first == digest(PIXELS.contiguous(memory_format=torch.channels_last))
    changed = PIXELS.clone()
    changed[7, 1, 20, 9] ^= 1  # 60,000 pixels are all read
    others = [
        digest(changed),
        digest(labels=LABELS.flip(0)),
        digest(PIXELS[:16], LABELS[:16]),
        digest(test=GOOD[:16]),
        digest(test=Images(changed, LABELS)),
        digest(classes=TEN[::-1]),
        digest(classes=(*TEN, "k")),
        digest(PIXELS.view(20, 3, 16, 64)),
        digest(PIXELS.flip(0)),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_the_digest_of_a_large_set_is_quick_and_never_old():
    images = torch.zeros(50_000, 3, 32, 32, dtype=torch.uint8)
    train = Images(images, torch.zeros(50_000, dtype=torch.int64))
    large = Dataset("mine", TEN, train, train[:10_000])
    start = time.perf_counter()
    first = data_digest(large)
    assert time.perf_counter() - start < 0.5  # 5 ms, on a machine at rest
    images[:, 1, 3, 4] = 9  # one pixel of every picture
    assert data_digest(large) != first
