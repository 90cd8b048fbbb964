"""Images per second beside a textbook loop and the machine's limit. `make bench`.

Each network trains and is evaluated in three ways: by a textbook loop, by ours (`fit`
and `evaluate`), and by our computation alone, on one batch again and again. The
measurements take turns, so that a busy minute of the machine meets them all, and a
ratio compares neighbours of one round. They run in two processes: `fit` tells the C
library to keep freed memory, and the textbook loop must not profit from that.
"""

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import torchvision
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from resnet_lib import (
    PAPER,
    device_profile,
    evaluate,
    fit,
    get_model,
    plots,
    train_step,
)
from resnet_lib.cifar10 import CIFAR10, download
from resnet_lib.data import Batches, Normalisation
from resnet_lib.datasets import load_cifar10
from resnet_lib.device import keeping_freed_memory
from resnet_lib.explorer.inside import fold_batch_norm
from resnet_lib.paths import data_home, data_root
from resnet_lib.probes import layer_table
from resnet_lib.runs import describe_environment, write_json

BATCH = PAPER.batch_size
MATMUL, DATA = "matmul, GFLOP/s", "data alone"
Done = Callable[[float], None]  # to be told the work of a step


FOR_LIFE = ExitStack()  # what ends with the process


class Enough(Exception):
    """Ends a measurement from inside."""


def rate(seconds: float, job: Callable, *options) -> float:
    """Work per second of a job that calls `done(work)` after each step, without end.

    The first step and a quarter of the `seconds` go untimed: kernels are chosen and
    queues filled. A GPU is awaited, but only 20 times, since that slows it.
    """
    marks, total, look = [], 0.0, 0.0

    def done(work: float) -> None:
        nonlocal total, look
        total += work
        if time.perf_counter() < look:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        marks.append((time.perf_counter(), total))
        look = marks[-1][0] + seconds / (4 if len(marks) == 1 else 20)
        if len(marks) > 2 and marks[-1][0] - marks[1][0] >= seconds:
            raise Enough

    with suppress(Enough):
        job(done, *options)
    (start, before), (end, after) = marks[1], marks[-1]
    return (after - before) / (end - start)


cifar10 = cache(load_cifar10)


@cache
def normalisation() -> Normalisation:
    return Normalisation.of(cifar10().train.images.to(device_profile().device))


def build(name: str, **options) -> tuple[nn.Module, torch.optim.SGD]:
    """A fresh network where `fit` would train it, and the recipe's optimizer."""
    model = get_model(name).to(device_profile().device)
    settings = {"momentum": PAPER.momentum, "weight_decay": PAPER.weight_decay}
    return model, torch.optim.SGD(model.parameters(), PAPER.lr, **settings, **options)


# --- the textbook loop ----------------------------------------------------------------


@cache
def pictures(train: bool) -> torchvision.datasets.CIFAR10:
    norm = normalisation()
    mean, std = ((x.flatten() / 255).tolist() for x in (norm.mean, norm.std))
    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    tensors = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    steps = transforms.Compose([*augment, *tensors] if train else tensors)
    return torchvision.datasets.CIFAR10(data_root(), train, steps)


def textbook_training(done: Done, name: str) -> None:
    """The loop of most courses: fp32, default memory format, two workers."""
    device = device_profile().device
    model, optimizer = build(name)
    options = {"num_workers": 2, "persistent_workers": True}
    loader = DataLoader(pictures(True), BATCH, shuffle=True, drop_last=True, **options)
    model.train()
    running_loss = 0.0
    while True:
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            done(len(images))


@torch.no_grad()
def textbook_evaluation(done: Done, name: str) -> None:
    device = device_profile().device
    model, _ = build(name)
    loader = DataLoader(pictures(False), BATCH, num_workers=2, persistent_workers=True)
    model.eval()
    correct = 0
    while True:
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            correct += (model(images).argmax(1) == labels).sum().item()
            done(len(images))


# --- ours -----------------------------------------------------------------------------


def our_training(done: Done, name: str) -> None:
    """`fit` as the notebooks call it."""
    # A row of history makes a GPU wait; `fit` itself reads the loss every 20 updates.
    every = 1 if device_profile().device.type == "cpu" else 20
    recipe = replace(PAPER, validation=0, log_every=every, eval_every=PAPER.iterations)
    model, _ = build(name)
    fit(model, cifar10(), recipe, on_row=lambda _: done(every * BATCH), progress=False)


def our_data(done: Done) -> None:
    """Batches cut and augmented, that nobody trains on."""
    where = device_profile()
    for images, _ in Batches(cifar10().train.to(where.device), BATCH, normalisation()):
        done(len(images.contiguous(memory_format=where.memory_format)))


def update(done: Done, name: str, change: str = "") -> None:
    """`fit` if pictures cost nothing: its update on one batch again and again."""
    where = device_profile("fp32" if change == "fp32" else "auto")
    if change == "contiguous":
        where = replace(where, memory_format=torch.contiguous_format)
    options = {change: True} if change in ("foreach", "fused") else {}
    model, optimizer = build(name, **options)
    model.to(memory_format=where.memory_format).train()
    batch = cifar10().train[:BATCH].to(where.device)
    images, labels = next(Batches(batch, BATCH, normalisation()))
    images = images.contiguous(memory_format=where.memory_format)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if change == "one thread" else threads)
    try:
        while True:
            train_step(model, optimizer, images, labels, autocast=where.autocast())
            done(BATCH)
    finally:
        torch.set_num_threads(threads)


def our_evaluation(done: Done, name: str, size: int = 1_000, folds=False) -> None:
    """`evaluate` on 1,000 images."""
    where, (model, _) = device_profile(), build(name)
    model = fold_batch_norm(model) if folds else model
    model.to(memory_format=where.memory_format)
    images = cifar10().test[:1_000].to(where.device)
    while True:
        evaluate(model, images, normalisation(), where, size)
        done(len(images))


@torch.no_grad()
def forward(done: Done, name: str) -> None:
    """`evaluate` if pictures cost nothing: one batch again and again."""
    where, (model, _) = device_profile(), build(name)
    model.to(memory_format=where.memory_format).eval()
    x = normalisation()(cifar10().test.images[:1_000].to(where.device))
    x = x.contiguous(memory_format=where.memory_format)
    while True:
        with where.autocast():
            model(x)
        done(len(x))


# --- the machine ----------------------------------------------------------------------


def matmul(done: Done) -> None:
    """GFLOP of a large product in the precision of `fit`: what arithmetic can give."""
    where = device_profile()
    size = 2048 if where.device.type == "cpu" else 8192
    kind = torch.bfloat16 if where.precision == "bf16" else torch.float32
    a, b, out = torch.randn(3, size, size, device=where.device, dtype=kind)
    while True:
        torch.mm(a, b, out=out)
        done(2e-9 * size**3)


def copying(done: Done) -> None:
    """GB read and written by a copy too large for any cache."""
    source = torch.ones(1 << 26, device=device_profile().device)  # 256 MiB
    target = torch.ones_like(source)
    while True:
        target.copy_(source)
        done(2e-9 * source.nbytes)


def flop(name: str, what: str) -> int:
    """FLOP for one image: two per multiply-add of a convolution or linear layer.

    Training does each three times: forward, for the gradient of the weights, and for
    that of the inputs, which the first layer has no need of.
    """
    adds = layer_table(get_model(name))["multiply-adds"]
    return 2 * int(adds.sum() if what == "evaluation" else 3 * adds.sum() - adds[0])


# --- taking turns ---------------------------------------------------------------------


def throughput(names: list[str], plain, ours) -> dict[str, dict]:
    """What is measured: {row: {column: (process, job, *options)}}."""
    plan = {}
    for name in names:
        loops = {"training": (textbook_training, our_training, update)}
        loops["evaluation"] = (textbook_evaluation, our_evaluation, forward)
        for what, (textbook, our, alone) in loops.items():
            row = {"textbook": (plain, textbook, name), "ours": (ours, our, name)}
            row |= {"compute alone": (ours, alone, name), MATMUL: (ours, matmul)}
            plan[f"{name}, {what}"] = row
        plan[f"{name}, training"][DATA] = (ours, our_data)
    return plan | {"machine": {"copy, GB/s": (ours, copying)}}


def changes(names: list[str], plain, ours) -> dict[str, dict]:
    """Single changes to an update and to `evaluate`, each beside what it changes."""
    updates = ["contiguous", "foreach", "fused", "one thread"]
    if device_profile().precision == "bf16":  # else bf16 would only be emulated
        updates.append("fp32")
    plan = {}
    for name in names:
        for change in updates:
            plan[f"{name}, update, {change}"] = (ours, update, name, change)
        plan[f"{name}, update, freed memory returned"] = (plain, update, name)
        for size in (64, 128, 256, 512):
            row = f"{name}, evaluation, batches of {size}"
            plan[row] = (ours, our_evaluation, name, size)
        plan[f"{name}, evaluation, BN folded"] = (ours, our_evaluation, name, 1_000, 1)
    return {
        row: {"as is": (ours, *job[1:3]), "changed": job} for row, job in plan.items()
    }


def set_up(keep_memory: bool) -> None:
    """Prepare a process, which does or does not keep freed memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    multiprocessing.set_start_method(None, force=True)  # workers as in any script
    if keep_memory:  # for as long as the process lives, as within `fit`
        FOR_LIFE.enter_context(keeping_freed_memory())


def take_turns(plan: dict[str, dict], rounds: int, seconds: float) -> list[dict]:
    """Every measurement once per round, one at a time: [{row: {column: value}}].

    Each value is printed as soon as it is there. Every other round goes backwards in a
    row, so that no column is always the first. Ctrl-C drops the round it falls into.
    """
    whole = []
    with suppress(KeyboardInterrupt):
        for number in range(1, rounds + 1):
            this = {row: {} for row in plan}
            for row, jobs in plan.items():
                print(f"round {number} of {rounds} · {row}:", end="", flush=True)
                order = list(jobs.items())[:: 1 if number % 2 else -1]
                for column, (process, *job) in order:
                    this[row][column] = process.submit(rate, seconds, *job).result()
                    print(f" {column} {text(this[row][column])};", end="", flush=True)
                print()
            whole.append(this)
    return whole


# --- showing --------------------------------------------------------------------------


def with_ratios(row: str, cells: dict[str, float]) -> dict[str, float]:
    """A row of one round, and how its neighbours compare."""
    cells = dict(cells)
    if "as is" in cells:
        cells["changed / as is"] = cells["changed"] / cells["as is"]
    if ours := cells.get("ours"):
        cells["ours / textbook"] = ours / cells["textbook"]
        cells["ours / compute"] = ours / cells["compute alone"]
        cells["of matmul"] = ours * flop(*row.split(", ")) / (1e9 * cells[MATMUL])
    if DATA in cells:  # time per image of the data, over that of a step
        cells["data's share"] = cells["ours"] / cells[DATA]
    return cells


def summary(rounds: list[dict]) -> dict[str, dict]:
    """{row: {column: (lowest, median, highest)}} over the rounds, with ratios."""
    result = {}
    for row in rounds[0]:
        table = [with_ratios(row, this[row]) for this in rounds]
        columns = {column: [cells[column] for cells in table] for column in table[0]}
        result[row] = {
            column: (min(values), statistics.median(values), max(values))
            for column, values in columns.items()
        }
    return result


def text(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def markdown(results: dict[str, dict]) -> str:
    """A table of `summary`, each cell as: median (lowest–highest)."""
    columns = list(dict.fromkeys(column for row in results.values() for column in row))
    lines = [["", *columns], ["---", *["---:"] * len(columns)]]
    for row, cells in results.items():
        values = [[text(value) for value in cells.get(c, ())] for c in columns]
        lines.append([row, *("{1} ({0}–{2})".format(*v) if v else "–" for v in values)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [map(str.ljust, line, widths) for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def throughput_bars(results: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Images per second: a column for each network, training above evaluation.

    `results` is what `make bench` writes: {"resnet18, training": {"ours": (lowest,
    median, highest), …}, …}. Bars are medians, dark lines the spread.
    """
    rows = {row: cells for row, cells in results.items() if "ours" in cells}
    colours = {"textbook": "0.75", "ours": plots.RESIDUAL, "compute alone": "#56B4E9"}
    figure, axes = plt.subplots(2, len(rows) // 2, figsize=(10, 3.8), squeeze=False)
    for ax, (row, cells) in zip(axes.T.flat, rows.items(), strict=True):
        low, middle, high = zip(*(cells[bar] for bar in colours), strict=True)
        ax.barh(list(colours), middle, color=list(colours.values()))
        ax.hlines(list(colours), low, high, color="0.2")
        for y, (end, value) in enumerate(zip(high, middle, strict=True)):
            ax.text(end + 0.03 * max(high), y, f"{value:,.0f}", va="center", size=10)
        ax.set_title(f"{row}: {cells['of matmul'][1]:.0%} of peak", fontsize=11)
        ax.set(xlim=(0, 1.3 * max(high)), xticks=[])
        ax.invert_yaxis()
        ax.grid(False)
        ax.label_outer()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--models", nargs="+", metavar="NAME", help="(changes: resnet20)")
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=2.5, help="per measurement")
    add("--changes", action="store_true", help="measure single changes instead")
    home = data_home()
    add("--write", nargs="?", const=home, type=Path, help="and draw, to this folder")
    args = parser.parse_args()
    download(CIFAR10)
    measured = changes if args.changes else throughput
    models = ["resnet20"] if args.changes else ["resnet18", "resnet20", "resnet56"]
    where = device_profile()
    conditions = describe_environment(str(where.device), str(where)) | {
        "torchvision": torchvision.__version__,
        "batch size": BATCH,
        "seconds per measurement": args.seconds,
        "load before": round(os.getloadavg()[0], 2),
    }
    print(", ".join(f"{key}: {value}" for key, value in conditions.items()))
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawn, set_up, [False]) as plain,
        ProcessPoolExecutor(1, spawn, set_up, [True]) as ours,
    ):
        plan = measured(args.models or models, plain, ours)
        rounds = take_turns(plan, args.rounds, args.seconds)
    if not rounds:
        return print("\nStopped before a round was whole.")
    results = summary(rounds)
    print(f"\nimages/s, median (lowest–highest) over rounds: {len(rounds)}\n")
    print(markdown(results))
    if args.write:
        path = args.write / "bench.json"
        report = json.loads(path.read_text()) if path.exists() else {}
        part = {"conditions": conditions, "results": results, "rounds": rounds}
        write_json(path, report | {measured.__name__: part})
        if measured is throughput:
            plots.use_style()
            figure = throughput_bars(results)
            about = "{device}, {threads} threads; ours: {computation}"
            figure.suptitle("images/s on " + about.format(**conditions), fontsize=11)
            figure.savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
