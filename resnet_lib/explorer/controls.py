"""Controls over a picture: what a small widget of the series is made of."""

import asyncio
import functools
import gc
import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from resnet_lib.explorer.figure import png

__all__ = ["Controls"]

# A burst of slider moves arrives in this time; a look is over before anyone waits.
PAUSE = 0.02  # seconds


@functools.cache
def spare_the_collector() -> None:
    """Let the garbage collector pass over what is loaded by now.

    A picture leaves thousands of small objects behind. Collecting them would walk
    through all of PyTorch and pandas too, a third of a second every few pictures.
    """
    gc.collect()
    gc.freeze()


class Controls(widgets.VBox):
    """Controls over a sentence and a picture that follow them.

    A subclass makes its `controls`, calls `super().__init__`, and defines `figure()`,
    the picture, and `sentence()`, the words as plain text. It names the inputs that
    change the picture in `inputs`; they may sit deeper inside the controls. What
    `figure()` draws is also what a page without a kernel shows.

    In a running kernel a change asks for a redraw in a moment, and further changes
    until then ask for nothing more: a slider moved fast costs one picture, that of its
    last position. Elsewhere, and from `refresh()`, the picture is drawn at once.
    """

    def __init__(
        self,
        controls: Sequence[widgets.Widget],
        inputs: Sequence[widgets.Widget],
        width: str = "780px",
    ) -> None:
        self.words = widgets.HTML(layout=widgets.Layout(max_width=width))
        self.picture = widgets.Image(
            format="png", layout=widgets.Layout(width="100%", max_width=width)
        )
        self.redraw: asyncio.TimerHandle | None = None
        self.known: dict[str, tuple] = {}
        super().__init__([*controls, self.words, self.picture])
        for control in inputs:
            control.observe(self.request, names="value")
        spare_the_collector()
        self.refresh()

    def figure(self) -> Figure:
        raise NotImplementedError

    def sentence(self) -> str:
        raise NotImplementedError

    def notes(self) -> str:
        """The words as HTML; by default the sentence."""
        return html.escape(self.sentence())

    def once(self, what: str, key: object, compute: Callable[[], Any]) -> Any:
        """The result of `compute()`, kept as `what` for as long as `key` is the same.

        Words and picture of one redraw so share their measurements.
        """
        if self.known.get(what, (None,))[0] != key:
            self.known[what] = (key, compute())
        return self.known[what][1]

    def request(self, change: object = None) -> None:
        """Redraw soon: at once where no event loop runs."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.refresh()
            return
        if self.redraw is None:
            self.redraw = loop.call_later(PAUSE, self.refresh)

    def refresh(self) -> None:
        """Redraw; an error becomes a sentence, for nobody catches what this raises."""
        if self.redraw is not None:
            self.redraw.cancel()
            self.redraw = None
        try:
            self.words.value = self.notes()
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


def table(rows: Sequence[Sequence[object]]) -> str:
    """Rows of cells as HTML in the page's own colours; the first row is the header."""
    style = "padding: 1px 14px 1px 0; text-align: left; line-height: 1.35"
    lines = []
    for number, row in enumerate(rows):
        tag = "td" if number else "th"
        cells = (f'<{tag} style="{style}">{html.escape(str(c))}</{tag}>' for c in row)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"
