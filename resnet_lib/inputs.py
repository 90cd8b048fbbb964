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
    numbers = math.prod(images.shape[1:])
    for channels in (3, 1):
        side = math.isqrt(numbers // channels)
        if images.ndim != 3 and channels * side**2 == numbers > 0:
            return f"Rows take images.reshape(-1, {channels}, {side}, {side})."
    if images.ndim != 3:
        return "Give every picture its channels, height and width."
    if {1, 3, 4} & {images.shape[0], images.shape[2]}:
        return "Add the batch dimension with images[None]."
    return "Add the channel with images[:, None]."


def _to_uint8(images: object) -> str:
    """How pictures of other numbers become uint8, in a sentence."""
    if isinstance(images, Tensor):
        values, scaled, end = images.float(), "images.float()", ".to(torch.uint8)"
    elif isinstance(images, np.ndarray) and images.dtype.kind in "biuf":
        values, scaled, end = images.astype(float), "images", '.astype("uint8")'
    else:
        kind = getattr(images, "dtype", type(images).__name__)
        return f"Got {kind}: stack the pictures in one array, as np.stack does."
    about = f"These are {str(images.dtype).removeprefix('torch.')}"
    if 0 in values.shape:
        return f"{about}: convert with images{end}."
    low, high = values.min().item(), values.max().item()
    about = f"{about} from {low:.5g} to {high:.5g}"
    if not math.isfinite(high - low):
        return f"{about}: mend what is not finite, then scale them to 255."
    if low < 0:
        return f"{about}: give the pixels as they were before they were normalised."
    white = next(white for white in (1, 255, 4095, 65535, high) if high <= white)
    if white != 255:
        scaled = f"({scaled} * {255 / white:.9g})"
    return f"{about}: convert with {scaled}.round(){end}."


def as_labels(labels: object, count: int) -> Tensor:
    """Labels as int64 (count,); ValueError says how to make them so."""
    _check_dense(labels)
    convert = "labels.reshape(-1).long()"
    if not isinstance(labels, Tensor):
        convert = "torch.from_numpy(np.array(labels, 'int64')).reshape(-1)"
        try:
            labels = np.asarray(labels)
        except (TypeError, ValueError, RuntimeError):  # lists of several lengths
            labels = np.array(None)
        if labels.dtype.kind in "iu":
            labels = torch.from_numpy(labels.astype(np.int64))
    shape, name = tuple(labels.shape), str(labels.dtype).removeprefix("torch.")
    whole = isinstance(labels, Tensor) and name.startswith(("int", "uint"))
    if whole and shape == (count,):
        return labels.long()
    remedy = "Give one class number per image, from 0 on, in a list or an array."
    if len(shape) == 2 and shape[0] == count and shape[1] > 1:
        remedy = "Where a 1 marks the class, labels.argmax(1) gives its number."
    elif math.prod(shape) == count and (whole or name.startswith(("float", "bool"))):
        remedy = f"Convert them with {convert}."
    raise ValueError(
        f"Labels must be {count} whole numbers, got {name} of shape {shape}. {remedy}"
    )


def wrong_images(x: object, channels: int) -> str | None:
    """What is wrong with these images and what mends it; None for good ones."""
    if isinstance(x, torch.fx.Proxy):
        return None
    if not isinstance(x, Tensor):
        end = ".float()" * (getattr(x, "dtype", None) == np.float64)  # as numpy has it
        remedy = f"Convert an array with torch.from_numpy(x){end}."
        return f"Expected a tensor of images, got {type(x).__name__}. {remedy}"
    shape = tuple(x.shape)
    remedy = None
    if x.ndim == 3 and shape[0] == channels:
        remedy = "Add the batch dimension with x[None]"
    elif x.ndim == 3 and shape[2] == channels:
        remedy = "Move the channels and add a batch: x.permute(2, 0, 1)[None]"
    elif x.ndim != 4:
        remedy = "Give images four dimensions: batch, channels, height, width"
    elif 0 in shape[1:]:
        remedy = "Give every image 1 × 1 pixel or more"
    elif shape[1] != channels == shape[3]:
        remedy = "Move the channels with x.permute(0, 3, 1, 2)"
    elif shape[1] != channels:
        remedy = f"Build the network with in_channels={shape[1]}"
        if channels == 3 and shape[1] in (1, 4):
            three = "x.expand(-1, 3, -1, -1)" if shape[1] == 1 else "x[:, :3]"
            remedy += f", or give it three with {three}"
    if remedy:
        return f"Expected images of shape (N, {channels}, H, W), got {shape}. {remedy}."
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
        raise TypeError(f"The {name} is of type {type(value).__name__}: give {wanted}.")
