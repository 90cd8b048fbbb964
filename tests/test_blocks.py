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


def torchvision_twin(block, in_channels, out_channels, stride):
    """torchvision's block with the weights of ours."""
    projects = count(block.shortcut) > 0
    around = copy.deepcopy(block.shortcut) if projects else None
    twin = TorchvisionBlock(in_channels, out_channels, stride, around)
    state = block.state_dict().items()
    twin.load_state_dict({k.replace("shortcut", "downsample"): v for k, v in state})
    return twin


# --- the block ------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shortcut", ["B", "C"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_block_equals_torchvisions(shape, shortcut, training):
    ours = scramble(BasicBlock(*shape, shortcut=shortcut))
    theirs = torchvision_twin(ours, *shape)
    results = []
    for block in (ours, theirs):
        x = images(4, shape[0], 9, 8).requires_grad_()
        y = block.train(training)(x)
        y.backward(images(*y.shape, seed=1))
        results.append((x.grad, y, block))
    (our_grad, our_y, _), (their_grad, their_y, _) = results
    torch.testing.assert_close(our_y, their_y)
    torch.testing.assert_close(our_grad, their_grad)
    theirs_by_name = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        twin = theirs_by_name[name.replace("shortcut", "downsample")]
        torch.testing.assert_close(parameter.grad, twin.grad, msg=name)
    for (name, mine), (_, twin) in zip(
        ours.named_buffers(), theirs.named_buffers(), strict=True
    ):
        torch.testing.assert_close(mine, twin, msg=name)
    assert ours.bn1.num_batches_tracked == int(training)


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("stride", [1, 2])
def test_block_is_relu_of_residual_plus_shortcut(shortcut, stride):
    block = scramble(BasicBlock(4, 8, stride, shortcut)).eval()
    x = images(2, 4, 7, 7)
    y = block(x)
    assert y.shape == (2, 8, math.ceil(7 / stride), math.ceil(7 / stride))
    assert torch.equal(y, torch.relu(block.residual(x) + block.shortcut(x)))
    assert block.residual(x).min() < 0  # no ReLU before the addition


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_plain_block_is_the_block_without_the_addition(training):
    plain = scramble(PlainBlock(4, 8, 2)).train(training)
    residual = BasicBlock(4, 8, 2, shortcut="A").train(training)
    residual.load_state_dict(plain.state_dict())
    x = images(3, 4, 8, 8)
    branch = copy.deepcopy(residual).residual(x)
    assert torch.equal(plain(x), torch.relu(branch))
    y = residual(x)
    # The padded half has no shortcut, the other half has one.
    assert torch.equal(y[:, 4:], torch.relu(branch)[:, 4:])
    assert not torch.equal(y[:, :4], torch.relu(branch)[:, :4])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_a_silent_block_is_the_identity(shortcut, training):
    block = scramble(BasicBlock(8, 8, shortcut=shortcut)).train(training)
    nn.init.zeros_(block.bn2.weight)
    nn.init.zeros_(block.bn2.bias)
    x = images(2, 8, 6, 6).relu().requires_grad_()
    y = block(x)
    assert torch.equal(y, x)
    gradient = images(*y.shape, seed=1)
    y.backward(gradient)
    assert torch.equal(x.grad[x > 0], gradient[x > 0])


def test_a_net_of_silent_blocks_equals_the_shallower_net():
    deep, shallow = get_model("resnet20").eval(), get_model("resnet14").eval()
    scramble(shallow)
    state = deep.state_dict() | shallow.state_dict()
    for name in state:  # the third block of each stage
        if ".2.bn2." in name and name.endswith(("weight", "bias")):
            state[name] = torch.zeros_like(state[name])
    deep.load_state_dict(state)
    x = images(2, 3, 32, 32)
    assert torch.equal(deep(x), shallow(x))


# --- shortcuts ------------------------------------------------------------------------


def test_what_each_shortcut_costs():
    same, wider = (16, 16, 1), (16, 32, 2)
    assert [count(make_shortcut(kind, *same)) for kind in "ABC"] == [0, 0, 16 * 16 + 32]
    assert [count(make_shortcut(kind, *wider)) for kind in "ABC"] == [
        0,
        16 * 32 + 64,
        16 * 32 + 64,
    ]


def test_the_identity_is_the_identity():
    x = images(2, 16, 6, 6)
    for kind in "AB":
        assert make_shortcut(kind, 16, 16)(x) is x


def test_shortcut_a_picks_pixels_and_pads_zeros():
    x = images(2, 4, 7, 8).requires_grad_()
    assert PaddedIdentity(4, 6)(x).shape[2:] == x.shape[2:]
    y = PaddedIdentity(4, 6, stride=2)(x)
    assert y.shape == (2, 6, 4, 4)
    for row in range(4):
        for column in range(4):
            assert torch.equal(y[:, :4, row, column], x[:, :, 2 * row, 2 * column])
    assert torch.equal(y[:, 4:], torch.zeros(2, 2, 4, 4))
    y.sum().backward()
    assert x.grad.sum() == y[:, :4].numel() and set(x.grad.unique().tolist()) == {0, 1}
    assert not PaddedIdentity(4, 6, stride=2).state_dict()


# --- networks -------------------------------------------------------------------------

PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}


@pytest.mark.parametrize("depth", PARAMETERS)
def test_parameters_of_the_papers_nets(depth):
    # The paper's Table 6 rounds these to 0.27M, 0.46M, 0.66M, 0.85M and 1.7M.
    residual, plain = get_model(f"resnet{depth}"), get_model(f"plain{depth}")
    assert count(residual) == count(plain) == PARAMETERS[depth]
    assert list(residual.state_dict()) == list(plain.state_dict())


def test_parameters_of_resnet18():
    assert count(get_model("resnet18")) == 701_466
    assert count(get_model("resnet18", "A")) == count(get_model("plain18")) == 690_266


@pytest.mark.parametrize("kind", ["resnet", "plain"])
@pytest.mark.parametrize("depth", [18, 20, 32, 44, 56, 110])
def test_every_name_builds_its_depth(kind, depth):
    model = get_model(f"{kind}{depth}")
    assert model.name == f"{kind}{depth}"
    # Depth counts the layers with weights, and no projection among them (§3.3).
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(layers) == depth
    assert model.eval()(images(1, 3, 32, 32)).shape == (1, 10)


def test_the_name_tells_an_unusual_shortcut():
    assert get_model("resnet20", "B").name == "resnet20-B"
    assert get_model("resnet20", "A").name == "resnet20"
    assert get_model("resnet18", "A").name == "resnet18-A"


def test_stages_halve_the_image_and_double_the_channels():
    model, shapes = get_model("resnet20").eval(), []
    for stage in model.stages:
        getattr(model, stage).register_forward_hook(
            lambda module, args, output: shapes.append(tuple(output.shape[1:]))
        )
    model(images(1, 3, 32, 32))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_names_match_torchvisions():
    ours = get_model("resnet18").state_dict()
    theirs = torchvision.models.resnet18().state_dict()
    assert [name.replace("shortcut", "downsample") for name in ours] == list(theirs)


def test_plain_and_residual_differ_only_in_the_additions():
    residual, plain = get_model("resnet20"), get_model("plain20")
    scramble(plain)
    residual.load_state_dict(plain.state_dict())
    x = images(2, 3, 32, 32)
    assert not torch.allclose(residual.eval()(x), plain.eval()(x))
    for block in residual.modules():
        if isinstance(block, BasicBlock):
            block.register_forward_hook(
                lambda block, args, output: torch.relu(block.residual(*args))
            )
    torch.testing.assert_close(residual(x), plain(x))


def test_weights_start_as_in_he_et_al():
    torch.manual_seed(0)
    model = get_model("resnet56")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.detach()
            fan_in = weight[0].numel()
            gain = 1 if isinstance(module, nn.Linear) else 2
            # The std of n normal draws is off by about 1/√(2n).
            error = 5 / math.sqrt(2 * weight.numel())
            measured = weight.std().item() / math.sqrt(gain / fan_in)
            assert measured == pytest.approx(1, abs=error), name
            assert abs(weight.mean()) < 5 * weight.std() / math.sqrt(weight.numel())
        if isinstance(module, nn.Linear):
            assert module.bias.eq(0).all()
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all() and module.bias.eq(0).all()


def test_equal_seeds_give_equal_twins():
    models = []
    for name in ("resnet20", "plain20"):
        torch.manual_seed(3)
        models.append(get_model(name).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnext50", "Unknown architecture 'resnext50': use resnet18"),
        ("resnet", "Unknown architecture 'resnet'"),
        ("ResNet20", "Unknown architecture 'ResNet20'"),
        ("", "Unknown architecture ''"),
        ("resnet21", "resnet21: the paper's CIFAR nets have 6n+2 layers, those of"),
        ("resnet21", "Try 20 or 26, or choose widths, depths and shortcut yourself"),
        *((f"plain{depth}", "Try 44 or 56,") for depth in (45, 50, 55)),
        *((f"resnet{depth}", "Try 146 or 158,") for depth in (152, 153)),
        *((f"resnet{depth}", "34, 50, 101 and 152 are for Im") for depth in (34, 101)),
        ("resnet1000000004", "Unknown architecture 'resnet1000000004'"),
        (f"plain{'8' * 5_000}", "Unknown architecture 'plain888"),
        ("resnet020", "Unknown architecture 'resnet020'"),
        ("resnet²0", "Unknown architecture 'resnet²0'"),
        (18, "Unknown architecture 18: use resnet18"),
        ("resnet2", "Try 8 or 14,"),
        ("resnet0", "Try 8 or 14,"),
    ],
)
def test_unknown_names_are_refused_with_a_remedy(name, words):
    with pytest.raises(ValueError) as caught:
        get_model(name)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    for depths in re.findall(r"Try (\d+) or (\d+),", str(caught.value)):
        assert [get_model(f"plain{n}").name for n in depths]  # the remedies hold


@pytest.mark.parametrize("field", ["classes", "in_channels"])
@pytest.mark.parametrize("bad", [0, -1, 2.5, "10", True, None])
def test_classes_and_channels_are_counted(field, bad):
    with pytest.raises(ValueError, match=f"{field} is .*a whole number, 1 or more"):
        get_model("resnet8", **{field: bad})


def test_a_stage_has_the_series_own_shortcut_unless_told():
    assert str(make_stage(4, 8, 2, 2)) == str(make_stage(4, 8, 2, 2, "B"))


def test_bad_shortcuts_are_refused():
    with pytest.raises(
        ValueError, match="Unknown shortcut 'D': choose 'A', 'B' or 'C'"
    ):
        BasicBlock(4, 4, shortcut="D")
    with pytest.raises(ValueError, match="plain20 has no shortcuts"):
        get_model("plain20", "A")
    with pytest.raises(ValueError, match="pads channels and cannot drop them: 8 in, 4"):
        make_shortcut("A", 8, 4)


@pytest.mark.parametrize(
    ("widths", "depths"),
    [
        *[((16, 32), (2, 2, 2)), ((), ()), ((16, 32), (1.5, 2))],
        *[((0, 8), (1, 1)), ((8,), ("2",)), ((16.0,), (1,))],
        *[(8, 1), ((8,), 1), (None, (1,)), ((True,), (1,))],
    ],
)
def test_a_width_and_a_depth_for_each_stage(widths, depths):
    told = "one width and one depth per stage, each a whole number, 1 or more: got"
    with pytest.raises(ValueError, match=told):
        ResNet(widths, depths)


GOOD = torch.rand(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("x", "words", "mended"),
    [
        (GOOD[0], "(N, 3, H, W), got (3, 32, 32). Add the batch", "x[None]"),
        (GOOD[0].permute(1, 2, 0), "(32, 32, 3). Move", "x.permute(2, 0, 1)[None]"),
        (GOOD.permute(0, 2, 3, 1), "got (2, 32, 32, 3)", "x.permute(0, 3, 1, 2)"),
        (GOOD[:, :1], "with in_channels=1, or give", "x.expand(-1, 3, -1, -1)"),
        (torch.rand(2, 4, 8, 8), "with in_channels=4, or give", "x[:, :3]"),
        (GOOD.numpy(), "got ndarray. Convert", "torch.from_numpy(x)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "got torch.uint8", None),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int64), "Normalise them first", None),
        (torch.rand(2, 5, 32, 32), "Build the network with in_channels=5.", None),
        (torch.rand(32, 32), "Give images four dimensions", None),
        (torch.rand(2, 3, 0, 32), "1 × 1 pixel or more", None),
        ([1, 2], "got list", None),
        (None, "got NoneType", None),
    ],
)
def test_wrong_images_are_told_what_mends_them(x, words, mended):
    model = get_model("resnet8").eval()
    with pytest.raises(ValueError) as caught:
        model(x)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    if mended:
        assert mended in str(caught.value)
        assert model(eval(mended)).shape[1] == 10


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_images_of_other_channels(channels):
    model = get_model("resnet8", in_channels=channels, classes=7)
    assert model(images(2, channels, 16, 16)).shape == (2, 7)
    with pytest.raises(ValueError, match=rf"\(N, {channels}, H, W\), got \(2, 3,"):
        model(images(2, 3, 16, 16))


@pytest.mark.parametrize("size", [(28, 28), (33, 47), (8, 8)], ids=str)
def test_other_image_sizes_are_welcome(size):
    for name in ("resnet8", "plain18"):
        assert get_model(name).eval()(images(2, 3, *size)).shape == (2, 10)


# --- tools that read the network ------------------------------------------------------

NETS = [("resnet18", "B"), ("plain14", None), ("resnet14", "A"), ("resnet14", "C")]


@pytest.fixture(params=NETS, ids=str)
def net(request):
    torch.manual_seed(0)
    return scramble(get_model(*request.param)).eval()


X = images(4, 3, 32, 32, seed=2)


def close(x, y):
    """Equal up to the order of additions; scrambled nets have large logits."""
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4 * y.abs().max().item())


def test_fx_traces_the_network_and_keeps_its_names(net):
    graph = torch.fx.symbolic_trace(net)
    assert torch.equal(graph(X), net(X))
    assert list(graph.state_dict()) == list(net.state_dict())
    called = {node.target for node in graph.graph.nodes if node.op == "call_module"}
    assert {"conv1", "layer1.0.conv1", "layer3.1.bn2", "fc"} <= called


def test_torchvision_extracts_features(net):
    extractor = create_feature_extractor(net, {"relu": "stem", "layer2": "second"})
    found = extractor(X)
    x = net.layer1(net.relu(net.bn1(net.conv1(X))))
    assert list(found) == ["stem", "second"]
    assert torch.equal(found["second"], net.layer2(x))


def test_jit_scripts_and_saves_the_network(net):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is on its way out
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(net), buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
    assert torch.equal(loaded(X), net(X))
    assert list(loaded.state_dict()) == list(net.state_dict())


def test_export_takes_batches_and_sizes_of_any_length(net):
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=16)}
    exported = torch.export.export(net, (X,), dynamic_shapes=(sizes,)).module()
    for x in (X, X[:2], images(3, 3, 24, 32)):
        close(exported(x), net(x))


def test_compile_takes_the_network_as_one_graph(net):
    assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(X), net(X))


def test_onnx_exports_the_network(net, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "net.onnx"
    torch.onnx.export(net, (X,), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    close(torch.from_numpy(logits), net(X).detach())


def test_copies_wrappers_and_subclasses_answer_alike(net):
    class Named(ResNet):
        pass

    subclass = Named(**net.config).eval()
    subclass.load_state_dict(net.state_dict())
    copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), subclass]
    for other in [*copies, nn.DataParallel(net)]:
        assert torch.equal(other(X), net(X))
    for other in copies:
        with pytest.raises(ValueError, match=r"got torch\.uint8"):
            other(X.to(torch.uint8))


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
    assert about.pop("class") == "ResNet"
    assert about == {**net.config}
    twin = ResNet(**about).eval()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(X), net(X))
    assert describe(net.train().to(torch.bfloat16)) == {"class": "ResNet", **about}


def test_numpys_numbers_can_be_written_down():
    model = ResNet(np.array([8, 16]), np.array([1, 2]), "C", np.int64(7), np.int64(1))
    assert json.loads(json.dumps(describe(model))) == {
        "class": "ResNet",
        "widths": [8, 16],
        "depths": [1, 2],
        "shortcut": "C",
        "classes": 7,
        "in_channels": 1,
    }


class OwnBlock(BasicBlock):
    def forward(self, x):
        return self.residual(x) + self.shortcut(x)


def other_block(model):
    model.layer1[0] = OwnBlock(16, 16, shortcut="A")


def block_of_the_same_name(model):
    other_block(model)
    model.layer1[0].__class__ = type("BasicBlock", (OwnBlock,), {})


CHANGES = {
    "activation": lambda model: setattr(model, "relu", nn.ELU()),
    "pooling": lambda model: setattr(model, "avgpool", nn.AdaptiveMaxPool2d(1)),
    "eps of a BN": lambda model: setattr(model.layer2[0].bn1, "eps", 1e-3),
    "momentum of a BN": lambda model: setattr(model.bn1, "momentum", 0.01),
    "stride of the stem": lambda model: setattr(model.conv1, "stride", (2, 2)),
    "padding": lambda model: setattr(
        model, "conv1", nn.Conv2d(3, 16, 3, padding=1, padding_mode="reflect")
    ),
    "classes": lambda model: setattr(model, "fc", nn.Linear(64, 100)),
    "an extra layer": lambda model: setattr(model, "dropout", nn.Dropout()),
    "a lost layer": lambda model: delattr(model.layer3[0], "bn2"),
    "a block of one's own": other_block,
    "a block of the same name": block_of_the_same_name,
    "stride of a shortcut": lambda model: setattr(
        model.layer2[0].shortcut, "stride", 1
    ),
    "a forward hung on a block": lambda model: setattr(
        model.layer1[0], "forward", lambda x: x
    ),
    "a residual hung on a block": lambda model: setattr(
        model.layer1[0], "residual", lambda x: 0 * x
    ),
    "a hook": lambda model: model.register_forward_hook(lambda *given: None),
    "a hook before a stage": lambda model: model.layer1.register_forward_pre_hook(
        lambda *given: None
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_network_that_was_changed_has_no_description(change):
    model = get_model("resnet8")
    assert describe(model)
    CHANGES[change](model)
    assert describe(model) is None


@pytest.mark.parametrize(
    "model",
    [
        nn.DataParallel(get_model("resnet8")),
        type("ResNet", (ResNet,), {})((8,), (1,)),
        torchvision.models.resnet18(num_classes=10),
        nn.Linear(2, 2),
        torch.compile(get_model("resnet8"), backend="eager"),
    ],
    ids=["DataParallel", "subclass", "torchvision", "linear", "compiled"],
)
def test_other_networks_have_no_description(model):
    assert describe(model) is None
