"""What a page shows: the explorer without a browser, and figures that speak or turn."""

import base64
import copy
import io
from dataclasses import replace

import drawings
import IPython.display
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import traitlets
from ipywidgets import Widget
from nbformat.v4 import new_code_cell, new_notebook, new_output
from nets import small_net
from PIL import Image
from test_probes import shaken

from resnet_lib import PAPER, Dataset, Images, Normalisation, fit, get_model, plots
from resnet_lib.explorer import Explorer
from resnet_lib.explorer.inside import kernel_of, look_inside
from resnet_lib.explorer.widget import pictures_for
from resnet_lib.probes import lesion
from resnet_lib.runs import Run, load_run
from workshop.execute import STATE, VIEW, numbered, shrink

torch.manual_seed(0)
PICTURES = torch.randint(256, (30, 3, 32, 32), dtype=torch.uint8)
PART = Images(PICTURES, torch.arange(30) % 10)
DATA = Dataset("digits", tuple("abcdefghij"), train=PART, test=PART)
NORM = Normalisation.of(PICTURES)
PAIR = {"residual": shaken("resnet14"), "plain": shaken("plain14")}
SCALES = {"layer1.1": 0, "layer2.0": 0.5, "layer3.1": 0.25}


@pytest.fixture
def explorer():
    return heard(Explorer(copy.deepcopy(PAIR), DATA, NORM, judged=20))


def heard(explorer):
    """The same, with a list of what it sends."""
    explorer.sent = []
    explorer.send = lambda *sent: explorer.sent.append((*sent, None)[:2])
    return explorer


def ask(explorer, kind, buffers=(), **question):
    """The answer that the view would get."""
    explorer._answer(None, {"kind": kind, "id": "1"} | question, list(buffers))
    content, out = explorer.sent.pop()
    assert content["kind"] == "reply" and content["id"] == "1"
    assert "error" not in content, content["error"]
    return content, [np.frombuffer(one, dtype=np.float32) for one in out or []]


# --- numbers --------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["stem", "layer1.0", "layer2.0", "layer3.1"])
def test_the_arithmetic_of_a_pixel_adds_up(block):
    model = PAIR["residual"]
    parts = look_inside(model, NORM(PICTURES[:1])).parts
    read = parts["input" if block == "stem" else f"{block}.h"][0]
    made = parts[f"{block}.f"][0]
    padded = torch.nn.functional.pad(read, (1, 1, 1, 1))
    for channel, row, column in ((0, 0, 0), (3, 5, 2), (7, 7, 7)):
        kernel = kernel_of(model, block, channel)
        window = padded[:, row : row + 3, column : column + 3]
        value = kernel.scale * (kernel.weights * window).sum() + kernel.shift
        torch.testing.assert_close(value, made[channel, row, column], atol=1e-4, rtol=0)


def test_a_view_ends_up_with_every_number(explorer):
    """It keeps what it has; only what a lesion changes is computed and sent again."""
    view = {title: {} for title in PAIR}  # what it has, by network and part
    have, counts = None, []
    lesions = ({}, {"layer3.1": 0}, SCALES, {"layer1.0": 0}, {})
    steps = [(picture, scales) for picture in (2, 15) for scales in lesions]
    for number, (picture, scales) in enumerate(steps):
        if number == 3:  # somebody goes on training the network on show
            torch.nn.init.constant_(explorer.models["residual"].bn1.bias, 0.5)
        before = (explorer.scales, explorer.picture)
        question = {"scales": scales, "picture": picture, "have": have}
        content, out = ask(explorer, "look", **question)
        early, buffers = explorer.sent.pop()  # before the maps
        assert early["early"] and early["id"] == "1" and not buffers
        assert content["label"] == picture % 10
        assert before == (explorer.scales, explorer.picture)  # a question is no order
        explorer.scales, explorer.picture = scales, picture
        counts.append(sum(len(numbers) for numbers in out[1:]))
        nets = zip(content["nets"], early["nets"], out[1:], strict=True)
        for net, first, numbers in nets:
            known = view[net["title"]]
            for name, shape in net["parts"]:
                part, numbers = np.split(numbers, [np.prod(shape)])
                known[name] = part.reshape(shape)
            assert not len(numbers)
            inside = explorer.look(net["title"])
            for name, found in known.items():
                assert np.array_equal(found, inside.parts[name][0]), (name, scales)
            assert net["logits"] == first["logits"] == inside.logits[0].tolist()
            whole = explorer.look(net["title"], {}).logits[0]
            assert net["whole"] == pytest.approx(whole.tolist(), abs=1e-4)
        have = {"scales": scales}
        have["keys"] = {net["title"]: net["key"] for net in content["nets"]}
    assert counts[0] == counts[5] == max(counts)  # another picture: everything
    assert counts[1] < 0.05 * counts[0] < 0.5 * counts[0] < counts[3]
    assert "layer2.0.x" in known and "layer2.1.x" not in known  # the view knows it


def test_the_strip_shows_no_picture_twice():
    strip = pictures_for(DATA, mistakes=[3, 29])
    two_of_each = [index for label in range(10) for index in (label, label + 10)]
    assert [one["index"] for one in strip] == [*two_of_each, 29]
    assert [one["index"] for one in strip if one["mistake"]] == [3, 29]
    assert all(one["label"] == one["index"] % 10 for one in strip)


@torch.no_grad()
def test_the_view_gets_a_kernel_what_it_reads_and_the_accuracy(explorer):
    question = {"net": "plain", "block": "layer2.0", "channel": 5}
    content, (weights, maps) = ask(explorer, "kernel", **question)
    kernel = kernel_of(PAIR["plain"], "layer2.0", 5)
    assert np.array_equal(weights, kernel.weights.numpy().ravel())
    assert content["shift"] == kernel.shift and content["shape"] == [32, 16, 16]
    h = explorer.look("plain").parts["layer2.0.h"][0]
    assert np.array_equal(maps, h.numpy().ravel())
    content, _ = ask(explorer, "judge", scales=SCALES, start=0)
    assert content["of"] == 20
    for title, model in PAIR.items():
        with lesion(model, SCALES):
            right = (model(NORM(PICTURES[:20])).argmax(1) == PART.labels[:20]).sum()
        assert content["right"][title] == right
    assert ask(explorer, "judge", start=20)[0]["of"] == 0


# --- state ----------------------------------------------------------------------------


def test_the_state_can_be_read_and_set(explorer):
    assert (explorer.net, explorer.block) == ("residual", "layer1.0")
    explorer.block, explorer.scales = "layer2.1", {"layer1.0": 0}
    explorer.picture = 3
    assert explorer.label == 3 and torch.equal(explorer.image, PICTURES[3])
    for title, found in explorer.probabilities.items():
        x = NORM(PICTURES[3:4])
        right = look_inside(PAIR[title], x, {"layer1.0": 0}).logits[0].softmax(0)
        torch.testing.assert_close(found, right)
    assert "layer2.1" in explorer.sentence() and "layer1.0 × 0" in explorer.sentence()


def test_what_is_not_there_is_a_sentence(explorer, refused):
    for name, value, words in (
        ("block", "layer9.0", "choose from"),
        ("net", "dense", "choose from"),
        ("picture", 30, "from 0 to 29"),
        ("scales", {"layer1.0": 2}, "from 0 to 1"),
        ("scales", {"fc": 0}, "choose from"),
        ("own", b"short", "3072 bytes"),
        ("pixel", [3], "give .row, column., or"),
    ):
        before = getattr(explorer, name)
        refused(words, setattr, explorer, name, value, error=traitlets.TraitError)
        assert getattr(explorer, name) == before
    for question in ({"kind": "look", "scales": {"x": 0}}, {"kind": "dance"}, {}):
        explorer._answer(None, question, [])  # nobody could catch an error
        assert explorer.sent.pop()[0]["error"]


def test_one_net_or_two_and_two_explorers_that_are_linked():
    with pytest.raises(ValueError, match="not 3"):
        Explorer(PAIR | {"third": PAIR["plain"]}, DATA, NORM)
    one, other = (Explorer({n: PAIR[n]}, DATA, NORM, 5, block="stem") for n in PAIR)
    assert list(one.probabilities) == ["residual"] and one.figure().axes
    one.link(other)
    one.block, other.picture = "layer3.1", 4
    assert (other.block, one.picture) == ("layer3.1", 4)
    one.show(PICTURES[7])
    assert other.picture == -1 and torch.equal(other.image, PICTURES[7])


def test_a_shallower_net_beside_a_deeper_one_has_a_picture():
    nets = {"shallow": shaken("resnet8"), "deep": PAIR["residual"]}
    explorer = Explorer(nets, DATA, NORM, 5, net="shallow", block="layer1.1")
    for net, block in (("shallow", "stem"), ("deep", "layer1.1")):  # as in the view
        explorer.net = net
        title = explorer.figure().subfigs[1].get_suptitle()
        for words in (title, explorer.sentence()):
            assert words.startswith(f"{net}, {block}, ")


def test_what_cannot_be_looked_into_is_refused_and_nothing_is_changed(refused):
    refused(
        "'dense' has no BasicBlock", Explorer, {"dense": torch.nn.Linear(3, 10)}, DATA
    )
    broken = copy.deepcopy(PAIR["plain"])
    broken.fc.bias.data[3] = torch.nan  # diverged: to be looked into all the same
    content, _ = ask(heard(Explorer({"net": broken}, DATA, NORM, 5)), "look")
    assert content["nets"][0]["logits"].index(None) == 3
    leaky, parts = copy.deepcopy(PAIR["residual"]), PAIR["residual"].layer1
    leaky.relu = torch.nn.LeakyReLU(0.5)
    in_a_row = torch.nn.Sequential(PAIR["residual"].conv1, parts, torch.nn.Flatten())
    for net in (leaky, in_a_row):
        refused("'net' computes something other", Explorer, {"net": net}, DATA, NORM)
    small = Images(PICTURES[..., :8], PART.labels)
    data = Dataset("strips", DATA.classes, train=small, test=small)
    refused("no images to draw", plots.image_grid, PICTURES[:0], [])
    refused("for each image: 3, not 2", plots.image_grid, PICTURES[:3], ["a", "b"])
    given = {"error": ZeroDivisionError, "end": (1, 5)}
    refused("zero", plots.interact, lambda end: end / 0, ALT, **given)
    plots.LiveCurves().draw([])  # stopped before the first row
    refused(r"strips have \(3, 32, 8\)", Explorer, PAIR, data, NORM)
    net = copy.deepcopy(PAIR["plain"]).train()
    Explorer({"plain": net}, DATA, NORM, 5).figure()
    assert net.training


def test_a_run_is_played_back():
    run = load_run("resnet18-paper-64k")
    explorer = heard(Explorer({"residual": run}, DATA, NORM, judged=5))
    assert explorer.iteration == 64_000 == explorer.shown("residual")
    explorer.iteration = 4_100
    assert explorer.shown("residual") == 4_000
    early = run.model(4_000).conv1.weight
    assert torch.equal(explorer.model("residual").conv1.weight, early)
    explorer._answer(None, {"kind": "about"}, [])
    about = explorer.sent.pop()[0]["about"]["nets"][0]
    assert about["kept"][:2] == [0, 500] and about["curves"]["train_error"][0][0] == 100


def test_a_run_is_shown_as_it_was_trained(tmp_path):
    """With a mean for each pixel, if its recipe has one."""
    recipe = replace(PAPER.scaled(2), batch_size=8, validation=0, per_pixel_mean=True)
    fit(small_net(), DATA, recipe, tmp_path, device="cpu", progress=False)
    explorer = Explorer({"residual": Run(tmp_path)}, DATA)
    right = Normalisation.of(PART.images, per_pixel=True)
    assert explorer.normalisation.mean.shape == right.mean.shape
    right = Run(tmp_path).model().eval()(explorer.normalisation(PICTURES[:1]))
    torch.testing.assert_close(explorer.look("residual").logits, right)
    other = replace(DATA, name="strips")  # which the run has never seen
    assert Explorer({"residual": Run(tmp_path)}, other).normalisation.mean.numel() == 3


@torch.no_grad()
def test_right_answers_are_counted_again_after_more_training():
    explorer = heard(Explorer(copy.deepcopy(PAIR), DATA, NORM, judged=11))
    told = set()  # by which the view knows that it has to ask again
    for label, right in ((1, 1), (0, 2)):  # the eleven are of the classes 0 to 9 and 0
        explorer.models["residual"].fc.bias.data[label] += 1e6  # its answer from now on
        content, _ = ask(explorer, "judge", start=0)
        assert content["right"]["residual"] == right
        told |= {
            ask(explorer, "look", picture=n)[0]["nets"][0]["weights"] for n in (0, 1)
        }
    assert len(told) == 2


def test_a_network_in_training_is_never_taken_out_of_it(explorer):
    """Jupyter lets the view ask from a second thread, while a cell trains."""
    model, modes = explorer.models["residual"].train(), set()
    switch = type(model).train
    model.train = lambda mode=True: (modes.add(mode), switch(model, mode))[1]
    for kind in ("look", "judge", "kernel"):
        ask(explorer, kind, net="residual", block="layer2.0", channel=0, start=0)
    assert modes <= {True} and model.training


def test_only_the_explorer_that_counted_last_keeps_what_it_counts_with(explorer):
    other = heard(Explorer(PAIR, DATA, NORM, judged=20))
    for one, former in ((explorer, other), (other, explorer), (explorer, other)):
        right = ask(one, "judge", start=0)[0]["right"]
        assert one.lesioned and not former.lesioned
    assert right == ask(other, "judge", start=0)[0]["right"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_network_on_a_gpu_is_shown(explorer):
    there = heard(Explorer({"residual": copy.deepcopy(PAIR["residual"]).cuda()}, DATA))
    there.normalisation = NORM
    for kind in ("look", "judge", "kernel"):
        ask(there, kind, net="residual", block="layer2.0", channel=0, start=0)
    torch.testing.assert_close(
        there.look("residual").logits, explorer.look("residual").logits, atol=1e-2
    )


def test_a_page_without_a_kernel_has_a_picture(explorer):
    plt.close("all")
    data, _ = explorer._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG") and len(data["image/png"]) < 90_000
    assert "residual" in data["text/plain"]
    explorer.scales, explorer.pixel = {"layer1.0": 0}, [3, 4]
    for net in PAIR:
        for block in ("stem", "layer2.0", "layer2.1"):
            explorer.net, explorer.block = net, block
            assert explorer.figure().axes
    assert plt.get_fignums() == []


def test_the_picture_marks_the_pixel_and_tells_the_scale_as_the_view_does(explorer):
    explorer.block, explorer.scales = "layer3.1", {"layer3.1": 0.5}
    for chosen, marked in (([2, 3], (2, 3)), ([20, 30], (7, 7))):  # of 8 × 8
        explorer.pixel = chosen
        x, f, total, out, _ = explorer.figure().subfigs[1].axes
        assert total.get_title() == "0.50·F(x) + x"
        assert out.get_title() == "after ReLU"
        for ax in (x, f, total, out):
            assert (ax.patches[0].get_y() + 0.5, ax.patches[0].get_x() + 0.5) == marked
    explorer.net = "plain"  # whose lent shortcut comes after the ReLU
    *_, out, _ = explorer.figure().subfigs[1].axes
    assert out.get_title() == "output"


def test_own_pictures(explorer, tmp_path):
    Image.new("L", (64, 64), 250).save(tmp_path / "mine.png")
    explorer.show((tmp_path / "mine.png").read_bytes())
    assert explorer.picture == -1 and explorer.label is None
    assert explorer.sent == []  # that the number changed tells the views
    Image.new("L", (64, 64), 5).save(tmp_path / "mine.png")
    explorer.show(tmp_path / "mine.png")
    assert explorer.sent.pop()[0] == {"kind": "again"}
    assert (explorer.image == 5).all()
    ask(explorer, "own", [PICTURES[5].numpy().tobytes()])
    assert torch.equal(explorer.image, PICTURES[5])
    with pytest.raises(ValueError, match="uint8"):
        explorer.show(torch.zeros(3, 32, 32))
    assert "your own" in explorer.sentence()


# --- figures --------------------------------------------------------------------------

ALT = 'A line that "rises" from 1 to 2.'


def test_words_and_pictures_stay_in_a_saved_notebook_in_fewer_bytes(monkeypatch):
    outputs, ends = [], []

    def keep(data, raw, metadata=None):
        assert raw
        outputs.append(new_output("display_data", data, metadata=metadata or {}))

    def draw(end: float):
        ends.append(end)
        figure, ax = plt.subplots()
        ax.plot([1, end])
        return figure

    monkeypatch.setattr(IPython.display, "display", keep)
    plots.describe(draw(2), 'A line that\n    "rises" from 1 to 2.')
    assert not plt.get_fignums(), "a second picture would follow at the cell's end"
    plots.interact(draw, ALT, end=(1, 5))
    widgets = getattr(Widget, "widgets", None) or Widget._active_widgets
    slider, picture, _ = widgets[outputs[2].data[VIEW]["model_id"]].children
    before = picture.value
    assert before.count(outputs[2].data["image/png"]) == 1
    slider.value = 5
    assert ends == [2, 3, 5] and picture.value != before
    state = {STATE: {"state": {"f" * 32: {"state": {"value": before}}}}}
    cell = new_code_cell(outputs=copy.deepcopy(outputs))
    notebook = new_notebook(cells=[cell], metadata={"widgets": state})
    shrink(notebook)
    figure, pixel, turned = numbered(notebook).cells[0].outputs
    for one in (figure, turned):
        assert one.metadata["image/png"]["alt"] == one.data["text/plain"] == ALT
    assert 'alt="A line that &quot;rises&quot; from 1 to 2."' in pixel.data["text/html"]
    kept = notebook.metadata["widgets"][STATE]["state"]["f" * 32]["state"]["value"]
    assert len(kept) < len(before) and kept.split('"')[4:] == before.split('"')[4:]
    small = kept.split("base64,")[1].split('"')[0]
    files = [one.data["image/png"] for one in (outputs[0], figure)]
    for pair in (files, [outputs[2].data["image/png"], small]):
        sizes = {Image.open(io.BytesIO(base64.b64decode(one))).size for one in pair}
        assert len(sizes) == 1


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
