"""Read a picture file of any kind and depth as a network takes it."""

import io
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

__all__ = ["read_picture"]

DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes above 8 bits


def read_picture(content: bytes, size: int = 32) -> Tensor:
    """A PNG, JPEG, GIF, WebP or BMP file of any depth as uint8 (3, size, size).

    The middle square is kept, and what is transparent becomes white. 16-bit values are
    divided by 256; where none is above 4,095 they are 12-bit values, and divided by 16.
    Raises ValueError, in words for the page, for anything else.
    """
    if content.lstrip()[:5].lower() in (b"<svg ", b"<?xml"):
        raise ValueError("it is a drawing (SVG); save it as a PNG first")
    try:
        with warnings.catch_warnings():
            # An image too large for the memory is an error, not a line on stderr.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = _opened(content)
            picture.draft("RGB", (8 * size, 8 * size))  # a large JPEG, read coarsely
            picture.load()
            picture = _upright(_eight_bits(picture))
            if "A" in picture.getbands() or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            picture = picture.convert("RGB")
    except UnidentifiedImageError:
        raise ValueError("it is no picture that can be read (PNG, JPEG, …)") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError("it has too many pixels") from None
    except Exception as error:  # a damaged file fails wherever the damage lies
        raise ValueError(f"it is damaged ({error})") from None
    square = ImageOps.fit(picture, (size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def _opened(content: bytes) -> Image.Image:
    formats = ("PNG", "JPEG", "GIF", "WEBP", "BMP")
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        content = _without_words(content)
    return Image.open(io.BytesIO(content), formats=formats)


def _without_words(png: bytes) -> bytes:
    """The PNG file without its texts and its camera's notes.

    They say nothing about the pixels, and a long or a broken one stops the reader.
    """
    kept, place = [png[:8]], 8
    while place + 12 <= len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        kind = png[place + 4 : place + 8]
        if kind not in (b"zTXt", b"iTXt", b"tEXt", b"eXIf"):
            kept.append(png[place : place + 12 + length])
        place += 12 + length
    return b"".join(kept)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """The picture with values from 0 to 255: converting alone would cut them off."""
    if picture.mode not in DEEP:
        return picture
    values = np.asarray(picture).astype(np.float64)
    steps = 16 if values.max() < 4096 else 256
    return Image.fromarray((values / steps).clip(0, 255).astype(np.uint8))


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as the camera's notes say, if they can be read."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # broken notes: the picture is fine
        return picture
