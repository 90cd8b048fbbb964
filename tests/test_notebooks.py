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


def by_name(path):
    return path.stem


def read(path):
    """The cells as (kind, source, cell)."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"]), cell) for cell in cells]


def code_cells(path):
    return [(source, cell) for kind, source, cell in read(path) if kind == "code"]


def prose(path):
    return "\n".join(source for kind, source, _ in read(path) if kind == "markdown")


def has_figure(cell):
    return any(
        "image/png" in output.get("data", {})
        or "application/vnd.jupyter.widget-view+json" in output.get("data", {})
        for output in cell["outputs"]
    )


def test_there_are_lessons_with_solutions():
    assert len(LESSONS) >= 7
    asked = {
        p.stem.split("_")[0] for p in ALL if re.search("^checks.check_", code(p), re.M)
    }
    assert {path.stem.removesuffix("_solutions") for path in SOLUTIONS} == asked


# --- how a notebook reads -------------------------------------------------------------


def code(path):
    return "\n".join(source for source, _ in code_cells(path))


@pytest.mark.parametrize("path", ALL, ids=by_name)
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


@pytest.mark.parametrize("path", ALL, ids=by_name)
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
        elif has_figure(cell):
            first = since if first is None else first
            since = 0
    assert first <= 300


def test_the_series_is_short():
    assert sum(len(prose(path).split()) for path in ALL) <= 18_000


@pytest.mark.parametrize("path", ALL, ids=by_name)
def test_every_picture_says_in_words_what_it_shows(path):
    for source, cell in code_cells(path):
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                metadata = output["metadata"].get("image/png", {})
                assert len(metadata.get("alt", "")) > 40, source[:80]


@pytest.mark.parametrize("path", ALL, ids=by_name)
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
        solutions = (
            FOLDER / "solutions" / f"{lesson.stem.split('_')[0]}_solutions.ipynb"
        )
        if solutions in SOLUTIONS:
            assert title(solutions) == f"Solutions to {title(lesson)}"
            assert f"[← {title(lesson)}](../{lesson.name})" in prose(solutions)


@pytest.mark.parametrize("path", ALL + SOLUTIONS, ids=by_name)
def test_links_lead_somewhere_and_cells_keep_no_marks_of_another_format(path):
    for target in re.findall(r"\]\(([^)#]+)\)", prose(path)):
        if not target.startswith(("http", "attachment:")):
            assert (path.parent / target).exists(), target
    for _, source, _ in read(path):
        assert not re.search(r"^(# %%|%% \[)", source, re.M), source


# --- committed outputs ----------------------------------------------------------------


@pytest.mark.parametrize("path", ALL + SOLUTIONS, ids=by_name)
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
    assert lost_widgets(json.loads(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("loss", ["all", "the shown", "inside", "a part", "entry"])
def test_a_widget_without_state_is_found(loss):
    """What a browser, a merge or a careless tool leaves behind."""
    some = next(path for path in ALL if VIEW in path.read_text(encoding="utf-8"))
    notebook = json.loads(some.read_text(encoding="utf-8"))
    saved = notebook["metadata"]["widgets"]
    models = saved[STATE]["state"]
    layout = next(k for k, w in models.items() if w["model_name"] == "LayoutModel")
    if loss == "all":
        del notebook["metadata"]["widgets"]
    elif loss == "the shown":
        outputs = [o for c in notebook["cells"] for o in c.get("outputs", [])]
        views = [o["data"][VIEW] for o in outputs if VIEW in o.get("data", {})]
        del models[views[0]["model_id"]]
    elif loss == "inside":
        models.clear()
    elif loss == "a part":
        del models[layout]
    else:
        del saved[STATE]
    assert lost_widgets(notebook)


@pytest.mark.parametrize("path", ALL, ids=by_name)
def test_saved_widgets_hold_together(path):
    """Every view shows a widget, and every reference means what its name says."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    kind = "application/vnd.jupyter.widget-{}+json"
    saved = notebook["metadata"].get("widgets", {}).get(kind.format("state"), {})
    models = saved.get("state", {})
    for _, cell in code_cells(path):
        for output in cell["outputs"]:
            if view := output.get("data", {}).get(kind.format("view")):
                name = models[view["model_id"]]["model_name"]
                assert name in ("VBoxModel", "AnyModel")
    for model in models.values():
        for key, name in (("layout", "LayoutModel"), ("style", "StyleModel")):
            if reference := model["state"].get(key):
                target = models[reference.removeprefix("IPY_MODEL_")]
                assert target["model_name"].endswith(name)
