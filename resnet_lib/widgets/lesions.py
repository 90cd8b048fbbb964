"""Notebook 06: take blocks out of a residual and of a plain net."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence

import ipywidgets as widgets
from matplotlib.figure import Figure
from torch import Tensor, nn

from resnet_lib import plots
from resnet_lib.data import Dataset, Images, Normalisation
from resnet_lib.probes import (
    LesionedNet,
    block_names,
    lesion,
    path_lengths,
    swappable,
)
from resnet_lib.widgets.base import Explorer, table
from resnet_lib.widgets.images import ImagePicker
from resnet_lib.widgets.networks import as_pair, colour_of, probabilities, verdict

__all__ = ["LesionLab"]


class LesionLab(Explorer):
    """Switch branches off, weaken them, or exchange two blocks, in one or two networks.

    `off` are the names of the ticked blocks, `scale` the factor on their branches (0:
    off), `swap` two blocks of a stage that trade places, or None. All three can be read
    and set. `accuracies` judges `count` test images. A plain block that is off is
    skipped; see `probes.lesion`. Used in notebook 06; Veit et al. 2016, §4.

    Raises ValueError for a block that is not there, a scale outside 0 to 1, and blocks
    that cannot be exchanged.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        data: Dataset,
        normalisation: Normalisation,
        mistakes: Sequence[int] = (),
        count: int = 1_000,
        off: Iterable[str] = (),
    ) -> None:
        self.models = as_pair(models)
        self.judged: Images = data.test[:count]
        x = normalisation(self.judged.images)  # (N, 3, 32, 32)
        self.nets = {title: LesionedNet(net, x) for title, net in self.models.items()}
        self.judgements: dict[tuple, dict[str, float]] = {}
        self.picker = ImagePicker(data, normalisation, mistakes)
        first = next(iter(self.models.values()))
        self.boxes = {
            name: widgets.Checkbox(
                description=name,
                indent=False,
                layout=widgets.Layout(width="84px", margin="0 6px 0 0"),
            )
            for name in block_names(first)
        }
        self.slider = widgets.FloatSlider(
            value=0.0,
            max=1.0,
            step=0.05,
            description="F(x) ×",
            readout_format=".2f",
            layout=widgets.Layout(width="360px"),
        )
        pairs = {f"{one} ↔ {other}": (one, other) for one, other in swappable(first)}
        self.swaps = widgets.Dropdown(
            options={"nothing": "", **pairs},  # None would leave the field blank
            description="exchange",
            layout=widgets.Layout(width="300px"),
        )
        stages: dict[str, list[widgets.Widget]] = {}
        for name, box in self.boxes.items():
            stages.setdefault(name.rpartition(".")[0], []).append(box)
        rows = _rows(list(stages.values()), width=8)
        self.off = off
        super().__init__(
            [
                self.picker,
                widgets.HTML("Tick the blocks whose branch F(x) is weakened:"),
                *(widgets.HBox(row) for row in rows),
                widgets.HBox([self.slider, self.swaps]),
            ],
            [self.picker, *self.boxes.values(), self.slider, self.swaps],
        )

    @property
    def off(self) -> list[str]:
        return [name for name, box in self.boxes.items() if box.value]

    @off.setter
    def off(self, names: Iterable[str]) -> None:
        names = [names] if isinstance(names, str) else list(names)
        if unknown := [name for name in names if name not in self.boxes]:
            raise ValueError(f"No block {unknown[0]!r}: choose from {[*self.boxes]}.")
        for name, box in self.boxes.items():
            box.value = name in names

    @property
    def scale(self) -> float:
        return self.slider.value

    @scale.setter
    def scale(self, scale: float) -> None:
        if not 0 <= scale <= 1:
            raise ValueError(f"Scale {scale}: give a number from 0 to 1.")
        self.slider.value = scale

    @property
    def swap(self) -> tuple[str, str] | None:
        return self.swaps.value or None

    @swap.setter
    def swap(self, pair: tuple[str, str] | None) -> None:
        pairs = [value for _, value in _options(self.swaps) if value]
        if pair is not None and tuple(pair) not in pairs:
            raise ValueError(
                f"{pair} cannot be exchanged: choose from {pairs} or None."
            )
        self.swaps.value = "" if pair is None else tuple(pair)

    @property
    def scales(self) -> dict[str, float]:
        """The factor on each weakened branch, by block."""
        return dict.fromkeys(self.off, self.scale)

    @property
    def accuracies(self) -> dict[str, float]:
        """The share of right answers under this lesion, by network."""
        if self._lesion not in self.judgements:
            self.judgements[self._lesion] = {
                title: self._accuracy(net(self.scales, self.swap))
                for title, net in self.nets.items()
            }
        return self.judgements[self._lesion]

    @property
    def _lesion(self) -> tuple:
        return (*self.off, self.scale if self.off else None, self.swap)

    @property
    def intact_accuracies(self) -> dict[str, float]:
        return {title: self._accuracy(net.intact) for title, net in self.nets.items()}

    def _accuracy(self, logits: Tensor) -> float:
        return (logits.argmax(1) == self.judged.labels).double().mean().item()

    @property
    def predictions(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Probabilities (classes,) for the image, whole and under this lesion."""
        key = (self.picker.value, self._lesion)
        return self.once("predictions", key, self._predict)

    def _predict(self) -> dict[str, tuple[Tensor, Tensor]]:
        whole = self.once("whole", self.picker.value, self._probabilities)
        with contextlib.ExitStack() as lesions:
            for model in self.models.values():
                lesions.enter_context(lesion(model, self.scales, self.swap))
            hurt = self._probabilities()
        return {title: (whole[title], hurt[title]) for title in self.models}

    def _probabilities(self) -> dict[str, Tensor]:
        return {
            title: probabilities(model, self.picker.x)
            for title, model in self.models.items()
        }

    @property
    def paths(self) -> list[int]:
        """How many paths of 0, 1, 2, … branches the residual net has left."""
        removed = len(self.off) if self.scale == 0 else 0
        return path_lengths(len(self.boxes) - removed)

    def figure(self) -> Figure:
        """The answers for the image, the accuracies, and the lengths of the paths."""
        figure = Figure(figsize=(8.6, 3.3), layout="none")
        columns = len(self.models) + 1
        grid = figure.add_gridspec(
            2,
            columns,
            left=0.11,
            right=0.985,
            top=0.9,
            bottom=0.15,
            wspace=0.42,
            hspace=0.85,
            height_ratios=(1, 1.25),
        )
        for column, (title, (whole, hurt)) in enumerate(self.predictions.items()):
            ax = figure.add_subplot(grid[:, column])
            plots.class_bars(
                hurt,
                self.picker.data.classes,
                self.picker.label,
                whole,
                colour_of(title),
                ax,
            )
            ax.set_title(f"{title}: the image", fontsize=11)
        self._draw_accuracies(figure.add_subplot(grid[0, -1]))
        paths = figure.add_subplot(grid[1, -1])
        plots.path_length_bars(self.paths, path_lengths(len(self.boxes)), paths)
        paths.set_title(f"{sum(self.paths):,} paths (residual)", fontsize=11)
        return figure

    def _draw_accuracies(self, ax) -> None:
        titles = list(self.models)
        for place, title in enumerate(titles):
            ax.barh(
                place, 100 * self.accuracies[title], color=colour_of(title), alpha=0.8
            )
            whole = 100 * self.intact_accuracies[title]
            ax.barh(place, whole, fill=False, ec="0.4", lw=1)
        ax.set_yticks(range(len(titles)), titles, fontsize=9)
        ax.set(xlim=(0, 100), ylim=(len(titles) - 0.4, -0.6))
        ax.tick_params(axis="x", labelsize=9)
        ax.grid(False, axis="y")
        ax.set_title(f"right of {len(self.judged):,} (%)", fontsize=11)

    def what(self) -> str:
        """The lesion in words."""
        words = []
        if self.off:
            names = ", ".join(self.off)
            words.append(f"{names} {'off' if self.scale == 0 else f'× {self.scale:g}'}")
        if self.swap:
            words.append(f"{self.swap[0]} ↔ {self.swap[1]}")
        return "; ".join(words) or "no lesion"

    def sentence(self) -> str:
        found = (f"{title} {100 * a:.1f}%" for title, a in self.accuracies.items())
        return f"{self.what()}: {', '.join(found)} right"

    def notes(self) -> str:
        """A table: each network whole and under the lesion."""
        rows = [
            (
                self.what(),
                "the image, whole",
                "under the lesion",
                f"right of {len(self.judged):,}, whole",
                "under the lesion",
            )
        ]
        for title, (whole, hurt) in self.predictions.items():
            rows.append(
                (
                    title,
                    verdict(whole, self.picker.data.classes),
                    verdict(hurt, self.picker.data.classes),
                    f"{100 * self.intact_accuracies[title]:.1f}%",
                    f"{100 * self.accuracies[title]:.1f}%",
                )
            )
        return table(rows)


def _options(dropdown: widgets.Dropdown) -> list[tuple[str, object]]:
    """ipywidgets 7 gives a dict back as it came, ipywidgets 8 as pairs."""
    options = dropdown.options
    return list(options.items()) if isinstance(options, dict) else list(options)


def _rows(groups: list[list], width: int) -> list[list]:
    """Whole stages side by side, as many as fit a row; a longer stage is broken."""
    rows: list[list] = [[]]
    for group in groups:
        pieces = [group[i : i + width] for i in range(0, len(group), width)]
        for piece in pieces:
            if rows[-1] and len(rows[-1]) + len(piece) > width:
                rows.append([])
            rows[-1].extend(piece)
    return rows
