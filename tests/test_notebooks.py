"""The grammar of the notebooks, their home cells, the hygiene of committed outputs."""

import ast
import copy
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import mean
from tempfile import gettempdir

import nbformat
import pytest

from resnet_lib.paths import data_home
from resnet_lib.runs import load_run, longest_study, recorded_runs
from workshop.execute import STATE, VIEW, lost_widgets, numbered
from workshop.results import PAPER_ERRORS
from workshop.starts import recorded

FOLDER = Path(__file__).parent.parent / "notebooks"
LESSONS = sorted(FOLDER.glob("[0-9]*.ipynb"))
APPENDICES = sorted(FOLDER.glob("A[0-9]*.ipynb"))
ALL = LESSONS + APPENDICES
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))
EVERY = ALL + SOLUTIONS
every_lesson = pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
every_notebook = pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)


def lesson(number):
    (path,) = FOLDER.glob(f"{number}_*.ipynb")
    return path


@cache
def read(path):
    return nbformat.read(path, as_version=4)


def cells(path, kind="code"):
    return [cell for cell in read(path).cells if cell.cell_type == kind]


def text(path, kind):
    return "\n".join(cell.source for cell in cells(path, kind))


def shown(cell, kind):
    """The outputs that hold content of a kind."""
    return [output for output in cell.outputs if kind in output.get("data", {})]


def test_the_series_is_short_and_has_solutions():
    assert len(LESSONS) >= 7
    assert sum(len(text(path, "markdown").split()) for path in ALL) <= 18_000
    judged = [p for p in ALL if re.search("^checks.check_", text(p, "code"), re.M)]
    asked = {path.stem.split("_")[0] for path in judged}
    assert {path.stem.removesuffix("_solutions") for path in SOLUTIONS} == asked


# --- how a notebook reads -------------------------------------------------------------


@every_lesson
def test_the_first_screen_says_what_it_is_and_what_to_press(path):
    first, setup = read(path).cells[:2]
    number, opening = path.stem.split("_")[0], first.source
    assert first.cell_type == "markdown" and opening.startswith(f"# {number} · ")
    assert "(../README.md)" in opening
    assert re.search(r"[Rr]eading time: \d+ minutes", opening)
    assert "You need" in opening and "Shift+Enter" in opening
    assert len(re.findall(r"^- ", opening, re.M)) <= 4
    # The set-up is there and need not be read.
    assert setup.metadata.get("jupyter", {}).get("source_hidden")
    assert "hide-input" in setup.metadata.get("tags", [])
    assert text(path, "code").count("use_style()") == 1


@every_lesson
def test_there_is_something_to_look_at_every_450_words(path):
    """From the first word to the questions; the first picture comes much sooner."""
    since, first = 0, None
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            since += len(cell.source.split("## Questions")[0].split())
            assert since <= 450, cell.source[:80]
            if "## Questions" in cell.source:
                break
        elif shown(cell, "image/png") or shown(cell, VIEW):
            first = since if first is None else first
            since = 0
    assert first <= 300


@every_lesson
def test_closing(path):
    _, closing = re.split(r"^## Questions", text(path, "markdown"), flags=re.M)
    questions, *exercises = re.split(r"^## Exercises?$", closing, flags=re.M)
    asked, answered = (
        len(re.findall(r"^\d\. ", part, re.M)) for part in questions.split("<details>")
    )
    assert 3 - (path in APPENDICES) <= asked == answered <= 5
    judged = re.findall(r"^checks\.check_", text(path, "code"), re.M)
    assert bool(exercises) == bool(judged) and len(judged) <= 6


def title(path):
    return text(path, "markdown").splitlines()[0].removeprefix("# ")


def test_navigation_leads_along_the_series_and_calls_a_lesson_by_its_title():
    for before, after in pairwise(LESSONS):
        opening = {p: text(p, "markdown").split("\n## ")[0] for p in (before, after)}
        assert f"[next: {title(after)} →]({after.name})" in opening[before]
        assert f"[← {title(before)}]({before.name})" in opening[after]
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    numbers = {lesson.stem.split("_")[0]: lesson for lesson in ALL}
    for lesson in ALL:
        assert f"[{title(lesson)}](notebooks/{lesson.name})" in readme
    for path in SOLUTIONS:
        lesson = numbers[path.stem.removesuffix("_solutions")]
        assert title(path) == f"Solutions to {title(lesson)}"
        assert f"[← {title(lesson)}](../{lesson.name})" in text(path, "markdown")


@every_notebook
def test_links_lead_somewhere_and_cells_keep_no_marks_of_another_format(path):
    for target in re.findall(r"\]\(([^)#]+)\)", text(path, "markdown")):
        if not target.startswith(("http", "attachment:")):
            assert (path.parent / target).exists(), target
    for cell in read(path).cells:
        assert not re.search(r"^(# %%|%% \[)", cell.source, re.M), cell.source


def test_04_tells_the_errors_that_are_recorded():
    """Its sentences and the words for its first picture, which nothing computes."""
    path = lesson("04")
    first = next(
        cell.source for cell in cells(path) if "plots.describe(" in cell.source
    )
    told = set(re.findall(r"(\d+\.\d\d) %", text(path, "markdown") + first))
    ours = [load_run(f"{net}-paper-64k") for net in ("resnet18", "plain18")]
    final = {f"{100 * run.final['test_error']:.2f}" for run in ours}
    assert final <= told
    assert told - final <= {f"{error:.2f}" for error in PAPER_ERRORS.values()}


def test_05_tells_what_the_starts_show():
    """Its sentences below the curves, in percent of the gap and of the images."""
    path = lesson("05")
    starts = recorded()

    def error(start):  # in training, the mean of the seeds
        names = [name for name in starts if name.startswith(f"{start}, seed")]
        return mean(starts[name]["history"]["train_error"][-1] for name in names)

    late = error("as is")
    closed = (late - error("gentle")) / (late - error("plain20"))
    again, built = error("plain20, again"), error("built")
    told = text(path, "markdown")
    assert f"closes only {100 * closed:.0f} %" in told
    assert f"ends at {100 * again:.0f} %, not {100 * built:.0f} %" in told


def test_the_seeds_of_the_deep_residual_net_are_told_as_recorded():
    names = ("resnet56-paper-64k", "resnet56-paper-64k-seed1", "resnet20-paper-64k")
    runs = [load_run(name) for name in names]
    first, second, shallow = (f"{100 * run.final['test_error']:.2f}" for run in runs)
    told = text(lesson("05"), "markdown")
    assert f"one ends at {first} %, the other at {second} %" in told
    assert f"(one run, {shallow} %)" in told
    readme = (data_home().parent / "README.md").read_text("utf-8")
    assert f"({first} and {second} %, against {shallow} % with 20 layers)" in readme
    words = r"after ([\d,]+) iterations, still in bf16, their training errors are"
    at, *errors = re.search(rf"{words} ([\d.]+) and ([\d.]+) %", told).groups()
    for run, error in zip(runs[:2], errors, strict=True):
        history = run.history.set_index("iteration")["train_error"]
        assert error == f"{100 * history[int(at.replace(',', ''))]:.2f}"


def test_05_tells_the_medians_of_its_figure():
    path = lesson("05")
    pictures = [
        out.data["text/plain"] for c in cells(path) for out in shown(c, "image/png")
    ]
    (alt,) = [alt for alt in pictures if "Medians:" in alt]
    at = dict(re.findall(r"(\w+\d\d(?:, seed 1)?) (\d\.\d\d)", alt))
    told = text(path, "markdown")
    assert f"({at['plain20']} → {at['plain56']})" in told
    assert f"({at['resnet20']} → {at['resnet56']} and {at['resnet56, seed 1']})" in told


def test_the_seeds_are_counted_as_recorded():
    study = longest_study(recorded_runs())
    counts = Counter((run.net, run.layers) for run in study.values())
    several = {net: seeds for net, seeds in counts.items() if seeds > 1}
    told = text(lesson("08"), "markdown")
    readme = (data_home().parent / "README.md").read_text("utf-8")
    for words, where in (
        ("resnet56 has two seeds", told),
        ("each other long net has one", told),
        ("each other net has one seed", readme),
    ):
        assert (words in where) is (several == {("residual", 56): 2})


def test_08_has_the_errors_of_the_study():
    study = longest_study(recorded_runs())
    table = "".join(
        output.data["text/markdown"]
        for cell in cells(lesson("08"))
        for output in shown(cell, "text/markdown")
    )
    for part, net in (("train", "plain"), ("train", "residual"), ("test", "residual")):
        ends = [
            mean(
                100 * run.final[f"{part}_error"]
                for run in study.values()
                if (run.net, run.layers) == (net, layers)
            )
            for layers in (20, 56)
        ]
        assert "{:.2f} → {:.2f} %".format(*ends) in table, "execute notebook 08"


# --- committed outputs ----------------------------------------------------------------


def models_of(notebook):
    return notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})


def views_of(path):
    return [
        out.data[VIEW].model_id for cell in cells(path) for out in shown(cell, VIEW)
    ]


@every_notebook
def test_outputs_are_clean_and_complete(path):
    assert path.stat().st_size < 1_000_000
    counts = [cell.execution_count for cell in cells(path)]
    assert counts == list(range(1, len(counts) + 1)), "not run top to bottom"
    for cell in cells(path):
        for output in cell.outputs:
            assert output.output_type != "error", output.get("evalue")
            assert output.get("name") != "stderr", output.text
        for output in shown(cell, "image/png") if path in ALL else ():
            words = output.metadata.get("image/png", {}).get("alt", "")
            assert len(words) > 40, f"a picture says in words what it shows: {words}"
    said = json.dumps([cell.outputs for cell in cells(path)])
    # The letters of an encoded picture may spell anything, "/tmp" as well.
    said = re.sub(r'("image/png": ")[^"]*', r"\1", said)
    assert "Warning" not in said
    for place in ("/home/", "/Users/", "C:\\", gettempdir(), FOLDER.parent):
        assert str(place) not in said, f"a path of one machine: {place}"
    assert not re.search(r"\b[0-9]{1,2}%\|", said), "a progress bar half way"
    fallback = re.search(r"CIFAR-10 (is|was) not at hand", said)
    assert path in SOLUTIONS or not fallback, "run it with CIFAR-10"
    assert lost_widgets(read(path)) == []
    models = models_of(read(path))
    assert {models[v].model_name for v in views_of(path)} <= {"VBoxModel", "AnyModel"}
    for model in models.values():
        for key, name in (("layout", "LayoutModel"), ("style", "StyleModel")):
            if reference := model.state.get(key):
                target = models[reference.removeprefix("IPY_MODEL_")]
                assert target.model_name.endswith(name)


def test_a_widget_without_state_is_found():
    """What a browser, a merge or a careless tool leaves behind."""
    path = next(path for path in ALL if views_of(path))
    models, view = models_of(read(path)), views_of(path)[0]
    layout = next(k for k, w in models.items() if w.model_name == "LayoutModel")
    for lose in (
        lambda notebook: notebook.metadata.pop("widgets"),
        lambda notebook: notebook.metadata.widgets.pop(STATE),
        lambda notebook: models_of(notebook).pop(view),
        lambda notebook: models_of(notebook).pop(layout),
    ):
        notebook = copy.deepcopy(read(path))
        lose(notebook)
        assert lost_widgets(notebook)


def test_drawn_names_are_the_same_in_every_run():
    """Those of widgets and of styled tables, whatever their order in the alphabet."""
    path, runs = FOLDER / "04_training_on_cifar10.ipynb", []
    tables = sorted(set(re.findall(r"\bT_[0-9a-f]{5}", str(read(path)))))
    assert tables and views_of(path)
    for draw in (range(1000), range(1000, 0, -1)):
        run = nbformat.writes(read(path))
        for number, name in zip(draw, [*models_of(read(path)), *tables], strict=False):
            new = f"T_{number:05x}" if name in tables else f"{number:032x}"
            run = run.replace(name, new)
        runs.append(numbered(nbformat.reads(run, as_version=4)))
    assert nbformat.writes(runs[0]) == nbformat.writes(runs[1])
    assert lost_widgets(runs[0]) == []


# --- built in the notebook, kept in the library, never drifting -----------------------

# A cell tagged `home:NAME` holds the library's definition of NAME, and nothing else
# does. Compared are syntax trees: layout, comments and docstrings are free.
HOMES = {
    "02_basic_block": {"PaddedIdentity", "make_shortcut", "BasicBlock", "PlainBlock"},
    "03_resnet18": {"ResNet"},
    "04_training_on_cifar10": {"learning_rate_at", "train_step"},
}
Definition = ast.ClassDef | ast.FunctionDef


def parsed(source: str) -> list[ast.stmt]:
    """The statements of a cell or a module, without docstrings."""
    module = ast.parse(source)
    for node in ast.walk(module):
        if isinstance(node, Definition) and ast.get_docstring(node) is not None:
            del node.body[0]
    return module.body


def library() -> dict[str, Definition | None]:
    """Every name in an `__all__`, with its class or function if it is one."""
    names, definitions = set(), {}
    root = FOLDER.parent / "resnet_lib"
    paths = {*root.glob("*.py"), *root.glob("*/__init__.py")}
    # The vocabulary of the notebooks; `train` is a command, never imported.
    for path in sorted(paths - {root / "train.py"}):
        for node in parsed(path.read_text("utf-8")):
            if isinstance(node, Definition):
                definitions[node.name] = node
            elif ast.unparse(node).startswith("__all__"):
                names |= set(ast.literal_eval(node.value))
    return {name: definitions.get(name) for name in names}


LIBRARY = library()


def bound_names(body: list[ast.AST]) -> Iterator[str]:
    """The names that a cell binds, leaving out those local to a function or a class."""
    for node in body:
        if isinstance(node, Definition):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            ours = (getattr(node, "module", None) or "").startswith("resnet_lib")
            for alias in node.names:
                if not (ours and alias.asname in (None, alias.name)):
                    yield alias.asname or alias.name
        elif not isinstance(node, ast.comprehension):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            yield from bound_names(list(ast.iter_child_nodes(node)))


def problems(source: str, homes: list[str]) -> list[str]:
    """What is wrong with one cell, in words; empty if nothing is."""
    # IPython's own commands are no Python.
    body = parsed(re.sub(r"(?m)^[ \t]*[%!].*$", "", source))
    taken = LIBRARY.keys() - set(homes)
    found = [f"{name} is redefined" for name in bound_names(body) if name in taken]
    here = {node.name: node for node in body if isinstance(node, Definition)}
    if homes and not len(here) == len(body) == len(homes):
        found.append(f"a home cell holds more than the definitions of {homes}")
    for name in homes:
        if LIBRARY.get(name) is None:
            found.append(f"{name} is no public class or function of resnet_lib")
        elif name not in here:
            found.append(f"the home of {name} does not define it")
        elif ast.dump(here[name]) != ast.dump(LIBRARY[name]):
            found.append(f"{name} differs from resnet_lib's")
    return found


def test_notebooks_and_library_agree_and_every_idea_has_one_home():
    homes = {path.stem: [] for path in EVERY}
    for path in EVERY:
        for number, cell in enumerate(cells(path), start=1):
            names = re.findall(r"home:(\w+)", " ".join(cell.metadata.get("tags", [])))
            assert not problems(cell.source, names), f"{path.name}, code cell {number}"
            homes[path.stem] += names
    everything = [name for names in homes.values() for name in names]
    assert len(everything) == len(set(everything))
    for stem, names in HOMES.items():
        assert names <= set(homes[stem]), f"{stem} misses a home cell"


SOURCE = (FOLDER.parent / "resnet_lib" / "basic_block.py").read_text("utf-8")
BLOCK = ast.get_source_segment(SOURCE, LIBRARY["BasicBlock"])
DIFFERENT = {
    "self.residual(x) + self": "self.residual(x) - self",
    "stride: int = 1": "stride: int = 2",
    "x: Tensor": "x: nn.Module",
    "        super().__init__()\n": "",
    "class BasicBlock": "@staticmethod\nclass BasicBlock",
}
SAME = {
    '"""relu(F(x)': '"""In my own words: relu(F(x)',
    '"""F(x): what': '"""The residual: what',
    "# No bias:": "\n# There is no bias:",
    '"B"': "('B')",
}
PLANTED = [  # a cell, its homes, and words of the complaint
    (BLOCK.replace("BasicBlock", "Blok"), "Blok", "no public class"),
    ("plain9 = 1", "plain9", "no public class"),
    (BLOCK.replace("BasicBlock", "Other"), "BasicBlock", "does not define"),
    (BLOCK + "\n\nBasicBlock.expansion = 1", "BasicBlock", "holds more"),
    (BLOCK + "\n\ndef helper():\n    pass", "BasicBlock", "holds more"),
    (BLOCK + "\n\ndef fit():\n    pass", "BasicBlock", "fit is redefined"),
    ("if True:\n    class ResNet:\n        pass", None, "ResNet is redefined"),
    ("a, (b, BasicBlock) = 1, (2, 3)", None, "BasicBlock is redefined"),
    ("print(fit := 3)", None, "fit is redefined"),
    ("from timm.models.resnet import BasicBlock", None, "BasicBlock is redefined"),
    ("from resnet_lib import plots as fit", None, "fit is redefined"),
    ("import torch as fit", None, "fit is redefined"),
]
USES = [  # which are no redefinition
    "from resnet_lib import BasicBlock, fit",
    "from resnet_lib.basic_block import BasicBlock as BasicBlock",
    "from torchvision.models.resnet import BasicBlock as TorchvisionBlock",
    "class FirstAttempt:\n    BasicBlock = None",
    "def f(fit):\n    BasicBlock = fit\n    return BasicBlock",
    "[fit for fit in range(3)]",
    "model.fit = 3\nmodels['fit'] = BasicBlock(fit=2)",
    "%matplotlib inline\n!pip list\nfit(1)",
]


def test_planted_drifts_are_seen_and_layout_and_use_are_free():
    for before, after in (DIFFERENT | SAME).items():
        assert before in BLOCK
        told = problems(BLOCK.replace(before, after), ["BasicBlock"])
        seen = ["BasicBlock differs from resnet_lib's"] if before in DIFFERENT else []
        assert told == seen, after
    for cell, home, words in PLANTED:
        told = problems(cell, [home] if home else [])
        assert any(words in complaint for complaint in told), cell
    for cell in USES:
        assert problems(cell, []) == [], cell
