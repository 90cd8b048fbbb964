"""Figures in one style: data in, Axes out."""

import base64
import html
import io
import time
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from resnet_lib.training import COLUMNS

__all__ = [
    "PLAIN",
    "RESIDUAL",
    "LiveCurves",
    "describe",
    "image_grid",
    "interact",
    "training_curves",
    "use_style",
]

# Told apart by colour-blind readers, and the same in every figure of the series.
RESIDUAL, PLAIN = "#0072B2", "#D55E00"


def use_style() -> None:
    """Set the look of every figure of the series; call it once, in the set-up cell."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update(
        {
            "figure.figsize": (7, 3.5),
            "figure.dpi": 90,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 12,
            # Fixed, or Matplotlib measures every tick label to place a title: that
            # would be almost half of a picture's time.
            "axes.titley": 1.0,
            "axes.labelsize": 11,
            "legend.frameon": False,
            "image.interpolation": "nearest",
        }
    )


# --- figures in words, and figures to turn --------------------------------------------

# One clear pixel: JupyterLab gives a PNG no alternative text, but leaves it to HTML.
_PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


def _img(source: str, alt: str, style: str = "") -> str:
    return f'<img alt="{html.escape(alt)}" src="{source}"{style}>'


def _png(figure: Figure, **options: object) -> str:
    """The figure as a PNG file in base64, and closed: no cell draws it once more."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=figure.dpi, **options)
    plt.close(figure)
    return base64.b64encode(file.getvalue()).decode()


def describe(figure: Figure, alt: str) -> None:
    """Show the figure of this cell with alternative text, as the cell's last line.

    `alt` says in a sentence or two what there is to see. It stands in the metadata of
    the output, where the site and converters look for it, in place of the picture where
    there is only text, and in a clear pixel beside it, which JupyterLab reads aloud.
    """
    from IPython.display import display

    alt = " ".join(alt.split())
    picture = {"image/png": _png(figure, bbox_inches="tight"), "text/plain": alt}
    display(picture, raw=True, metadata={"image/png": {"alt": alt}})
    pixel = {"text/html": _img(_PIXEL, alt, ' width="1" height="1"')}
    display(pixel | {"text/plain": ""}, raw=True)


def interact(draw: Callable[..., Figure], alt: str, **controls: object) -> None:
    """A figure with controls above it: `draw(**values)` makes it anew for each change.

    `controls` are widgets, or what `ipywidgets.interactive` makes widgets of: a range
    of numbers (1, 5), a list, a truth value. A page without a kernel shows the first
    figure. `alt` is its alternative text.
    """
    import ipywidgets
    from IPython.display import display

    alt = " ".join(alt.split())
    picture = ipywidgets.HTML()

    def redraw(**values: object) -> None:
        source = f"data:image/png;base64,{_png(draw(**values))}"
        picture.value = _img(source, alt, ' style="max-width: 100%"')

    box = ipywidgets.interactive(redraw, **controls)
    box.children = (*box.children[:-1], picture, box.children[-1])  # errors, last
    if not picture.value:
        box.update()
    if not picture.value:
        redraw(**box.kwargs)  # the widget keeps errors to itself: raise this one
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    still = picture.value.split("base64,")[1].split('"')[0]
    bundle = {"application/vnd.jupyter.widget-view+json": view, "image/png": still}
    bundle["text/plain"] = alt
    display(bundle, raw=True, metadata={"image/png": {"alt": alt}})


def image_grid(
    images: Tensor, titles: Sequence[str], columns: int = 8, size: float = 1.0
) -> Figure:
    """Images (N, 3, H, W), or (N, 1, H, W) in grey, in rows of `columns`.

    uint8, or floats from 0 to 1.
    """
    if not len(images):
        raise ValueError("There are no images to draw.")
    if len(images) != len(titles):
        raise ValueError(
            f"Give a title for each image: {len(images)}, not {len(titles)}."
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    inches = (columns * size, rows * (size + 0.25))
    figure, axes = plt.subplots(rows, columns, figsize=inches, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    white = 1 if images.is_floating_point() else 255
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        pixels = image.permute(1, 2, 0).cpu().numpy()
        ax.imshow(pixels, cmap="gray", vmin=0, vmax=white)  # colours know no cmap
        ax.set_title(title, fontsize=9, loc="center")
    return figure


def training_curves(
    history: Sequence[dict] | pd.DataFrame, milestones: Sequence[int] = ()
) -> Sequence[Axes]:
    """Loss and error of one run against iterations: test in blue, training dashed.

    `history` has the columns of `training.COLUMNS`; a dotted line marks each milestone.
    """
    history = pd.DataFrame(history, columns=list(COLUMNS))
    axes = plt.subplots(1, 2, figsize=(10, 3.5))[1]
    for ax, what in zip(axes, ("loss", "error"), strict=True):
        for part, style, ink in (("train", "--", "0.45"), ("test", "-", RESIDUAL)):
            curve = history[["iteration", f"{part}_{what}"]].dropna()
            values = curve[f"{part}_{what}"] * (100 if what == "error" else 1)
            look = {"marker": "o" if len(curve) < 12 else None, "ms": 4, "color": ink}
            ax.plot(curve["iteration"], values, style, label=part, **look)
        if history["iteration"].max() >= 10_000:
            ax.xaxis.set_major_formatter(lambda n, _: f"{n / 1000:g}k" if n else "0")
        for milestone in milestones:
            ax.axvline(milestone, color="black", linestyle=":", linewidth=1)
        ax.set(xlabel="iteration", ylabel="error (%)" if what == "error" else "loss")
        ax.legend()
    return axes


class LiveCurves:
    """Curves that move while a network trains: `fit(…, on_row=LiveCurves())`.

    Redraws one figure in place, at most once in two seconds. Call `draw` at the end, so
    that a saved notebook holds the whole curve.
    """

    def __init__(self, milestones: Sequence[int] = ()) -> None:
        self.milestones = milestones
        self.drawn_at = -np.inf
        self.handle = None

    def __call__(self, history: Sequence[dict]) -> None:
        if time.monotonic() - self.drawn_at >= 2:
            self.draw(history)
            self.drawn_at = time.monotonic()

    def draw(self, history: Sequence[dict]) -> None:
        from IPython.display import display

        axes = training_curves(history, milestones=self.milestones)
        for last in history[-1:]:
            axes[0].set_title(f"Training loss {last['train_loss']:.2f}")
            axes[1].set_title(f"Training error {last['train_error']:.0%}")
        figure = axes[0].figure
        plt.close(figure)  # shown here, and not once more at the end of the cell
        alt = "Loss and error, training and test, against the iteration."
        words = {"metadata": {"image/png": {"alt": alt}}}
        if self.handle:
            self.handle.update(figure, **words)
        else:
            self.handle = display(figure, display_id=True, **words)
