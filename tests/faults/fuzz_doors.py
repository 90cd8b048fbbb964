"""Hand the library's public doors whatever people might hand them, for two minutes.

`pytest tests` does not collect this file; `make faults` runs it. FUZZ_SECONDS (120) is
shared by the doors; FAULT_SEED, printed at the end, gives the same inputs again. Three
things are looked for: an input at which a door hangs; an error that is no sentence of
ours; and an input that is let in at the door and refused inside.

Inputs are drawn by functions of a `Random`, which is Hypothesis's own: what fails is
made small before it is shown.
"""

import builtins
import contextlib
import dataclasses
import io
import itertools
import json
import os
import random
import re
import resource
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random

import checks
import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies
from PIL import Image
from torch import nn

from resnet_lib import Batches, Dataset, Images, Normalisation, Recipe, evaluate, fit
from resnet_lib.datasets import read_picture
from resnet_lib.identity import data_digest
from resnet_lib.recipe import image_size_at, learning_rate_at
from resnet_lib.resnet import ResNet
from resnet_lib.runs import (
    histories,
    load_run,
    longest_study,
    recorded_runs,
)
from resnet_lib.train import parser, recipe_from
from resnet_lib.training import Training
from workshop.plans import read_plan

SECONDS = float(os.environ.get("FUZZ_SECONDS", 120))
SEED = int(os.environ.get("FAULT_SEED", random.randrange(1_000)))
HANG = 10  # seconds that one input may take
ROOT = Path(__file__).parents[2]
OURS = tuple(str(ROOT / part) for part in ("resnet_lib", "workshop", "notebooks"))
SENTENCES = (ValueError, TypeError, RuntimeError, OSError, KeyError)
COUNTS: dict[str, Counter] = {}
OPTIONS = hypothesis.settings(
    max_examples=50,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)

torch.set_num_threads(1)


# --- what is looked for ---------------------------------------------------------------


class Hangs(BaseException):
    """One input took longer than HANG."""


def ring(number, frame):
    raise Hangs(f"after {HANG} s at\n" + "".join(traceback.format_stack(frame)))


def is_ours(error: Exception) -> bool:
    *_, last = traceback.extract_tb(error.__traceback__)
    return isinstance(error, SENTENCES) and last.filename.startswith(OURS)


def is_sentence(error: Exception) -> bool:
    """Whether a file of ours raised it, in words that end with a full stop; or the
    system, which names the file."""
    if isinstance(error, OSError) and error.filename:
        return True
    message = str(error.args[0] if isinstance(error, KeyError) else error).strip()
    return is_ours(error) and len(message) > 20 and message.endswith(".")


@contextlib.contextmanager
def at_the_door(door: str, is_said: Callable = is_sentence) -> Iterator[list]:
    """Count the input as refused, with a sentence, or as let in; the list gets an entry
    where it is refused."""
    refused = []
    try:
        yield refused
    except Exception as error:
        assert is_said(error), f"no sentence of ours: {error!r}"
        refused.append(error)
    COUNTS[door]["refused" if refused else "let in"] += 1


def fuzzed(door: str, **usual):
    """A test that feeds a door until its share of the time is up.

    Each argument comes from a function of a `Random`, or from a list; then it is now
    and then anything at all.
    """

    def wrap(judge):
        def one(r):
            given = {
                name: source(r) if callable(source) else mostly(r, source)
                for name, source in usual.items()
            }
            hypothesis.note(f"{door}: {given!r:.3000}")
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                signal.setitimer(signal.ITIMER_REAL, HANG)
                try:
                    judge(Path(folder), **given)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)

        def test():
            until = time.monotonic() + SECONDS / DOORS
            COUNTS[door] = Counter()
            randoms = strategies.randoms(use_true_random=False)
            for seed in itertools.count(SEED, 1_000):
                if time.monotonic() > until:
                    break
                hypothesis.seed(seed)(OPTIONS(hypothesis.given(randoms)(one)))()

        return test

    return wrap


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    # A machine whose memory is used up hangs too.
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, hard))
    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    told = [f"{door}: {dict(counts)}" for door, counts in COUNTS.items()]
    print("", *told, f"FAULT_SEED={SEED}", sep="\n")


# --- what people hand over ------------------------------------------------------------

LARGE = [2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**400, -(2**63)]
FLOATS = [1e-320, 1e300, float("nan"), float("inf"), float("-inf"), -0.0, 3.5, 8.0]
COATS = [  # of a number
    *(np.int64, np.uint8, np.float32, np.array, torch.tensor, Fraction, Decimal),
    *(complex, str, lambda n: str(n).encode()),
    *(lambda n: torch.tensor([n]), lambda n: np.array([n, n])),
]
LISTS = [  # of numbers or of anything
    *(list, tuple, set, iter, sorted, np.array, torch.tensor, dict.fromkeys),
    *(lambda it: range(len(it)), lambda it: {n: n / 2 for n in it}),
]
ODD = [
    *(None, True, False, np.True_, object(), int, len, ..., b"", b"\xff\0"),
    *("auto", "steps", "triangular", "fp32", "None", "", "~", "\0"),
    *(np.array([]), np.zeros((2, 2)), torch.zeros(0)),
]
LETTERS = "abz019 ._-~/\\$%{}[]\"'\0\n\té中😀"


def number(r: Random) -> int | float:
    small = (-1, 0, r.randint(-3, 100), r.uniform(0, 2))
    return r.choice(small if r.randrange(3) else r.choice((LARGE, FLOATS)))


def text(r: Random, most: int = 6) -> str:
    return "".join(r.choices(LETTERS, k=r.randint(0, most)))


def anything(r: Random) -> object:
    kind = r.randrange(6)
    if kind < 3:
        return number(r)
    if kind == 3:
        return r.choice(COATS)(r.choice([r.randint(0, 100), r.uniform(0, 2)]))
    return text(r) if kind == 4 else r.choice(ODD)


def things(r: Random) -> object:
    """Anything, or several."""
    if r.randrange(3):
        return anything(r)
    numbers = [r.randint(0, 100) for _ in range(r.randint(0, 3))]
    if r.randrange(4) == 0:
        return [anything(r) for _ in numbers]
    return r.choice(LISTS)(numbers)


def mostly(r: Random, usual: list, other: Callable = things) -> object:
    """The usual in nine of ten cases."""
    return r.choice(usual) if r.randrange(10) else other(r)


# --- a recipe -------------------------------------------------------------------------

FIELDS = sorted(field.name for field in dataclasses.fields(Recipe))
SHORT = {"iterations": 40, "milestones": (), "validation": 0, "batch_size": 4}


def steps(r: Random, most: int = 3) -> list[int]:
    return sorted(r.randint(0, 40) for _ in range(r.randint(0, most)))


def shrunk(r: Random) -> dict:
    until = steps(r, 2)
    return {"small_until": until, "small_size": [r.randint(1, 9) for _ in until]}


# Fields that have to agree come together.
LIKELY = [
    shrunk,
    lambda r: {"iterations": r.randint(41, 60), "milestones": steps(r)},
    lambda r: {"schedule": "triangular", "milestones": [r.randint(1, 39)]},
    lambda r: {"momentum": r.uniform(0.1, 0.99), "nesterov": r.random() < 0.5},
    lambda r: {"lr": r.uniform(1e-9, 2), "weight_decay": r.uniform(0, 0.1)},
    lambda r: {"warmup_lr": r.uniform(1e-3, 1), "warmup_error": r.random()},
    lambda r: {"validation": r.randint(0, 60), "batch_size": r.randint(1, 90)},
    lambda r: {"per_pixel_mean": r.random() < 0.5, "black_border": r.random() < 0.5},
    lambda r: {"seed": r.randint(0, 9), "precision": r.choice(["auto", "bf16"])},
    lambda r: {"log_every": r.randint(1, 50), "label_smoothing": r.uniform(0, 0.9)},
]


def changes(r: Random, wild: Callable = things, tenths: int = 5) -> dict:
    """Fields of a recipe that agree with each other, and now and then anything."""
    fields = {}
    for likely in r.choices(LIKELY, k=r.randint(0, 3)):
        fields |= likely(r)
    if r.randrange(10) >= tenths:
        fields[r.choice(FIELDS)] = wild(r)
    return fields


def pictures(count: int, channels: int = 3, side: int = 8) -> Images:
    draw = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, channels, side, side), generator=draw)
    return Images(pixels.to(torch.uint8), torch.arange(count) % 2)


DATA = Dataset("random", ("a", "b"), pictures(70), pictures(6))


def network(data: Dataset) -> ResNet:
    channels = data.train.images.shape[1]
    return ResNet((2, 2), (1, 1), "A", len(data.classes), in_channels=channels)


def train_two_steps(data: Dataset, recipe: Recipe) -> None:
    """What `fit` does, without a folder; all that a folder is told becomes JSON."""
    json.dumps({"data": data.name, "recipe": dataclasses.asdict(recipe)})
    training = Training(network(data), data, recipe, "cpu")
    for _ in range(2):
        training.step()
    # A rate or a decay beyond reason ends in the sentence on the loss.
    with contextlib.suppress(FloatingPointError):
        training.progress()


def look_at_every_iteration(recipe: Recipe) -> None:
    end = recipe.iterations
    steps = {0, end - 1, *range(min(end, 70))}
    for step in (*recipe.milestones, *recipe.small_until):
        steps |= {step - 1, step, step + 1}
    rates = [learning_rate_at(i, recipe) for i in sorted(steps) if 0 <= i < end]
    assert all(0 <= rate <= recipe.lr for rate in rates), rates
    assert all(image_size_at(i, recipe, 8) >= 1 for i in steps)
    if recipe.warmup_lr is not None:
        assert learning_rate_at(0, recipe, warming_up=True) > 0


@fuzzed("Recipe", fields=changes, scale=[None, None, 1, 7, 60])
def test_recipe(folder, fields, scale):
    with at_the_door("Recipe") as refused:
        recipe = Recipe(**SHORT | fields)
        recipe = recipe if scale is None else recipe.scaled(scale)
    if refused:
        return
    assert type(recipe.iterations) is int and type(recipe.lr) is float
    look_at_every_iteration(recipe)
    large = recipe.batch_size > 500 or max(recipe.small_size, default=0) > 100
    try:
        if not large:
            train_two_steps(DATA, recipe)
    except ValueError as error:
        # What a recipe cannot know: how many images there are, and how small. `fit` has
        # the remedy to PyTorch's words on single pixels.
        assert re.search("validation is .* to 69|1 value per channel", str(error))


# --- a plan ---------------------------------------------------------------------------


def plain(r: Random) -> object:
    """What TOML and JSON can say."""
    several = [r.choice([number, text])(r) for _ in range(r.randint(0, 3))]
    one = r.choice([number(r), text(r), r.random() < 0.5])
    return r.choice([one, one, several, {text(r, 3): it for it in several}])


def model(r: Random) -> str:
    depth = r.choice([r.randint(0, 999), 10 ** r.randint(5, 11), 20, 18, 50])
    return r.choice(["resnet", "plain"]) + str(depth) + r.choice(["", "", "A", "-A"])


OWN = {
    "model": model,
    "recipe": ["paper", "quick", "smoothed", "preview", 3],
    "shortcut": ["A", "B", "C", "D", "", 1],
    "data": ["digits", "cifar100", "mnist", "/", ".", "~", "~nobody/x"],
    "snapshots": [True, False],
    "weights": [True, False],
    "sed": number,
}


def run_of_a_plan(r: Random) -> dict:
    own = {"model": r.choice(["resnet8", "plain20", "resnet20"])}
    own |= {"data": r.choice(["digits", "cifar10", "."]), "validation": r.randint(0, 9)}
    if r.randrange(3) == 0:
        key = r.choice(list(OWN))
        own[key] = OWN[key](r) if callable(OWN[key]) else mostly(r, OWN[key], plain)
    return own | changes(r, plain, tenths=9)


def plan_file(r: Random) -> bytes:
    table = {"defaults": changes(r, plain, tenths=9)}
    table["runs"] = [run_of_a_plan(r) for _ in range(r.randint(1, 2))]
    if r.randrange(8) == 0:
        table[r.choice(["defaults", "runs", text(r, 3)])] = plain(r)
    # Python's way to write values is nearly TOML's.
    told = "\n".join(f"{key or '_'} = {value!r}" for key, value in table.items())
    for ours, theirs in {"True": "true", "False": "false", "': ": "' = "}.items():
        told = told.replace(ours, theirs)
    coding = r.choice(["utf-8"] * 9 + ["utf-8-sig", "utf-16", "cp1252"])
    return mostly(r, [told.encode(coding, "replace")], lambda r: bad_plan(r, told))


def damaged(r: Random, content: bytes) -> bytes:
    """Cut, or with a byte or some that are others, are gone, or are new."""
    place, more = r.randint(0, len(content)), r.randbytes(r.randint(0, 4))
    skipped = r.choice([len(content), len(more), 0, 1])
    return content[:place] + more + content[place + skipped :]


DEEP = b"runs = " + b"[" * 5_000 + b"]" * 5_000


def bad_plan(r: Random, told: str) -> bytes:
    return r.choice([damaged(r, told.encode()), r.randbytes(20), DEEP])


@fuzzed("a plan", content=plan_file)
def test_plan(folder, content):
    path = folder / "plan.toml"
    path.write_bytes(content)
    with at_the_door("a plan") as refused:
        plan = read_plan(path)
    if refused:
        assert "plan.toml" in str(refused[0])
        return
    for planned in plan:
        look_at_every_iteration(planned.recipe)
        assert "/" not in planned.name and planned.name not in ("", ".", "..")
        words = planned.command(folder / planned.name)
        arguments = parser().parse_args(words[words.index("--quiet") :])
        assert recipe_from(arguments) == planned.recipe
        assert arguments.model == planned.model


# --- pictures and labels --------------------------------------------------------------

KINDS = ["bool", "int8", "uint16", "uint64", "int64", "float16", "float32", "complex64"]
FORMS = [  # of an array
    *(lambda a: a[::-1] if a.ndim else a, np.ma.masked_array, np.ndarray.tolist),
    lambda a: torch.from_numpy(a).long().to_sparse().to(torch.from_numpy(a).dtype),
    lambda a: torch.from_numpy(a).transpose(0, 1),
    lambda a: torch.from_numpy(a).requires_grad_(),
]


def shape(r: Random) -> tuple[int, ...]:
    n, height, width = (r.randint(0, 9) for _ in range(3))
    usual = (n, r.choice([1, 2, 3, 3, 4, 5]), height, width)
    others = [(n, height, width, 3), (n, height, width), [n] * r.randint(0, 5)]
    return tuple(r.choice([usual, usual, usual, *others]))


def array(r: Random, shape: Callable = shape, top: int = 300, usual: str = "uint8"):
    """A numpy array or a tensor; sometimes turned, stepped over, or sparse."""
    kind = r.choice([usual] * 25 + KINDS)
    numbers = np.random.default_rng(r.randint(0, 9)).random(shape(r))
    numbers = numbers * r.choice([0, 1, top]) - (r.randrange(10) == 0)
    if r.randrange(10) == 0 and numbers.size and kind.startswith("float"):
        numbers.flat[0] = r.choice([np.nan, np.inf])
    found = np.asarray(numbers.astype(kind))
    with contextlib.suppress(Exception):  # not every kind has every form
        return r.choice([np.asarray, torch.from_numpy, r.choice(FORMS)])(found)
    return found


def labels(r: Random) -> object:
    row = array(r, lambda r: (r.randint(0, 9),), 3, r.choice(["int64", "uint64"]))
    large = np.array([2**64 - 1] * 3, dtype=np.uint64)
    return r.choice([row, row, array(r), large, [[1, 2], [3]], [1, "a"], [0, 1.5]])


def look_at_images(images: Images) -> None:
    assert images.images.dtype == torch.uint8 and images.labels.dtype == torch.int64
    assert images.images.ndim == 4 and len(images) == len(images.images)
    if not len(images):
        with pytest.raises(ValueError, match="no images"):
            Normalisation.of(images.images)
        return
    for per_pixel in (False, True):
        norm = Normalisation.of(images.images, per_pixel)
        x = norm(images.images)
        assert x.shape == images.images.shape and x.isfinite().all()
    x, labels = next(Batches(images, 3, norm))
    assert x.shape == (3, *images.images.shape[1:]) and labels.shape == (3,)
    net = ResNet((2, 2), (1, 1), "A", 4, in_channels=x.shape[1])
    result = evaluate(net, images, norm)
    assert result.logits.shape == (len(images), 4) and 0 <= result.error <= 1
    picture, label = images[-1]
    assert picture.shape == x.shape[1:] and label == images.labels[-1]


@fuzzed(
    "Images",
    images=lambda r: mostly(r, [array(r)]),
    labels=labels,
    alike=lambda r: r.randrange(4) > 0,
)
def test_images(folder, images, labels, alike):
    if alike:
        with contextlib.suppress(Exception):
            labels = np.arange(len(images)) % 4
    with at_the_door("Images") as refused:
        found = Images(images, labels)
    if not refused:
        look_at_images(found)


# --- a data set -----------------------------------------------------------------------


def part(r: Random) -> Images:
    side, channels = r.choice([1, 5, 8, 8, 8]), r.choice([1] + [3] * 8 + [4])
    images = pictures(r.randint(0, 9), channels, side)
    step, first = r.choice([(1, 0)] * 8 + [(1, 1), (2, 0), (1, -1)])
    return Images(images.images, images.labels * step + first)


WORDS = ["ab", "abc", "abcde"]
CLASSES = [coat(word) for word in WORDS for coat in (list, tuple)] * 4
ODD_CLASSES = ["cat", {"a": 0, "b": 1}, np.array(["a", "b"]), ["a", "a"], ["a", ""]]


@fuzzed(
    "Dataset",
    name=["x", "a b", "Größe"] * 4 + ["", Path("pets")],
    classes=CLASSES + ODD_CLASSES,
    train=lambda r: mostly(r, [part(r)]),
    test=lambda r: mostly(r, [part(r)]),
    per_pixel=lambda r: r.random() < 0.5,
)
def test_dataset(folder, name, classes, train, test, per_pixel):
    with at_the_door("Dataset") as refused:
        data = Dataset(name, classes, train, test)
    if refused:
        return
    look_at_images(data.train)
    look_at_images(data.test)
    assert len(data_digest(data)) == 16 and data.note.startswith("Data: ")
    assert all(isinstance(name, str) for name in (data.name, *data.classes))
    recipe = Recipe(**SHORT, per_pixel_mean=per_pixel)
    try:
        train_two_steps(data, recipe)
    except ValueError as error:
        other = data.train.images.shape[1:] != data.test.images.shape[1:]
        assert is_sentence(error) and other and per_pixel


# --- a recorded run -------------------------------------------------------------------


def recorded() -> dict[str, bytes]:
    """The files of a finished run of a small network."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(**SHORT | {"iterations": 2, "eval_every": 1})
        fit(network(DATA), DATA, recipe, folder, device="cpu", progress=False)
        files = filter(Path.is_file, Path(folder).iterdir())
        return {file.name: file.read_bytes() for file in files}


FILES = recorded()
ROWS = FILES["history.csv"].decode().splitlines()


def about(r: Random) -> bytes:
    """recipe.json with a key that is gone, new, or has another value."""
    found = json.loads(FILES["recipe.json"])
    for _ in range(r.randint(0, 2)):
        nested = [value for value in found.values() if isinstance(value, dict)]
        table = r.choice([found, *filter(None, nested)])
        key = r.choice([*table, text(r)])
        table[key] = r.choice([plain(r), None, 2, "resnet8", [8, 8]])
        if r.random() < 0.5:
            del table[key]
    return json.dumps(found).encode()


def odd_file(r: Random, name: str) -> bytes | None:
    if name == "recipe.json":
        return about(r)
    if name == "history.csv":
        rows = [r.choice([*ROWS, text(r, 9), "2,x,y"]) for _ in range(r.randint(0, 4))]
        return "\n".join([*rows, ""]).encode(errors="replace")
    content = io.BytesIO()
    with contextlib.suppress(Exception):  # what cannot be saved is in no file
        torch.save(r.choice([{text(r, 4): things(r)}, things(r)]), content)
    return content.getvalue() or json.dumps(plain(r)).encode()


def run_files(r: Random) -> dict[str, bytes | None]:
    name = r.choice(sorted(FILES))
    odd = odd_file(r, name)
    return FILES | {name: r.choice([odd, odd, damaged(r, FILES[name]), None])}


@fuzzed("load_run", files=run_files, name=["run"])
def test_load_run(folder, files, name):
    for run, held in (("run", files), ("whole", FILES)):
        (folder / run).mkdir()
        for file, content in held.items():
            if content is not None:
                (folder / run / file).write_bytes(content)
    with at_the_door("load_run") as refused:
        run = load_run(name, folder)
    everything = recorded_runs(folder)
    assert "whole" in everything and ("run" in everything or refused or name != "run")
    assert len(histories(everything))
    with contextlib.suppress(ValueError):
        longest_study(everything)
    if refused:
        return
    assert run.net in ("plain", "residual", "other") and run.extra_warmup in (0, 1)
    assert run.layers is None or run.layers > 0
    assert run.final["iteration"] == run.recipe["iterations"] and run.snapshots == []
    Recipe(**run.recipe)
    for use in (lambda: run.model(), lambda: run.model(7), lambda: run.environment):
        try:
            use()
        except SENTENCES as error:  # weights and environment are read when needed
            assert is_sentence(error), repr(error)


# --- judges ---------------------------------------------------------------------------

MODULES = [nn.Identity(), nn.ReLU(), nn.Linear(3, 3), nn.Sequential(), nn.Module()]
OBJECTS = [*MODULES, nn.Conv2d, DATA, Recipe(**SHORT)]
JUDGES = [name for name in checks.__all__ if name.startswith("check_")]
HABITS = ["returns"] * 5 + ["raises", "echoes", "is", "changes", "no"]


def answer(r: Random) -> tuple:
    """A function of anything that returns an answer, raises, or changes what it got; or
    no function."""
    objects = [r.choice([things, array, lambda r: r.choice(OBJECTS)])(r) for _ in "ab"]
    found = r.choice([objects[0]] * 3 + [objects, tuple(objects), {"a": objects[0]}])
    error = r.choice(["ValueError", "IndexError", "RecursionError"])
    habit = r.choice(HABITS)

    def function(*given, **named):
        if habit == "raises":
            raise getattr(builtins, error)("mine")
        if habit == "changes":
            for one in given:
                if isinstance(one, torch.Tensor) and one.is_floating_point():
                    one.zero_()
        return given[-1] if habit == "echoes" and given else found

    return {"is": (found,), "no": ()}.get(habit, (function,))


@fuzzed("judges", judge=lambda r: r.choice(JUDGES), answer=answer)
def test_judges(folder, judge, answer):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        verdict = getattr(checks, judge)(*answer)
    COUNTS["judges"]["let in" if verdict else "refused"] += 1
    told = said.getvalue()
    assert isinstance(verdict, bool) and told[:1] in "✓✗○" and len(told) > 20
    assert told.count("\n") == 1, "more than one line"
    assert "check of your answer stopped" not in told, told


# --- one picture ----------------------------------------------------------------------

MODES = ["RGB", "L", "1", "P", "RGBA", "LA", "I;16", "F", "I"]
KINDS_OF_FILE = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]


def picture_file(r: Random) -> bytes:
    mode, kind = r.choice(MODES), r.choice(KINDS_OF_FILE)
    size = r.randint(1, 40), r.randint(1, 40)
    file = io.BytesIO()
    try:
        Image.radial_gradient("L").resize(size).convert(mode).save(file, kind)
    except (OSError, ValueError, KeyError):  # a format that has no such mode
        Image.new("I;16", size, 300).save(file, "PNG")
    content = file.getvalue()
    for _ in range(r.randint(0, 3)):
        content = damaged(r, content)
    return content


def content(r: Random) -> object:
    huge = b"P6 %d %d 255\n" % (r.randint(0, 2**33), r.randint(0, 9))
    chunk = struct.pack(">I", r.randrange(2**32)) + b"IHDR" + bytes(30)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk
    usual = [picture_file(r)] * 6
    return r.choice([*usual, huge, bomb, r.randbytes(60)])


def is_said(error: Exception) -> bool:
    """Words to put behind "cannot be read:"; a size that is none gets a sentence."""
    return type(error) is ValueError and is_ours(error) and len(str(error)) > 5


@fuzzed(
    "read_picture",
    content=lambda r: mostly(r, [content(r)]),
    size=[None, 8, 1, 40],
    on_disk=lambda r: r.random() < 0.5,
)
def test_read_picture(folder, content, size, on_disk):
    source = content
    if on_disk and isinstance(content, bytes):
        source = folder / "picture"
        source.write_bytes(content)
    with at_the_door("read_picture", is_said) as refused:
        picture = read_picture(source, size)
    if refused:
        return
    assert picture.dtype == torch.uint8 and picture.shape[0] == 3
    assert size is None or picture.shape == (3, size, size)
    look_at_images(Images(picture[None], [0]))


DOORS = sum(name.startswith("test_") for name in globals())
