"""Notebook 06: the feature maps of a layer, in a residual and in a plain net."""

from collections.abc import Mapping, Sequence

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor, nn

from resnet_lib import plots
from resnet_lib.data import Dataset, Normalisation
from resnet_lib.probes import activations, block_names
from resnet_lib.widgets.base import Explorer, table
from resnet_lib.widgets.images import ImagePicker
from resnet_lib.widgets.networks import as_pair, colour_of

__all__ = ["ActivationInspector"]

SHOWN = 16  # channels in the grid


class ActivationInspector(Explorer):
    """Feature maps of one image in one layer, the strongest channels first.

    `models` are one or two networks by title; `data`, `mistakes` and `picker` as in
    `ImagePicker`. `layer` is a name of `model.named_modules()`, `rank` the channel
    enlarged over the image, 0 for the strongest of each network. Both can be read and
    set. Used in notebook 06.

    Raises ValueError for a layer that is not there, or a rank beyond the grid.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        data: Dataset,
        normalisation: Normalisation,
        mistakes: Sequence[int] = (),
        layer: str | None = None,
    ) -> None:
        self.models = as_pair(models)
        self.picker = ImagePicker(data, normalisation, mistakes)
        layers = _layers(next(iter(self.models.values())))
        self.slider = widgets.SelectionSlider(
            options=layers,
            value=layers[0],
            description="layer",
            layout=widgets.Layout(width="420px"),
        )
        self.channel = widgets.IntSlider(
            min=1,
            max=SHOWN,
            description="channel",
            layout=widgets.Layout(width="320px"),
        )
        if layer is not None:
            self.layer = layer
        super().__init__(
            [self.picker, widgets.HBox([self.slider, self.channel])],
            [self.picker, self.slider, self.channel],
        )

    @property
    def layer(self) -> str:
        return self.slider.value

    @layer.setter
    def layer(self, layer: str) -> None:
        if layer not in self.slider.options:
            raise ValueError(
                f"No layer {layer!r} with feature maps in every network: choose from "
                f"{list(self.slider.options)}."
            )
        self.slider.value = layer

    @property
    def rank(self) -> int:
        return self.channel.value - 1

    @rank.setter
    def rank(self, rank: int) -> None:
        if not 0 <= rank < SHOWN:
            raise ValueError(f"Rank {rank}: choose from 0 (strongest) to {SHOWN - 1}.")
        self.channel.value = rank + 1

    def maps(self) -> dict[str, tuple[Tensor, Tensor]]:
        """By network: the layer's maps (C, H, W), strongest first, and their numbers.

        Strength is the mean absolute activation of a channel.
        """
        return self.once("maps", (self.picker.value, self.layer), self._measure)

    def _measure(self) -> dict[str, tuple[Tensor, Tensor]]:
        found, x = {}, self.picker.x
        for title, model in self.models.items():
            maps = activations(model, x, self.layer)[self.layer][0]  # (C, H, W)
            order = maps.abs().mean((1, 2)).argsort(descending=True, stable=True)
            found[title] = (maps[order], order)
        return found

    def figure(self) -> Figure:
        """For each net: the strongest maps, one over the image, and all the means."""
        found = self.maps()
        columns = max(2, len(found))
        figure = Figure(figsize=(4.3 * columns, 3.9), layout="none")
        upper = figure.add_gridspec(
            1, 2 * columns, left=0.06, right=0.99, top=0.92, bottom=0.36, wspace=0.1
        )
        lower = figure.add_gridspec(
            1, columns, left=0.06, right=0.98, top=0.31, bottom=0.13, wspace=0.14
        )
        for column, (title, (maps, order)) in enumerate(found.items()):
            rank = min(self.rank, len(maps) - 1)
            tiles = figure.add_subplot(upper[0, 2 * column])
            plots.feature_maps(maps[:SHOWN], tiles, chosen=rank)
            tiles.set_title(
                f"{title}, {min(SHOWN, len(maps))} of {len(maps)}", fontsize=10
            )
            heat = figure.add_subplot(upper[0, 2 * column + 1])
            plots.heat_over_image(self.picker.image, maps[rank], heat)
            heat.set_title(f"no. {int(order[rank])}", fontsize=10)
            bars = figure.add_subplot(lower[0, column])
            means = maps.mean((1, 2)).tolist()
            colour = colour_of(title)
            edges = np.arange(len(means) + 1) + 0.5
            bars.stairs(means, edges, fill=True, color=colour, alpha=0.4)
            here = slice(rank, rank + 1)
            bars.stairs(means[here], edges[rank : rank + 2], fill=True, color=colour)
            bars.set_xlabel("channels, strongest first", fontsize=9)
            bars.set_xlim(0.4, len(means) + 0.6)
            bars.tick_params(labelsize=8)
            bars.locator_params(axis="y", nbins=4)
            if column == 0:
                bars.set_ylabel("mean", fontsize=9)
        return figure

    def sentence(self) -> str:
        size = " × ".join(map(str, self._shape()))
        return f"{self.layer} ({size}) for {self.picker.caption}"

    def _shape(self) -> tuple[int, ...]:
        return tuple(next(iter(self.maps().values()))[0].shape)

    def notes(self) -> str:
        """A table: the enlarged channel and the whole layer, in numbers."""
        rows = [
            ("", "channel", "mean", "std", "largest", "zeros", "zeros in the layer")
        ]
        found = self.maps()
        for title, (maps, order) in found.items():
            rank = min(self.rank, len(maps) - 1)
            one = maps[rank]
            rows.append(
                (
                    title,
                    int(order[rank]),
                    f"{one.mean():.2f}",
                    f"{one.std():.2f}",
                    f"{one.max():.2f}",
                    f"{100 * (one == 0).float().mean():.0f}%",
                    f"{100 * (maps == 0).float().mean():.0f}%",
                )
            )
        return table(rows)


def _layers(model: nn.Module) -> list[str]:
    """The layers with feature maps, in the order in which they are done."""
    parts = (".conv1", ".bn1", ".conv2", ".bn2", "")
    inside = [block + part for block in block_names(model) for part in parts]
    return ["conv1", "bn1", "relu", *inside]
