"""What plain56's gap is made of: `python -m workshop.starts`, from other starts.

- `as is`: the paper's recipe in 8,000 iterations;
- `clipped`: the gradient of every weight tensor is cut to a length of 1;
- `gentle`: a hundredth of the rate for the first 100 updates;
- `built`: it begins as the trained plain20 and 36 layers that pass their input on;
- `built, clipped`: both;
- `plain20, again`: plain20 trains on from the same weights, which is what `built` can
  hope for;
- `plain20`: what plain56 is measured against;
- `plain20, clipped`: whether clipping helps a net that starts well, too.

Finished runs stand in data/starts.json; what is cut short goes on where it stopped. One
of plain56 takes three hours of a core.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from resnet_lib import PAPER, Recipe, fit, get_model
from resnet_lib.data import Dataset, Normalisation
from resnet_lib.datasets import load_data
from resnet_lib.paths import data_home, expanded
from resnet_lib.runs import Run, load_run, write_json

__all__ = ["STARTS", "built", "record"]

STARTS = ("as is", "clipped", "gentle", "built", "built, clipped")
STARTS += ("plain20", "plain20, clipped", "plain20, again")
RECORDS = data_home() / "starts.json"


@torch.no_grad()
def transparent(bn: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Make a BN return what comes in, while it has this mean and variance (C,)."""
    bn.running_mean.copy_(mean)
    bn.running_var.copy_(variance)
    bn.weight.copy_((variance + bn.eps).sqrt())
    bn.bias.copy_(mean)


@torch.no_grad()
def built(net: nn.Module, shallow: nn.Module, images: Tensor) -> nn.Module:
    """Turn a plain net into a shallower one and layers that pass their input on.

    They do so in training mode, too, nearly: each BN has the statistics that its
    channels have on `images` (N, 3, H, W). Returns the net. Paper §1.
    """
    shallow.eval()
    for part in ("conv1", "bn1", "fc"):
        getattr(net, part).load_state_dict(getattr(shallow, part).state_dict())
    x = shallow.relu(shallow.bn1(shallow.conv1(images)))
    for stage in net.stages:
        x = getattr(shallow, stage)(x)
        blocks = list(getattr(shallow, stage))
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        for i, block in enumerate(getattr(net, stage)):
            if i < len(blocks):
                block.load_state_dict(blocks[i].state_dict())
                continue
            for conv, bn in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
                nn.init.dirac_(conv.weight)
                transparent(bn, mean, variance)
    return net


def clip(net: nn.Module) -> nn.Module:
    """From now on no gradient of a weight tensor is longer than 1."""
    for weight in net.parameters():
        weight.register_hook(lambda gradient: gradient / gradient.norm().clamp(min=1))
    return net


def begin(start: str, recipe: Recipe, data: Dataset) -> tuple[nn.Module, Recipe]:
    """The network and the recipe of one start."""
    torch.manual_seed(recipe.seed)
    net = get_model("plain20" if "plain20" in start else "plain56")
    if "clipped" in start:
        clip(net)
    if start == "gentle":  # until the first window of 100 updates is below 100 %
        recipe = replace(recipe, warmup_lr=recipe.lr / 100, warmup_error=1.0)
    if "built" in start or "again" in start:
        shallow = load_run("plain20-paper-64k").model()
        train, _ = data.split(recipe.validation)
        images = Normalisation.of(train.images)(train.images[:1_000])
        built(net, shallow, images)
    return net, recipe


def record(start: str, recipe: Recipe, data: Dataset, work: Path) -> dict:
    """Train from one start, or go on; returns what is kept of it.

    SystemExit if it was stopped before its end: only whole runs are kept.
    """
    net, recipe = begin(start, recipe, data)
    folder = work / f"{start.replace(', ', '-').replace(' ', '-')}-{recipe.seed}"
    if not fit(net, data, recipe, run=folder).finished:
        raise SystemExit(f"{folder}: stopped. The same command goes on with it.")
    run = Run(folder)
    columns = ["iteration", "train_error", "test_error"]
    rows = run.history[columns].astype(object)
    rows = rows.where(rows.notna(), None)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    return {
        "environment": run.environment,
        "history": rows.to_dict("list"),
        "sizes": [conv.weight.norm().item() for conv in convolutions],  # at the end
    }


def recorded() -> dict:
    """The finished runs by name, as the file has them now."""
    return json.loads(RECORDS.read_text("utf-8")) if RECORDS.exists() else {}


def main() -> None:
    options = argparse.ArgumentParser(
        prog="python -m workshop.starts", description=__doc__.split("\n\n")[0]
    )
    add = options.add_argument
    add("--only", nargs="+", choices=STARTS, default=STARTS, help="these starts")
    add("--seeds", nargs="+", type=int, default=[0, 1])
    work = data_home().parent / "runs" / "starts"
    add(
        "--work", type=expanded, default=work, help=f"where runs go on; default: {work}"
    )
    given, data = options.parse_args(), load_data()
    for seed in given.seeds:
        for start in given.only:
            name = f"{start}, seed {seed}"
            if name not in recorded():
                recipe = replace(PAPER.scaled(8_000), seed=seed)
                run = record(start, recipe, data, given.work)
                # Read again: one beside it may have ended meanwhile.
                write_json(RECORDS, recorded() | {name: run})


if __name__ == "__main__":
    main()
