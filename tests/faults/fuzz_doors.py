"""Hand the library's public doors whatever people might hand them, for two minutes.

`pytest tests` does not collect this file; `make faults` runs it. FUZZ_SECONDS (120) is
shared by the doors; FAULT_SEED, printed at the end, gives the same inputs again. Three
things are looked for: an input at which a door hangs; an error that is no sentence of
ours; and an input that is let in at the door and refused inside.
"""

import builtins
import contextlib
import dataclasses
import decimal
import fractions
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import checks
import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from resnet_lib import Batches, Dataset, Images, Normalisation, Recipe, evaluate, fit
from resnet_lib.datasets import load_folder, read_picture
from resnet_lib.recipe import image_size_at, learning_rate_at
from resnet_lib.resnet import ResNet
from resnet_lib.runs import histories, load_run, longest_study, recorded_runs
from resnet_lib.runs import runs_table as table_of
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

torch.set_num_threads(1)


# --- what is looked for ---------------------------------------------------------------


class Hangs(BaseException):
    """One input took longer than HANG."""


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    def ring(number, frame):
        raise Hangs(f"after {HANG} s at\n" + "".join(traceback.format_stack(frame)))

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_sentence(error: Exception) -> bool:
    """Whether a file of ours raised it, in words that end with a full stop; or the
    system, which names the file."""
    if isinstance(error, OSError) and error.filename:
        return True
    *_, last = traceback.extract_tb(error.__traceback__)
    message = str(error.args[0] if isinstance(error, KeyError) else error).strip()
    whole = len(message) > 20 and message.endswith(".")
    return isinstance(error, SENTENCES) and last.filename.startswith(OURS) and whole


@contextlib.contextmanager
def at_the_door(door: str) -> Iterator[list]:
    """Count the input as refused, with a sentence, or as let in; the list gets an entry
    where it is refused."""
    refused = []
    try:
        yield refused
    except Exception as error:
        assert is_sentence(error), f"no sentence of ours: {error!r}"
        refused.append(error)
    COUNTS[door]["refused" if refused else "let in"] += 1


def fuzzed(door: str, *strategies):
    """A test that feeds a door from the strategies until its share of the time is
    over."""

    def wrap(judge):
        def test(tmp_path_factory):
            until = time.monotonic() + SECONDS / DOORS
            COUNTS[door] = Counter()
            seed = SEED

            def one(inputs):
                with deadline(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    with tempfile.TemporaryDirectory() as folder:
                        judge(*inputs, Path(folder))

            while time.monotonic() < until:
                given = hypothesis.given(st.tuples(*strategies))(one)
                options = hypothesis.settings(
                    max_examples=50,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(hypothesis.HealthCheck),
                )
                hypothesis.seed(seed)(options(given))()
                seed += 1_000

        test.judge, test.strategies = judge, strategies
        return test

    return wrap


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    # A machine whose memory is used up hangs too.
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    for door, counts in COUNTS.items():
        print(
            f"\n{door}: {counts.total():,} inputs tried, {counts['let in']:,} let in, "
            f"{counts['refused']:,} refused",
            end="",
        )
    tried = sum(counts.total() for counts in COUNTS.values())
    print(f"\n{tried:,} inputs in all; FAULT_SEED={SEED}")


# --- what people hand over ------------------------------------------------------------

INTEGERS = st.one_of(
    st.integers(-3, 100),
    st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**400, -(2**63)]),
)
FLOATS = st.one_of(
    st.floats(0, 2),
    st.floats(),
    st.sampled_from([1e-320, 1e300, float("nan"), float("inf"), -0.0, 3.5, 8.0]),
)
NUMBERS = st.one_of(INTEGERS, FLOATS)
SMALL = st.integers(0, 100)
DRESSED = st.one_of(  # numbers in other coats
    SMALL.map(np.int64),
    SMALL.map(np.uint8),
    SMALL.map(torch.tensor),
    SMALL.map(lambda n: torch.tensor([n])),
    SMALL.map(np.array),
    st.floats(0, 2).map(np.float32),
    st.floats(0, 2).map(torch.tensor),
    st.floats(0, 2).map(lambda x: np.array([x, x])),
    SMALL.map(fractions.Fraction),
    SMALL.map(decimal.Decimal),
    SMALL.map(complex),
    SMALL.map(str),
    SMALL.map(lambda n: str(n).encode()),
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.booleans().map(np.bool_),
    st.text(max_size=6),
    st.binary(max_size=6),
    st.sampled_from(["auto", "steps", "triangular", "fp32", "None", "", "~", "\0"]),
    st.builds(object),
    st.sampled_from([int, len, np.array([]), np.zeros((2, 2)), torch.zeros(0), ...]),
)
ANY = st.one_of(NUMBERS, DRESSED, ODD)
LISTS = st.one_of(
    st.lists(SMALL, max_size=3),
    st.lists(SMALL, max_size=3).map(sorted),
    st.lists(SMALL, max_size=3).map(tuple),
    st.lists(SMALL, max_size=3).map(np.array),
    st.lists(SMALL, max_size=3).map(torch.tensor),
    st.lists(ANY, max_size=3),
    st.sets(SMALL, max_size=3),
    st.dictionaries(SMALL, st.floats(0, 1), max_size=3),
    SMALL.map(range),
    SMALL.map(lambda n: iter(range(n))),
)
THINGS = st.one_of(ANY, LISTS)


@st.composite
def mostly(draw, usual, other=THINGS, tenths=8):
    """The usual in so many tenths of the cases."""
    rare = draw(st.sampled_from(range(10))) >= tenths
    return draw(other if rare else usual)


# --- a recipe -------------------------------------------------------------------------

FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}
STEPS = st.lists(st.integers(0, 40), max_size=3).map(sorted)
# Fields that have to agree come together.
LIKELY = [
    st.fixed_dictionaries({"iterations": st.integers(41, 60), "milestones": STEPS}),
    st.integers(1, 39).map(lambda n: {"schedule": "triangular", "milestones": [n]}),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=2).map(
        lambda it: {
            "small_until": sorted(until for until, _ in it),
            "small_size": [size for _, size in it],
        }
    ),
    st.fixed_dictionaries(
        {"momentum": st.floats(0.1, 0.99), "nesterov": st.booleans()}
    ),
    st.fixed_dictionaries(
        {"lr": st.floats(1e-9, 2), "weight_decay": st.floats(0, 0.1)}
    ),
    st.fixed_dictionaries(
        {"warmup_lr": st.floats(1e-3, 1), "warmup_error": st.floats(0, 1)}
    ),
    st.fixed_dictionaries(
        {"validation": st.integers(0, 60), "batch_size": st.integers(1, 90)}
    ),
    st.fixed_dictionaries(
        {"per_pixel_mean": st.booleans(), "black_border": st.booleans()}
    ),
    st.fixed_dictionaries(
        {"seed": SMALL, "precision": st.sampled_from(["auto", "fp32", "bf16"])}
    ),
    st.fixed_dictionaries(
        {"log_every": st.integers(1, 50), "eval_every": st.integers(1, 50)}
    ),
    st.fixed_dictionaries({"label_smoothing": st.floats(0, 0.9)}),
]
SHORT = {"iterations": 40, "milestones": (), "validation": 0, "batch_size": 4}


@st.composite
def changes(draw, wild=THINGS, tenths=5) -> dict:
    """Fields of a recipe that agree with each other, and now and then anything."""
    fields = {}
    for one in draw(st.lists(st.sampled_from(LIKELY), max_size=3)):
        fields |= draw(one)
    if draw(st.sampled_from(range(10))) >= tenths:
        fields[draw(st.sampled_from(sorted(FIELDS)))] = draw(wild)
    return fields


def pictures(count: int, channels: int = 3, side: int = 8) -> Images:
    draw = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, channels, side, side), generator=draw)
    return Images(pixels.to(torch.uint8), torch.arange(count) % 2)


def network(data: Dataset) -> ResNet:
    return ResNet(
        (2, 2), (1, 1), "A", len(data.classes), in_channels=data.train.images.shape[1]
    )


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
    for i in steps:
        assert image_size_at(i, recipe, 8) >= 1
    if recipe.warmup_lr is not None:
        assert learning_rate_at(0, recipe, warming_up=True) > 0


DATA = Dataset("random", ("a", "b"), pictures(70), pictures(6))


@fuzzed("Recipe", changes(), mostly(st.one_of(st.none(), st.integers(1, 60))))
def test_recipe(fields, scale, folder):
    with at_the_door("Recipe") as refused:
        recipe = Recipe(**{**SHORT, **fields})
        if scale is not None:
            recipe = recipe.scaled(scale)
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
        assert re.search("training images aside|1 value per channel", str(error))


# --- a plan ---------------------------------------------------------------------------

PLAIN = st.one_of(
    NUMBERS,
    st.booleans(),
    st.text(max_size=6),
    st.lists(st.one_of(SMALL, st.text(max_size=3), FLOATS), max_size=3),
    st.dictionaries(st.text(max_size=3), SMALL, max_size=2),
)
MODELS = st.one_of(
    st.from_regex(r"(resnet|plain)([0-9]{1,3}|[0-9]{6,12})[AB]?", fullmatch=True),
    st.sampled_from(["resnet18", "resnet20", "plain56", "resnet20-A", "resnet50"]),
    PLAIN,
)
OWN = {
    "model": MODELS,
    "recipe": st.sampled_from(["paper", "quick", "smoothed", "preview", 3]),
    "shortcut": st.sampled_from(["A", "B", "C", "D", "", 1, True]),
    "data": st.one_of(
        st.sampled_from(["digits", "cifar100", "mnist", "/", ".", "~", "~nobody/x"]),
        st.text(max_size=5),
    ),
    "snapshots": st.one_of(st.booleans(), st.booleans(), PLAIN),
    "weights": st.one_of(st.booleans(), st.booleans(), PLAIN),
    "sed": SMALL,
}


@st.composite
def runs_of_a_plan(draw) -> dict:
    own = {"model": draw(st.sampled_from(["resnet8", "plain20", "resnet20"]))}
    own |= {"data": draw(st.sampled_from(["digits", "cifar10", "."]))}
    own |= {"validation": draw(SMALL)}
    key = draw(st.sampled_from([None] * 10 + list(OWN)))
    own |= {key: draw(OWN[key])} if key else {}
    return own | draw(changes(PLAIN, tenths=9))


@st.composite
def plans(draw) -> bytes:
    defaults, runs = draw(changes(PLAIN, tenths=9)), [draw(runs_of_a_plan())]
    rare = draw(st.sampled_from([*range(1, 30, 2), *range(0, 30, 2)]))
    runs += [draw(runs_of_a_plan())] if rare % 2 else []
    pairs = {"defaults": draw(PLAIN) if rare == 0 else defaults}
    pairs |= {"runs": draw(PLAIN) if rare == 2 else runs}
    pairs |= {draw(st.text(max_size=3)): draw(PLAIN)} if rare == 4 else {}
    text = "\n".join(f"{key_of(key)} = {toml(v)}" for key, v in pairs.items())
    coding = draw(mostly(st.just("utf-8"), st.sampled_from(CODINGS), 9))
    return text.encode(coding, "replace")


CODINGS = ["utf-8-sig", "utf-16", "cp1252"]


def key_of(key: str) -> str:
    return key if re.fullmatch("[A-Za-z_]+", key) else json.dumps(key)


def toml(value: object) -> str:
    if isinstance(value, dict):
        pairs = (f"{key_of(key)} = {toml(it)}" for key, it in value.items())
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value) if "e" not in repr(value) else f"{value:e}"
    if isinstance(value, int | str) and value is not None:
        return json.dumps(value, ensure_ascii=False)
    return '"none"'


DEEP = b"runs = " + b"[" * 5_000 + b"]" * 5_000
CUT_UP = st.tuples(plans(), st.integers(0, 200), st.binary(max_size=3)).map(
    lambda it: it[0][: it[1]] + it[2] + it[0][it[1] + 1 :]
)
BAD_TEXTS = st.one_of(CUT_UP, st.binary(max_size=30), st.just(DEEP))


@fuzzed("a plan", mostly(plans(), BAD_TEXTS))
def test_plan(content, folder):
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

SIDES = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
SHAPES = st.one_of(
    st.tuples(SIDES, st.sampled_from([1, 2, 3, 3, 4, 5]), SIDES, SIDES),
    st.tuples(SIDES, st.sampled_from([1, 2, 3, 3, 4, 5]), SIDES, SIDES),
    st.tuples(SIDES, SIDES, SIDES, st.sampled_from([1, 3, 4])),
    st.tuples(SIDES, SIDES, SIDES),
    st.lists(SIDES, max_size=5).map(tuple),
)
KINDS = st.sampled_from(
    ["uint8"] * 25
    + ["bool", "int8", "uint16", "int64", "float16", "float32", "complex64"]
)


@st.composite
def arrays(draw, shapes=SHAPES, kinds=KINDS, top=300):
    """A numpy array or a tensor; sometimes turned, stepped over, or sparse."""
    shape, kind = draw(shapes), draw(kinds)
    numbers = np.random.default_rng(draw(SMALL)).random(shape)
    array = (numbers * draw(st.sampled_from([0, 1, top]))).astype(np.float64)
    rare = draw(st.sampled_from(range(10)))
    if rare == 9:
        array = array - 1
    if rare == 8 and array.size and kind.startswith("float"):
        array.flat[0] = draw(st.sampled_from([np.nan, np.inf]))
    array = np.asarray(array.astype(kind))
    form = draw(st.sampled_from(["tensor", "tensor", "array", "turned", "rare"]))
    if form == "array":
        return array
    if form == "turned":
        return array[::-1] if array.ndim else array
    tensor = torch.from_numpy(array)
    rare = draw(st.sampled_from(["grad", "sparse", "list", "masked", "view"]))
    if form == "rare" and rare == "grad" and tensor.is_floating_point():
        return tensor.requires_grad_()
    if form == "rare" and rare == "sparse" and tensor.ndim:
        return tensor.long().to_sparse().to(tensor.dtype)
    if form == "rare" and rare == "list":
        return array.tolist()
    if form == "rare" and rare == "masked":
        return np.ma.masked_array(array)
    if form == "rare" and rare == "view" and tensor.ndim > 1:
        return tensor.transpose(0, 1)
    return tensor


LABELS = st.one_of(
    arrays(st.tuples(SIDES), st.sampled_from(["int64", "uint8", "uint64"]), 3),
    arrays(st.lists(SIDES, max_size=2).map(tuple)),
    st.lists(ANY, max_size=7),
    st.lists(st.lists(SMALL, max_size=2), max_size=3),
    st.sampled_from([np.array([2**64 - 1] * 3, dtype=np.uint64)]),
    ANY,
)


@st.composite
def images_and_labels(draw):
    images = draw(mostly(arrays(), tenths=9))
    if draw(st.sampled_from(range(4))):
        with contextlib.suppress(Exception):
            count = len(images)
            return images, np.arange(count) % draw(st.integers(1, 4))
    return images, draw(LABELS)


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


@fuzzed("Images", images_and_labels())
def test_images(given, folder):
    with at_the_door("Images") as refused:
        images = Images(*given)
    if not refused:
        look_at_images(images)


# --- a data set -----------------------------------------------------------------------


@st.composite
def parts(draw):
    count = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 0]))
    channels = draw(st.sampled_from([1, 3, 3, 3, 3, 4]))
    side = draw(st.sampled_from([1, 5, 8, 8, 8]))
    images = pictures(count, channels, side)
    step, first = draw(st.sampled_from([(1, 0), (1, 0), (1, 1), (2, 0), (1, -1)]))
    labels = images.labels * step + first
    return Images(images.images, labels)


NAMES = mostly(st.text(max_size=5), st.one_of(THINGS, st.just(Path("pets"))))
WORDS = st.integers(2, 5).map(lambda n: list("abcde"[:n]))
CLASSES = st.one_of(WORDS, WORDS.map(tuple), WORDS.map(np.array))
ODD_CLASSES = st.one_of(
    st.lists(st.text(max_size=3), max_size=4),
    st.sampled_from(["cat", "ab", {"a": 0, "b": 1}]),
    THINGS,
)
PARTS = mostly(parts(), st.one_of(THINGS, arrays()), tenths=9)


@fuzzed("Dataset", NAMES, mostly(CLASSES, ODD_CLASSES), PARTS, PARTS, st.booleans())
def test_dataset(name, classes, train, test, per_pixel, folder):
    with at_the_door("Dataset") as refused:
        data = Dataset(name, classes, train, test)
    if refused:
        return
    look_at_images(data.train)
    look_at_images(data.test)
    assert len(data.digest) == 16 and data.note.startswith("Data: ")
    assert all(isinstance(name, str) for name in (data.name, *data.classes))
    recipe = Recipe(**{**SHORT, "per_pixel_mean": per_pixel})
    try:
        train_two_steps(data, recipe)
    except ValueError as error:
        other = data.train.images.shape[1:] != data.test.images.shape[1:]
        assert is_sentence(error) and other and per_pixel


# --- a recorded run -------------------------------------------------------------------


def recorded() -> dict[str, bytes]:
    """The files of a finished run of a small network."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(**{**SHORT, "iterations": 2, "eval_every": 1})
        fit(network(DATA), DATA, recipe, folder, device="cpu", progress=False)
        files = filter(Path.is_file, Path(folder).iterdir())
        return {file.name: file.read_bytes() for file in files}


FILES = recorded()
ABOUT = json.loads(FILES["recipe.json"])
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=4,
)


@st.composite
def abouts(draw) -> bytes:
    """recipe.json with a key that is gone, new, or has another value."""
    about = json.loads(json.dumps(ABOUT))
    for _ in range(draw(st.sampled_from([1, 0, 2]))):
        nested = [value for value in about.values() if isinstance(value, dict)]
        table = draw(st.sampled_from([about, *nested]))
        if not table:
            continue
        key = draw(st.sampled_from(sorted(table)))
        if draw(st.booleans()):
            table[key] = draw(st.one_of(JSON, st.sampled_from([2, "resnet8", [8, 8]])))
        else:
            del table[key]
    return json.dumps(about).encode()


@st.composite
def damaged(draw, content: bytes) -> bytes:
    place = draw(st.integers(0, len(content)))
    kind = draw(st.sampled_from(["cut", "flip", "insert", "other"]))
    if kind == "cut":
        return content[:place]
    if kind == "flip" and place < len(content):
        byte = content[place] ^ draw(st.integers(1, 255))
        return content[:place] + bytes([byte]) + content[place + 1 :]
    if kind == "insert":
        return content[:place] + draw(st.binary(max_size=4)) + content[place:]
    return draw(st.binary(max_size=20))


@st.composite
def weights(draw) -> bytes:
    """A state_dict of another network, of other things, or none."""
    things = st.one_of(THINGS, st.just(torch.zeros(2)))
    value = draw(st.one_of(st.dictionaries(st.text(max_size=4), things), things))
    content = io.BytesIO()
    try:
        torch.save(value, content)
    except Exception:  # what cannot be saved is in no file
        torch.save({}, content)
    return content.getvalue()


ROWS = FILES["history.csv"].decode().splitlines()
OTHERS = {
    "recipe.json": abouts(),
    "history.csv": st.lists(
        st.one_of(st.sampled_from(ROWS), st.text(max_size=9), st.just("2,x,y")),
        max_size=4,
    ).map(lambda rows: "\n".join([*rows, ""]).encode(errors="replace")),
    "environment.json": JSON.map(lambda value: json.dumps(value).encode()),
    "weights.pt": weights(),
}


@st.composite
def folders(draw) -> dict[str, bytes | None]:
    name = draw(st.sampled_from(sorted(OTHERS)))
    bad = st.one_of(damaged(FILES[name]), st.none())
    content = draw(mostly(OTHERS[name], bad, tenths=6))
    return FILES | {name: content}


@fuzzed("load_run", folders(), mostly(st.just("run"), ANY))
def test_load_run(files, name, folder):
    for run, held in (("run", files), ("whole", FILES)):
        (folder / run).mkdir()
        for file, content in held.items():
            if content is not None:
                (folder / run / file).write_bytes(content)
    with at_the_door("load_run") as refused:
        run = load_run(name, folder)
    everything = recorded_runs(folder)
    assert "whole" in everything and ("run" in everything or refused or name != "run")
    assert len(histories(everything)) and len(table_of(everything)) == len(everything)
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

MODULES = st.sampled_from(
    [nn.Identity(), nn.ReLU(), nn.Linear(3, 3), nn.Sequential(), nn.Module(), nn.Conv2d]
)
ANSWERS = st.recursive(
    st.one_of(THINGS, MODULES, arrays(), st.just(DATA), st.just(Recipe(**SHORT))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=2),
    ),
    max_leaves=3,
)


@st.composite
def answers(draw):
    """A function of anything that returns an answer, raises, or changes what it got; or
    no function."""
    answer = draw(ANSWERS)
    kind = draw(
        st.sampled_from(["returns"] * 5 + ["raises", "echo", "is", "changes", "no"])
    )

    def function(*given, **named):
        if kind == "raises":
            name = draw_error
            raise getattr(builtins, name)("mine")
        if kind == "echo":
            return given[-1] if given else answer
        if kind == "changes":
            for one in given:
                if isinstance(one, torch.Tensor) and one.is_floating_point():
                    one.zero_()
        return answer

    draw_error = draw(st.sampled_from(["ValueError", "IndexError", "RecursionError"]))
    if kind == "is":
        return (answer,)
    return () if kind == "no" else (function,)


@fuzzed("judges", st.sampled_from(sorted(checks.__all__)), answers())
def test_judges(name, answer, folder):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        verdict = getattr(checks, name)(*answer)
    COUNTS["judges"]["let in" if verdict else "refused"] += 1
    told = said.getvalue()
    assert isinstance(verdict, bool) and told[:1] in "✓✗○" and len(told) > 20
    assert told.count("\n") == 1, "more than one line"
    assert "check of your answer stopped" not in told, told


# --- one picture ----------------------------------------------------------------------


def noise(width: int, height: int) -> Image.Image:
    """Grey, and the same each time."""
    draw = np.random.default_rng(width)
    return Image.fromarray(draw.integers(0, 256, (height, width), dtype=np.uint8))


@st.composite
def picture_files(draw) -> bytes:
    mode = draw(st.sampled_from(["RGB", "L", "1", "P", "RGBA", "LA", "I;16", "F", "I"]))
    kind = draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]))
    size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    picture = noise(*size)
    file = io.BytesIO()
    try:
        made = picture if mode == "I;16" else picture.convert(mode)
        made = Image.new(mode, size, 300) if mode == "I;16" else made
        made.save(file, kind)
    except (OSError, ValueError, KeyError):  # a format that has no such mode
        picture.save(file, "PNG")
    content = file.getvalue()
    for _ in range(draw(st.integers(0, 3))):
        content = draw(damaged(content)) if content else content
    return content


HUGE = b"P6 %d %d 255\n"
BOMBS = st.one_of(
    st.tuples(st.integers(0, 2**33), st.integers(0, 9)).map(lambda it: HUGE % it),
    st.integers(0, 2**32 - 1).map(
        lambda n: b"\x89PNG\r\n\x1a\n" + struct.pack(">I", n) + b"IHDR" + bytes(30)
    ),
)
CONTENT = mostly(picture_files(), st.one_of(st.binary(max_size=60), BOMBS, THINGS))
PIXELS = mostly(st.one_of(st.none(), st.integers(1, 40)), tenths=9)


def is_said(error: Exception) -> bool:
    """Words to put behind "cannot be read:"; a size that is none gets a sentence."""
    *_, last = traceback.extract_tb(error.__traceback__)
    said = type(error) is ValueError and len(str(error)) > 5
    return said and last.filename.startswith(OURS)


@fuzzed("read_picture", CONTENT, PIXELS, st.booleans())
def test_read_picture(content, size, on_disk, folder):
    source = content
    if on_disk and isinstance(content, bytes):
        source = folder / "picture"
        source.write_bytes(content)
    try:
        picture = read_picture(source, size)
    except Exception as error:
        assert is_said(error), f"no words of ours: {error!r}"
        COUNTS["read_picture"]["refused"] += 1
        return
    COUNTS["read_picture"]["let in"] += 1
    assert picture.dtype == torch.uint8 and picture.shape[0] == 3
    assert size is None or picture.shape == (3, size, size)
    look_at_images(Images(picture[None], [0]))


# --- a folder of pictures -------------------------------------------------------------

FOLDER_NAMES = st.one_of(
    st.sampled_from(["cats", "dogs", "train", "test", "val", ".hidden", "__MACOSX"]),
    st.sampled_from(["a b", "naïve", "Größe", "\udcff", "$x", "-v"]),
)
FILE_NAMES = st.sampled_from(["a.png", "b.PNG", "c.jpg", "d.txt", "e.gif", ".f.png"])
TREES = st.recursive(
    st.dictionaries(FILE_NAMES, picture_files(), max_size=4),
    lambda inner: st.dictionaries(FOLDER_NAMES, inner, max_size=3),
    max_leaves=6,
)

COUNTED = st.sampled_from([2, 3, 4, 5, 2, 3, 4, 5, 1, 0])


@st.composite
def class_folders(draw) -> dict:
    """A layout as it should be, with at most one thing changed."""
    classes = {
        name: {f"{n}.png": draw(st.sampled_from(PNGS)) for n in range(count)}
        for name, count in draw(
            st.dictionaries(
                FOLDER_NAMES,
                COUNTED,
                min_size=1,
                max_size=4,
            )
        ).items()
    }
    if draw(st.sampled_from(range(3))) == 2:
        return {"train": classes, draw(FOLDER_NAMES): draw(st.just(classes) | TREES)}
    return classes


def png(side: int) -> bytes:
    file = io.BytesIO()
    noise(side, side + 1).save(file, "PNG")
    return file.getvalue()


PNGS = [*map(png, (1, 8, 9, 9, 9, 9, 9, 10, 30) * 3), b"no picture"]
SHARES = mostly(st.one_of(st.just(0.2), st.floats(0.01, 0.99)), tenths=9)


def plant(tree: dict, place: Path) -> None:
    place.mkdir(exist_ok=True)
    for name, inside in tree.items():
        if isinstance(inside, dict):
            plant(inside, place / name)
        elif not (place / name).exists():
            (place / name).write_bytes(inside)


@fuzzed(
    "load_folder",
    mostly(class_folders(), TREES),
    FOLDER_NAMES,
    mostly(st.just(8), tenths=9),
    SHARES,
    st.booleans(),
)
def test_load_folder(tree, name, size, share, grey, folder):
    plant(tree, folder / name)
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(said), at_the_door("load_folder") as refused:
        data = load_folder(folder / name, size, share, grey)
    shutil.rmtree(folder / name)
    if refused:
        return
    assert data.train.images.shape[1:] == (1 if grey else 3, size, size)
    assert len(data.classes) >= 2
    if size <= 32:
        look_at_images(data.train)
        train_two_steps(data, Recipe(**SHORT))


DOORS = sum(name.startswith("test_") for name in globals())
