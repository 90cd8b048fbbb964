"""The grammar of the notebooks and the hygiene of their committed outputs."""

import json
import re
from itertools import pairwise
from pathlib import Path
from tempfile import gettempdir

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


def content(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read(path):
    """The cells as (kind, source, cell)."""
    cells = content(path)["cells"]
    return [(cell["cell_type"], "".join(cell["source"]), cell) for cell in cells]


def code_cells(path):
    return [(source, cell) for kind, source, cell in read(path) if kind == "code"]


def prose(path):
    return "\n".join(source for kind, source, _ in read(path) if kind == "markdown")


def code(path):
    return "\n".join(source for source, _ in code_cells(path))


def shown(cell, kind):
    """The outputs that hold content of a kind."""
    return [output for output in cell["outputs"] if kind in output.get("data", {})]


def test_there_are_lessons_with_solutions():
    assert len(LESSONS) >= 7
    asked = {
        p.stem.split("_")[0] for p in ALL if re.search("^checks.check_", code(p), re.M)
    }
    assert {path.stem.removesuffix("_solutions") for path in SOLUTIONS} == asked


# --- how a notebook reads -------------------------------------------------------------


@every_lesson
def test_the_first_screen_says_what_it_is_and_what_to_press(path):
    (kind, opening, _), (_, _, setup) = read(path)[:2]
    number = path.stem.split("_")[0]
    assert kind == "markdown" and opening.startswith(f"# {number} · ")
    assert "(../README.md)" in opening
    assert re.search(r"[Rr]eading time: \d+ minutes", opening)
    assert "You need" in opening and "Shift+Enter" in opening
    assert len(re.findall(r"^- ", opening, re.M)) <= 4
    # The set-up is there and need not be read.
    assert setup["metadata"].get("jupyter", {}).get("source_hidden")
    assert "hide-input" in setup["metadata"].get("tags", [])
    assert code(path).count("use_style()") == 1


@every_lesson
def test_there_is_something_to_look_at_every_450_words(path):
    """From the first word to the questions; the first picture comes much sooner."""
    since, first = 0, None
    for kind, source, cell in read(path):
        if kind == "markdown":
            body = source.split("## Questions")[0]
            since += len(body.split())
            assert since <= 450, source[:80]
            if "## Questions" in source:
                break
        elif shown(cell, "image/png") or shown(cell, VIEW):
            first = since if first is None else first
            since = 0
    assert first <= 300


def test_the_series_is_short():
    assert sum(len(prose(path).split()) for path in ALL) <= 18_000


@every_lesson
def test_every_picture_says_in_words_what_it_shows(path):
    for source, cell in code_cells(path):
        for output in shown(cell, "image/png"):
            metadata = output["metadata"].get("image/png", {})
            assert len(metadata.get("alt", "")) > 40, source[:80]


@every_lesson
def test_closing(path):
    _, closing = re.split(r"^## Questions", prose(path), flags=re.M)
    questions, *exercises = re.split(r"^## Exercises?$", closing, flags=re.M)
    asked, answered = (
        len(re.findall(r"^\d\. ", part, re.M)) for part in questions.split("<details>")
    )
    assert 3 - (path in APPENDICES) <= asked == answered <= 5
    judged = re.findall(r"^checks\.check_", code(path), re.M)
    assert bool(exercises) == bool(judged) and len(judged) <= 6


def title(path):
    return prose(path).splitlines()[0].removeprefix("# ")


def test_navigation_leads_along_the_series():
    for before, after in pairwise(LESSONS):
        opening = {path: prose(path).split("\n## ")[0] for path in (before, after)}
        assert f"[next: {title(after)} →]({after.name})" in opening[before]
        assert f"[← {title(before)}]({before.name})" in opening[after]


def test_a_lesson_is_called_by_its_title():
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    for lesson in ALL:
        assert f"[{title(lesson)}](notebooks/{lesson.name})" in readme
        number = lesson.stem.split("_")[0]
        solutions = FOLDER / "solutions" / f"{number}_solutions.ipynb"
        if solutions in SOLUTIONS:
            assert title(solutions) == f"Solutions to {title(lesson)}"
            assert f"[← {title(lesson)}](../{lesson.name})" in prose(solutions)


@every_notebook
def test_links_lead_somewhere_and_cells_keep_no_marks_of_another_format(path):
    for target in re.findall(r"\]\(([^)#]+)\)", prose(path)):
        if not target.startswith(("http", "attachment:")):
            assert (path.parent / target).exists(), target
    for _, source, _ in read(path):
        assert not re.search(r"^(# %%|%% \[)", source, re.M), source


# --- committed outputs ----------------------------------------------------------------


@every_notebook
def test_outputs_are_clean_and_complete(path):
    assert path.stat().st_size < 1_000_000
    cells = code_cells(path)
    counts = [cell["execution_count"] for _, cell in cells]
    assert counts == list(range(1, len(cells) + 1)), "not run top to bottom"
    for _, cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] != "error", output.get("evalue")
            assert output.get("name") != "stderr", output["text"]
    text = json.dumps([cell["outputs"] for _, cell in cells])
    assert "Warning" not in text
    for place in ("/home/", "/Users/", "C:\\", gettempdir(), FOLDER.parent):
        assert str(place) not in text, f"a path of one machine: {place}"
    assert not re.search(r"\b[0-9]{1,2}%\|", text), "a progress bar half way"
    assert path in SOLUTIONS or "CIFAR-10 was not at hand" not in text
    assert lost_widgets(content(path)) == []


@pytest.mark.parametrize("loss", ["all", "the shown", "inside", "a part", "entry"])
def test_a_widget_without_state_is_found(loss):
    """What a browser, a merge or a careless tool leaves behind."""
    some = next(path for path in ALL if VIEW in path.read_text(encoding="utf-8"))
    notebook = content(some)
    saved = notebook["metadata"]["widgets"]
    models = saved[STATE]["state"]
    layout = next(k for k, w in models.items() if w["model_name"] == "LayoutModel")
    if loss == "all":
        del notebook["metadata"]["widgets"]
    elif loss == "the shown":
        code = [cell for cell in notebook["cells"] if "outputs" in cell]
        view, *_ = (output for cell in code for output in shown(cell, VIEW))
        del models[view["data"][VIEW]["model_id"]]
    elif loss == "inside":
        models.clear()
    elif loss == "a part":
        del models[layout]
    else:
        del saved[STATE]
    assert lost_widgets(notebook)


@every_lesson
def test_saved_widgets_hold_together(path):
    """Every view shows a widget, and every reference means what its name says."""
    saved = content(path)["metadata"].get("widgets", {})
    models = saved.get(STATE, {}).get("state", {})
    for _, cell in code_cells(path):
        for output in shown(cell, VIEW):
            name = models[output["data"][VIEW]["model_id"]]["model_name"]
            assert name in ("VBoxModel", "AnyModel")
    for model in models.values():
        for key, name in (("layout", "LayoutModel"), ("style", "StyleModel")):
            if reference := model["state"].get(key):
                target = models[reference.removeprefix("IPY_MODEL_")]
                assert target["model_name"].endswith(name)
