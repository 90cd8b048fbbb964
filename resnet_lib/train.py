"""Train from the command line: python -m resnet_lib.train --help.

`torchrun --nproc-per-node=N -m resnet_lib.train ...` trains data-parallel. On several
machines each has the same command, with torchrun's --nnodes and --rdzv-endpoint, and
its own copy of the data; the run's folder is on the first.
"""

import argparse
import dataclasses
import math
import os
import sys
import time
from pathlib import Path

import torch

from resnet_lib import datasets
from resnet_lib.cifar10 import SOURCES, find
from resnet_lib.data import Dataset
from resnet_lib.distributed import process_group
from resnet_lib.fit import fit
from resnet_lib.paths import expanded
from resnet_lib.recipe import PAPER, QUICK, SEQUENCES, SMOOTHED, Recipe
from resnet_lib.resnet import get_model

__all__ = [
    "DATASETS",
    "FIELDS",
    "INTERRUPTED",
    "RECIPES",
    "check_data",
    "check_fits",
    "escape_unprintable",
    "load",
    "run_name",
    "snapshot_marks",
]

INTERRUPTED = 130  # as a shell says after Ctrl-C; here after SIGTERM, too
RECIPES = {"paper": PAPER, "quick": QUICK, "smoothed": SMOOTHED}
# The sets that have a name, and how many images each has to train on.
DATASETS = {"cifar10": 50_000, "cifar100": 50_000, "digits": 1_437}
# Where in a run its weights are kept: the start, the climb, and each drop of the rate.
SNAPSHOTS = (0, 1 / 128, 1 / 16, 1 / 2, 3 / 4, 1)
FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}


def run_name(network: str, base: str, recipe: Recipe, data: str = "cifar10") -> str:
    """The name of a run, as in resnet18-paper-32k-seed1: network, recipe and length,
    and what else differs between recorded runs. `base` is a key of `RECIPES`."""
    iterations, standard = recipe.iterations, RECIPES[base]
    parts = [
        network,
        base,
        f"{iterations // 1000}k" if iterations % 1000 == 0 else str(iterations),
        expanded(data).resolve().name if data != "cifar10" else "",
        f"lr{recipe.lr:g}" if recipe.lr != standard.lr else "",
        "constant" if standard.milestones and not recipe.milestones else "",
        recipe.precision if recipe.precision != "auto" else "",
        "warmup" if recipe.warmup_lr else "",
        f"seed{recipe.seed}" if recipe.seed else "",
    ]
    return "-".join(filter(None, parts))


# --- options --------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """One option per hyper-parameter, read off `Recipe`."""
    options = argparse.ArgumentParser(
        prog="python -m resnet_lib.train",
        description="Train a network on CIFAR-10 or on pictures of your own. Run the "
        "same command again to go on with a run that was cut short.",
        epilog="With N GPUs, or N processes on the CPU (--device cpu): torchrun "
        "--nproc-per-node=N -m resnet_lib.train ... shares each batch between N "
        "processes. --batch-size stays the size of the whole batch. Go on with as many "
        "processes as you began with.",
    )
    add = options.add_argument
    add("--model", default="resnet18", help="resnet18, plain18, resnet20, plain56, ...")
    add("--shortcut", choices=["A", "B", "C"], help="in place of the network's own")
    add("--recipe", choices=RECIPES, default="paper", help="what to start from")
    data = ", ".join(DATASETS)
    add("--data", default="cifar10", help=f"{data}, or a folder of class folders")
    # torchrun would take --run for its own --run-path.
    add("--run", "--folder", help="default: runs/MODEL-RECIPE-LENGTH-...")
    add("--device", help="cuda, mps or cpu; default: the best there is")
    add("--max-minutes", type=float, default=math.inf, help="stop then, go on later")
    add("--checkpoint-seconds", type=float, default=60, help="between checkpoints")
    add("--snapshots", action="store_true", help="keep weights along the way")
    add("--quiet", action="store_true", help="no progress bar")
    recipe = options.add_argument_group("recipe", "in place of the recipe's own value")
    for name, field in FIELDS.items():
        flag = "--" + name.replace("_", "-")
        if field.type is bool:
            recipe.add_argument(flag, action=argparse.BooleanOptionalAction)
        elif name in SEQUENCES:
            recipe.add_argument(flag, type=int, nargs="*")
        else:
            kind = field.type if isinstance(field.type, type) else float
            recipe.add_argument(flag, type=kind)
    return options


def recipe_from(arguments: argparse.Namespace) -> Recipe:
    """The chosen recipe with the given values; --iterations moves milestones along."""
    recipe = RECIPES[arguments.recipe]
    if arguments.iterations is not None:
        recipe = recipe.scaled(arguments.iterations)
    given = vars(arguments).items()
    given = {k: v for k, v in given if k in FIELDS and v is not None}
    return dataclasses.replace(recipe, **given)


def snapshot_marks(recipe: Recipe) -> list[int]:
    """The iterations whose weights `--snapshots` keeps."""
    return [round(share * recipe.iterations) for share in SNAPSHOTS]


# --- data -----------------------------------------------------------------------------


def check_data(name: str) -> None:
    """Raise ValueError unless `name` is one of `DATASETS` or a folder."""
    if name not in DATASETS and not (name and expanded(name).is_dir()):
        raise ValueError(
            f"data {name!r} is neither a set with a name nor a folder. Choose from "
            f"{', '.join(DATASETS)}, or give a folder that holds a folder of pictures "
            "for each class."
        )


def check_fits(recipe: Recipe, data: str, count: float, remedy: str) -> None:
    """Raise ValueError unless the `count` training images of a set suit the recipe."""
    if recipe.validation >= count:
        raise ValueError(
            f"validation = {recipe.validation} leaves none of the {count:,} training "
            f"images of {data}. Give fewer, as in {remedy.format(count // 10)}."
        )
    if max(recipe.small_size, default=0) > 32:
        raise ValueError(
            f"small_size is {list(recipe.small_size)}, and the images of {data} have "
            "32 pixels a side. Give smaller sizes, such as 24."
        )


def load(name: str) -> Dataset:
    """One of `DATASETS`, downloaded if need be, or the pictures of a folder.

    Of several processes on a machine, the first downloads and the others wait for it;
    torchrun ends them all if it fails.
    """
    check_data(name)
    if name not in DATASETS:
        return datasets.load_folder(name)
    if name == "digits":
        return datasets.load_digits()
    while os.environ.get("LOCAL_RANK", "0") != "0" and find(SOURCES[name]) is None:
        time.sleep(1)
    # Quick where it is on disk.
    return getattr(datasets, f"load_{name}")(download=True)


# --- the command ----------------------------------------------------------------------


def escape_unprintable() -> None:
    """Let terminals and files of other encodings show escapes for what they lack."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def main(argv: list[str] | None = None) -> int:
    escape_unprintable()
    options = parser()
    arguments = options.parse_args(argv)
    try:
        recipe = recipe_from(arguments)
        network = (arguments.model, arguments.shortcut)
        get_model(*network)  # refused before a download
        # Before the processes meet: a download takes longer than they wait.
        data = load(arguments.data)
        check_fits(recipe, data.name, len(data.train), "--validation {}")
        torch.manual_seed(recipe.seed)
        model = get_model(*network, len(data.classes), data.train.images.shape[1])
        name = run_name(model.name, arguments.recipe, recipe, arguments.data)
        own = arguments.run
        run = expanded(Path("runs", name) if own is None else own)
        with process_group(arguments.device) as ranks:
            if ranks.first:
                length = f"{recipe.iterations:,} iterations"
                print(f"{model.name} on {data.name}, {length}, in {run}")
            result = fit(
                model,
                data,
                recipe,
                run,
                device=arguments.device,
                max_minutes=arguments.max_minutes,
                checkpoint_seconds=arguments.checkpoint_seconds,
                snapshots=snapshot_marks(recipe) if arguments.snapshots else (),
                progress=not arguments.quiet,
            )
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        several = int(os.environ.get("WORLD_SIZE", 1)) > 1
        rank = f" (rank {os.environ.get('RANK', '?')})" if several else ""
        print(f"{options.prog}{rank}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
    if ranks.first and result.finished:
        error = result.history[-1]["test_error"]
        print(f"Finished: test error {error:.2%}. Weights in {run}.")
    elif ranks.first:
        print(f"Stopped ({result.status}) at iteration {result.iteration:,}.")
        print("The same command goes on from there.")
    # Under torchrun it would count as a failure.
    alone = ranks.size == 1
    return INTERRUPTED if alone and result.status == "interrupted" else 0


if __name__ == "__main__":
    sys.exit(main())
