"""Notebook 06: what one residual block does to one image, step by step."""

from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from torch import nn

from resnet_lib import plots
from resnet_lib.data import Dataset, Normalisation
from resnet_lib.probes import BlockParts, block_names, block_parts
from resnet_lib.widgets.base import Explorer, table
from resnet_lib.widgets.images import ImagePicker

__all__ = ["BlockXray"]

SHOWN = 9  # channels


class BlockXray(Explorer):
    """x, F(x), F(x) + x and its ReLU for one block, as maps and as histograms.

    `block` is the name of a residual block of `model`, such as "layer2.1": read it, set
    it, or move the slider. `parts` holds the tensors, `ratios` ‖F(x)‖ / ‖x‖ of every
    block. Where the shape changes, x is what the shortcut makes of the input. Used in
    notebook 06; paper §3.1.

    Raises ValueError for a network without residual blocks, and for an unknown block.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        normalisation: Normalisation,
        mistakes: Sequence[int] = (),
        block: str | None = None,
    ) -> None:
        self.model = model.eval()
        self.picker = ImagePicker(data, normalisation, mistakes)
        names = [*block_parts(model, self.picker.x)]
        if not names:
            raise ValueError(
                f"This network's blocks {block_names(model)} have no F(x): give a "
                "residual one."
            )
        self.slider = widgets.SelectionSlider(
            options=names,
            value=names[0],
            description="block",
            layout=widgets.Layout(width="360px"),
        )
        if block is not None:
            self.block = block
        super().__init__([self.picker, self.slider], [self.picker, self.slider])

    @property
    def block(self) -> str:
        return self.slider.value

    @block.setter
    def block(self, block: str) -> None:
        if block not in self.slider.options:
            raise ValueError(
                f"No residual block {block!r}: choose from {list(self.slider.options)}."
            )
        self.slider.value = block

    @property
    def all_parts(self) -> dict[str, BlockParts]:
        """x and F(x) of every block for the image, each (1, C, H, W)."""
        return self.once(
            "parts",
            self.picker.value,
            lambda: block_parts(self.model, self.picker.x),
        )

    @property
    def parts(self) -> BlockParts:
        return self.all_parts[self.block]

    @property
    def ratios(self) -> dict[str, float]:
        return {name: parts.ratio for name, parts in self.all_parts.items()}

    def figure(self) -> Figure:
        """Above: the maps of the channels with the largest F(x). Below: histograms."""
        everything = self.all_parts
        parts = everything[self.block]
        steps = {
            "x": parts.x[0],
            "F(x)": parts.f[0],
            "F(x) + x": parts.sum[0],
            "relu(F(x) + x)": parts.out[0],
        }
        figure = Figure(figsize=(8.6, 3.9), layout="none")
        grid = figure.add_gridspec(
            2,
            5,
            height_ratios=(1.45, 1),
            width_ratios=(1, 1, 1, 1, 1.15),
            left=0.05,
            right=0.98,
            top=0.91,
            bottom=0.13,
            hspace=0.16,
            wspace=0.12,
        )
        order = parts.f[0].norm(dim=(1, 2)).argsort(descending=True)[:SHOWN]
        limit = max(float(step.abs().max()) for step in steps.values()) or 1.0
        bins = np.linspace(-limit, limit, 41)
        colours = ("0.35", plots.RESIDUAL, "#009E73", "#CC79A7")
        for column, (title, step) in enumerate(steps.items()):
            maps = figure.add_subplot(grid[0, column])
            plots.feature_maps(
                step[order], maps, columns=3, limit=0.7 * limit, signed=True
            )
            maps.set_title(title, fontsize=11, loc="center")
            counts = figure.add_subplot(grid[1, column])
            values = step.flatten().cpu().numpy()
            heights = np.log1p(np.histogram(values, bins)[0] / len(values) * 100)
            counts.stairs(heights, bins, fill=True, color=colours[column])
            counts.set(ylim=(0, np.log1p(105)), yticks=[])
            if column == 0:
                counts.set_yticks(np.log1p([1, 10, 100]), ["1%", "10%", "100%"])
            counts.tick_params(labelsize=8)
            counts.locator_params(axis="x", nbins=3)
        figure.text(0.4, 0.02, "activation", ha="center", fontsize=9)
        ratios = figure.add_subplot(grid[:, 4])
        places = np.arange(len(everything))
        heights = [p.ratio for p in everything.values()]
        here = list(everything).index(self.block)
        ratios.barh(places, heights, color=plots.RESIDUAL, alpha=0.4)
        ratios.barh(here, heights[here], fill=False, ec="black", lw=1.5)
        for place, name in enumerate(everything):
            if len(places) < 12 or place == here:
                ratios.text(0.02 * max(heights), place, name, va="center", fontsize=9)
        ratios.set(yticks=[], ylim=(len(places) - 0.5, -0.5))
        ratios.tick_params(labelsize=8)
        ratios.set_title("‖F(x)‖ / ‖x‖", fontsize=11, loc="center")
        return figure

    def sentence(self) -> str:
        ratio = self.parts.ratio
        return f"{self.block}: ‖F(x)‖ / ‖x‖ = {ratio:.2f}, {self.picker.caption}"

    def notes(self) -> str:
        """A table: the four steps in numbers."""
        parts = self.parts
        rows = [("", "x", "F(x)", "F(x) + x", "relu(F(x) + x)")]
        steps = (parts.x, parts.f, parts.sum, parts.out)
        rows.append(("norm", *(f"{step.norm():.1f}" for step in steps)))
        rows.append(("mean", *(f"{step.mean():.2f}" for step in steps)))
        negative = (100 * (step < 0).float().mean() for step in steps)
        rows.append(("below zero", *(f"{share:.0f}%" for share in negative)))
        return f"{self.block}: ‖F(x)‖ / ‖x‖ = {parts.ratio:.2f}{table(rows)}"
