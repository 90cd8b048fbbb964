"""What every widget of the series is made of: controls, words, and a picture."""

import html
import io
from collections.abc import Sequence

import ipywidgets as widgets
from matplotlib.figure import Figure

__all__ = ["Explorer"]


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file, quickly: size matters less than time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", pil_kwargs={"compress_level": 1})
    return buffer.getvalue()


class Explorer(widgets.VBox):
    """Controls over a sentence and a picture that follow them.

    A subclass makes its `controls`, calls `super().__init__`, and defines `figure()`,
    the picture, and `sentence()`, the words as plain text. It names the inputs that
    change the picture in `inputs`; they may sit deeper inside the controls. What
    `figure()` draws is also what a page without a kernel shows.
    """

    def __init__(
        self,
        controls: Sequence[widgets.Widget],
        inputs: Sequence[widgets.Widget],
        width: str = "780px",
    ) -> None:
        self.words = widgets.HTML()
        self.picture = widgets.Image(
            format="png", layout=widgets.Layout(width="100%", max_width=width)
        )
        super().__init__([*controls, self.words, self.picture])
        for control in inputs:
            control.observe(self.refresh, names="value")
        self.refresh()

    def figure(self) -> Figure:
        raise NotImplementedError

    def sentence(self) -> str:
        raise NotImplementedError

    def refresh(self, change: object = None) -> None:
        """Redraw; an error becomes a sentence, for nobody catches what this raises."""
        try:
            self.words.value = html.escape(self.sentence())
            self.picture.value = png(self.figure())
        except Exception as error:
            self.words.value = html.escape(
                f"Could not draw this: {type(error).__name__}, {error}. "
                "Run the cell again."
            )

    def __repr__(self) -> str:
        # What a page without a kernel shows in place of the widget.
        name = type(self).__name__
        return f"{name}, {self.sentence()}. It moves when the notebook runs."
