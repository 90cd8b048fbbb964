"""Train from the command line: python -m resnet_lib.train --help.

`torchrun --nproc-per-node=N -m resnet_lib.train …` trains data-parallel: N processes,
each on its own GPU or on the CPU, take equal shares of every batch. On several machines
each has the same command, with torchrun's --nnodes and --rdzv-endpoint, and its own
copy of the data; the run's folder is on the first.
"""

import argparse
import dataclasses
import math
import os
import sys
import time
from pathlib import Path

import torch

from resnet_lib.cifar10 import download_cifar10, find_cifar10
from resnet_lib.data import Dataset
from resnet_lib.datasets import load_cifar10, load_digits
from resnet_lib.distributed import process_group
from resnet_lib.fit import Fit, fit
from resnet_lib.recipe import PAPER, QUICK, SEQUENCES, SMOOTHED, Recipe
from resnet_lib.resnet import get_model

RECIPES = {"paper": PAPER, "quick": QUICK, "smoothed": SMOOTHED}
# Where in a run its weights are kept: the start, the climb, and each drop of the rate.
SNAPSHOTS = (0, 1 / 128, 1 / 16, 1 / 2, 3 / 4, 1)


def parser() -> argparse.ArgumentParser:
    """One option per hyper-parameter, read off `Recipe`."""
    options = argparse.ArgumentParser(
        prog="python -m resnet_lib.train",
        description="Train a network on CIFAR-10. Run the same command again to go on "
        "with a run that was cut short.",
        epilog="With N GPUs, or N processes on the CPU (--device cpu): torchrun "
        "--nproc-per-node=N -m resnet_lib.train … shares each batch between N "
        "processes. --batch-size stays the size of the whole batch. Go on with as many "
        "processes as you began with.",
    )
    add = options.add_argument
    add("--model", default="resnet18", help="resnet18, plain18, resnet20, plain56, …")
    add("--shortcut", choices=["A", "B", "C"], help="in place of the network's own")
    add("--recipe", choices=RECIPES, default="paper", help="what to start from")
    add("--data", choices=["cifar10", "digits"], default="cifar10")
    # torchrun would take --run for its own --run-path.
    add("--run", "--folder", type=Path, help="default: runs/MODEL-RECIPE-…-seedN")
    add("--device", help="cuda, mps or cpu; default: the best there is")
    add("--max-minutes", type=float, default=math.inf, help="stop then, go on later")
    add("--checkpoint-seconds", type=float, default=60, help="between checkpoints")
    add("--snapshots", action="store_true", help="keep weights along the way")
    add("--quiet", action="store_true", help="no progress bar")
    recipe = options.add_argument_group("recipe", "in place of the recipe's own value")
    for field in dataclasses.fields(Recipe):
        flag = "--" + field.name.replace("_", "-")
        if field.type is bool:
            recipe.add_argument(flag, action=argparse.BooleanOptionalAction)
        elif field.name in SEQUENCES:
            recipe.add_argument(flag, type=int, nargs="*")
        else:
            kind = field.type if isinstance(field.type, type) else float
            recipe.add_argument(flag, type=kind)
    recipe.set_defaults(**{field.name: None for field in dataclasses.fields(Recipe)})
    return options


def recipe_from(arguments: argparse.Namespace) -> Recipe:
    """The chosen recipe with the given values; --iterations moves the milestones
    along."""
    recipe = RECIPES[arguments.recipe]
    if arguments.iterations:
        recipe = recipe.scaled(arguments.iterations)
    names = [field.name for field in dataclasses.fields(Recipe)]
    given = {name: getattr(arguments, name) for name in names}
    return dataclasses.replace(
        recipe, **{k: v for k, v in given.items() if v is not None}
    )


def main(argv: list[str] | None = None) -> int:
    options = parser()
    arguments = options.parse_args(argv)
    try:
        recipe = recipe_from(arguments)
        torch.manual_seed(recipe.seed)
        model = get_model(arguments.model, arguments.shortcut)
        # Before the processes meet: a download takes longer than they wait.
        data = _cifar10() if arguments.data == "cifar10" else load_digits()
        name = f"{model.name}-{arguments.recipe}-{recipe.iterations}-seed{recipe.seed}"
        run = arguments.run or Path("runs") / name
        marks = [round(share * recipe.iterations) for share in SNAPSHOTS]
        with process_group(arguments.device) as ranks:
            if ranks.first:
                print(
                    f"{model.name} on {data.name}, {recipe.iterations:,} iterations, "
                    f"in {run}"
                )
            result = fit(
                model,
                data,
                recipe,
                run,
                device=arguments.device,
                max_minutes=arguments.max_minutes,
                checkpoint_seconds=arguments.checkpoint_seconds,
                snapshots=marks if arguments.snapshots else (),
                progress=not arguments.quiet,
            )
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"{options.prog}{_which()}: {error}", file=sys.stderr)
        return 1
    if ranks.first:
        _report(result, run)
    return 0


def _cifar10() -> Dataset:
    """From disk. One process of each machine downloads; torchrun ends all if it
    fails."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        download_cifar10()  # returns at once if it is on disk
    else:
        while find_cifar10() is None:
            time.sleep(1)
    return load_cifar10()


def _which() -> str:
    """Of several processes, the one that speaks."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return f" (rank {os.environ['RANK']})" if several else ""


def _report(result: Fit, run: Path) -> None:
    if result.finished:
        error = result.history[-1]["test_error"]
        print(
            f"Finished: {error:.2%} of the test images are misjudged. Weights in {run}."
        )
    else:
        print(f"Stopped ({result.status}) at iteration {result.iteration:,}.")
        print("The same command goes on from there.")


if __name__ == "__main__":
    sys.exit(main())
