"""Other starts of a deep plain net: they begin where they say."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from resnet_lib import PAPER, get_model
from resnet_lib.data import Dataset, Images
from resnet_lib.fit import Fit
from resnet_lib.runs import load_run
from workshop import starts

DRAW = torch.Generator().manual_seed(0)
PICTURES = torch.randint(256, (600, 3, 32, 32), generator=DRAW, dtype=torch.uint8)
LABELS = torch.randint(10, (600,), generator=DRAW)
X = torch.randn(200, 3, 32, 32, generator=DRAW)


def test_the_net_that_is_built_answers_as_the_shallow_one_in_both_modes():
    torch.manual_seed(0)
    shallow = get_model("plain20")
    for layer in shallow.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0  # the statistics of X alone
    with torch.no_grad():
        shallow(X)
        net = starts.built(get_model("plain56"), shallow, X)
        expected = shallow.eval()(X)
        assert expected.std() > 0.1
        for mode in (False, True):
            torch.testing.assert_close(net.train(mode)(X), expected, rtol=0, atol=0.02)


def test_clipped_gradients_are_short_and_keep_their_direction():
    grads = []
    for change in (lambda net: net, starts.clip):
        torch.manual_seed(0)
        net = change(get_model("plain56"))
        F.cross_entropy(net(X[:16]), LABELS[:16]).backward()
        grads.append([weight.grad for weight in net.parameters()])
    lengths = [g.norm() for g in grads[0]]
    assert max(lengths) > 10 and min(lengths) < 1
    for free, clipped, length in zip(*grads, lengths, strict=True):
        torch.testing.assert_close(clipped, free / length.clamp(min=1))


@pytest.mark.parametrize("start", starts.STARTS)
def test_a_start_begins_as_its_name_says(start):
    part = Images(PICTURES, LABELS)
    data = Dataset("noise", tuple("0123456789"), part, part[:100])
    given = replace(PAPER, validation=0)
    net, recipe = starts.begin(start, given, data)
    assert (recipe.warmup_lr == 0.001) is (start == "gentle")
    trained = load_run("plain20-paper-64k").model().conv1.weight
    known = start in ("built", "built, clipped", "plain20, again")
    assert torch.equal(net.conv1.weight, trained) is known
    (100 * F.cross_entropy(net(X[:16]), LABELS[:16])).backward()
    short = max(weight.grad.norm() for weight in net.parameters()) < 1.001
    assert short == (start in ("clipped", "built, clipped", "plain20, clipped"))


@pytest.mark.parametrize("start", starts.STARTS)
def test_a_start_is_trained_and_kept(start, tmp_path):
    part = Images(PICTURES, LABELS)
    data = Dataset("noise", tuple("0123456789"), part, part[:100])
    recipe = replace(PAPER.scaled(2), batch_size=8, validation=0, log_every=1)
    kept = starts.record(start, recipe, data, tmp_path)
    kept = json.loads(json.dumps(kept, allow_nan=False))
    assert kept["history"]["iteration"] == [1, 2]
    assert kept["history"]["test_error"][0] is None
    assert kept["history"]["test_error"][1] > 0.5
    # A second call trains nothing, and measures the same weights.
    assert kept == json.loads(json.dumps(starts.record(start, recipe, data, tmp_path)))
    assert len(kept["sizes"]) == (19 if "plain20" in start else 55)


def test_a_start_that_is_stopped_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(starts, "fit", lambda *_, **__: Fit("interrupted", 1, []))
    part = Images(PICTURES, LABELS)
    data = Dataset("noise", tuple("0123456789"), part, part[:100])
    with pytest.raises(SystemExit, match="same command goes on"):
        starts.record("as is", PAPER.scaled(2), data, tmp_path)


def test_two_starts_side_by_side_lose_nothing(monkeypatch, tmp_path):
    path = tmp_path / "starts.json"

    def record(start, *_):
        path.write_text('{"gentle, seed 0": 1}')  # the one beside it ends first
        return 2

    monkeypatch.setattr(starts, "RECORDS", path)
    monkeypatch.setattr(starts, "record", record)
    monkeypatch.setattr(starts, "load_data", lambda: None)
    monkeypatch.setattr("sys.argv", ["starts", "--only", "clipped", "--seeds", "0"])
    starts.main()
    assert json.loads(path.read_text()) == {"gentle, seed 0": 1, "clipped, seed 0": 2}
