"""Pictures as tensors: what is taken, what is told, what a batch is made of."""

import re

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as oracle

from resnet_lib import data
from resnet_lib.data import Augmenter, Batches, Dataset, Images, Normalisation
from resnet_lib.identity import data_digest


def random_pixels(count=20, channels=3):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, 32, 32), generator=generator)
    return pixels.to(torch.uint8)


PIXELS, LABELS = random_pixels(), torch.arange(20) % 10
GOOD = Images(PIXELS, LABELS)
NORM = Normalisation.of(PIXELS)


class WithoutDoubles(torch.Tensor):
    """Refuses float64, as Apple's GPUs do, until it is on the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        out = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(out, cls) and out.dtype == torch.float64:
            raise TypeError("no float64 here")
        return out


@pytest.mark.parametrize("per_pixel", [False, True])
def test_a_device_without_float64_can_normalise(per_pixel):
    there = Normalisation.of(PIXELS.as_subclass(WithoutDoubles), per_pixel)
    here = Normalisation.of(PIXELS, per_pixel)
    assert torch.equal(there.mean, here.mean) and torch.equal(there.std, here.std)


# --- batches --------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("per_pixel", [False, True])
@pytest.mark.parametrize("black_border", [False, True])
def test_augmentation_is_torchvisions_crop_and_flip(per_pixel, black_border, channels):
    images = random_pixels(channels=channels)
    norm = Normalisation.of(images, per_pixel, black_border)
    plan = data.plan_epoch(len(images), torch.Generator().manual_seed(1))
    result = Augmenter(images, norm)(plan)
    fill = -norm.mean.mean((1, 2)) / norm.std.flatten() * black_border
    for (index, top, left, flip), ours in zip(plan.tolist(), result, strict=True):
        padded = oracle.pad(norm(images[index]), [4], fill=fill.tolist())
        theirs = oracle.crop(padded, top, left, 32, 32)
        theirs = oracle.horizontal_flip(theirs) if flip else theirs
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [8, 20, 50])
def test_batches_are_the_epochs_in_a_row(size):
    """Of any length; planned in shares, made twice, or resumed, they are the same."""
    generator = torch.Generator().manual_seed(3)
    epochs = [data.plan_epoch(20, generator) for _ in range(15)]
    assert all(sorted(epoch[:, 0].tolist()) == list(range(20)) for epoch in epochs)
    assert not torch.equal(epochs[0][:, 0], epochs[1][:, 0])
    images = Images(PIXELS, torch.arange(20))  # a label of its own for each
    whole, resumed = Batches(images, size, NORM, 3), Batches(images, size, NORM, 99)
    cuts = slice(0, 4), slice(4, size)
    shares = [Batches(images, size, NORM, 3, cut) for cut in cuts]
    for number, plan in enumerate(torch.cat(epochs)[: 6 * size].split(size)):
        if number:
            resumed.load_state_dict(whole.state_dict())
            assert torch.equal(resumed.next_plan(), plan)
        x, y = next(iter(whole))
        assert x.shape == (size, 3, 32, 32) and torch.equal(y, plan[:, 0])
        for _ in range(2):
            made, labels = whole.make(plan)
            assert torch.equal(made, x) and torch.equal(labels, y)
        assert torch.equal(torch.cat([s.next_plan() for s in shares]), plan)


def test_what_cannot_be_drawn_from_is_refused_at_once(refused):
    refused("There are no images to draw from", Batches, GOOD[:0], 8, NORM)
    for size in (0, -4, 2.0, "8", None, 20_001):
        refused("give a whole number from 1 to 20000", Batches, GOOD, size, NORM)
    batches = Batches(GOOD, 8, NORM)
    for place in (25, 1_000_000, -1):
        told = f"number {place} of an epoch.*another set"
        state = batches.state_dict() | {"position": place}
        refused(told, batches.load_state_dict, state)
    batches.position = 25  # and if it were there, it would not go on for ever
    assert next(batches)[0].shape == (8, 3, 32, 32)


# --- normalisation --------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_normalisation_by_the_books_and_a_flat_channel_becomes_zero(channels):
    images = random_pixels(200, channels)
    values, norm = images.double(), Normalisation.of(images)
    torch.testing.assert_close(norm.mean.flatten(), values.mean((0, 2, 3)).float())
    std = values.std((0, 2, 3), correction=0).float()
    torch.testing.assert_close(norm.std.flatten(), std)
    result = norm(images)
    assert result.dtype == torch.float32
    assert abs(result.mean().item()) < 1e-4 and abs(result.std().item() - 1) < 1e-3
    per_pixel = Normalisation.of(images, per_pixel=True)
    torch.testing.assert_close(per_pixel.mean, values.mean(0).float())
    assert torch.equal(per_pixel.std, torch.ones(channels, 1, 1))
    for value in (0, 7, 255):
        images[:, 0] = value
        norm = Normalisation.of(images)
        assert norm.mean[0] == value and norm.std[0] == 1
        augmented = Augmenter(images, norm)(data.plan_epoch(20, torch.Generator()))
        for result in (norm(images), augmented):
            assert result.isfinite().all() and not result[:, 0].any()


def test_a_normalisation_goes_to_the_images():
    there = Normalisation.of(PIXELS, black_border=True).to("meta")
    assert there.mean.is_meta and there.std.is_meta and there.black_border
    # As if the model and its images were on a GPU and the training set was not.
    assert NORM(PIXELS.to("meta")).is_meta
    assert Augmenter(PIXELS.to("meta"), NORM).means.is_meta
    assert NORM.to("cpu").mean is NORM.mean  # nothing is copied in vain


def test_pictures_that_a_normalisation_was_not_measured_on(refused):
    per_pixel, smaller = Normalisation.of(PIXELS, per_pixel=True), PIXELS[..., 1:]
    more = PIXELS[:, [0, 1, 2, 0]]
    for norm, other in [(NORM, PIXELS[:, :1]), (NORM, more), (per_pixel, smaller)]:
        told = re.escape(str(tuple(other.shape))) + ".*were measured on others.*with "
        for use in (norm, lambda images, norm=norm: Augmenter(images, norm)):
            refused(told + r"Normalisation\.of\(images\)", use, other)
        Normalisation.of(other)(other)  # the remedy
    assert NORM(smaller).shape == smaller.shape  # per channel fits any size
    assert per_pixel(PIXELS[0]).shape == (3, 32, 32)
    refused("no images to measure", Normalisation.of, PIXELS[:0])
    refused(r"Give their \.images", Normalisation.of, GOOD)
    refused("must be uint8", Normalisation.of, PIXELS / 255)
    for use in (NORM, lambda images: Augmenter(images, NORM)):
        refused("torch.float32: give pixels from 0 to 255", use, PIXELS / 255)


# --- images ---------------------------------------------------------------------------

ARRAY = PIXELS.numpy()
LAST = ARRAY.transpose(0, 2, 3, 1)  # (20, 32, 32, 3)


def test_arrays_are_copied_as_they_are(recwarn):
    read_only = np.frombuffer(ARRAY.tobytes(), np.uint8).reshape(ARRAY.shape)
    mine = ARRAY.copy()
    arrays = (mine, LAST, np.ascontiguousarray(LAST), ARRAY[::-1][::-1], read_only)
    taken = [Images(array, LABELS.numpy()) for array in arrays]
    mine[:] = 0  # an array that changes later changes no images
    for images in taken:
        assert torch.equal(images.images, PIXELS) and images.images.is_contiguous()
    assert not recwarn.list


def test_arrays_of_other_shapes():
    for shape, taken in [
        ((20, 28, 28), (20, 1, 28, 28)),
        ((20, 28, 28, 1), (20, 1, 28, 28)),
        ((20, 9, 7, 4), (20, 4, 9, 7)),
        ((20, 13, 28, 28), (20, 13, 28, 28)),
        ((20, 3, 5, 3), (20, 3, 5, 3)),
    ]:
        array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        images = Images(array, LABELS).images
        assert images.shape == taken
        moved = images if shape[1] == taken[1] else images.permute(0, 2, 3, 1)
        assert torch.equal(moved.reshape(-1), torch.from_numpy(array).reshape(-1))


def test_labels_of_any_whole_numbers():
    array, listed = LABELS.numpy(), LABELS.tolist()
    given = [listed, tuple(listed), array.astype(np.uint8), array.astype(">i4")]
    for labels in (*given, LABELS.to(torch.int32), LABELS.to(torch.uint8)):
        labels = Images(PIXELS, labels).labels
        assert labels.dtype == torch.int64 and torch.equal(labels, LABELS)


GREY = PIXELS.flatten(1)[:, :784]
# Wrong images, words of the sentence, and what its remedies give.
WRONG = [
    (PIXELS / 255, "float32 from 0 to 1: convert", PIXELS),
    (LAST / 255, "float64 from 0 to 1: convert", PIXELS),
    (LAST.astype(np.int32), "int32 from 0 to 255: convert", PIXELS),
    ((PIXELS.int() * 4095 / 255).round().int(), "from 0 to 4095", PIXELS),
    (ARRAY.astype(np.uint16) * 257, "uint16 from 0 to 65535", PIXELS),
    ((PIXELS.int() * 257).to(torch.uint16), "to 65535", PIXELS),
    (PIXELS.long() * 1_000, "from 0 to 2.55e+05", PIXELS),
    (LAST > 127, "bool from 0 to 1: convert", (PIXELS > 127).byte() * 255),
    (PIXELS.permute(0, 2, 3, 1), "got (20, 32, 32, 3). Move", PIXELS),
    (PIXELS.flatten(1), "got (20, 3072). Rows take", PIXELS),
    (GREY.numpy(), "got (20, 784). Rows take", GREY.view(20, 1, 28, 28)),
    (PIXELS[0], "got (3, 32, 32). Add the batch dimension", PIXELS[:1]),
    (PIXELS[0].permute(1, 2, 0), "got (32, 32, 3). Add the batch", PIXELS[:1]),
    (LAST[0], "got (32, 32, 3). Add the batch", PIXELS[:1]),
    (LAST[0, :, :, :1], "got (32, 32, 1)", PIXELS[:1, :1]),
    (PIXELS[:, 0], "got (20, 32, 32). Add the channel", PIXELS[:, :1]),
]
OTHERS = [  # of no certain remedy
    ((PIXELS - NORM.mean) / NORM.std, "give the pixels as they were before"),
    (PIXELS / 0.0, "mend what is not finite"),
    (list(ARRAY), "Got list: stack the pictures in one array"),
    (ARRAY.astype(object), "Got object: stack the pictures"),
    (GOOD, "Give their .images"),
    (PIXELS[:, :0], "have no pixels"),
    (torch.tensor(3, dtype=torch.uint8), "got ()"),
    (PIXELS.flatten(1)[:, :785], "Give every picture its channels, height and width."),
    ((PIXELS / 255).to_sparse(), "sparse. Convert it with .to_dense()"),
    (PIXELS.to("meta"), "on meta, the labels on cpu"),
]


def test_wrong_images_are_told_what_mends_them(refused):
    for images, words, right in WRONG:
        labels, told = LABELS[: len(right)], []
        for _ in range(3):  # each sentence may lead to another
            try:
                result = Images(images, labels).images
                break
            except ValueError as error:
                told.append(str(error))
                code = re.fullmatch(r".* (\(?images[\[. ].*)\.", told[-1])[1]
                images = eval(code)
        assert words in told[0] and torch.equal(result, right), told
    for images, words in OTHERS:
        refused(re.escape(words), Images, images, LABELS)


HOT = torch.nn.functional.one_hot(LABELS)
CONVERTED = "labels.reshape(-1).long()"
TAKEN = "torch.from_numpy(np.array(labels, 'int64')).reshape(-1)"
NUMBERED = "Give one class number per image, from 0 on, in a list or an array."
WRONG_LABELS = [  # with words of the sentence, and the code in it, if there is a remedy
    (LABELS[:-1], "20 whole numbers, got int64 of shape (19,)", ""),
    (LABELS.expand(2, 20), "got int64 of shape (2, 20)", ""),
    (LABELS.view(4, 5), "of shape (4, 5)", CONVERTED),
    (LABELS.numpy()[:, None], "of shape (20, 1)", TAKEN),
    (HOT, "of shape (20, 10)", "labels.argmax(1)"),
    (LABELS.float(), "got float32", CONVERTED),
    (LABELS.double().flip(0).numpy()[::-1], "got float64", TAKEN),
    (["cat"] * 20, "got <U3 of shape (20,)", ""),
    ([[1], [1, 2]] * 10, "got object of shape ()", ""),
    (set(range(20)), "got object of shape ()", ""),
    ([torch.ones(2), 3] * 10, "got object of shape ()", ""),
]


def test_wrong_labels_are_told_what_mends_them(refused):
    for labels, words, code in WRONG_LABELS:
        told = f"{re.escape(words)}.*{re.escape(code or NUMBERED)}"
        refused(told, Images, PIXELS, labels)
        if code:
            assert torch.equal(Images(PIXELS, eval(code)).labels, LABELS)
    refused(r"Convert it with \.to_dense\(\)", Images, PIXELS, LABELS.to_sparse())
    refused(r"labels\.argmax\(1\) gives its", Images, PIXELS[:1], HOT[:1])


def test_one_by_one_in_parts_and_in_a_loader():
    for index in (3, -17, np.int64(3), torch.tensor(3), np.array(3)):
        image, label = GOOD[index]
        assert torch.equal(image, PIXELS[3]) and label == 3 and label.shape == ()
    three = [2, 3, 4]
    for index in (slice(2, 5), three, torch.tensor(three), np.array(three)):
        part = GOOD[index]
        assert isinstance(part, Images) and torch.equal(part.images, PIXELS[2:5])
    assert [label.item() for _, label in GOOD] == LABELS.tolist()
    loader = torch.utils.data.DataLoader(GOOD, batch_size=8, shuffle=True)
    pictures, labels = zip(*loader, strict=True)
    assert [len(y) for y in labels] == [8, 8, 4] and pictures[0].dtype == torch.uint8
    assert sorted(torch.cat(labels).tolist()) == sorted(LABELS.tolist())
    with pytest.raises(IndexError):
        GOOD[20]


# --- a data set -----------------------------------------------------------------------

TEN = tuple("abcdefghij")


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


UP, APART, DOWN = (
    Images(PIXELS, labels) for labels in (LABELS + 1, LABELS + LABELS // 9, LABELS - 1)
)
TEN_ONLY = "and 10 classes are numbered from 0 to 9."
LISTED = "list a name for each, as in ('cat', 'dog')"
WRONG_PARTS = [
    ({"train": None}, "mine's training set is of type NoneType. Give Images("),
    ({"train": GOOD[:0]}, "mine's training set is empty. Give"),
    ({"test": PIXELS}, "mine's test set is of type Tensor. Give Images("),
    ({"test": Images(PIXELS[:, :1], LABELS)}, "have 3 channels, its test images 1"),
    ({"train": UP}, f"set has labels from 1 to 10, {TEN_ONLY} Count them from 0: lab"),
    ({"train": APART}, f"from 0 to 10, {TEN_ONLY} Give 11 class names"),
    ({"train": DOWN}, f"from -1 to 8, {TEN_ONLY} Leave the others out"),
    ({"classes": 10}, f"The classes are 10: {LISTED}"),
    ({"classes": "catalogues"}, f"classes are 'catalogues': {LISTED}"),
    ({"classes": set("a")}, f"classes are {{'a'}}: {LISTED}"),
    ({"classes": []}, f"classes are []: {LISTED}"),
    ({"name": None}, "A data set's name is None: give text"),
]


def test_what_a_set_takes_and_tells(refused):
    for change, words in WRONG_PARTS:
        parts = {"name": "mine", "classes": TEN, "train": GOOD, "test": GOOD} | change
        refused(re.escape(words), Dataset, **parts)
    assert Dataset("mine", TEN, DOWN[DOWN.labels >= 0], GOOD)  # the remedies
    assert Dataset("mine", TEN, Images(PIXELS, UP.labels - 1), GOOD)
    for name, spelt in (("cifar10", "CIFAR-10"), ("pets", "pets")):
        assert Dataset(name, TEN, GOOD, GOOD).note == f"Data: {spelt}."
    for classes in (list(TEN), np.array(TEN)):
        assert Dataset("mine", classes, GOOD, GOOD).classes == TEN
    mine = Dataset("mine", range(10), GOOD, GOOD)
    assert mine.classes == tuple("0123456789")
    # Of few bits: -15 would wrap around, and so would the end of a batch.
    assert len(mine.split(np.uint8(15))[1]) == 15
    batches = Batches(GOOD, np.int8(100), NORM)
    assert [len(next(batches)[1]) for _ in range(3)] == [100] * 3
    for validation in (20, -5, 0.1, 4.0, "4", None):
        refused("give a whole number from 0 to 19", mine.split, validation)
    for falling in (False, True):
        order = LABELS.argsort(descending=falling)
        ordered = Dataset("mine", TEN, GOOD[order], GOOD)
        assert ordered.split(0)[1] is None
        refused(re.escape("Shuffle them: train[torch.randperm(20)]."), ordered.split, 5)


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
    others = [digest(changed), digest(PIXELS.view(20, 3, 16, 64))]
    others += [digest(PIXELS[:16], LABELS[:16]), digest(PIXELS.flip(0))]
    others += [digest(labels=LABELS.flip(0))]
    others += [digest(test=test) for test in (GOOD[:16], Images(changed, LABELS))]
    others += [digest(classes=classes) for classes in (TEN[::-1], (*TEN, "k"))]
    assert len({first, *others}) == 1 + len(others)
    # Of a set too large to be read whole, some pixels of every place; and never old.
    images = Images(PIXELS.repeat(250, 1, 1, 1), LABELS.repeat(250))
    large = Dataset("mine", TEN, images, GOOD)
    first = data_digest(large)
    images.images[:, 1, 3, 4] = 9
    assert data_digest(large) != first
