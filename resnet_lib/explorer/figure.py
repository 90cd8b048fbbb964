"""The explorer's picture for paper, and for a page without a kernel."""

import io
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from resnet_lib import plots
from resnet_lib.basic_block import BasicBlock

if TYPE_CHECKING:
    from resnet_lib.explorer.widget import Explorer

__all__ = ["draw", "png", "steps_of"]


def steps_of(explorer: "Explorer") -> dict[str, Tensor]:
    """The maps of the chosen block, (C, H, W) by name, as the explorer shows them."""
    parts, name = explorer.look(explorer.net).parts, explorer.opened
    if name == "stem":
        f = parts["stem.f"][0]
        return {"F(x)": f, "after ReLU": F.relu(f)}
    x, f = parts[f"{name}.x"][0], parts[f"{name}.f"][0]
    scale = explorer.scales.get(name, 1)
    if isinstance(explorer.models[explorer.net].get_submodule(name), BasicBlock):
        total, times = scale * f + x, "" if scale == 1 else f"{scale:.2f}·"
        return {
            "x": x,
            "F(x)": f,
            f"{times}F(x) + x": total,
            "after ReLU": F.relu(total),
        }
    out = "after ReLU" if scale == 1 else "output"
    return {"x": x, "F(x)": f, out: scale * F.relu(f) + (1 - scale) * x}


def draw(explorer: "Explorer") -> Figure:
    """The picture, the answers, the chosen block and the paths that are left."""
    titles = list(explorer.models)
    steps = steps_of(explorer)
    channel = explorer.channel
    if not 0 <= channel < len(steps["F(x)"]):
        channel = int(steps["F(x)"].abs().mean((1, 2)).argmax())
    figure = Figure(figsize=(8.6, 4.7), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    axes = upper.subplots(1, 1 + len(titles), width_ratios=[1] + [1.25] * len(titles))
    axes = np.atleast_1d(axes)
    axes[0].imshow(explorer.image.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes[0].axis("off")
    axes[0].set_title(_caption(explorer), fontsize=10)
    for ax, title in zip(axes[1:], titles, strict=True):
        _answers(explorer, title, ax)
    maps = lower.subplots(1, len(steps), squeeze=False)[0]
    limit = max(float(step[channel].abs().max()) for step in steps.values()) or 1.0
    for ax, (name, step) in zip(maps, steps.items(), strict=True):
        look = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        drawn = ax.imshow(step[channel].numpy(), interpolation="nearest", **look)
        stem = explorer.opened == "stem" and name == "F(x)"  # it has no branch
        ax.set_title("BN" if stem else name, fontsize=10)
        ax.set_xticks([])
        ax.set_yticks([])
        if explorer.pixel:
            # Chosen on a larger map, maybe: the nearest of this one, as in the view.
            last = np.array(step.shape[1:]) - 1
            row, column = np.clip(explorer.pixel, 0, last)
            corner = (column - 0.5, row - 0.5)
            ax.add_patch(Rectangle(corner, 1, 1, fill=False, ec="#009E73", lw=2))
    bar = lower.colorbar(drawn, ax=maps, shrink=0.9, format="%.1f")
    bar.ax.tick_params(labelsize=8)
    words = f"{explorer.net}, {explorer.opened}, channel {channel}"
    lower.suptitle(words, fontsize=10, x=0.02, ha="left")
    return figure


def _caption(explorer: "Explorer") -> str:
    if explorer.label is None:
        return "your own picture"
    return f"test image {explorer.picture}: {explorer.data.classes[explorer.label]}"


def _answers(explorer: "Explorer", title: str, ax) -> None:
    """Probabilities of one network in percent, the whole network's as outlines."""
    residual = any(isinstance(m, BasicBlock) for m in explorer.models[title].modules())
    colour = plots.RESIDUAL if residual else plots.PLAIN
    places = range(len(explorer.data.classes))
    now = 100 * explorer.look(title).logits[0].softmax(0)
    ax.barh(places, now.numpy(), color=colour, alpha=0.8)
    if explorer.scales:
        whole = 100 * explorer.look(title, {}).logits[0].softmax(0)
        ax.barh(places, whole.numpy(), fill=False, ec="0.4", lw=1)
    names = explorer.data.classes
    names = [f"★ {c}" if i == explorer.label else c for i, c in enumerate(names)]
    ax.set_yticks(places, names, fontsize=9)
    ax.set(xlim=(0, 100), ylim=(len(places) - 0.5, -0.5), xticks=(0, 50, 100))
    ax.set_xlabel("probability (%)", fontsize=9)
    ax.tick_params(axis="x", labelsize=9)
    ax.grid(False, axis="y")
    off = ", ".join(f"{name} × {s:g}" for name, s in explorer.scales.items())
    ax.set_title(f"{title}{': ' + off if off else ''}", fontsize=10)


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file, quickly: size matters less than time."""
    buffer = io.BytesIO()
    options = {"pil_kwargs": {"compress_level": 1}}
    figure.savefig(buffer, format="png", dpi=80, **options)
    return buffer.getvalue()
