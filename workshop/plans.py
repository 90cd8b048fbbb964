"""Plans of runs: what a TOML file asks for, checked wholly before any work begins."""

import contextlib
import dataclasses
import difflib
import json
import math
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch

from resnet_lib.inputs import one_of
from resnet_lib.paths import expanded
from resnet_lib.recipe import SEQUENCES, Recipe
from resnet_lib.resnet import get_model
from resnet_lib.runs import Run
from resnet_lib.train import (
    DATASETS,
    FIELDS,
    RECIPES,
    check_data,
    check_fits,
    run_name,
)

__all__ = ["Planned", "read_plan"]

# What a run may say beside the fields of its recipe, with examples.
KEYS = {
    "model": "resnet20",
    "recipe": "paper",
    "shortcut": "B",
    "data": "cifar10",
    "snapshots": True,
    "weights": True,
}


@dataclass(frozen=True)
class Planned:
    """One run of a plan: a network, its data, a recipe, and what to record of it."""

    model: str
    base: str
    recipe: Recipe
    shortcut: str | None = None
    data: str = "cifar10"
    snapshots: bool = False
    weights: bool = False

    @property
    def network(self) -> str:
        """The network's full name, which tells another shortcut."""
        return _full_name(self.model, self.shortcut)

    @cached_property
    def name(self) -> str:
        return run_name(self.network, self.base, self.recipe, self.data)

    def command(self, folder: Path) -> list[str]:
        """The call of `resnet_lib.train` that carries out this run in `folder`."""
        words = [sys.executable, "-m", "resnet_lib.train", "--quiet"]
        words += ["--run", str(folder), "--model", self.model]
        words += ["--recipe", self.base, "--data", self.data]
        words += ["--shortcut", self.shortcut] if self.shortcut else []
        words += ["--snapshots"] if self.snapshots else []
        return words + _recipe_options(self.recipe, self.base)

    def is_same_run(self, run: Run) -> bool:
        """Whether `run` is a record of this very network, data and recipe."""
        recipe = json.loads(json.dumps(dataclasses.asdict(self.recipe)))
        folder = f"folder {expanded(self.data).resolve().name}"  # as `load_folder` says
        data = self.data if self.data in DATASETS else folder
        theirs = (run.about["model"], run.about["data"], run.recipe)
        return theirs == (self.network, data, recipe)


def _recipe_options(recipe: Recipe, base: str) -> list[str]:
    """The options from which `train` makes this recipe out of `RECIPES[base]`."""
    words = ["--iterations", str(recipe.iterations)]
    scaled = RECIPES[base].scaled(recipe.iterations)  # where `train` begins, too
    for name in FIELDS:
        value, flag = getattr(recipe, name), name.replace("_", "-")
        if value == getattr(scaled, name):
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if name in SEQUENCES else [value])]
    return words


@cache
def _full_name(model: str, shortcut: str | None) -> str:
    with torch.device("meta"):  # no weights are drawn
        return get_model(model, shortcut).name


def read_plan(path: Path | str) -> list[Planned]:
    """The runs of a TOML plan, in its order.

    Each of `runs` names a `model` and may give `recipe` ("paper", "quick", …),
    `shortcut`, `data`, `snapshots` and `weights` (what to record beside the history),
    and any field of `Recipe`; `iterations` moves the milestones along. `defaults` holds
    what most of them share. Raises ValueError, naming the file, the run and the remedy,
    for a plan of which any part cannot be carried out.
    """
    runs: dict[str, Planned] = {}
    with _named(path):
        defaults, entries = _tables(_parsed(Path(path)))
        with _named("defaults"):
            _check_known(defaults, [*KEYS, *FIELDS])
        for number, entry in enumerate(entries, 1):
            with _named(f"run {number}, {_toml(entry)}"):
                run = _planned(defaults, entry)
                if run.name in runs:
                    raise ValueError(
                        f"another run has its name, {run.name}; only network, recipe, "
                        "length, data, rate, precision, warm-up and seed show in it. "
                        "Leave this one out, or put it into a plan with --work and "
                        "--records of its own."
                    )
                runs[run.name] = run
    return list(runs.values())


@contextlib.contextmanager
def _named(place: object) -> Iterator[None]:
    """Say where the error lies."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _parsed(path: Path) -> dict:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"the plan cannot be read ({error.strerror}). Give another path, or none "
            "for data/plans/cpu.toml."
        ) from error
    try:
        if b"\0" in content:
            raise ValueError("UTF-16")
        return tomllib.loads(content.decode("utf-8-sig"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(
            f"this is not TOML: {error}. Text stands in quotes; numbers, true and "
            "false do not."
        ) from error
    except RecursionError as error:
        raise ValueError(
            "the plan has tables or lists inside each other without end. Write a table "
            "for each run, as data/plans/cpu.toml does."
        ) from error
    except ValueError as error:  # UnicodeDecodeError among them
        raise ValueError(
            f"the plan is not in UTF-8 ({error}). Save it in UTF-8."
        ) from error


def _tables(plan: dict) -> tuple[dict, list[dict]]:
    """The defaults and the runs, each a table."""
    _check_known(plan, ("defaults", "runs"))
    defaults, runs = plan.get("defaults", {}), plan.get("runs", [])
    example = '{ model = "resnet20" }'
    if not isinstance(defaults, dict):
        raise ValueError(
            f"defaults = {_toml(defaults)}: give a table, as in defaults = {example}."
        )
    if isinstance(runs, dict):
        raise ValueError("[runs] is one table: write [[runs]] above each run.")
    if not isinstance(runs, list) or not runs:
        raise ValueError(f"runs = {_toml(runs)}: list them, as in runs = [{example}].")
    for run in runs:
        if not isinstance(run, dict):
            raise ValueError(f"run {_toml(run)}: give a table, as in {example}.")
    return defaults, runs


def _check_known(table: dict, known: Iterable[str]) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise ValueError(
                f"there is no key {key!r}. "
                + (f"Write {near[0]}." if near else f"Choose from {', '.join(known)}.")
            )


def _toml(value: object) -> str:
    """A value as a plan would spell it."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{key} = {_toml(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return json.dumps(value, default=str, ensure_ascii=False)


def _planned(defaults: dict, entry: dict) -> Planned:
    _check_known(entry, [*KEYS, *FIELDS])
    entry = defaults | entry
    own = {key: entry.pop(key) for key in KEYS if key in entry}
    for key, value in own.items():
        if type(value) is not type(KEYS[key]):
            example = f"{key} = {_toml(KEYS[key])}"
            raise ValueError(f"{key} = {_toml(value)}: write it as in {example}.")
    if "model" not in own:
        raise ValueError('there is no model. Name one, as in model = "resnet20".')
    base = one_of("recipe", own.pop("recipe", "paper"), RECIPES)
    data = own.get("data", "cifar10")
    check_data(data)
    own["weights"] = own.get("weights", own.get("snapshots", False))
    recipe = _recipe(base, entry)
    check_fits(recipe, data, DATASETS.get(data, math.inf), "validation = {}")
    return Planned(base=base, recipe=recipe, **own)


def _recipe(base: str, fields: dict) -> Recipe:
    standard = RECIPES[base]
    end = fields.get("iterations", standard.iterations)
    return dataclasses.replace(standard.scaled(end), **fields)
