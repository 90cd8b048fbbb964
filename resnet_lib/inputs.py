"""Pictures and labels as people have them: made tensors, or a sentence that says how.

The core calls these and goes on; what they say is long, so that it need not be.
"""

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_labels", "as_pixels", "check_type", "wrong_images"]


def as_pixels(images: Tensor | np.ndarray) -> Tensor:
    """Images as a uint8 tensor (N, C, H, W); ValueError says how to make them one."""
    if hasattr(images, "labels"):
        raise ValueError("These are Images, pictures with labels. Give their .images.")
    _check_dense(images)
    if getattr(images, "dtype", None) not in (torch.uint8, np.uint8):
        raise ValueError(f"Images must be uint8, 0 to 255. {_to_uint8(images)}")
    shape = tuple(images.shape)
    if isinstance(images, np.ndarray):
        if len(shape) == 3 and shape[2] not in (1, 3, 4):
            images = images[:, None]  # grey: (N, H, W)
        elif len(shape) == 4 and _channels_last(shape):
            images = np.moveaxis(images, 3, 1)
        if images.ndim == 4:
            images = torch.from_numpy(np.array(images, order="C"))  # a copy of our own
    if images.ndim != 4 or _channels_last(images.shape):
        raise ValueError(
            f"Images must be of shape (N, C, H, W), got {shape}. {_to_four(images)}"
        )
    if 0 in shape[1:]:
        raise ValueError(f"Images of shape {shape} have no pixels. Give 1 × 1 or more.")
    return images


def _check_dense(values: object) -> None:
    if isinstance(values, Tensor) and values.layout != torch.strided:
        raise ValueError("This tensor is sparse. Convert it with .to_dense().")


def _channels_last(shape: tuple[int, ...]) -> bool:
    """Whether (N, a, b, c) can only be (N, H, W, C): c channels, and a too many."""
    return shape[3] in (1, 3, 4) and shape[1] > 4


def _to_four(images: Tensor | np.ndarray) -> str:
    """How uint8 pictures of another layout become (N, C, H, W), in a sentence."""
    if images.ndim == 4:
        return "Move the channels with images.permute(0, 3, 1, 2)."
    if images.ndim == 3 and {1, 3, 4} & {images.shape[0], images.shape[2]}:
        return "Add the batch dimension with images[None]."
    if images.ndim == 3:
        return "Add the channel with images[:, None]."
    if images.ndim > 4:
        return "Take the first of several with images[0]."
    numbers = images.shape[-1] if images.ndim else 0
    for channels in (3, 1):
        side = math.isqrt(numbers // channels)
        if channels * side * side == numbers > 0:
            return f"Rows take images.reshape(-1, {channels}, {side}, {side})."
    return "Give every picture its channels, height and width."


def _to_uint8(images: object) -> str:
    """How pictures of other numbers become uint8, in a sentence."""
    if isinstance(images, Tensor):
        values, scaled, end = images.float(), "images.float()", ".to(torch.uint8)"
        whole = not images.is_floating_point()
    elif isinstance(images, np.ndarray) and images.dtype.kind in "biuf":
        values = torch.from_numpy(images.astype(np.float64))
        scaled, end, whole = "images", '.astype("uint8")', images.dtype.kind != "f"
    else:
        kind = getattr(images, "dtype", type(images).__name__)
        if isinstance(images, list | tuple | np.ndarray):
            return f"Got {kind}: stack the pictures in one array, as np.stack does."
        return f"Got {kind}: give the pictures in one array (N, H, W, C)."
    about = f"These are {str(images.dtype).removeprefix('torch.')}"
    if values.numel() == 0:
        return f"{about}: convert with images{end}."
    low, high = values.min().item(), values.max().item()
    about = f"{about} from {low:.5g} to {high:.5g}"
    if not math.isfinite(high - low):
        return f"{about}: mend what is not finite, then scale them to 255."
    if low < 0:
        return f"{about}: give the pixels as they were before they were normalised."
    if high <= 1:
        return f"{about}: convert with ({scaled} * 255).round(){end}."
    if high <= 255:
        return f"{about}: convert with images{'' if whole else '.round()'}{end}."
    white = next(white for white in (4095, 65535, high) if high <= white)
    return f"{about}: convert with ({scaled} * (255 / {white:.9g})).round(){end}."


def as_labels(labels: object, count: int) -> Tensor:
    """Labels as int64 (count,); ValueError says how to make them so."""
    _check_dense(labels)
    if not isinstance(labels, Tensor):
        try:
            labels = np.asarray(labels)
        except (TypeError, ValueError, RuntimeError):  # lists of several lengths
            raise ValueError(
                f"Labels must be of shape ({count},): {type(labels).__name__} of mixed "
                "things. Give one class number per image."
            ) from None
        if labels.dtype.kind in "iu":
            labels = torch.from_numpy(labels.astype(np.int64))
    shape, name = tuple(labels.shape), str(labels.dtype).removeprefix("torch.")
    if len(shape) != 1:
        remedy = "Give one class number per image, in a list or an array."
        if len(shape) == 2 and shape[0] == count and shape[1] > 1:
            remedy = "Where a 1 marks the class, labels.argmax(1) gives its number."
        elif shape and math.prod(shape) == count:
            remedy = "Give one class number per image, as labels.reshape(-1) does."
        raise ValueError(f"Labels must be of shape ({count},), got {shape}. {remedy}")
    if not isinstance(labels, Tensor) or not name.startswith(("int", "uint")):
        whole = ".long()" if isinstance(labels, Tensor) else '.astype("int64")'
        raise ValueError(
            f"Labels must be whole numbers, got {name}. Number the classes from 0; "
            f"numbers of another type take labels{whole}."
        )
    if len(labels) != count:
        raise ValueError(
            f"There are {count} images and {len(labels)} labels. Give one class number "
            "per image."
        )
    return labels.long()


def wrong_images(x: object, channels: int) -> str | None:
    """What is wrong with these images and what mends it; None for good ones."""
    if isinstance(x, torch.fx.Proxy):
        return None
    if not isinstance(x, Tensor):
        end = ".float()" * (getattr(x, "dtype", None) == np.float64)  # as numpy has it
        remedy = f"Convert an array with torch.from_numpy(x){end}."
        return f"Expected a tensor of images, got {type(x).__name__}. {remedy}"
    shape = tuple(x.shape)
    wanted = f"Expected images of shape (N, {channels}, H, W), got {shape}."
    if x.ndim == 3 and shape[0] == channels:
        return f"{wanted} Add the batch dimension with x[None]."
    if x.ndim == 3 and shape[2] == channels:
        return f"{wanted} Move the channels and add a batch: x.permute(2, 0, 1)[None]."
    if x.ndim != 4:
        return f"{wanted} Images have four dimensions: batch, channels, height, width."
    if shape[1] != channels and shape[3] == channels:
        return f"{wanted} Move the channels with x.permute(0, 3, 1, 2)."
    if shape[1] != channels:
        remedy = f"Build the network with in_channels={shape[1]}"
        if shape[1] == 1:
            remedy += f", or repeat the channel with x.expand(-1, {channels}, -1, -1)"
        elif (shape[1], channels) == (4, 3):
            remedy += ", or leave the fourth out with x[:, :3]"
        return f"{wanted} {remedy}."
    if 0 in shape[2:]:
        return f"{wanted} Give images of 1 × 1 pixel or more."
    if not x.is_floating_point():
        return (
            f"Expected floating-point images, got {x.dtype}. Normalise them first, as "
            "resnet_lib.data.Normalisation does."
        )
    return None


def check_type(name: str, value: object, kind: type, example: str = "") -> None:
    """TypeError, naming the type and an example, for a value of another kind."""
    if not isinstance(value, kind):
        wanted = f"{kind.__module__}.{kind.__qualname__}{example}"
        raise TypeError(f"The {name} is a {type(value).__name__}: give a {wanted}.")
