"""Pictures as tensors: split, normalise, augment, batch. Notebook 04; paper §4.2."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_lib.inputs import (
    as_class_names,
    as_labels,
    as_pixels,
    check_labels,
    whole_number,
)

__all__ = [
    "Augmenter",
    "Batches",
    "Dataset",
    "Images",
    "Normalisation",
    "plan_epoch",
    "shrunk",
]

PADDING = 4  # pixels on each side before the random crop; paper §4.2


@dataclass(frozen=True, eq=False)
class Images:
    """Pictures and their classes: uint8 (N, C, H, W) and int64 (N,).

    CIFAR-10's are (N, 3, 32, 32). numpy arrays are taken too: uint8 (N, C, H, W),
    (N, H, W, C) with 1, 3 or 4 channels, or grey (N, H, W), and labels of any integers.

    `images[3]` is one picture and its label, uint8 (C, H, W) and int64 (), so that a
    loop or a `DataLoader` can go over them; a slice, a mask or a list of numbers gives
    `Images`. Raises ValueError, naming the remedy, for anything else.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", as_pixels(self.images))
        object.__setattr__(self, "labels", as_labels(self.labels, len(self.images)))
        if self.images.device != self.labels.device:
            raise ValueError(
                f"The images are on {self.images.device}, the labels on "
                f"{self.labels.device}. Bring both to one device with .to."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> "Images | tuple[Tensor, Tensor]":
        if isinstance(index, Integral) or getattr(index, "ndim", None) == 0:
            return self.images[int(index)], self.labels[int(index)]
        return Images(self.images[index], self.labels[index])

    def to(self, device: torch.device | str) -> "Images":
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training set, a test set and the names of the classes.

    Raises ValueError for a part without images, for parts of different channels, for a
    label without a class, and for a name that is no text.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", as_class_names(self.classes))
        if not isinstance(self.name, str):
            raise ValueError(f"A data set's name is {self.name!r}: give text.")
        for name, part in (("training", self.train), ("test", self.test)):
            self._check_part(name, part)
        train, test = (part.images.shape[1] for part in (self.train, self.test))
        if train != test:
            raise ValueError(
                f"{self.name}'s training images have {train} channels, its test images "
                f"{test}. Give both the same channels."
            )

    def _check_part(self, name: str, part: Images) -> None:
        name = f"{self.name}'s {name} set"
        if not isinstance(part, Images) or len(part) == 0:
            remedy = "Give Images(images, labels), 1 or more."
            if part is not self.train and len(self.train) > 1:
                count, kept = len(self.train), max(1, len(self.train) * 4 // 5)
                remedy += (
                    f" To set some aside: order = torch.randperm({count}), then "
                    f"train[order[:{kept}]] to train and train[order[{kept}:]] to test."
                )
            typed = f"of type {type(part).__name__}"
            found = "empty" if isinstance(part, Images) else typed
            raise ValueError(f"{name} is {found}. {remedy}")
        check_labels(name, part.labels, len(self.classes))

    @property
    def note(self) -> str:
        """One sentence for a caption: which data a number comes from."""
        if self.name == "digits":
            return "Data: scikit-learn's digits, because CIFAR-10 was not at hand."
        spelt = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
        return f"Data: {spelt.get(self.name, self.name)}."

    def split(self, validation: int) -> tuple[Images, Images | None]:
        """Set the last `validation` training images aside, as the paper's 45k/5k does.

        Returns (training, validation), with None for a validation set of 0. CIFAR-10's
        files are shuffled already, so the last images are a fair sample. Raises
        ValueError for images in the order of their classes: the last ones are not.
        """
        validation = whole_number("validation", validation, 0, len(self.train) - 1)
        if validation == 0:
            return self.train, None
        steps = self.train.labels.diff()
        if steps.any() and ((steps >= 0).all() or (steps <= 0).all()):
            raise ValueError(
                f"{self.name}'s training images are sorted by class, so the last "
                f"{validation}, to be set aside for validation, are of few classes. "
                f"Shuffle them: train[torch.randperm({len(self.train)})]."
            )
        return self.train[:-validation], self.train[-validation:]


@dataclass(frozen=True, eq=False)
class Normalisation:
    """(x - mean) / std, with mean and std fixed on the training images.

    `mean` is (C, 1, 1) per channel or (C, H, W) per pixel, `std` (C, 1, 1), both in the
    units of uint8. Paper §4.2 subtracts the per-pixel mean and does not divide. The
    default here is per channel: the few numbers carry over to any other image. A
    channel of one value only gets the std 1, so that it becomes 0. `black_border` pads
    before normalising instead of after it: the border of a crop is then black instead
    of the mean colour.
    """

    mean: Tensor
    std: Tensor
    black_border: bool = False

    @classmethod
    def of(
        cls, images: Tensor, per_pixel: bool = False, black_border: bool = False
    ) -> "Normalisation":
        """Measure mean and std on uint8 images (N, C, H, W)."""
        images = as_pixels(images)
        if len(images) == 0:
            raise ValueError("There are no images to measure. Give 1 image or more.")
        channels = images.shape[1]
        # Sums of integers: the same bits on every device and for every number of
        # threads.
        if per_pixel:
            mean = images.sum(0, dtype=torch.int64).cpu().double() / len(images)
            std = torch.ones(channels, 1, 1, device="cpu")
            return cls(mean.float(), std, black_border).to(images.device)
        counts = torch.stack(
            [torch.bincount(c.flatten(), minlength=256) for c in images.unbind(1)]
        ).cpu()  # an Apple GPU has no float64
        values = torch.arange(256, dtype=torch.float64, device="cpu")
        pixels = counts.sum(1)
        mean = (counts * values).sum(1) / pixels
        variance = (counts * values**2).sum(1) / pixels - mean**2
        std = torch.where(variance > 0, variance, 1).sqrt()
        mean, std = mean.view(channels, 1, 1), std.view(channels, 1, 1)
        return cls(mean.float(), std.float(), black_border).to(images.device)

    def to(self, device: torch.device | str) -> "Normalisation":
        return Normalisation(
            self.mean.to(device), self.std.to(device), self.black_border
        )

    def fitted(self, images: Tensor) -> "Normalisation":
        """This normalisation on the device of images (…, C, H, W).

        Raises ValueError if it was measured on pictures of another shape, or if the
        images are not uint8.
        """
        if images.dtype != torch.uint8:
            raise ValueError(
                f"The images are {images.dtype}: give pixels from 0 to 255, as uint8."
            )
        shape = images.shape[-3:]
        try:
            fits = torch.broadcast_shapes(shape, self.mean.shape, self.std.shape)
        except RuntimeError:
            fits = None
        if fits != shape:
            raise ValueError(
                f"The images are of shape {tuple(images.shape)}; mean and std, of "
                f"shapes {tuple(self.mean.shape)} and {tuple(self.std.shape)}, were "
                "measured on others. Measure them on images like these, with "
                "Normalisation.of(images)."
            )
        return self.to(images.device)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) to float32 of the same shape, on the images' device."""
        here = self.fitted(images)
        return (images - here.mean) / here.std


def plan_epoch(count: int, generator: torch.Generator) -> Tensor:
    """One epoch's random choices: int64 (count, 4) of image, crop row, crop column,
    flip.

    Drawn on the CPU, so that every device sees the same pictures in the same order.
    """
    given = {"generator": generator, "device": "cpu"}
    return torch.stack(
        [
            torch.randperm(count, **given),
            torch.randint(2 * PADDING + 1, (count,), **given),
            torch.randint(2 * PADDING + 1, (count,), **given),
            torch.randint(2, (count,), **given),
        ],
        dim=1,
    )


class Augmenter:
    """Random crops and flips of a set of images, one choice per image, by a single
    gather.

    Paper §4.2: 4 pixels are padded on each side, and a 32×32 crop is taken from the
    padded image or its mirror image. Here each pixel of the padded set is four bytes
    (red, green, blue, nothing), so that a batch is one lookup of int32 numbers in a
    flat table. More than four channels take four bytes more.
    """

    def __init__(self, images: Tensor, normalisation: Normalisation) -> None:
        channels, height, width = images.shape[1:]
        device = images.device
        normalisation = normalisation.fitted(images)
        words = math.ceil(channels / 4)  # of four bytes each, for a pixel
        self.channels, self.lanes = channels, 4 * words
        self.size = (height, width)
        self.pitch = width + 2 * PADDING  # pixels in a padded row
        self.area = (height + 2 * PADDING) * self.pitch
        border = (PADDING,) * 4  # black, and zeros behind the channels
        padded = F.pad(images.permute(0, 2, 3, 1), (0, self.lanes - channels, *border))
        padded = padded.contiguous().view(torch.int32)
        self.pixels = padded.view(-1, words).squeeze(1)  # flat, where a word is enough
        # Where a crop's pixels lie, counted from its corner: as they are, and mirrored.
        rows = torch.arange(height, device=device).view(-1, 1) * self.pitch
        columns = torch.arange(width, device=device)
        corners = [(rows + columns).flatten(), (rows + columns.flip(0)).flatten()]
        self.steps = torch.stack(corners)  # (2, H·W)
        # The mean under every padded pixel. Zero under the border makes the border zero
        # after normalising: padding after it, without a second pass.
        mean = normalisation.mean.expand(channels, height, width)
        mean = mean.permute(1, 2, 0)  # (H, W, C)
        black = normalisation.black_border
        under = mean.mean((0, 1)) if black else mean.new_zeros(channels)
        self.means = mean.new_zeros(self.area // self.pitch, self.pitch, self.lanes)
        self.means[..., :channels] = under
        self.means[PADDING:-PADDING, PADDING:-PADDING, :channels] = mean
        self.means = self.means.view(-1, self.lanes)
        scale = mean.new_zeros(self.lanes)
        scale[:channels] = 1 / normalisation.std.expand(channels, 1, 1).flatten()
        self.scale = scale.repeat(height * width)  # of a whole image, to vectorise

    def __call__(self, plan: Tensor) -> Tensor:
        """Rows of `plan_epoch`, (B, 4), to float32 images (B, C, H, W), channels
        last."""
        image, row, column, flip = plan.unbind(1)
        places = (row * self.pitch + column)[:, None] + self.steps[flip]  # (B, H·W)
        addresses = places + (image * self.area)[:, None]
        pixels = self.pixels.index_select(0, addresses.flatten()).view(torch.uint8)
        means = self.means.index_select(0, places.flatten())
        x = (pixels.view(len(plan), -1) - means.view(len(plan), -1)).mul_(self.scale)
        x = x.view(len(plan), *self.size, self.lanes)[..., : self.channels]
        return x.contiguous().permute(0, 3, 1, 2)


class Batches:
    """An endless stream of augmented training batches of exactly `batch_size` images.

    Every epoch visits each image once, in a new order; a batch that reaches the end of
    an epoch is filled from the next one. The images live on one device and are
    augmented there; the choices come from a CPU generator, so `seed` fixes the pictures
    everywhere. One of several processes draws the same choices as the others and makes
    only its `share` of each batch.

    Yields (float32 (B, C, H, W), int64 (B,)).
    """

    def __init__(
        self,
        data: Images,
        batch_size: int,
        normalisation: Normalisation,
        seed: int = 0,
        share: slice = slice(None),
    ) -> None:
        if len(data) == 0:
            raise ValueError("There are no images to draw from. Give 1 or more.")
        # A batch far above the set would never be full.
        most = 1_000 * len(data)
        self.batch_size = whole_number("batch_size", batch_size, 1, most)
        self.labels = data.labels
        self.share = share
        self.augment = Augmenter(data.images, normalisation)
        self.generator = torch.Generator().manual_seed(seed)
        self._new_epoch()

    def _new_epoch(self) -> None:
        self.epoch_seed = self.generator.get_state()
        plan = plan_epoch(len(self.labels), self.generator)
        self.plan = plan.to(self.labels.device)
        self.position = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        return self.make(self.next_plan())

    def next_plan(self) -> Tensor:
        """This process's choices for the next batch: int64 (B, 4), on the images'
        device, with the columns of `plan_epoch`."""
        rows, wanted = [], self.batch_size
        while wanted > 0:
            if self.position >= len(self.plan):
                self._new_epoch()
            rows.append(self.plan[self.position : self.position + wanted])
            self.position += len(rows[-1])
            wanted -= len(rows[-1])
        return torch.cat(rows)[self.share]

    def make(self, plan: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures and labels of a plan: float32 (B, C, H, W) and int64 (B,).

        A function of the plan alone, on the device, that reads nothing back: a CUDA
        graph can hold it.
        """
        return self.augment(plan), self.labels.index_select(0, plan[:, 0])

    def state_dict(self) -> dict:
        """What a checkpoint needs to go on with the very next picture."""
        return {"epoch_seed": self.epoch_seed, "position": self.position}

    def load_state_dict(self, state: dict) -> None:
        if not 0 <= state["position"] <= len(self.labels):
            raise ValueError(
                f"The next picture would be number {state['position']} of an epoch, "
                f"and this set has {len(self.labels)}: the state was saved from "
                "another set. Load it with the images it was saved from."
            )
        self.generator.set_state(state["epoch_seed"])
        self._new_epoch()
        self.position = state["position"]


def shrunk(images: Tensor, size: int) -> Tensor:
    """float32 (N, C, H, W) to (N, C, size, size), by weighted means of near pixels."""
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
