"""Notebook 01: what depth does to a plain and to a residual stack."""

from collections.abc import Mapping, Sequence

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from resnet_lib.explorer.controls import Controls
from resnet_lib.plots import PLAIN, RESIDUAL

__all__ = ["DepthExplorer"]


class DepthExplorer(Controls):
    """Loss curves of a plain and a residual stack, at a depth that the reader moves.

    `curves` maps a number of layers to a pair of loss curves, (plain, residual), one
    loss per step; they need not be equally long. `depth` is the number of layers shown:
    read it, set it, or move the slider. `figure()` draws the same picture for a page
    without a kernel. Used in notebook 01.

    Raises ValueError for no curves at all, for an empty curve, and for a depth that was
    not measured.
    """

    def __init__(
        self,
        curves: Mapping[int, tuple[Sequence[float], Sequence[float]]],
        depth: int | None = None,
    ) -> None:
        pairs = {
            layers: tuple(np.asarray(curve, dtype=float) for curve in curves[layers])
            for layers in sorted(curves)
        }
        if not pairs or any(
            not len(curve) for pair in pairs.values() for curve in pair
        ):
            raise ValueError(
                "Give at least one depth, and for each a plain and a residual curve: "
                "{8: (plain, residual)}."
            )
        self.curves = pairs
        depths = list(pairs)
        self.slider = widgets.SelectionSlider(
            options=depths,
            value=self._checked(depths[-1] if depth is None else depth),
            description="layers",
            layout=widgets.Layout(width="360px"),
        )
        super().__init__([self.slider], [self.slider])

    @property
    def depth(self) -> int:
        return self.slider.value

    @depth.setter
    def depth(self, depth: int) -> None:
        self.slider.value = self._checked(depth)

    def _checked(self, depth: int) -> int:
        if depth not in self.curves:
            raise ValueError(
                f"No curves for {depth} layers: choose from {list(self.curves)}."
            )
        return depth

    @property
    def final_losses(self) -> tuple[float, float]:
        """The last loss of each net at the depth shown: (plain, residual)."""
        plain, residual = self.curves[self.depth]
        return float(plain[-1]), float(residual[-1])

    def figure(self) -> Figure:
        """Left: the curves at this depth, over all others. Right: every last loss."""
        figure = Figure(figsize=(8.6, 3.3), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for column, (colour, name) in enumerate(
            ((PLAIN, "plain"), (RESIDUAL, "residual"))
        ):
            for pair in self.curves.values():
                left.plot(_above_zero(pair[column]), color=colour, alpha=0.15, lw=1)
            shown = _above_zero(self.curves[self.depth][column])
            left.plot(shown, color=colour, lw=2.2, label=name)
            last = [_above_zero(pair[column])[-1] for pair in self.curves.values()]
            right.plot(list(self.curves), last, "o-", color=colour, label=name, ms=5)
            right.plot(
                self.depth, shown[-1], "o", color=colour, ms=11, mfc="none", mew=2
            )
        left.set(xlabel="step", ylabel="loss", yscale="log", title=self._layers())
        right.set(xlabel="layers", yscale="log", title="last loss")
        right.set_xscale("log", base=2)
        right.set_xticks(list(self.curves), list(self.curves))
        right.minorticks_off()
        left.legend()
        return figure

    def _layers(self) -> str:
        return f"{self.depth} layer{'s' if self.depth != 1 else ''}"

    def sentence(self) -> str:
        plain, residual = self.final_losses
        return f"{self._layers()}: last loss {plain:.2g} plain, {residual:.2g} residual"


def _above_zero(losses: np.ndarray) -> np.ndarray:
    """For a logarithmic axis: zero is drawn at 1e-12, a diverged loss not at all."""
    return np.where(np.isfinite(losses), np.maximum(losses, 1e-12), np.nan)
