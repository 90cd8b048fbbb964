"""Blocks, shortcuts and networks against torchvision, the paper and their docs."""

import copy
import io
import json
import math
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from resnet_lib.basic_block import BasicBlock, PaddedIdentity, PlainBlock, make_shortcut
from resnet_lib.identity import describe
from resnet_lib.resnet import ResNet, get_model, make_stage

SHAPES = [(16, 16, 1), (16, 32, 2), (16, 16, 2), (16, 32, 1), (16, 8, 1)]


def count(module):
    return sum(p.numel() for p in module.parameters())


def scramble(module, seed=0):
    """Random weights, γ, β and running statistics: nothing hides behind 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.ndim > 1 or name.endswith("bias"):
            value.normal_(generator=generator)
        elif value.is_floating_point():
            value.uniform_(0.5, 1.5, generator=generator)
    return module


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(x, y):
    """Equal up to the order of additions; scrambled nets have large logits."""
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4 * y.abs().max().item())


def load(theirs, ours):
    """Our weights under torchvision's names, one by one."""
    state = ours.state_dict().items()
    state = {k.replace("shortcut", "downsample"): v for k, v in state}
    assert list(state) == list(theirs.state_dict())
    theirs.load_state_dict(state)


# --- the block ------------------------------------------------------------------------


def around(kind, in_channels, out_channels, stride):
    """The shortcut in torchvision's terms: None is the identity."""
    if kind != "C" and (in_channels, stride) == (out_channels, 1):
        return None
    if kind == "A":
        new = torch.zeros(1, out_channels - in_channels, 1, 1)

        def padded(x):
            x = F.max_pool2d(x, 1, stride)
            return torch.cat([x, new.expand(len(x), -1, *x.shape[2:])], 1)

        return padded
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", "ABC")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_block_equals_torchvisions(shape, kind, training, refused):
    if kind == "A" and shape[1] < shape[0]:
        told = "pads channels and cannot drop them: 16 in, 8 out"
        return refused(told, BasicBlock, *shape, kind)
    ours = scramble(BasicBlock(*shape, shortcut=kind))
    theirs = TorchvisionBlock(*shape, around(kind, *shape))
    load(theirs, ours)
    assert isinstance(ours.shortcut, nn.Identity) == (theirs.downsample is None)
    results = []
    for block in (ours, theirs):
        x = images(4, shape[0], 9, 8).requires_grad_()
        y = block.train(training)(x)
        y.backward(images(*y.shape, seed=1))
        values = {"x": x.grad, "y": y, **dict(block.named_buffers())}
        values |= {f"grad {name}": p.grad for name, p in block.named_parameters()}
        results.append({k.replace("shortcut", "downsample"): values[k] for k in values})
    torch.testing.assert_close(*results)
    assert ours.bn1.num_batches_tracked == int(training)
    residual = ours.residual(x)  # no ReLU before the addition
    assert torch.equal(ours(x), torch.relu(residual + ours.shortcut(x)))
    assert residual.min() < 0


def test_stride_and_shortcut_unless_told_otherwise(refused):
    assert str(BasicBlock(4, 8)) == str(BasicBlock(4, 8, 1, "B"))
    assert str(PlainBlock(4, 8)) == str(PlainBlock(4, 8, 1))
    assert str(make_stage(4, 8, 2)) == str(make_stage(4, 8, 2, 1, "B"))
    assert str(make_shortcut("B", 4, 8)) == str(make_shortcut("B", 4, 8, 1))
    assert PaddedIdentity(4, 8).stride == 1
    refused("Unknown shortcut 'D': choose 'A', 'B' or 'C'", make_shortcut, "D", 4, 4)
    refused("plain20 has no shortcuts", get_model, "plain20", "A")


# --- networks -------------------------------------------------------------------------


def test_network_equals_torchvisions_with_the_stem_for_cifar():
    ours = scramble(ResNet((64, 128, 256, 512), (2, 2, 2, 2), classes=1000)).eval()
    theirs = torchvision.models.resnet18().eval()
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    load(theirs, ours)
    x = images(2, 3, 31, 32)
    close(ours(x), theirs(x))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_plain_and_residual_differ_only_in_the_additions(training):
    residual, plain = (get_model(f"{kind}20") for kind in ("resnet", "plain"))
    residual.load_state_dict(scramble(plain.train(training)).state_dict())
    x = images(2, 3, 32, 32)
    assert not torch.allclose(residual.train(training)(x), plain(x))
    for name, layer in residual.named_modules():
        if name.endswith("shortcut"):
            layer.forward = lambda x: 0
    torch.testing.assert_close(residual(x), plain(x))


def test_a_net_of_silent_blocks_equals_the_shallower_net():
    deep, shallow = get_model("resnet20").eval(), get_model("resnet14").eval()
    state = deep.state_dict() | scramble(shallow).state_dict()
    for name in state:  # the third block of each stage
        if ".2.bn2." in name and name.endswith(("weight", "bias")):
            state[name] = torch.zeros_like(state[name])
    deep.load_state_dict(state)
    x = images(2, 3, 32, 32)
    assert torch.equal(deep(x), shallow(x))


# The paper's Table 6 rounds those of 20 to 110 to 0.27M, 0.46M, 0.66M, 0.85M and 1.7M.
PARAMETERS = {18: 690_266, 20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018}
PARAMETERS |= {110: 1_727_962}


@pytest.mark.parametrize("depth", PARAMETERS)
def test_every_name_builds_the_papers_net(depth):
    plain, residual = get_model(f"plain{depth}"), get_model(f"resnet{depth}")
    assert (plain.name, residual.name) == (f"plain{depth}", f"resnet{depth}")
    assert count(residual) == (701_466 if depth == 18 else PARAMETERS[depth])
    padded = get_model(f"resnet{depth}", "A")
    assert count(plain) == count(padded) == PARAMETERS[depth]
    assert list(plain.state_dict()) == list(padded.state_dict())
    assert padded.name == ("resnet18-A" if depth == 18 else residual.name)
    assert get_model(f"resnet{depth}", "C").name == f"resnet{depth}-C"
    # Depth counts the layers with weights, and no projection among them (§3.3).
    for layers in (plain.named_modules(), residual.named_modules()):
        weighted = [name for name, m in layers if type(m) in (nn.Conv2d, nn.Linear)]
        assert sum("shortcut" not in name for name in weighted) == depth


def test_weights_start_as_in_he_et_al_and_alike_in_both_twins():
    twins = []
    for name in ("resnet56", "plain56"):
        torch.manual_seed(0)
        twins.append(get_model(name))
    state = twins[1].state_dict()
    for name, value in twins[0].state_dict().items():
        assert torch.equal(value, state[name])
        if value.ndim > 1:
            gain = 1 if name == "fc.weight" else 2
            # The std of n normal draws is off by about 1/√(2n).
            error = 5 / math.sqrt(2 * value.numel())
            measured = value.std().item() / math.sqrt(gain / value[0].numel())
            assert measured == pytest.approx(1, abs=error), name
            assert abs(value.mean()) < 5 * value.std() / math.sqrt(value.numel())
        elif "num" not in name:  # BN's γ and variance are 1, its β and mean 0
            assert value.eq(name.endswith(("weight", "var"))).all(), name


# --- bad input ------------------------------------------------------------------------

UNKNOWN = ["resnext50", "resnet", "ResNet20", "", "resnet020", "resnet²0", 18]
UNKNOWN += ["resnet1000000004", f"plain{'8' * 5_000}"]
NEAREST = {"8 or 14": [0, 2], "20 or 26": [21], "44 or 56": [45, 50, 55]}
NEAREST |= {"32 or 38": [34], "98 or 104": [101], "146 or 158": [152, 153]}
FAMILY = r"^resnet{}: the paper's CIFAR nets have 6n\+2 layers, those of 34, 50, 101 "
FAMILY += "and 152 are for ImageNet. Try {}, or choose"


def test_unknown_names_are_refused_with_a_remedy(refused):
    for name in UNKNOWN:
        told = f"Unknown architecture {name!r}: use resnet18, resnet20, 32, 44, 56 or"
        refused(told, get_model, name)
    for depths, wrong in NEAREST.items():
        for depth in wrong:
            refused(FAMILY.format(depth, depths), get_model, f"resnet{depth}")
        assert [get_model(f"plain{n}").name for n in depths.split(" or ")]  # they hold


BAD_STAGES = [((16, 32), (2, 2, 2)), ((), ()), ((16, 32), (1.5, 2)), ((0, 8), (1, 1))]
BAD_STAGES += [((8,), ("2",)), ((8,), 1), (None, (1,)), ((True,), (1,))]


def test_widths_depths_classes_and_channels_are_counted(refused):
    told = "one width and one depth per stage, each a whole number, 1 or more: got"
    for widths, depths in BAD_STAGES:
        refused(told, ResNet, widths, depths)
    for field in ("classes", "in_channels"):
        for bad in (0, 2.5, "10", True):
            told = f"{field} is .*a whole number, 1 or more"
            refused(told, get_model, "resnet8", **{field: bad})


GOOD = torch.rand(2, 3, 32, 32)
WRONG = [  # images, what is said of them, and what mends them
    (GOOD[0], "(N, 3, H, W), got (3, 32, 32). Add the batch", "x[None]"),
    (GOOD[0].permute(1, 2, 0), "(32, 32, 3). Move", "x.permute(2, 0, 1)[None]"),
    (GOOD.permute(0, 2, 3, 1), "got (2, 32, 32, 3)", "x.permute(0, 3, 1, 2)"),
    (GOOD[:, :1], "with in_channels=1, or give", "x.expand(-1, 3, -1, -1)"),
    (torch.rand(2, 4, 8, 8), "with in_channels=4, or give", "x[:, :3]"),
    (GOOD.double().numpy(), "got ndarray. Convert", "torch.from_numpy(x).float()"),
    ([1, 2], "got list. Convert an array with torch.from_numpy(x).", None),
    (torch.zeros(2, 3, 8, 8).long(), "got torch.int64. Normalise them first", None),
    (torch.rand(2, 5, 32, 32), "Build the network with in_channels=5.", None),
    (torch.rand(32, 32), "Give images four dimensions", None),
    (torch.rand(2, 3, 0, 32), "1 × 1 pixel or more", None),
]


def test_wrong_images_are_told_what_mends_them(refused):
    model = get_model("resnet8").eval()
    for x, words, mended in WRONG:
        refused(re.escape(words), model, x)
        if mended:
            refused(re.escape(mended), model, x)
            assert model(eval(mended)).shape[1] == 10


def test_images_of_other_channels_and_sizes_are_welcome(refused):
    for channels, size in [(1, (28, 28)), (2, (33, 47)), (4, (8, 8)), (13, (16, 16))]:
        model = get_model("resnet18", in_channels=channels, classes=7).eval()
        assert model(images(2, channels, *size)).shape == (2, 7)
        told = rf"\(N, {channels}, H, W\), got \(2, 3,"
        refused(told, model, images(2, 3, 16, 16))


# --- tools that read the network ------------------------------------------------------

NETS = [("resnet18", "B"), ("plain14", None), ("resnet14", "A"), ("resnet14", "C")]
X = images(4, 3, 32, 32, seed=2)


@pytest.fixture(params=NETS, ids=str)
def net(request):
    return scramble(get_model(*request.param)).eval()


def scripted(net):
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # torch.jit is on its way out
        torch.jit.save(torch.jit.script(net), buffer)
        buffer.seek(0)
        return torch.jit.load(buffer)


def subclassed(net):
    other = type("Named", (ResNet,), {})(**net.config).eval()
    other.load_state_dict(net.state_dict())
    return other


COPIES = [copy.deepcopy, subclassed, lambda net: pickle.loads(pickle.dumps(net))]


@pytest.mark.parametrize("read", [torch.fx.symbolic_trace, scripted, *COPIES])
def test_what_reads_the_network_answers_alike(net, read, refused):
    other = read(net)
    assert torch.equal(other(X), net(X))
    assert list(other.state_dict()) == list(net.state_dict())
    if read in COPIES:
        refused(r"got torch\.uint8", other, X.to(torch.uint8))


def test_wrappers_take_the_network_whole_and_torchvision_its_features(net):
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for other in (nn.DataParallel(net), compiled):
        assert torch.equal(other(X), net(X))
    found = create_feature_extractor(net, {"relu": "stem", "layer2": "second"})(X)
    stem = net.relu(net.bn1(net.conv1(X)))
    assert found.keys() == {"stem", "second"}
    assert torch.equal(found["second"], net.layer2(net.layer1(stem)))


def test_export_takes_batches_and_sizes_of_any_length(net):
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=16)}
    exported = torch.export.export(net, (X,), dynamic_shapes=(sizes,)).module()
    for x in (X, X[:2], images(3, 3, 24, 32)):
        close(exported(x), net(x))


def test_a_layer_that_is_hung_on_does_not_join_the_network():
    model = get_model("resnet8").eval()
    before = model(X)
    model.spare = nn.Linear(1, 1)
    model.layer9 = nn.ReLU()
    assert torch.equal(model(X), before)


# --- what rebuilds a network ----------------------------------------------------------


def test_a_description_rebuilds_the_network(net):
    random = torch.get_rng_state()
    about = json.loads(json.dumps(describe(net)))
    assert torch.equal(torch.get_rng_state(), random)  # no weight was drawn
    assert about == {"class": "ResNet", **net.config}
    assert describe(net.train().to(torch.bfloat16)) == about


def test_numpys_numbers_can_be_written_down():
    model = ResNet(np.array([8, 16]), np.array([1, 2]), "C", np.int64(7), np.int64(1))
    numbers = {"widths": [8, 16], "depths": [1, 2], "classes": 7, "in_channels": 1}
    about = {"class": "ResNet", "shortcut": "C", **numbers}
    assert json.loads(json.dumps(describe(model))) == about


class OwnBlock(BasicBlock):
    def forward(self, x):
        return self.residual(x) + self.shortcut(x)


CHANGES = [  # a layer, and what it gets in place of what it had
    ("layer2.0.bn1", "eps", 1e-3),
    ("conv1", "padding_mode", "reflect"),
    ("", "dropout", nn.Dropout()),
    ("layer3.0", "bn2", None),
    ("layer1", "0", OwnBlock(16, 16, shortcut="A")),
    ("layer1.0", "__class__", type("BasicBlock", (OwnBlock,), {})),  # of the same name
    ("layer2.0.shortcut", "stride", 1),
    ("layer1.0", "forward", lambda x: x),
    ("layer1.0", "residual", lambda x: 0 * x),
]


def test_a_changed_or_hooked_network_and_another_have_no_description():
    others = [type("ResNet", (ResNet,), {})((8,), (1,)), torchvision.models.resnet18()]
    for layer, name, value in CHANGES:
        others.append(get_model("resnet8"))
        assert describe(others[-1])
        setattr(others[-1].get_submodule(layer), name, value)
    hooked, before_a_stage = get_model("resnet8"), get_model("resnet8")
    hooked.register_forward_hook(lambda *given: None)
    before_a_stage.layer1.register_forward_pre_hook(lambda *given: None)
    for model in (*others, hooked, before_a_stage):
        assert describe(model) is None, model
