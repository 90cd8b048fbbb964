"""The grammar of the notebooks and the hygiene of their committed outputs."""

import copy
import json
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import gettempdir

import nbformat
import pytest

from workshop.execute import STATE, VIEW, lost_widgets

FOLDER = Path(__file__).parent.parent / "notebooks"
LESSONS = sorted(FOLDER.glob("[0-9]*.ipynb"))
APPENDICES = sorted(FOLDER.glob("A[0-9]*.ipynb"))
ALL = LESSONS + APPENDICES
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))
every_lesson = pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
every_notebook = pytest.mark.parametrize(
    "path", ALL + SOLUTIONS, ids=lambda path: path.stem
)


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


def test_there_are_lessons_with_solutions():
    assert len(LESSONS) >= 7
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


def test_the_series_is_short():
    assert sum(len(text(path, "markdown").split()) for path in ALL) <= 18_000


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


# --- committed outputs ----------------------------------------------------------------


def models_of(notebook):
    return notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})


def views_of(notebook):
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [out.data[VIEW].model_id for cell in codes for out in shown(cell, VIEW)]


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
    assert "Warning" not in said
    for place in ("/home/", "/Users/", "C:\\", gettempdir(), FOLDER.parent):
        assert str(place) not in said, f"a path of one machine: {place}"
    assert not re.search(r"\b[0-9]{1,2}%\|", said), "a progress bar half way"
    assert path in SOLUTIONS or "CIFAR-10 was not at hand" not in said
    assert lost_widgets(read(path)) == []
    models = models_of(read(path))
    kinds = {models[view].model_name for view in views_of(read(path))}
    assert kinds <= {"VBoxModel", "AnyModel"}
    for model in models.values():
        for key, name in (("layout", "LayoutModel"), ("style", "StyleModel")):
            if reference := model.state.get(key):
                target = models[reference.removeprefix("IPY_MODEL_")]
                assert target.model_name.endswith(name)


def test_a_widget_without_state_is_found():
    """What a browser, a merge or a careless tool leaves behind."""
    whole = next(read(path) for path in ALL if views_of(read(path)))
    models, (view, *_) = models_of(whole), views_of(whole)
    layout = next(k for k, w in models.items() if w.model_name == "LayoutModel")
    for lose in (
        lambda notebook: notebook.metadata.pop("widgets"),
        lambda notebook: notebook.metadata.widgets.pop(STATE),
        lambda notebook: models_of(notebook).clear(),
        lambda notebook: models_of(notebook).pop(view),
        lambda notebook: models_of(notebook).pop(layout),
    ):
        notebook = copy.deepcopy(whole)
        lose(notebook)
        assert lost_widgets(notebook)
