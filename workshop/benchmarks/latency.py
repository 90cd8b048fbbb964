"""How long a widget of notebook 06 takes to follow its controls. `make latency`.

Each interaction sets a control as the page would and waits for the new picture. Printed
are the median and the worst of a few moves, and the conditions. The goals: 200 ms for a
look, 1 s for a lesion with the accuracy of two networks on 1,000 images.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable

import torch

from resnet_lib import plots
from resnet_lib.data import Normalisation
from resnet_lib.datasets import load_data
from resnet_lib.probes import swappable
from resnet_lib.runs import load_run
from resnet_lib.widgets import ActivationInspector, BlockXray, LesionLab, TimeMachine


def measure(name: str, move: Callable[[object], None], values: Iterable) -> None:
    """Time `move(value)` for each value, and print the line of a table."""
    seconds = []
    for value in values:
        start = time.perf_counter()
        move(value)
        seconds.append(time.perf_counter() - start)
    median, worst = statistics.median(seconds), max(seconds)
    print(
        f"{name:44} {1000 * median:6.0f} ms  worst {1000 * worst:6.0f} ms", flush=True
    )


def main() -> None:
    plots.use_style()
    data = load_data()
    cifar = data.name == "cifar10"
    names = ("resnet20-paper-2k", "plain20-paper-2k")
    names = names if cifar else ("resnet18-digits", "plain18-digits")
    pair = dict(zip(("residual", "plain"), map(load_run, names), strict=True))
    norm = Normalisation.of(data.split(pair["residual"].recipe["validation"])[0].images)
    nets = {title: run.model() for title, run in pair.items()}
    print(
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load "
        f"{os.getloadavg()[0]:.1f}, {platform.machine()}, torch {torch.__version__}, "
        f"fp32; {names[0]} and {names[1]}"
    )
    inspector = ActivationInspector(nets, data, norm)
    options = inspector.slider.options
    measure("inspector, layer", lambda v: setattr(inspector, "layer", v), options[5:13])
    measure("inspector, channel", lambda v: setattr(inspector, "rank", v), range(1, 9))
    pick = inspector.picker
    measure("inspector, image", lambda v: setattr(pick, "position", v), range(1, 9))
    xray = BlockXray(nets["residual"], data, norm)
    measure(
        "X-ray, block", lambda v: setattr(xray, "block", v), xray.slider.options[1:]
    )
    machine = TimeMachine(pair["residual"], data, norm)
    stops = machine.slider.options[1:9]
    measure("time machine", lambda v: setattr(machine, "iteration", v), stops)
    lab = LesionLab(nets, data, norm)
    blocks = list(lab.boxes)
    measure("lesion, each block off alone", lambda v: _only(lab, v), blocks)
    lab.off = [blocks[0]]
    scales = (0.3, 0.7)
    measure(
        "lesion, scaling the first block", lambda v: setattr(lab, "scale", v), scales
    )
    lab.off = [blocks[-1]]
    scales = (0.2, 0.4, 0.6)
    measure(
        "lesion, scaling the last block", lambda v: setattr(lab, "scale", v), scales
    )
    lab.off = []
    pairs = swappable(nets["residual"])
    measure("lesion, two blocks exchanged", lambda v: setattr(lab, "swap", v), pairs)


def _only(lab: LesionLab, block: str) -> None:
    """As one tick of a box: the boxes ticked before are cleared without a redraw."""
    for name, box in lab.boxes.items():
        if name != block and box.value:
            box.unobserve(lab.request, names="value")
            box.value = False
            box.observe(lab.request, names="value")
    lab.boxes[block].value = True


if __name__ == "__main__":
    main()
