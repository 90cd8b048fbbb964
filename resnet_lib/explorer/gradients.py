"""Notebook 01: how large the gradient is in each layer, at random weights."""

from collections.abc import Callable, Sequence

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from resnet_lib.explorer.controls import Controls
from resnet_lib.plots import PLAIN, RESIDUAL

__all__ = ["GradientExplorer"]

COLOURS = {"plain": PLAIN, "residual": RESIDUAL}


class GradientExplorer(Controls):
    """The gradient's norm by layer: of any depth, plain or residual, with BN or not.

    `measure(depth, kind, bn)` returns the norms, the first layer first, for kind
    "plain" or "residual"; it is asked once for each setting. `depth`, `kind` and `bn`
    can be read and set. Used in notebook 01.

    Raises ValueError for a depth or a kind that is not on offer.
    """

    def __init__(
        self,
        measure: Callable[[int, str, bool], Sequence[float]],
        depths: Sequence[int],
        depth: int | None = None,
        kind: str = "plain",
        bn: bool = False,
    ) -> None:
        self.measure = measure
        self.measured: dict[tuple, np.ndarray] = {}
        self.slider = widgets.SelectionSlider(
            options=list(depths),
            value=list(depths)[-1],
            description="layers",
            layout=widgets.Layout(width="360px"),
        )
        self.kinds = widgets.ToggleButtons(
            options=list(COLOURS), style={"button_width": "90px"}
        )
        self.box = widgets.Checkbox(
            description="batch norm", indent=False, layout=widgets.Layout(width="120px")
        )
        if depth is not None:
            self.depth = depth
        self.kind, self.bn = kind, bn
        inputs = [self.slider, self.kinds, self.box]
        super().__init__([widgets.HBox(inputs)], inputs)

    @property
    def depth(self) -> int:
        return self.slider.value

    @depth.setter
    def depth(self, depth: int) -> None:
        if depth not in self.slider.options:
            offer = list(self.slider.options)
            raise ValueError(f"No net of {depth} layers here: choose from {offer}.")
        self.slider.value = depth

    @property
    def kind(self) -> str:
        return self.kinds.value

    @kind.setter
    def kind(self, kind: str) -> None:
        if kind not in COLOURS:
            raise ValueError(f"No kind {kind!r}: choose from {list(COLOURS)}.")
        self.kinds.value = kind

    @property
    def bn(self) -> bool:
        return self.box.value

    @bn.setter
    def bn(self, bn: bool) -> None:
        self.box.value = bn

    def norms_of(self, kind: str, bn: bool) -> np.ndarray:
        """The gradient's norms, (layers,), at the depth shown."""
        key = (self.depth, kind, bn)
        if key not in self.measured:
            self.measured[key] = np.asarray(self.measure(*key), dtype=float)
        return self.measured[key]

    @property
    def norms(self) -> np.ndarray:
        """The norms of the net that is chosen."""
        return self.norms_of(self.kind, self.bn)

    def figure(self) -> Figure:
        """The chosen net's norms, over those of the other three."""
        figure = Figure(figsize=(8.6, 3.3), layout="none")
        ax = figure.add_axes((0.09, 0.15, 0.62, 0.74))
        for kind, colour in COLOURS.items():
            for bn in (True, False):
                norms = self.norms_of(kind, bn)
                chosen = (kind, bn) == (self.kind, self.bn)
                ax.plot(
                    range(1, len(norms) + 1),
                    np.where(np.isfinite(norms) & (norms > 0), norms, np.nan),
                    "o-" if chosen else "-" if bn else ":",
                    color=colour,
                    alpha=1 if chosen else 0.35,
                    lw=2.2 if chosen else 1.5,
                    ms=4,
                    label=f"{kind}, {'with' if bn else 'no'} BN",
                )
        ax.set(yscale="log", xlabel="layer", ylabel="gradient norm")
        ax.set_title(f"{self.depth} layers", fontsize=12)
        figure.legend(loc="center left", bbox_to_anchor=(0.73, 0.5))
        return figure

    def sentence(self) -> str:
        first, last = self.norms[0], self.norms[-1]
        name = f"{self.depth} layers, {self.kind}, {'with' if self.bn else 'no'} BN"
        return f"{name}: gradient norm {first:.1e} in the first, {last:.1e} in the last"
