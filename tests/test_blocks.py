"""Blocks, shortcuts and networks against torchvision, the paper and their docs."""

import copy
import math

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from resnet_lib import resnet
from resnet_lib.basic_block import BasicBlock, PaddedIdentity, PlainBlock, make_shortcut
from resnet_lib.resnet import ResNet, get_model

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


@pytest.mark.parametrize("kind", ["A", "B", "C"])
@pytest.mark.parametrize("size", [(6, 6), (7, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_shortcuts_have_the_shape_of_the_branch(shape, size, kind):
    x = images(2, shape[0], *size)
    branch = nn.Conv2d(shape[0], shape[1], 3, shape[2], padding=1)
    assert make_shortcut(kind, *shape)(x).shape == branch(x).shape


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
    y = PaddedIdentity(4, 6, stride=2)(x)
    assert y.shape == (2, 6, 4, 4)
    for row in range(4):
        for column in range(4):
            assert torch.equal(y[:, :4, row, column], x[:, :, 2 * row, 2 * column])
    assert torch.equal(y[:, 4:], torch.zeros(2, 2, 4, 4))
    y.sum().backward()
    assert x.grad.sum() == y[:, :4].numel() and set(x.grad.unique().tolist()) == {0, 1}
    assert not PaddedIdentity(4, 6, stride=2).state_dict()


def test_shortcut_a_keeps_the_kind_of_numbers():
    assert (
        PaddedIdentity(4, 8, 2)(images(1, 4, 4, 4).bfloat16()).dtype is torch.bfloat16
    )


def test_the_projection_is_a_matrix_at_every_second_pixel():
    conv, bn = shortcut = make_shortcut("B", 4, 6, stride=2)
    scramble(shortcut).eval()
    x = images(2, 4, 7, 7)
    y = torch.einsum("oc,nchw->nohw", conv.weight[:, :, 0, 0], x[:, :, ::2, ::2])
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    y = (y - bn.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1)
    torch.testing.assert_close(shortcut(x), y + bn.bias.view(-1, 1, 1))
    assert conv.bias is None


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
    model = getattr(resnet, f"{kind}{depth}")()
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
        (
            "resnet21",
            "resnet21: the paper's CIFAR nets have 6n+2 layers. Try 20 or 26.",
        ),
        ("plain55", "plain55: the paper's CIFAR nets have 6n+2 layers. Try 50 or 56."),
        ("resnet2", "6n+2 layers. Try 8 or 14."),
        ("resnet0", "6n+2 layers. Try 8 or 14."),
    ],
)
def test_unknown_names_are_refused_with_a_remedy(name, words):
    with pytest.raises(ValueError) as caught:
        get_model(name)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_bad_shortcuts_are_refused():
    with pytest.raises(
        ValueError, match="Unknown shortcut 'D': choose 'A', 'B' or 'C'"
    ):
        BasicBlock(4, 4, shortcut="D")
    with pytest.raises(ValueError, match="plain20 has no shortcuts"):
        get_model("plain20", "A")
    with pytest.raises(ValueError, match="pads channels and cannot drop them: 8 in, 4"):
        make_shortcut("A", 8, 4)


def test_widths_and_depths_must_pair():
    with pytest.raises(ValueError, match="one width and one depth per stage"):
        ResNet((16, 32), (2, 2, 2))
    with pytest.raises(ValueError, match="one width and one depth per stage"):
        ResNet((), ())


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (
            torch.rand(3, 32, 32),
            "Expected images of shape (N, 3, H, W), got (3, 32, 32)",
        ),
        (torch.rand(2, 1, 32, 32), "got (2, 1, 32, 32)"),
        (torch.rand(2, 32, 32, 3), "x.permute(0, 3, 1, 2)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "got torch.uint8"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int64), "Normalise them first"),
    ],
)
def test_wrong_images_are_refused_with_a_remedy(x, words):
    with pytest.raises(ValueError) as caught:
        get_model("resnet8").eval()(x)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(28, 28), (33, 47), (8, 8)], ids=str)
def test_other_image_sizes_are_welcome(size):
    for name in ("resnet8", "plain18"):
        assert get_model(name).eval()(images(2, 3, *size)).shape == (2, 10)
