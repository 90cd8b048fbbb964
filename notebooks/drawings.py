"""Drawings of blocks and of whole networks, for the notebooks beside this file."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path
from torch import nn

from resnet_lib.basic_block import BasicBlock
from resnet_lib.plots import RESIDUAL
from resnet_lib.probes import activations
from resnet_lib.resnet import ResNet, evaluating

__all__ = ["flow", "network_map"]

# --- a network ------------------------------------------------------------------------

_INK = "0.15"


def network_map(model: ResNet, colour: str = RESIDUAL) -> Axes:
    """The network from left to right: stem, blocks, head, with the shape of each stage.

    Two bars are the two 3×3 convolutions of a block: as tall as their maps, as wide as
    their channels are many. A line over a residual block is its shortcut, dashed where
    the shape changes, and "+" the addition. Shapes are measured on one image of 32×32.
    Compare paper Fig. 3.
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
        start = _arrow(ax, x, 14)
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


# --- a block --------------------------------------------------------------------------


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
