"""One progress bar for the terminal and the notebook."""

import io

from tqdm import tqdm

__all__ = ["in_notebook", "progress_bar"]


class NotebookBar(tqdm):
    """tqdm's bar as one line of output that is rewritten in place.

    A saved notebook then holds the last state of the bar as text, with no widget to
    lose.
    """

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        from IPython.display import display

        content = {"text/plain": str(self) if msg is None else msg}
        if not content["text/plain"]:
            return
        if hasattr(self, "handle"):
            self.handle.update(content, raw=True)
        else:
            self.handle = display(content, raw=True, display_id=True)


def progress_bar(**options) -> tqdm:
    """A tqdm bar fit for the place it is shown in; `options` are tqdm's own."""
    if in_notebook():
        return NotebookBar(file=io.StringIO(), ncols=100, ascii=False, **options)
    return tqdm(dynamic_ncols=True, **options)


def in_notebook() -> bool:
    """Whether the code runs in a kernel, whose front end shows output as cells."""
    try:
        return get_ipython().has_trait("kernel")  # IPython defines it in its sessions
    except NameError:
        return False
