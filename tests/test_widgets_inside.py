"""The widgets of notebook 06, control by control, without a browser."""

import asyncio
import io
import warnings

import pytest
import torch
from PIL import Image

from resnet_lib.data import Dataset, Images, Normalisation
from resnet_lib.probes import lesion
from resnet_lib.resnet import get_model
from resnet_lib.runs import load_run
from resnet_lib.widgets import (
    ActivationInspector,
    BlockXray,
    GradientExplorer,
    ImagePicker,
    LesionLab,
    TimeMachine,
)
from resnet_lib.widgets.images import OWN, read_picture, uploaded_file

torch.manual_seed(0)
PICTURES = torch.randint(256, (30, 3, 32, 32), dtype=torch.uint8)
PART = Images(PICTURES, torch.arange(30) % 10)
DATA = Dataset("digits", tuple("abcdefghij"), train=PART, test=PART)
NORM = Normalisation.of(PICTURES)
PAIR = {"residual": get_model("resnet14"), "plain": get_model("plain14")}


def file(kind="PNG", size=(50, 40), mode="RGB", colour="red"):
    content = io.BytesIO()
    Image.new(mode, size, colour).save(content, kind)
    return content.getvalue()


def make(kind):
    if kind is ActivationInspector:
        return ActivationInspector(PAIR, DATA, NORM, [3, 5])
    if kind is BlockXray:
        return BlockXray(PAIR["residual"], DATA, NORM, [3, 5])
    if kind is LesionLab:
        return LesionLab(PAIR, DATA, NORM, [3, 5], count=20)
    if kind is TimeMachine:
        return TimeMachine(load_run("resnet18-paper-64k"), DATA, NORM, [3, 5])
    return GradientExplorer(
        lambda depth, kind, bn: [2.0 + bn] * depth if kind == "plain" else [1] * depth,
        [2, 8, 32],
    )


LOOKS = [ActivationInspector, BlockXray, LesionLab, TimeMachine]


def seen(widget):
    return widget.words.value, widget.picture.value


# --- pictures -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "size", "mode"),
    [
        ("PNG", (1, 1), "RGB"),
        ("PNG", (32, 32), "RGBA"),
        ("PNG", (300, 20), "P"),
        ("PNG", (40, 40), "L"),
        ("JPEG", (1500, 900), "RGB"),
    ],
)
def test_pictures_of_any_size_become_32_by_32(kind, size, mode):
    image = read_picture(file(kind, size, mode, 255 if mode in "LP" else "red"))
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8


def test_transparent_becomes_white():
    content = file(size=(8, 8), mode="RGBA", colour=(0, 0, 0, 0))
    assert (read_picture(content) == 255).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "neither a PNG nor a JPEG"),
        (b"hello", "neither a PNG nor a JPEG"),
        (file("GIF", mode="P", colour=0), "neither a PNG nor a JPEG"),
        (file(size=(300, 300))[:-40], "damaged"),
        (file("JPEG", (9_500, 9_500), "L", 0), "too many pixels"),
    ],
)
def test_a_wrong_file_is_a_sentence(content, words):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=words):
            read_picture(content)
    picker = ImagePicker(DATA, NORM)
    picker.show(content, "<b>.gif")
    assert words in picker.words.value and "&lt;b&gt;.gif" in picker.words.value
    assert picker.source == "all test images"


def test_uploads_of_ipywidgets_7_and_8():
    content = file()
    seven = {"cat.png": {"metadata": {"name": "cat.png"}, "content": content}}
    eight = ({"name": "cat.png", "type": "image/png", "content": memoryview(content)},)
    assert uploaded_file(seven) == uploaded_file(eight) == ("cat.png", content)
    assert uploaded_file({}) is uploaded_file(()) is None


def test_an_upload_becomes_the_picture():
    picker = ImagePicker(DATA, NORM)
    picks = picker.value
    picker.show(file(), "cat.png")
    assert picker.source == OWN and picker.value > picks
    assert picker.image[0].min() > 250 and picker.image[1].max() < 5  # red
    assert picker.label is None and picker.index is None
    assert "cat.png" in picker.words.value


def test_the_picker_walks_through_classes_and_mistakes():
    picker = ImagePicker(DATA, NORM, mistakes=[7, 2])
    picker.source = "c"
    assert (picker.index, picker.label, picker.slider.max) == (2, 2, 2)
    picker.position = 2
    assert picker.index == 22 and "test image 22, c" in picker.words.value
    picker.sources.value = "confident mistakes"
    assert picker.index == 7 and picker.position == 0
    assert torch.equal(picker.image, PICTURES[7])
    picker.source = OWN
    assert "grey square" in picker.caption
    for wrong in ({"source": "zebra"}, {"position": 99}):
        with pytest.raises(ValueError, match="image"):
            setattr(picker, *next(iter(wrong.items())))


# --- every widget ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOOKS)
def test_another_image_is_another_picture(kind):
    widget = make(kind)
    before = seen(widget)
    widget.picker.slider.value = 4
    after = seen(widget)
    assert after[1] != before[1]
    widget.picker.show(file(), "own.png")
    assert widget.picture.value != after[1]
    assert "Could not draw" not in widget.words.value


@pytest.mark.parametrize("kind", [*LOOKS, GradientExplorer])
def test_a_page_without_a_kernel_and_an_error(kind, monkeypatch):
    import matplotlib.pyplot as plt

    plt.close("all")
    widget = make(kind)
    assert len(repr(widget)) < 200 and "It moves when" in repr(widget)
    assert widget.figure().axes and plt.get_fignums() == []

    def broken(self):
        raise RuntimeError("<no font>")

    monkeypatch.setattr(kind, "figure", broken)
    widget.refresh()
    assert "Could not draw" in widget.words.value
    assert "&lt;no font&gt;" in widget.words.value


def test_a_slider_moved_fast_costs_one_picture(monkeypatch):
    explorer = make(GradientExplorer)
    drawn = []
    figure = GradientExplorer.figure
    monkeypatch.setattr(
        GradientExplorer, "figure", lambda self: drawn.append(1) or figure(self)
    )

    async def move():
        for depth in (2, 8, 32, 2, 8, 32, 2) * 5:
            explorer.slider.value = depth
            await asyncio.sleep(0)
        await asyncio.sleep(0.3)

    asyncio.run(move())
    assert len(drawn) <= 2
    assert "2 layers" in explorer.words.value
    explorer.slider.value = 8  # and the next change is not lost
    assert "8 layers" in explorer.words.value


# --- one by one -----------------------------------------------------------------------


def test_inspector():
    widget = make(ActivationInspector)
    assert widget.layer == "conv1"
    widget.slider.value = "layer2.1.bn2"
    assert widget.layer == "layer2.1.bn2"
    maps, order = widget.maps()["plain"]
    assert maps.shape == (32, 16, 16) and sorted(order.tolist()) == list(range(32))
    strength = maps.abs().mean((1, 2))
    assert (strength[:-1] >= strength[1:]).all()
    before = seen(widget)
    widget.channel.value = 5
    assert widget.rank == 4 and seen(widget)[0] != before[0]
    assert seen(widget)[1] != before[1]
    with pytest.raises(ValueError, match="choose from"):
        widget.layer = "layer9"
    with pytest.raises(ValueError, match="strongest"):
        widget.rank = 16
    with pytest.raises(ValueError, match="different blocks"):
        ActivationInspector(
            {"a": PAIR["residual"], "b": get_model("plain20")}, DATA, NORM
        )


def test_xray():
    widget = make(BlockXray)
    before = seen(widget)
    widget.slider.value = "layer3.0"
    assert widget.block == "layer3.0" and seen(widget) != before
    assert widget.ratios["layer3.0"] == widget.parts.ratio
    assert f"{widget.parts.ratio:.2f}" in widget.words.value
    with pytest.raises(ValueError, match="no F"):
        BlockXray(PAIR["plain"], DATA, NORM)
    with pytest.raises(ValueError, match="No residual block"):
        widget.block = "layer1"


@torch.no_grad()
def test_lesion_lab():
    widget = make(LesionLab)
    before = seen(widget)
    widget.boxes["layer1.1"].value = True
    assert widget.off == ["layer1.1"] and widget.scales == {"layer1.1": 0}
    assert seen(widget)[0] != before[0] and seen(widget)[1] != before[1]
    assert sum(widget.paths) == 2**5
    widget.slider.value = 0.5
    assert widget.scale == 0.5 and sum(widget.paths) == 2**6
    widget.swap = ("layer1.0", "layer1.1")
    widget.off, widget.scale = ["layer2.0"], 0
    x = NORM(PICTURES[:20])
    for title, model in PAIR.items():
        with lesion(model, {"layer2.0": 0}, ("layer1.0", "layer1.1")):
            right = (model(x).argmax(1) == PART.labels[:20]).double().mean().item()
        assert widget.accuracies[title] == right
    assert "layer1.0 ↔ layer1.1" in widget.words.value
    for name, value in (("off", ["x"]), ("scale", 2), ("swap", ("layer1.0", "fc"))):
        with pytest.raises(ValueError):
            setattr(widget, name, value)
    widget.swap, widget.off = None, []
    assert widget.swaps.label == "nothing"
    assert widget.accuracies == widget.intact_accuracies


def test_time_machine():
    widget = make(TimeMachine)
    assert widget.iteration == widget.shown == 64_000
    before = seen(widget)
    widget.slider.value = 4_100
    assert widget.shown == 4_000 and seen(widget) != before
    assert "iteration 4,100" in widget.words.value
    widget.iteration = 0
    assert widget.shown == 0 and widget.prediction.shape == (10,)
    widget.iteration = 520  # snaps to the history
    assert widget.iteration == 500 and widget.shown == 500
    with pytest.raises(ValueError, match="not 128000"):
        widget.iteration = 128_000


def test_time_machine_stops_at_weights_kept_between_rows_of_the_history():
    widget = TimeMachine(load_run("plain56-paper-1k"), DATA, NORM, [3, 5])
    widget.iteration = 70
    assert widget.iteration == widget.shown == 62


def test_gradient_explorer():
    widget = make(GradientExplorer)
    assert (widget.depth, widget.kind, widget.bn) == (32, "plain", False)
    before = seen(widget)
    widget.box.value = True
    assert widget.bn and widget.norms[0] == 3 and seen(widget)[1] != before[1]
    widget.kinds.value = "residual"
    widget.slider.value = 2
    assert widget.kind == "residual" and len(widget.norms) == 2
    for name, value in (("depth", 5), ("kind", "dense")):
        with pytest.raises(ValueError, match="choose from"):
            setattr(widget, name, value)
