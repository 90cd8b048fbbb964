"""The widgets can be read and set from code, and never raise into the page."""

import io
import subprocess
import sys

import ipywidgets
import matplotlib.figure
import matplotlib.image
import pytest

from resnet_lib.explorer import DepthExplorer

CURVES = {
    32: ([1.2, 0.9, 0.8], [5.0, 0.1, 0.004]),
    1: ([1.0, 0.1], [0.2, 0.001]),
    8: ([1.0, 0.5, 0.3], [1.2, 0.01, 0.002]),
}


def pixels(explorer):
    return matplotlib.image.imread(io.BytesIO(explorer.picture.value))


def test_starts_at_the_deepest_and_follows_the_slider():
    explorer = DepthExplorer(CURVES)
    assert explorer.depth == 32
    assert list(explorer.slider.options) == [1, 8, 32]
    before = explorer.picture.value
    explorer.slider.value = 8
    assert explorer.depth == 8
    assert explorer.final_losses == (0.3, 0.002)
    assert explorer.picture.value != before
    assert "8 layers" in explorer.words.value


def test_depth_can_be_set_from_code():
    explorer = DepthExplorer(CURVES, depth=8)
    assert explorer.depth == explorer.slider.value == 8
    explorer.depth = 1
    assert explorer.slider.value == 1
    assert "1 layer:" in explorer.words.value
    assert "0.1 plain, 0.001 residual" in explorer.words.value


def test_a_depth_that_was_not_measured_names_those_that_were():
    explorer = DepthExplorer(CURVES)
    with pytest.raises(ValueError, match=r"choose from \[1, 8, 32\]"):
        explorer.depth = 3
    assert explorer.depth == 32
    with pytest.raises(ValueError, match="choose from"):
        DepthExplorer(CURVES, depth=2)


@pytest.mark.parametrize("curves", [{}, {4: ([], [1.0])}])
def test_nothing_to_draw(curves):
    with pytest.raises(ValueError, match="at least one depth"):
        DepthExplorer(curves)


def test_the_picture_is_a_png_with_something_on_it():
    image = pixels(DepthExplorer(CURVES))
    assert image.shape[0] > 200 and image.shape[1] > 500
    assert image.std() > 0.05


def test_the_static_figure_is_drawn_without_pyplot():
    import matplotlib.pyplot as plt

    plt.close("all")
    figure = DepthExplorer(CURVES).figure()
    assert isinstance(figure, matplotlib.figure.Figure)
    assert plt.get_fignums() == []  # or the page would show it twice
    assert figure.axes[0].get_title() == "32 layers"


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_losses_that_a_logarithmic_axis_cannot_show(bad):
    explorer = DepthExplorer({2: ([1.0, bad], [bad, bad]), 4: ([1.0], [bad])})
    explorer.depth = 2
    assert "Could not draw" not in explorer.words.value
    assert pixels(explorer).std() > 0.01


def test_an_error_while_drawing_becomes_a_sentence(monkeypatch):
    explorer = DepthExplorer(CURVES)

    def broken(self):
        raise RuntimeError("<no font>")

    monkeypatch.setattr(DepthExplorer, "figure", broken)
    explorer.slider.value = 1
    assert "Could not draw" in explorer.words.value
    assert "&lt;no font&gt;" in explorer.words.value


def test_the_page_without_a_kernel_reads_a_sentence():
    text = repr(DepthExplorer(CURVES))
    assert "32 layers: last loss 0.8 plain, 0.004 residual" in text
    assert len(text) <= 110  # ipywidgets cuts longer ones


def test_it_is_an_ordinary_widget():
    assert isinstance(DepthExplorer(CURVES), ipywidgets.VBox)


def test_the_library_needs_no_widgets_until_they_are_asked_for():
    code = (
        "import sys, resnet_lib, resnet_lib.probes;"
        "assert not {'anywidget', 'ipywidgets', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
