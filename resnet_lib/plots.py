"""Figures in one style: data in, Axes out."""

import time
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

__all__ = [
    "PLAIN",
    "RESIDUAL",
    "LiveCurves",
    "confusion_matrix",
    "image_grid",
    "learning_rate",
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
            "axes.labelsize": 11,
            "legend.frameon": False,
            "image.interpolation": "nearest",
        }
    )


def image_grid(
    images: Tensor, titles: Sequence[str] = (), columns: int = 8, size: float = 1.0
) -> Figure:
    """Images (N, 3, H, W), uint8 or floats from 0 to 1, in rows of `columns`."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    extra = 0.25 if titles else 0
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * size, rows * (size + extra)), squeeze=False
    )
    for ax in axes.flat:
        ax.axis("off")
    for ax, image in zip(axes.flat, images, strict=False):
        ax.imshow(image.permute(1, 2, 0).cpu())
    for ax, title in zip(axes.flat, titles, strict=False):
        ax.set_title(title, fontsize=9, loc="center")
    return figure


def training_curves(
    history: Sequence[dict] | pd.DataFrame,
    axes: Sequence[Axes] | None = None,
    milestones: Sequence[int] = (),
) -> Sequence[Axes]:
    """Loss and error of one run against iterations, training and test.

    `history` has the columns of `training.COLUMNS`; a dotted line marks each milestone.
    """
    history = pd.DataFrame(history)
    if axes is None:
        axes = plt.subplots(1, 2, figsize=(10, 3.5))[1]
    for ax, what in zip(axes, ("loss", "error"), strict=True):
        for part, style in (("train", "-"), ("test", "--")):
            curve = history[["iteration", f"{part}_{what}"]].dropna()
            values = curve[f"{part}_{what}"] * (100 if what == "error" else 1)
            marker = "o" if len(curve) < 12 else None
            ax.plot(curve["iteration"], values, style, marker=marker, ms=4, label=part)
        for milestone in milestones:
            ax.axvline(milestone, color="black", linestyle=":", linewidth=1)
        ax.set(xlabel="iteration", ylabel="error (%)" if what == "error" else "loss")
        ax.legend()
    return axes


class LiveCurves:
    """Curves that move while a network trains: `fit(…, on_row=LiveCurves())`.

    Redraws one figure in place, at most once in `seconds`; call `draw` at the end, so
    that a saved notebook holds the whole curve. A run that was finished before calls
    nothing: give `draw` its history.
    """

    def __init__(self, milestones: Sequence[int] = (), seconds: float = 2.0) -> None:
        self.milestones, self.seconds = milestones, seconds
        self.drawn_at = -np.inf
        self.handle = None

    def __call__(self, history: Sequence[dict]) -> None:
        self.history = history
        if time.monotonic() - self.drawn_at >= self.seconds:
            self.draw()
            self.drawn_at = time.monotonic()

    def draw(self, history: Sequence[dict] | None = None) -> None:
        from IPython.display import display

        axes = training_curves(history or self.history, milestones=self.milestones)
        figure = axes[0].figure
        plt.close(figure)  # shown here, and not once more at the end of the cell
        if self.handle:
            self.handle.update(figure)
        else:
            self.handle = display(figure, display_id=True)


def learning_rate(
    rates: Sequence[float], milestones: Sequence[int] = (), ax: Axes | None = None
) -> Axes:
    """The learning rate of updates 0, 1, 2, … on a logarithmic axis."""
    ax = ax or plt.subplots(figsize=(7, 2.6))[1]
    ax.step(range(len(rates)), rates, where="post")
    for milestone in milestones:
        ax.axvline(milestone, color="black", linestyle=":", linewidth=1)
    ax.set(yscale="log", xlabel="iteration", ylabel="learning rate")
    return ax


def confusion_matrix(
    confusion: Tensor, classes: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Counts (classes, classes), true class in rows; mistakes coloured, hits left
    white."""
    ax = ax or plt.subplots(figsize=(6.5, 5.5))[1]
    counts = confusion.cpu().numpy()
    hits = np.eye(len(counts), dtype=bool)
    options = {
        "annot": True,
        "fmt": "d",
        "cbar": False,
        "ax": ax,
        "annot_kws": {"size": 9},
    }
    names = {"xticklabels": classes, "yticklabels": classes}
    sns.heatmap(counts, mask=hits, cmap="rocket_r", **options, **names)
    for index, count in enumerate(counts.diagonal()):
        ax.text(index + 0.5, index + 0.5, count, ha="center", va="center", size=9)
    ax.grid(False)
    ax.set(xlabel="predicted", ylabel="true")
    ax.tick_params(axis="x", rotation=45)
    return ax
