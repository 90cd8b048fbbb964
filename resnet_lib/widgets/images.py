"""Choose one picture: from the test set, among the mistakes, or one of your own."""

import html
import io
import warnings
from collections.abc import Sequence

import ipywidgets as widgets
import matplotlib.image
import numpy as np
import torch
import traitlets
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from resnet_lib.data import Dataset, Normalisation

__all__ = ["ImagePicker"]

MISTAKES, OWN = "confident mistakes", "your own picture"


def uploaded_file(value: object) -> tuple[str, bytes] | None:
    """Name and content of the last file in a `FileUpload.value`, None for no file.

    ipywidgets 7 keeps {name: {"content": bytes, …}}, ipywidgets 8 a tuple of
    {"name": …, "content": memoryview, …}.
    """
    if isinstance(value, dict):
        value = [{**file, "name": name} for name, file in value.items()]
    if not value:
        return None
    return value[-1]["name"], bytes(value[-1]["content"])


def read_picture(content: bytes, size: int = 32) -> Tensor:
    """A PNG or JPEG file of any size as uint8 (3, size, size).

    The middle square is kept, and what is transparent becomes white. Raises ValueError,
    in words for the page, for anything else.
    """
    try:
        with warnings.catch_warnings():
            # An image too large for the memory is an error, not a line on stderr.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
            picture.draft("RGB", (8 * size, 8 * size))  # a large JPEG, read coarsely
            picture = ImageOps.exif_transpose(picture)
            if "A" in picture.getbands() or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            picture = picture.convert("RGB")
    except UnidentifiedImageError:
        raise ValueError("it is neither a PNG nor a JPEG file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError("it has too many pixels") from None
    except Exception as error:  # a damaged file fails wherever the damage lies
        raise ValueError(f"it is damaged ({error})") from None
    square = ImageOps.fit(picture, (size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


class ImagePicker(widgets.HBox):
    """Picks one image of a data set's test part, or one that the reader uploads.

    `source` says which images the slider walks through: "all test images", those of one
    class, "confident mistakes" if their indices are given, or "your own picture".
    `position` counts among them. Both can be read and set. `image` is uint8
    (3, 32, 32), `x` the same as a network takes it, `label` its class or None,
    `caption` says what it is. `value` counts the picks: observe it to follow them.
    """

    value = traitlets.Int(0)

    def __init__(
        self,
        data: Dataset,
        normalisation: Normalisation,
        mistakes: Sequence[int] = (),
    ) -> None:
        self.data, self.normalisation = data, normalisation
        labels = data.test.labels
        self.indices: dict[str, Sequence[int]] = {"all test images": range(len(labels))}
        for number, name in enumerate(data.classes):
            self.indices[name] = (labels == number).nonzero().flatten().tolist()
        if len(mistakes):
            self.indices[MISTAKES] = list(mistakes)
        self.indices = {name: found for name, found in self.indices.items() if found}
        self.own: tuple[str, Tensor] | None = None
        self.sources = widgets.Dropdown(
            options=[*self.indices, OWN],
            description="images",
            layout=widgets.Layout(width="270px"),
        )
        self.slider = widgets.IntSlider(
            max=len(labels) - 1,
            description="number",
            layout=widgets.Layout(width="300px"),
        )
        self.upload = widgets.FileUpload(
            accept=".png,.jpg,.jpeg", description="PNG or JPEG"
        )
        self.upload.layout.display = "none"
        self.words = widgets.HTML()
        self.thumbnail = widgets.Image(
            format="png", layout=widgets.Layout(width="88px", height="88px")
        )
        box = widgets.VBox(
            [
                widgets.HBox([self.sources, self.slider, self.upload]),
                self.words,
            ],
            layout=widgets.Layout(width="640px", margin="0 0 0 12px"),
        )
        super().__init__([self.thumbnail, box])
        self.sources.observe(self._new_source, names="value")
        self.slider.observe(self._pick, names="value")
        self.upload.observe(self._read_upload, names="value")
        self._pick()

    @property
    def source(self) -> str:
        return self.sources.value

    @source.setter
    def source(self, source: str) -> None:
        if source not in self.sources.options:
            raise ValueError(
                f"No images {source!r}: choose from {list(self.sources.options)}."
            )
        self.sources.value = source

    @property
    def position(self) -> int:
        return self.slider.value

    @position.setter
    def position(self, position: int) -> None:
        if not 0 <= position <= self.slider.max:
            raise ValueError(
                f"There is no image {position} of {self.slider.max + 1} "
                f"({self.source}): count from 0."
            )
        self.slider.value = position

    @property
    def index(self) -> int | None:
        """The place in the test set; None for an uploaded picture."""
        if self.source == OWN:
            return None
        return self.indices[self.source][self.position]

    @property
    def image(self) -> Tensor:
        """uint8 (3, 32, 32); mid-grey until a picture of one's own is there."""
        if self.index is not None:
            return self.data.test.images[self.index]
        if self.own:
            return self.own[1]
        return torch.full_like(self.data.test.images[0], 128)

    @property
    def x(self) -> Tensor:
        """The image as the networks take it, (1, 3, 32, 32)."""
        return self.normalisation(self.image[None])

    @property
    def label(self) -> int | None:
        return None if self.index is None else int(self.data.test.labels[self.index])

    @property
    def caption(self) -> str:
        if self.index is not None:
            return f"test image {self.index}, {self.data.classes[self.label]}"
        return self.own[0] if self.own else "a grey square, until you upload a picture"

    def show(self, content: bytes, name: str = "your picture") -> None:
        """Take a PNG or JPEG file as the picture; a wrong file becomes a sentence."""
        try:
            image = read_picture(content)
        except ValueError as error:
            self.words.value = html.escape(
                f"{name} cannot be shown: {error}. Choose a PNG or JPEG file."
            )
            return
        self.own = (name, image)
        self.source = OWN
        self._pick()

    def _new_source(self, change: object = None) -> None:
        own = self.source == OWN
        self.slider.layout.display = "none" if own else None
        self.upload.layout.display = None if own else "none"
        if not own:
            self.slider.unobserve(self._pick, names="value")  # do not pick twice
            self.slider.value = 0
            self.slider.max = len(self.indices[self.source]) - 1
            self.slider.observe(self._pick, names="value")
        self._pick()

    def _read_upload(self, change: object = None) -> None:
        try:
            file = uploaded_file(self.upload.value)
        except Exception as error:
            self.words.value = html.escape(f"The upload failed: {error}. Try again.")
            return
        if file:
            name, content = file
            self.show(content, name)

    def _pick(self, change: object = None) -> None:
        buffer = io.BytesIO()
        pixels = self.image.permute(1, 2, 0).numpy()
        pixels = pixels.repeat(4, 0).repeat(4, 1)  # a browser would blur the enlarged
        matplotlib.image.imsave(buffer, np.ascontiguousarray(pixels), format="png")
        self.thumbnail.value = buffer.getvalue()
        self.words.value = html.escape(f"{self.caption}. {self._where()}")
        self.value += 1

    def _where(self) -> str:
        if self.index is not None:
            return self.data.note
        size = " × ".join(map(str, self.image.shape[1:]))
        return f"Any size will do: the middle square is shrunk to {size} pixels."
