"""What people give: made what the library computes with, or a sentence that says how.

The core calls these and goes on; what they say is long, so that it need not be.
"""

import contextlib
import math
import operator
from collections.abc import Sequence, Set

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "as_class_names",
    "as_labels",
    "as_logits",
    "as_pixels",
    "check_images",
    "check_labels",
    "check_stages",
    "check_type",
    "finite_number",
    "one_of",
    "truth_value",
    "whole_number",
    "whole_numbers",
]


# --- numbers and words ----------------------------------------------------------------


def _is_bool(value: object) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # numpy's too


def whole_number(
    name: str, value: object, low: int = 0, high: int | None = None
) -> int:
    """The value as an int, of numpy's numbers too; ValueError for 8.0 and True."""
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        number = operator.index(value)
        top = 2**63 - 1 if high is None else high
        if not _is_bool(value) and low <= number <= top:
            return number
    span = f", {low} or more, below 2**63" if high is None else f" from {low} to {high}"
    raise ValueError(f"{name} is {value!r}: give a whole number{span}.")


def whole_numbers(
    name: str, values: object, high: int | None = None
) -> tuple[int, ...]:
    """Several of them, 0 or more, in a list, a tuple or an array."""
    # Of a dict the values would be lost, of a set the order, and an iterator may have
    # no end.
    ordered = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    try:
        steps = tuple(values) if ordered else tuple(values.tolist())
    except (AttributeError, TypeError):
        several = "give several whole numbers, as in (10, 20), or none"
        raise ValueError(f"{name} is {values!r}: {several}.") from None
    pairs = enumerate(steps)
    return tuple(whole_number(f"{name}[{i}]", step, 0, high) for i, step in pairs)


def finite_number(name: str, value: object) -> float:
    """The value as a float; ValueError for text, for True, for what is not finite."""
    number = math.nan
    if not _is_bool(value) and not isinstance(value, str | bytes):
        with contextlib.suppress(OverflowError, RuntimeError, TypeError, ValueError):
            number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r}: give a finite number.")
    return number


def truth_value(name: str, value: object) -> bool:
    """The value as a bool; ValueError for anything but True and False."""
    if not _is_bool(value):
        raise ValueError(f"{name} is {value!r}: give True or False.")
    return bool(value)


def one_of(name: str, value: object, choices: Sequence[str]) -> str:
    """The value as text; ValueError for what is none of the choices."""
    if not isinstance(value, str) or value not in choices:
        choice = ", ".join(map(repr, choices))
        raise ValueError(f"{name} is {value!r}: choose from {choice}.")
    return next(choice for choice in choices if choice == value)  # plain text


def check_stages(widths: Sequence[int], depths: Sequence[int]) -> None:
    """Raise ValueError unless every stage has one width and one depth, 1 or more."""
    try:
        good = len(widths) == len(depths) > 0
        for number in (*widths, *depths):
            whole_number("a width or depth", number, 1)
    except (TypeError, ValueError):  # TypeError: one number, and not one for each stage
        good = False
    if not good:
        raise ValueError(
            "Give one width and one depth per stage, each a whole number, 1 or more: "
            f"got widths {widths} and depths {depths}."
        )


def check_type(name: str, value: object, kind: type, example: str = "") -> None:
    """TypeError, naming the type and an example, for a value of another kind."""
    if not isinstance(value, kind):
        wanted = f"{kind.__module__}.{kind.__qualname__}{example}"
        raise TypeError(f"The {name} is of type {type(value).__name__}: give {wanted}.")


# --- images and labels ----------------------------------------------------------------


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


def as_class_names(classes: object) -> tuple[str, ...]:
    """The names in their order, as text. "cat" is one name, not three, and a set has no
    order."""
    with contextlib.suppress(TypeError):
        if not isinstance(classes, str | bytes | Set) and len(classes):
            return tuple(str(name) for name in classes)
    raise ValueError(
        f"The classes are {classes!r}: list a name for each, as in ('cat', 'dog')."
    )


def check_labels(name: str, labels: Tensor, count: int) -> None:
    """Raise ValueError for a label, of int64 (N,), that is not from 0 to count - 1."""
    low, high = int(labels.min()), int(labels.max())
    if low >= 0 and high < count:
        return
    remedy = f"Give {high + 1} class names, or number the classes without gaps."
    if low < 0:
        remedy = "Leave the others out, as images[images.labels >= 0] does."
    elif high - low < count:
        remedy = f"Count them from 0: labels - {low}."
    raise ValueError(
        f"{name} has labels from {low} to {high}, and {count} classes are numbered "
        f"from 0 to {count - 1}. {remedy}"
    )


# --- into a network and out of it -----------------------------------------------------


def check_images(x: Tensor, channels: int) -> None:
    """Raise ValueError, naming the remedy, unless `x` is float images (N, C, H, W).

    Silent where a tool reads the network instead of running it (`torch.fx`,
    `torch.jit`): there, `x` has no shape to look at.
    """
    if not torch.jit.is_scripting() and not torch.jit.is_tracing():
        _check_eagerly(x, channels)


def _check_eagerly(x: object, channels: int) -> None:
    if isinstance(x, torch.fx.Proxy):
        return
    if not isinstance(x, Tensor):
        end = ".float()" * (getattr(x, "dtype", None) == np.float64)  # as numpy has it
        raise ValueError(
            f"Expected a tensor of images, got {type(x).__name__}. Convert an array "
            f"with torch.from_numpy(x){end}."
        )
    shape, remedy = tuple(x.shape), None
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
        expected = f"Expected images of shape (N, {channels}, H, W), got {shape}."
        raise ValueError(f"{expected} {remedy}.")
    if not x.is_floating_point():
        raise ValueError(
            f"Expected floating-point images, got {x.dtype}. Normalise them first, as "
            "resnet_lib.data.Normalisation does."
        )


def as_logits(answer: object, count: int) -> Tensor:
    """A network's answer to `count` images as float32 (count, classes)."""
    if isinstance(answer, Tensor) and answer.ndim == 2 and len(answer) == count:
        return answer.float()
    shape = f" of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else ""
    raise ValueError(
        f"The network answers {count} images with a {type(answer).__name__}{shape}. "
        f"Let its forward return logits, a tensor of shape ({count}, classes)."
    )
