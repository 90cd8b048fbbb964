"""Pictures as tensors: split, normalise, augment, batch. Notebook 04; paper §4.2."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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


@dataclass(frozen=True)
class Images:
    """Pictures and their classes: uint8 (N, 3, 32, 32) and int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        shape, dtype = tuple(self.images.shape), self.images.dtype
        if len(shape) != 4 or shape[1] != 3 or dtype != torch.uint8:
            raise ValueError(
                f"Images must be uint8 of shape (N, 3, H, W), got {dtype} of {shape}. "
                "Convert with .to(torch.uint8) and .permute(0, 3, 1, 2)."
            )
        if self.labels.shape != (shape[0],) or self.labels.dtype != torch.int64:
            raise ValueError(
                f"Labels must be int64 of shape ({shape[0]},), got {self.labels.dtype} "
                f"of {tuple(self.labels.shape)}. Give one class number per image."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> "Images":
        return Images(self.images[index], self.labels[index])

    def to(self, device: torch.device | str) -> "Images":
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A training set, a test set and the names of the classes.

    Raises ValueError for a label without a class.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images

    def __post_init__(self) -> None:
        for part in (self.train, self.test):
            low, high = int(part.labels.min()), int(part.labels.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"{self.name} has {len(self.classes)} classes, so labels run from "
                    f"0 to {len(self.classes) - 1}; found {low} to {high}. Check the "
                    "label file."
                )

    @property
    def note(self) -> str:
        """One sentence for a caption: which data a number comes from."""
        if self.name == "digits":
            return "Data: scikit-learn's digits, because CIFAR-10 was not at hand."
        return f"Data: {'CIFAR-10' if self.name == 'cifar10' else self.name}."

    def split(self, validation: int) -> tuple[Images, Images | None]:
        """Set the last `validation` training images aside, as the paper's 45k/5k does.

        Returns (training, validation), with None for a validation set of 0. CIFAR-10's
        files are shuffled already, so the last images are a fair sample.
        """
        if not 0 <= validation < len(self.train):
            raise ValueError(
                f"Cannot set {validation} of {len(self.train)} training images aside. "
                f"Choose a number from 0 to {len(self.train) - 1}."
            )
        if validation == 0:
            return self.train, None
        return self.train[:-validation], self.train[-validation:]


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std, with mean and std fixed on the training images.

    `mean` is (3, 1, 1) per channel or (3, H, W) per pixel, `std` (3, 1, 1), both in the
    units of uint8. Paper §4.2 subtracts the per-pixel mean and does not divide. The
    default here is per channel: a random crop moves the picture against a per-pixel
    mean, and the three numbers carry over to any other image. `black_border` pads
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
        """Measure mean and std on uint8 images (N, 3, H, W)."""
        # Sums of integers: the same bits on every device and for every number of
        # threads.
        per_pixel_sum = images.sum(0, dtype=torch.int64).double()
        if per_pixel:
            mean = per_pixel_sum / len(images)
            return cls(
                mean.float(), torch.ones(3, 1, 1, device=images.device), black_border
            )
        counts = torch.stack(
            [torch.bincount(c.flatten(), minlength=256) for c in images.unbind(1)]
        )
        values = torch.arange(256, device=images.device, dtype=torch.float64)
        pixels = counts.sum(1)
        mean = (counts * values).sum(1) / pixels
        variance = (counts * values**2).sum(1) / pixels - mean**2
        mean, std = mean.view(3, 1, 1), variance.sqrt().view(3, 1, 1)
        return cls(mean.float(), std.float(), black_border)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) to float32 of the same shape."""
        return (images - self.mean) / self.std


def plan_epoch(count: int, generator: torch.Generator) -> Tensor:
    """One epoch's random choices: int64 (count, 4) of image, crop row, crop column,
    flip.

    Drawn on the CPU, so that every device sees the same pictures in the same order.
    """
    return torch.stack(
        [
            torch.randperm(count, generator=generator),
            torch.randint(2 * PADDING + 1, (count,), generator=generator),
            torch.randint(2 * PADDING + 1, (count,), generator=generator),
            torch.randint(2, (count,), generator=generator),
        ],
        dim=1,
    )


class Augmenter:
    """Random crops and flips of a set of images, one choice per image, by a single
    gather.

    Paper §4.2: 4 pixels are padded on each side, and a 32×32 crop is taken from the
    padded image or its mirror image. Here each pixel of the padded set is four bytes
    (red, green, blue, nothing), so that a batch is one lookup of int32 numbers in a
    flat table.
    """

    def __init__(self, images: Tensor, normalisation: Normalisation) -> None:
        height, width = images.shape[2:]
        device = images.device
        self.size = (height, width)
        self.pitch = width + 2 * PADDING  # pixels in a padded row
        self.area = (height + 2 * PADDING) * self.pitch
        self.pixels = _pad(images.permute(0, 2, 3, 1)).view(torch.int32).view(-1)
        # Where a crop's pixels lie, counted from its corner: as they are, and mirrored.
        rows = torch.arange(height, device=device).view(-1, 1) * self.pitch
        columns = torch.arange(width, device=device)
        corners = [(rows + columns).flatten(), (rows + columns.flip(0)).flatten()]
        self.steps = torch.stack(corners)  # (2, H·W)
        # The mean under every padded pixel. Zero under the border makes the border zero
        # after normalising: padding after it, without a second pass.
        mean = normalisation.mean.expand(3, height, width).permute(1, 2, 0)  # (H, W, 3)
        border = mean.mean((0, 1)) if normalisation.black_border else mean.new_zeros(3)
        self.means = border.new_zeros(self.area // self.pitch, self.pitch, 4)
        self.means[..., :3] = border
        self.means[PADDING:-PADDING, PADDING:-PADDING, :3] = mean
        self.means = self.means.view(-1, 4)
        scale = torch.cat([1 / normalisation.std.flatten(), mean.new_zeros(1)])
        self.scale = scale.repeat(
            height * width
        )  # (H·W·4,): a whole image, to vectorise

    def __call__(self, plan: Tensor) -> Tensor:
        """Rows of `plan_epoch`, (B, 4), to float32 images (B, 3, H, W), channels
        last."""
        image, row, column, flip = plan.unbind(1)
        places = (row * self.pitch + column)[:, None] + self.steps[flip]  # (B, H·W)
        addresses = places + (image * self.area)[:, None]
        pixels = self.pixels.index_select(0, addresses.flatten()).view(torch.uint8)
        means = self.means.index_select(0, places.flatten())
        x = (pixels.view(len(plan), -1) - means.view(len(plan), -1)).mul_(self.scale)
        x = x.view(len(plan), *self.size, 4)[..., :3].contiguous()
        return x.permute(0, 3, 1, 2)


def _pad(images: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) to (N, H + 8, W + 8, 4): a black border and an empty fourth
    byte."""
    count, height, width, _ = images.shape
    padded = images.new_zeros(count, height + 2 * PADDING, width + 2 * PADDING, 4)
    padded[:, PADDING:-PADDING, PADDING:-PADDING, :3] = images
    return padded


class Batches:
    """An endless stream of augmented training batches of exactly `batch_size` images.

    Every epoch visits each image once, in a new order; a batch that reaches the end of
    an epoch is filled from the next one. The images live on one device and are
    augmented there; the choices come from a CPU generator, so `seed` fixes the pictures
    everywhere. One of several processes draws the same choices as the others and makes
    only its `share` of each batch.

    Yields (float32 (B, 3, H, W), int64 (B,)).
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
            raise ValueError(
                "There are no images to draw batches from. Give a training set of 1 "
                "image or more."
            )
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(
                f"The batch size is {batch_size!r}: give a whole number, 1 or more."
            )
        self.labels = data.labels
        self.batch_size, self.share = batch_size, share
        self.augment = Augmenter(data.images, normalisation)
        self.generator = torch.Generator().manual_seed(seed)
        self._new_epoch()

    def _new_epoch(self) -> None:
        self.epoch_seed = self.generator.get_state()
        plan = plan_epoch(len(self.labels), self.generator)
        if self.labels.is_cuda:  # from pinned memory the copy does not wait for the GPU
            plan = plan.pin_memory()
        self.plan = plan.to(self.labels.device, non_blocking=True)
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
    """float32 (N, 3, H, W) to (N, 3, size, size), by weighted means of near pixels."""
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
