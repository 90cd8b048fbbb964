"""Figures that say in words what they show, and figures to turn."""

import base64
import io

import drawings
import IPython.display
import matplotlib.pyplot as plt
import nbformat
import pytest
from PIL import Image

from resnet_lib import get_model, plots
from workshop.execute import STATE, numbered, shrink

ALT = 'A line that "rises" from 1 to 2.'


@pytest.fixture
def shown(monkeypatch):
    """What the cell shows, as a notebook keeps it."""
    outputs = []

    def keep(data, raw, metadata=None):
        assert raw
        outputs.append(
            nbformat.v4.new_output("display_data", data, metadata=metadata or {})
        )

    monkeypatch.setattr(IPython.display, "display", keep)
    return outputs


def line(end: float = 2):
    figure, ax = plt.subplots()
    ax.plot([1, end])
    return figure


def test_words_and_pictures_stay_in_a_saved_notebook_in_fewer_bytes(shown):
    plots.describe(line(), 'A line that\n    "rises" from 1 to 2.')
    assert not plt.get_fignums(), "a second picture would follow at the cell's end"
    png = shown[0].data["image/png"]
    widget = {"value": f'<img alt="x" src="data:image/png;base64,{png}" style="">'}
    state = {STATE: {"state": {"f" * 32: {"state": widget.copy()}}}}
    cell = nbformat.v4.new_code_cell(outputs=shown)
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": state})
    shrink(notebook)
    picture, pixel = numbered(notebook).cells[0].outputs
    assert picture.metadata["image/png"]["alt"] == picture.data["text/plain"] == ALT
    assert 'alt="A line that &quot;rises&quot; from 1 to 2."' in pixel.data["text/html"]
    kept = notebook.metadata["widgets"][STATE]["state"]["f" * 32]["state"]["value"]
    assert len(kept) < len(widget["value"]) and kept.endswith('" style="">')
    small = kept.split("base64,")[1].split('"')[0]
    files = [base64.b64decode(one) for one in (png, picture.data["image/png"], small)]
    assert len({Image.open(io.BytesIO(file)).size for file in files}) == 1


def test_a_control_draws_anew_and_a_page_shows_the_first_figure(shown):
    ends = []

    def draw(end: float):
        ends.append(end)
        return line(end)

    plots.interact(draw, ALT, end=(1, 5))
    (bundle,) = shown
    assert ends == [3] and bundle.metadata["image/png"]["alt"] == ALT
    from ipywidgets import Widget

    view = bundle.data["application/vnd.jupyter.widget-view+json"]
    box = getattr(Widget, "widgets", None) or Widget._active_widgets
    slider, picture, _ = box[view["model_id"]].children
    before = picture.value
    assert before.count(bundle.data["image/png"]) == 1
    slider.value = 5
    assert ends == [3, 5] and picture.value != before


def test_the_map_has_a_shortcut_for_every_addition():
    for name, arcs, dashed in (("resnet18", 8, 3), ("plain20", 0, 0)):
        ax = drawings.network_map(get_model(name))
        lines = [patch for patch in ax.patches if patch.get_linewidth() == 1.4]
        words = [text.get_text() for text in ax.texts]
        assert len(lines) == words.count("+") == arcs
        assert "layer2\n32, 16, 16" in words
        assert sum(line.get_linestyle() != "-" for line in lines) == dashed
    plt.close("all")


def test_a_flow_draws_every_step_and_its_shortcut():
    ax = plt.subplots()[1]
    steps = ["x", "3×3 conv\n16 → 32", "+", "y"]
    centres = drawings.flow(ax, steps, ["16×8×8"], skip=(0, 2), skip_label="A", lit=1)
    words = [text.get_text() for text in ax.texts]
    assert all(word in words for word in (*steps, "16×8×8", "A"))
    start, _, end = ax.lines[0].get_xdata()
    assert centres[0] < start < centres[1] < centres[2] == end < centres[3]
    faces = [patch.get_facecolor()[:3] == (1, 1, 1) for patch in ax.patches[:4]]
    assert faces == [True, False, True, True]
    plt.close("all")
