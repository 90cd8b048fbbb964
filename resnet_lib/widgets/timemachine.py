"""Notebook 06: walk through a recorded run and look at the network on the way."""

from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from resnet_lib import plots
from resnet_lib.data import Dataset, Normalisation
from resnet_lib.resnet import ResNet
from resnet_lib.runs import Run
from resnet_lib.widgets.base import Explorer
from resnet_lib.widgets.images import ImagePicker
from resnet_lib.widgets.networks import colour_of, probabilities, verdict

__all__ = ["TimeMachine"]


class TimeMachine(Explorer):
    """A marker on a run's curves; first filters and predictions at kept iterations.

    `iteration` is where the marker stands: read it, set it, or move the slider; it
    snaps to the rows of the history. `kept` are the iterations with weights; the latest
    of them not after the marker, `shown`, gives filters and predictions. Used in
    notebook 06; paper §4.2 and Fig. 6.
    """

    def __init__(
        self,
        run: Run,
        data: Dataset,
        normalisation: Normalisation,
        mistakes: Sequence[int] = (),
        iteration: int | None = None,
    ) -> None:
        self.run = run
        self.kept = sorted({*run.snapshots, run.recipe["iterations"]})
        self.networks: dict[int, ResNet] = {}
        self.picker = ImagePicker(data, normalisation, mistakes)
        stops = sorted({0, *self.kept, *run.history["iteration"].tolist()})
        self.slider = widgets.SelectionSlider(
            options=stops,
            value=stops[-1],
            description="iteration",
            layout=widgets.Layout(width="560px"),
        )
        if iteration is not None:
            self.iteration = iteration
        super().__init__([self.picker, self.slider], [self.picker, self.slider])

    @property
    def iteration(self) -> int:
        return self.slider.value

    @iteration.setter
    def iteration(self, iteration: int) -> None:
        stops = self.slider.options
        if not 0 <= iteration <= stops[-1]:
            raise ValueError(
                f"{self.run.name} has the iterations 0 to {stops[-1]}, not {iteration}."
            )
        self.slider.value = min(stops, key=lambda stop: abs(stop - iteration))

    @property
    def shown(self) -> int | None:
        """The latest iteration with weights up to the marker; None before the first."""
        return max((k for k in self.kept if k <= self.iteration), default=None)

    @property
    def network(self) -> ResNet | None:
        """The network as it was at `shown`."""
        if self.shown is None:
            return None
        if self.shown not in self.networks:
            on_the_way = self.shown in self.run.snapshots
            model = self.run.model(self.shown if on_the_way else None)
            self.networks[self.shown] = model
        return self.networks[self.shown]

    @property
    def prediction(self) -> Tensor | None:
        """Probabilities (classes,) for the image at `shown`."""
        if self.network is None:
            return None
        return self.once(
            "prediction",
            (self.picker.value, self.shown),
            lambda: probabilities(self.network, self.picker.x),
        )

    def figure(self) -> Figure:
        """Above: loss, error and learning rate. Below: filters and predictions."""
        figure = Figure(figsize=(8.6, 4.6), layout="none")
        upper = figure.add_gridspec(
            1, 3, left=0.065, right=0.985, top=0.94, bottom=0.6, wspace=0.3
        )
        curves = [figure.add_subplot(upper[0, i]) for i in range(3)]
        plots.training_curves(self.run.history, curves[:2])
        curves[2].plot(self.run.history["iteration"], self.run.history["lr"], "k-")
        curves[2].set(yscale="log", ylabel="learning rate", xlabel="iteration")
        curves[2].yaxis.set_major_formatter("{x:g}")  # 10⁻² takes longer to set
        curves[2].yaxis.set_minor_formatter("")
        for ax in curves:
            ax.axvline(self.iteration, color="#009E73", lw=2)
            ax.xaxis.label.set_size(9)
            ax.yaxis.label.set_size(9)
            ax.tick_params(labelsize=8)
            ax.locator_params(axis="x", nbins=4)
        curves[1].get_legend().remove()
        lower = figure.add_gridspec(
            1,
            2,
            left=0.03,
            right=0.985,
            top=0.43,
            bottom=0.1,
            wspace=0.35,
            width_ratios=(1.35, 1),
        )
        if self.network is None:
            figure.text(0.5, 0.25, "No weights were kept so early.", ha="center")
            return figure
        tiles = figure.add_subplot(lower[0, 0])
        plots.filter_tiles(self.network.conv1.weight, tiles)
        tiles.set_title(f"first filters at {self.shown:,}", fontsize=11)
        bars = figure.add_subplot(lower[0, 1])
        colour = colour_of(self.run.name)
        found, label = self.prediction, self.picker.label
        plots.class_bars(found, self.picker.data.classes, label, colour=colour, ax=bars)
        bars.tick_params(axis="y", labelsize=8)
        bars.set_title(f"the image at {self.shown:,}", fontsize=11)
        return figure

    def measured(self) -> dict[str, float]:
        """The last value of each column of the history up to the marker."""
        rows = self.run.history
        rows = rows[rows["iteration"] <= self.iteration]
        values = {column: rows[column].dropna() for column in rows}
        return {column: v.iloc[-1] for column, v in values.items() if len(v)}

    def sentence(self) -> str:
        found = self.prediction
        answer = "no weights yet"
        if found is not None:
            answer = f"at {self.shown:,} {verdict(found, self.picker.data.classes)}"
        return f"{self.run.name}, iteration {self.iteration:,}; {answer}"

    def notes(self) -> str:
        """What was measured up to here, and the answer for the image."""
        total = self.run.recipe["iterations"]
        words = [f"{self.run.name}, iteration {self.iteration:,} of {total:,}"]
        now = self.measured()
        for column, name, unit in (
            ("train_loss", "training loss", ""),
            ("train_error", "training error", "%"),
            ("test_error", "last measured test error", "%"),
            ("lr", "learning rate", ""),
        ):
            if column in now and not np.isnan(now[column]):
                value = now[column] * (100 if unit else 1)
                words.append(f"{name} {value:.3g}{unit}")
        if self.prediction is not None:
            answer = verdict(self.prediction, self.picker.data.classes)
            words.append(f"with the weights of {self.shown:,} the image is: {answer}")
        return "; ".join(words) + "."
