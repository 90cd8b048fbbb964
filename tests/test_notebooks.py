"""The grammar of the notebooks and the hygiene of their committed outputs."""

import json
import re
import statistics
from itertools import pairwise
from pathlib import Path
from tempfile import gettempdir

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
LESSONS = sorted(FOLDER.glob("[0-9]*.ipynb"))
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
    assert len(LESSONS) >= 2
    expected = {f"{path.stem[:2]}_solutions" for path in LESSONS}
    assert {path.stem for path in SOLUTIONS} == expected


# --- grammar --------------------------------------------------------------------------


@pytest.mark.parametrize("path", LESSONS, ids=by_name)
def test_budgets(path):
    cells = read(path)
    assert 35 <= len(cells) <= 80
    lengths = [len(source.strip().splitlines()) for source, _ in code_cells(path)]
    assert statistics.median(lengths) <= 7
    assert max(lengths[1:]) <= 30  # the set-up cell is a list of imports
    kinds = "".join("c" if kind == "code" else "m" for kind, _, _ in cells)
    assert "ccc" not in kinds, "more than two code cells without prose between them"
    assert all(source.strip() for _, source, _ in cells), "an empty cell"


@pytest.mark.parametrize("path", LESSONS, ids=by_name)
def test_opening_and_closing(path):
    cells = read(path)
    kind, opening, _ = cells[0]
    number = path.stem[:2]
    assert kind == "markdown" and opening.startswith(f"# {number} · ")
    assert "(../README.md)" in opening and "§" in opening
    assert 1 <= len(re.findall(r"^- ", opening, re.M)) <= 4
    assert cells[1][0] == "code" and "plots.use_style()" in cells[1][1]
    assert sum("use_style()" in source for source, _ in code_cells(path)) == 1
    text = prose(path)
    headings = re.findall(r"^## (.+)$", text, re.M)
    assert headings[-3:] == ["Summary", "Questions", "Exercises"]
    questions = text.split("## Questions")[1].split("<details>")[0]
    assert 5 <= len(re.findall(r"^\d\. ", questions, re.M)) <= 8
    checked = [s for s, _ in code_cells(path) if re.search(r"^checks\.check_", s, re.M)]
    wanted = (2, 3) if "bug" not in path.stem else (6, 6)
    assert wanted[0] <= len(checked) <= wanted[1]
    assert cells[-1][0] == "markdown"


@pytest.mark.parametrize("path", LESSONS, ids=by_name)
def test_every_section_ends_in_an_assert_or_a_figure(path):
    section, last = None, None
    for kind, source, cell in read(path):
        heading = re.findall(r"^## (.+)$", source, re.M) if kind == "markdown" else []
        if heading:
            if section and last:
                _assert_or_figure(path, section, last)
            section, last = heading[-1], None
            if section == "Summary":
                break
        elif kind == "code":
            last = (source, cell)


def _assert_or_figure(path, section, last):
    source, cell = last
    proof = re.search(r"^\s*(assert\b|torch\.testing\.assert_close)", source, re.M)
    assert proof or has_figure(cell) or "check" in source, f"{path.stem}: {section}"


def title(path):
    return prose(path).splitlines()[0].removeprefix("# ")


def test_navigation_leads_along_the_series():
    for before, after in pairwise(LESSONS):
        opening = {path: prose(path).split("\n## ")[0] for path in (before, after)}
        assert f"[next: {title(after)} →]({after.name})" in opening[before]
        assert f"[← {title(before)}]({before.name})" in opening[after]


def test_a_lesson_is_called_by_its_title():
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    for lesson, solutions in zip(LESSONS, SOLUTIONS, strict=True):
        assert f"[{title(lesson)}](notebooks/{lesson.name})" in readme
        assert title(solutions) == f"Solutions to {title(lesson)}"
        assert f"[← {title(lesson)}](../{lesson.name})" in prose(solutions)


@pytest.mark.parametrize("path", LESSONS + SOLUTIONS, ids=by_name)
def test_no_cell_keeps_the_marks_of_another_format(path):
    assert not [
        source
        for _, source, _ in read(path)
        if re.search(r"^(# %%|%% \[)", source, re.M)
    ]


@pytest.mark.parametrize("path", LESSONS + SOLUTIONS, ids=by_name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", prose(path)):
        if not target.startswith(("http", "attachment:")):
            assert (path.parent / target).exists(), target


# --- committed outputs ----------------------------------------------------------------


@pytest.mark.parametrize("path", LESSONS + SOLUTIONS, ids=by_name)
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
    for place in (
        "/home/",
        "/Users/",
        "C:\\",
        gettempdir(),
        FOLDER.parent,
    ):
        assert str(place) not in text, f"a path of one machine: {place}"
    assert not re.search(r"\b[0-9]{1,2}%\|", text), "a progress bar half way"


@pytest.mark.parametrize("path", LESSONS, ids=by_name)
def test_outputs_are_from_cifar10(path):
    text = json.dumps([cell["outputs"] for _, cell in code_cells(path)])
    assert "CIFAR-10 was not at hand" not in text


@pytest.mark.parametrize("path", LESSONS, ids=by_name)
def test_saved_widgets_hold_together(path):
    """Every view shows a widget, and every reference means what its name says."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    kind = "application/vnd.jupyter.widget-{}+json"
    saved = notebook["metadata"].get("widgets", {}).get(kind.format("state"), {})
    models = saved.get("state", {})
    for _, cell in code_cells(path):
        for output in cell["outputs"]:
            if view := output.get("data", {}).get(kind.format("view")):
                kind_of = models[view["model_id"]]["model_name"]
                assert kind_of in ("VBoxModel", "AnyModel")
    for model in models.values():
        for key, name in (("layout", "LayoutModel"), ("style", "StyleModel")):
            if reference := model["state"].get(key):
                target = models[reference.removeprefix("IPY_MODEL_")]
                assert target["model_name"].endswith(name)
