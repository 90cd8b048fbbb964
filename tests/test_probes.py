"""What the hooks of `resnet_lib.probes` measure, and that they leave no trace."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib.explorer.inside import LesionedNet, fold_batch_norm, path_lengths
from resnet_lib.probes import (
    activations,
    block_names,
    block_parts,
    confident_mistakes,
    gradient_norms,
    layer_responses,
    layer_table,
    lesion,
)
from resnet_lib.resnet import get_model


def hook_count(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def shaken(name):
    """A network whose BN is not the identity, in evaluation mode."""
    torch.manual_seed(1)
    model = get_model(name)
    model.train()(torch.randn(16, 3, 32, 32))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model.eval()


X = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PROBES = {
    "layer_responses": lambda net, x: layer_responses(net, x),
    "layer_table": lambda net, x: layer_table(net, x.shape),
    "activations": lambda net, x: activations(net, x, ["layer1"]),
    "block_parts": lambda net, x: block_parts(net, x),
}
every_probe = pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES.keys())


@every_probe
def test_a_probe_leaves_no_trace(probe):
    model = get_model("resnet8").train()
    model.layer2.eval()  # frozen, as in fine-tuning
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    probe(model, X)
    assert [module.training for module in model.modules()] == modes
    if probe is not PROBES["activations"]:  # which looks at the net as it is
        assert all(torch.equal(state[n], it) for n, it in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert hook_count(model) == 0


@every_probe
def test_a_probe_cleans_up_after_an_error(probe):
    model = get_model("resnet8").train()
    with pytest.raises(ValueError, match="shape"):
        probe(model, torch.zeros(1, 4, 32, 32))
    assert hook_count(model) == 0 and model.training


# --- layer_responses ------------------------------------------------------------------


@torch.no_grad()
def test_responses_are_spreads_after_bn_and_before_the_relu():
    model = shaken("resnet18")
    responses = layer_responses(model, X)
    assert len(responses) == 1 + 2 * 8  # the stem, two a block, and no 1×1 shortcut
    assert list(responses)[:3] == ["bn1", "layer1.0.bn1", "layer1.0.bn2"]
    x = model.relu(model.bn1(model.conv1(X)))
    branch = model.layer1[0].residual(x)
    assert responses["layer1.0.bn2"] == pytest.approx(branch.std().item(), rel=1e-4)
    model.bn1.weight.mul_(3)
    model.bn1.bias.mul_(3)
    tripled = layer_responses(model.train(), X)["bn1"]
    assert tripled == pytest.approx(3 * responses["bn1"], rel=1e-4)


# --- layer_table ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", 701_466), ("resnet110", 1_727_962), ("plain20", 269_722)],
)
def test_rows_add_up_to_the_network(name, parameters):
    model = get_model(name)
    assert layer_table(model)["parameters"].sum() == parameters
    assert parameters == sum(p.numel() for p in model.parameters())


def test_columns_order_and_multiply_adds_by_hand():
    table = layer_table(get_model("resnet20"))
    columns = ["name", "kind", "output shape", "parameters", "multiply-adds"]
    assert list(table.columns) == columns
    assert list(table["name"][:3]) == ["conv1", "bn1", "layer1.0.conv1"]
    kinds = {"Conv2d": 19, "BatchNorm2d": 19, "PaddedIdentity": 2, "Linear": 1}
    assert table["kind"].value_counts().to_dict() == kinds
    shortcut = table.set_index("name").loc["layer2.0.shortcut"]
    assert shortcut["output shape"] == (1, 32, 16, 16) and shortcut["parameters"] == 0
    rows = layer_table(get_model("resnet18")).set_index("name")["multiply-adds"]
    assert rows["conv1"] == 3 * 3 * 3 * 16 * 32 * 32
    assert rows["layer2.0.conv1"] == 3 * 3 * 16 * 32 * 16 * 16
    assert rows["layer2.0.shortcut.0"] == 16 * 32 * 16 * 16
    assert rows["layer2.0.shortcut.1"] == 0  # BN
    assert rows["fc"] == 128 * 10 and rows.index[-1] == "fc"


def test_multiply_adds_follow_the_image_the_groups_and_the_calls():
    model = get_model("resnet8")
    small, batch, large = (
        layer_table(model, shape)["multiply-adds"].iloc[:-1].sum()
        for shape in ((1, 3, 32, 32), (4, 3, 32, 32), (1, 3, 64, 64))
    )
    assert small == batch and large == 4 * small
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=4))
    assert layer_table(model, (1, 8, 5, 5))["multiply-adds"].sum() == 9 * 2 * 16 * 25
    layer = nn.Conv2d(3, 3, 1, bias=False)
    table = layer_table(nn.Sequential(layer, layer), (1, 3, 4, 4))
    assert table[["parameters", "multiply-adds"]].values.tolist() == [[9, 2 * 9 * 16]]


# --- activations ----------------------------------------------------------------------


def test_activations_are_the_outputs_by_name_in_the_order_asked_for():
    model = get_model("resnet8").eval()
    found = activations(model, X, ["fc", "layer1", "bn1"])
    assert list(found) == ["fc", "layer1", "bn1"]
    with torch.no_grad():
        stem = model.bn1(model.conv1(X))
        assert torch.equal(found["bn1"], stem)
        assert torch.equal(found["layer1"], model.layer1(F.relu(stem)))
        assert torch.equal(found["fc"], model(X))
    assert not any(output.requires_grad for output in found.values())
    # One name need not be in a list; the mode is the reader's.
    assert activations(model.train(), X, "layer3")["layer3"].shape == (6, 64, 8, 8)
    assert model.bn1.num_batches_tracked == 1


def test_activations_survive_an_in_place_relu():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
    found = activations(model, torch.randn(1, 3, 8, 8), ["0", "1"])
    assert found["0"].min() < 0
    assert torch.equal(found["0"].relu(), found["1"])


def test_an_unknown_layer_gets_near_names_and_a_spare_one_its_own():
    model = get_model("resnet8")
    model.spare = nn.Linear(1, 1)
    for names, told in {
        ("layer1", "layer4.0"): r"no layer 'layer4\.0'.*'layer3\.0'",
        ("zzz",): "'layer1', 'layer2', 'layer3'",
        ("spare",): "never calls its layer 'spare'",
    }.items():
        with pytest.raises(ValueError, match=told):
            activations(model, X, list(names))
    assert hook_count(model) == 0


# --- gradient_norms -------------------------------------------------------------------


def test_agrees_with_backward_and_leaves_no_trace():
    torch.manual_seed(0)
    model = get_model("resnet20")
    loss = F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4))
    norms = gradient_norms(model, loss)
    assert all(parameter.grad is None for parameter in model.parameters())
    loss.backward()  # the graph is still there
    layers = dict(model.named_modules())
    names = list(norms)
    assert (names[0], names[-1], len(names)) == ("conv1", "fc", 20)
    for name, norm in norms.items():
        assert norm == pytest.approx(layers[name].weight.grad.norm().item())


@pytest.mark.parametrize("how", ["detached", "another layer"])
def test_a_loss_without_a_path_to_a_weight(how):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    out = model(torch.ones(1, 2)).detach() if how == "detached" else model[0].weight
    with pytest.raises(ValueError, match="does not depend on the weight of"):
        gradient_norms(model, out.sum())


# --- blocks and lesions ---------------------------------------------------------------


def test_block_names_are_in_the_order_they_run():
    assert block_names(get_model("plain8")) == ["layer1.0", "layer2.0", "layer3.0"]
    assert len(block_names(get_model("resnet18"))) == 8


@pytest.mark.parametrize("name", ["resnet14", "resnet18"])
def test_parts_add_up_to_the_blocks_output(name):
    model = shaken(name)
    parts = block_parts(model.train(), X)
    model.eval()
    assert list(parts) == block_names(model)
    outputs = activations(model, X, list(parts))
    for block, part in parts.items():
        assert torch.equal(part.out, outputs[block])
        assert torch.equal(part.sum, part.x + part.f)
    assert torch.equal(parts["layer1.1"].x, outputs["layer1.0"])
    part = parts["layer2.0"]
    assert part.ratio == pytest.approx((part.f.norm() / part.x.norm()).item())


def test_a_plain_block_has_no_parts():
    assert block_parts(get_model("plain8"), X) == {}


def test_confident_mistakes_come_first():
    logits = torch.tensor([[0.0, 9.0], [0.0, 1.0], [3.0, 0.0], [0.0, 4.0]])
    assert confident_mistakes(logits, torch.tensor([0, 0, 0, 1])) == [0, 1]


def test_path_lengths_are_binomial():
    assert path_lengths(0) == [1]
    assert path_lengths(3) == [1, 3, 3, 1]
    assert sum(path_lengths(54)) == 2**54


@torch.no_grad()
def test_a_residual_lesion_is_the_equation():
    model = shaken("resnet14")
    block, x = model.layer2[0], torch.rand(2, 16, 8, 8)
    for scale in (0, 0.3, 1):
        with lesion(model, {"layer2.0": scale}):
            expected = F.relu(scale * block.residual(x) + block.shortcut(x))
            torch.testing.assert_close(block(x), expected)


@torch.no_grad()
def test_a_plain_lesion_goes_from_the_block_to_its_input():
    model = shaken("plain14")
    whole = model(X)
    block, x = model.layer1[1], torch.rand(2, 16, 8, 8)
    whole_block = block(x)
    with lesion(model, {"layer1.1": 0}):
        assert torch.equal(block(x), x)
    with lesion(model, {"layer1.1": 0.25}):
        torch.testing.assert_close(block(x), 0.25 * whole_block + 0.75 * x)
    with lesion(model, {"layer1.1": 1.0}):
        assert torch.equal(model(X), whole)
    with lesion(model, {"layer2.0": 0}):  # strided, and zeros in the new channels
        out = model.layer2[0](x)
        assert torch.equal(out[:, :16], x[:, :, ::2, ::2]) and not out[:, 16:].any()


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet14", "plain14"])
def test_the_model_is_whole_again_whatever_happens(name):
    model = shaken(name)
    whole, order = model(X), list(model.layer2)
    with pytest.raises(KeyboardInterrupt), lesion(model, {"layer1.1": 0}):
        assert not torch.equal(model(X), whole)
        raise KeyboardInterrupt
    with lesion(model, {"layer1.1": 0}):
        outer = model(X)
        with lesion(model, {"layer1.1": 1, "layer3.1": 0}):
            pass
        assert torch.equal(model(X), outer)
    assert torch.equal(model(X), whole)
    assert list(model.layer2) == order
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ({"layer9.0": 0}, "no layer 'layer9.0'"),
        ({"layer1": 0}, "no block"),
        ({"layer1.0": 1.5}, "from 0 to 1"),
        ({"layer1.0": float("nan")}, "from 0 to 1"),
    ],
)
def test_lesions_that_make_no_sense(scales, words):
    model = shaken("resnet14")
    with pytest.raises(ValueError, match=words), lesion(model, scales):
        pass


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet14", "plain14", "resnet18"])
def test_kept_inputs_give_the_logits_of_a_whole_pass(name):
    model = shaken(name)
    net = LesionedNet(model, X, batch_size=4)
    torch.testing.assert_close(net.intact, model(X), rtol=1e-4, atol=1e-4)
    lesions = [{}, {"layer2.1": 0.5}, {"layer2.1": 0.2, "layer3.0": 0}]
    lesions += [{"layer1.0": 1, "layer3.1": 0}, {"layer1.0": 0.0}, {"layer1.0": 1.0}]
    for scales in lesions:
        found = net(scales)
        with lesion(model, scales):
            torch.testing.assert_close(found, model(X), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="from 0 to 1"):
        net({"layer1.0": 2})
    assert model.layer1[0].training is False


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_folded_network_answers_alike(name):
    torch.manual_seed(0)
    model, x = get_model(name), torch.randn(8, 3, 32, 32)
    model(x)  # running statistics that are not those of the start
    folded = fold_batch_norm(model)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model.eval()(x), rtol=1e-3, atol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())


# --- other devices, channels and names ------------------------------------------------

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@CUDA
def test_a_model_on_a_gpu_is_measured_on_images_that_are_not():
    here, there = shaken("resnet14"), shaken("resnet14").cuda()
    logits, labels = here(X), torch.arange(6)
    for name, value in activations(here, X, ["bn1", "fc"]).items():
        other = activations(there, X, ["bn1", "fc"])[name]
        assert other.device.type == "cpu"
        torch.testing.assert_close(other, value, rtol=1e-2, atol=1e-2)
    one, other = layer_responses(here, X), layer_responses(there, X)
    assert list(one.values()) == pytest.approx(list(other.values()), rel=1e-2)
    one, other = block_parts(here, X), block_parts(there, X)
    for name, part in other.items():
        assert part.f.device.type == "cpu"
        assert part.ratio == pytest.approx(one[name].ratio, rel=1e-2)
    assert layer_table(there).equals(layer_table(here))
    net = LesionedNet(there, X)
    weak = {"layer2.1": 0.5}
    assert net.intact.device.type == net(weak).device.type == "cpu"
    torch.testing.assert_close(net.intact, logits, rtol=1e-2, atol=1e-2)
    confident_mistakes(logits.cuda(), labels)
    norms = gradient_norms(there, there(X.cuda()).sum())
    assert len(norms) == 14
    assert activations(there, X.cuda(), "fc")["fc"].is_cuda


class Elsewhere(nn.Module):
    """A layer that says where its input was; its weight is on `meta`."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2, device="meta")
        self.devices = []

    def forward(self, x):
        self.devices.append(x.device.type)
        return self.layer(x)


def test_images_are_brought_to_the_model_and_results_back():
    model = Elsewhere()
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta"):
        activations(model, torch.rand(1, 2), ["layer"])  # it came to the way back
    assert model.devices == ["meta"]
    assert activations(model, torch.rand(1, 2, device="meta"), "layer")["layer"].is_meta
    bare = nn.Sequential(nn.ReLU())  # without weights, the images stay where they are
    assert torch.equal(activations(bare, X, "0")["0"], X.relu())
    assert layer_table(bare).empty


def test_a_network_of_one_channel_is_measured():
    model = get_model("resnet14", in_channels=1).eval()
    rows = layer_table(model).set_index("name")["multiply-adds"]
    assert rows["conv1"] == 9 * 16 * 32 * 32
    grey = X[:, :1]
    assert list(block_parts(model, grey)) == block_names(model)
    torch.testing.assert_close(
        LesionedNet(model, grey).intact, model(grey).detach(), rtol=1e-4, atol=1e-4
    )
