"""A small network and a few pictures, and the numbers that a run leaves."""

import torch

from resnet_lib import Dataset, Images, get_model
from resnet_lib.runs import load_weights, read_history

DRAW = torch.Generator().manual_seed(0)


def small_net(seed=0, **options):
    torch.manual_seed(seed)
    return get_model("resnet8", **options)


def pictures(count):
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=DRAW)
    return Images(pixels.to(torch.uint8), torch.arange(count) % 10)


DATA = Dataset("random", tuple("abcdefghij"), pictures(50), pictures(20))


def changed(net, change):
    change(net)
    return net


def bits(weights):
    """Every number of a network or of a state_dict."""
    weights = weights if isinstance(weights, dict) else weights.state_dict()
    return torch.cat([value.flatten().double() for value in weights.values()])


def outcome(folder):
    """The weights of a finished run and, as text, its rows but for the clock."""
    rows = [{**row, "seconds": 0} for row in read_history(folder / "history.csv")]
    return bits(load_weights(folder / "weights.pt")).tolist(), str(rows)
