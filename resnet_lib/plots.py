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
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path
from torch import Tensor, nn

from resnet_lib.basic_block import BasicBlock
from resnet_lib.probes import activations
from resnet_lib.resnet import ResNet, evaluating

__all__ = [
    "PLAIN",
    "RESIDUAL",
    "LiveCurves",
    "confusion_matrix",
    "describe",
    "flow",
    "image_grid",
    "interact",
    "network_map",
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
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    still = picture.value.split("base64,")[1].split('"')[0]
    bundle = {"application/vnd.jupyter.widget-view+json": view, "image/png": still}
    bundle["text/plain"] = alt
    display(bundle, raw=True, metadata={"image/png": {"alt": alt}})


def image_grid(
    images: Tensor, titles: Sequence[str], columns: int = 8, size: float = 1.0
) -> Figure:
    """Images (N, 3, H, W), uint8 or floats from 0 to 1, in rows of `columns`."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    inches = (columns * size, rows * (size + 0.25))
    figure, axes = plt.subplots(rows, columns, figsize=inches, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        ax.imshow(image.permute(1, 2, 0).cpu())
        ax.set_title(title, fontsize=9, loc="center")
    return figure


def training_curves(
    history: Sequence[dict] | pd.DataFrame, milestones: Sequence[int] = ()
) -> Sequence[Axes]:
    """Loss and error of one run against iterations: test in blue, training dashed.

    `history` has the columns of `training.COLUMNS`; a dotted line marks each milestone.
    """
    history = pd.DataFrame(history)
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
        last = history[-1]
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


def confusion_matrix(confusion: Tensor, classes: Sequence[str], ax: Axes) -> None:
    """Counts (classes, classes), true class in rows; mistakes coloured, hits white."""
    counts = confusion.cpu().numpy()
    mistakes = pd.DataFrame(counts, classes, classes)
    hits = np.eye(len(counts), dtype=bool)
    words = {"annot": True, "fmt": "d", "annot_kws": {"size": 9}}
    sns.heatmap(mistakes, mask=hits, cmap="rocket_r", cbar=False, ax=ax, **words)
    for index, count in enumerate(counts.diagonal()):
        ax.text(index + 0.5, index + 0.5, count, ha="center", va="center", size=9)
    ax.grid(False)
    ax.set(xlabel="predicted", ylabel="true")
    ax.tick_params(axis="x", rotation=45)


# --- a network ------------------------------------------------------------------------

_INK = "0.15"


def network_map(model: ResNet, colour: str = RESIDUAL) -> Axes:
    """The network from left to right: stem, blocks, head, with the shape of each stage.

    Two bars are the two 3×3 convolutions of a block: as tall as their maps, as wide as
    their channels are many. A line over a residual block is its shortcut, dashed where
    the shape changes, and "+" the addition. Shapes are measured on one image of 32×32.
    Used in notebook 03; compare paper Fig. 3.
    """
    ax = plt.subplots(figsize=(10, 3.4))[1]
    colours, side = model.in_channels, 32
    image = next(model.parameters()).new_zeros(1, colours, side, side)
    with evaluating(model):
        outputs = activations(model, image, model.stages)
    x = _bar(ax, 0, colours, side, "0.75")
    _words(ax, x / 2, -side / 2, f"image\n{colours}, {side}, {side}")
    x = _bar(ax, _arrow(ax, x, 19), model.conv1.out_channels, side, colour)
    _words(ax, x - 1, -side / 2, f"stem\n{model.conv1.out_channels}, {side}, {side}")
    for stage, output in outputs.items():
        channels, height = output.shape[1:3]
        start, gap = x + 11, 11
        for block in model.get_submodule(stage):
            fork = x + gap / 2
            x = _bar(ax, _arrow(ax, x, gap), channels, height, colour)
            x = _bar(ax, _arrow(ax, x, 2.2), channels, height, colour)
            if isinstance(block, BasicBlock):
                plus = _arrow(ax, x, 3) + 1.3
                same = isinstance(block.shortcut, nn.Identity)
                _shortcut(ax, fork, plus, side / 2 + 4, "-" if same else (0, (3, 2)))
                x = plus + 1.3
            gap = 6
        shape = f"{channels}, {height}, {height}"
        _words(ax, (start + x) / 2, -side / 2, f"{stage}\n{shape}")
    for words, numbers in (("average", channels), ("linear", model.fc.out_features)):
        start = _arrow(ax, x, 10)
        x = _bar(ax, start, numbers, 3, "0.45")
        _words(ax, (start + x) / 2, -side / 2, f"{words}\n{numbers}")
    ax.set(xlim=(-4, x + 4), ylim=(-side / 2 - 10, side / 2 + 6), aspect="equal")
    ax.axis("off")
    return ax


def _bar(ax: Axes, x: float, channels: int, height: float, colour: str) -> float:
    """A bar from x on; where it ends."""
    width = 1.5 + channels / 16
    corner = (x, -height / 2)
    ax.add_patch(Rectangle(corner, width, height, fc=colour, ec="white", lw=0.5))
    return x + width


def _arrow(ax: Axes, x: float, length: float) -> float:
    """An arrow to the right from x; where it ends."""
    size = 6 if length < 5 else 9
    style = {"arrowstyle": "-|>", "mutation_scale": size, "shrinkA": 0, "shrinkB": 0}
    ends = (x, 0), (x + length, 0)
    ax.add_patch(FancyArrowPatch(*ends, color=_INK, lw=1.2, **style))
    return x + length


def _shortcut(ax: Axes, fork: float, plus: float, top: float, dashes) -> None:
    """From the fork up, over the block, and down to its "+"."""
    bend = 3
    path = [(fork, 0), (fork, top - bend), (fork, top), (fork + bend, top)]
    path += [(plus - bend, top), (plus, top), (plus, top - bend), (plus, 1.3)]
    line, curve = Path.LINETO, Path.CURVE3
    codes = [Path.MOVETO, line, curve, curve, line, curve, curve, line]
    style = {"arrowstyle": "-|>", "mutation_scale": 9, "ls": dashes, "lw": 1.4}
    arrow = FancyArrowPatch(path=Path(path, codes), color=_INK, fc="none", **style)
    arrow.set_capstyle("butt")
    ax.add_patch(arrow)
    ax.add_patch(Circle((plus, 0), 1.3, fc="white", ec=_INK, lw=1.2, zorder=3))
    ax.text(plus, 0, "+", ha="center", va="center", size=9, color=_INK, zorder=4)


def _words(ax: Axes, x: float, y: float, words: str) -> None:
    ax.text(x, y - 2.5, words, ha="center", va="top", size=9.5, color=_INK)


# --- drawings of blocks ---------------------------------------------------------------


def flow(
    ax: Axes,
    steps: Sequence[str],
    notes: Sequence[str] = (),
    skip: tuple[int, int] | None = None,
    skip_label: str = "shortcut",
    lit: int | None = None,
) -> list[float]:
    """Boxes from left to right, joined by arrows; returns their centres on the x axis.

    A step "+" becomes a circle. `notes` stand under the boxes, say with shapes. `skip`
    = (start, end) draws a path above, out of box `start` and into box `end`. Box `lit`
    is filled. A unit of x holds about nine letters: give the figure an inch for it.
    """
    letters = [max(len(line) for line in step.split("\n")) for step in steps]
    widths = np.array([0.24 + 0.085 * count for count in letters])
    widths[[step == "+" for step in steps]] = 0.42
    centres = np.cumsum(widths) - widths / 2 + 0.3 * np.arange(len(steps))
    right = centres + widths / 2
    grey = {"arrowstyle": "-|>", "color": "0.35", "shrinkA": 0, "shrinkB": 0, "lw": 1.3}
    for i, (step, x, width) in enumerate(zip(steps, centres, widths, strict=True)):
        corner, height = (0.21, 0.42) if step == "+" else (0.08, 0.54)
        style = {
            "boxstyle": f"round,pad=0,rounding_size={corner}",
            "fc": RESIDUAL if i == lit else "white",
            "ec": RESIDUAL if step == "+" or i == lit else "0.35",
        }
        place = (x - width / 2, -height / 2)
        ax.add_patch(FancyBboxPatch(place, width, height, lw=1.6, **style))
        ink = {"color": "white" if i == lit else "black", "fontsize": 10.5}
        ax.text(x, -0.01, step, ha="center", va="center", **ink)
        if i:
            ax.annotate("", (x - width / 2, 0), (right[i - 1], 0), arrowprops=grey)
        if i < len(notes):
            ax.text(x, -0.38, notes[i], ha="center", va="top", color="0.3", fontsize=9)
    if skip is not None:
        start, end, top = right[skip[0]] + 0.12, centres[skip[1]], 0.7
        ax.plot([start, start, end], [0, top, top], color=RESIDUAL, lw=2)
        blue = grey | {"color": RESIDUAL, "lw": 2}
        ax.annotate("", (end, 0.24), (end, top), arrowprops=blue)
        label = {"ha": "center", "va": "bottom", "color": RESIDUAL, "fontsize": 10.5}
        ax.text((start + end) / 2, top + 0.05, skip_label, **label)
    low = -0.75 if len(notes) else -0.35
    ax.set(xlim=(-0.05, right[-1] + 0.05), ylim=(low, 1.0), aspect="equal")
    ax.axis("off")
    return list(centres)
