"""What the hooks of `resnet_lib.probes` measure, and that they leave no trace."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_lib import BasicBlock, get_model, probes
from resnet_lib.explorer import inside


def hook_count(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def shaken(name, channels=3):
    """A network whose BN is not the identity, in evaluation mode."""
    torch.manual_seed(1)
    model = get_model(name, in_channels=channels)
    model.train()(torch.randn(16, channels, 32, 32))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model.eval()


X = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PROBES = {
    "layer_table": lambda net, x: probes.layer_table(net, x.shape),
    "activations": lambda net, x: probes.activations(net, x, ["layer1", "bn1", "fc"]),
    "block_parts": probes.block_parts,
}


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_leaves_no_trace_not_even_after_an_error(name):
    model = get_model("resnet8").train()
    model.layer2.eval()  # frozen, as in fine-tuning
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    PROBES[name](model, X)
    if name != "activations":  # which looks at the net as it is
        assert all(torch.equal(state[n], it) for n, it in model.state_dict().items())
    with pytest.raises(ValueError, match="shape"):
        PROBES[name](model, torch.zeros(1, 4, 32, 32))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert hook_count(model) == 0


# --- layer_table ----------------------------------------------------------------------

COUNTED = [(get_model(name), (1, 3, 32, 32)) for name in ("resnet18", "plain20")]
COUNTED += [
    (get_model("resnet20"), (4, 3, 64, 48)),
    (get_model("resnet14", in_channels=1), (1, 1, 32, 32)),
    (nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=4)), (1, 8, 5, 5)),
    (nn.Sequential(*[nn.Conv2d(3, 3, 1, bias=False)] * 2), (1, 3, 4, 4)),  # twice
]


def test_the_table_agrees_with_pytorchs_own_counters():
    for model, shape in COUNTED:
        given = None if shape[2:] == (32, 32) else shape  # the rest is the default
        table = probes.layer_table(model, given).set_index("name")
        weights = sum(p.numel() for p in model.parameters())
        assert table["parameters"].sum() == weights
        with FlopCounterMode(display=False) as counter:  # two for a multiply-add
            model(torch.zeros(shape))
        counted = counter.get_flop_counts()
        each = 2 * shape[0] * table["multiply-adds"]
        for name, found in each.items():
            right = counted.get(f"{type(model).__name__}.{name}", {}).values()
            assert found == sum(right), name
        assert each.sum() == counter.get_total_flops() > 0


def test_rows_are_in_the_order_they_run():
    table = probes.layer_table(get_model("resnet20"))
    columns = ["name", "kind", "output shape", "parameters", "multiply-adds"]
    assert list(table.columns) == columns
    kinds = {"Conv2d": 19, "BatchNorm2d": 19, "PaddedIdentity": 2, "Linear": 1}
    assert table["kind"].value_counts().to_dict() == kinds
    rows = table.set_index("name")
    assert (*rows.index[:2], rows.index[-1]) == ("conv1", "bn1", "fc")
    assert rows.loc["layer2.0.shortcut", "output shape"] == (1, 32, 16, 16)


# --- activations ----------------------------------------------------------------------


def test_activations_are_the_outputs_by_name_in_the_order_asked_for():
    model = get_model("resnet8").eval()
    found = probes.activations(model, X, ["fc", "layer1", "bn1"])
    assert list(found) == ["fc", "layer1", "bn1"]
    with torch.no_grad():
        stem = model.bn1(model.conv1(X))
        assert torch.equal(found["bn1"], stem)
        assert torch.equal(found["layer1"], model.layer1(F.relu(stem)))
        assert torch.equal(found["fc"], model(X))
    assert not any(output.requires_grad for output in found.values())
    # One name need not be in a list; the mode is the reader's.
    third = probes.activations(model.train(), X, "layer3")["layer3"]
    assert third.shape == (6, 64, 8, 8)
    assert model.bn1.num_batches_tracked == 1
    in_place = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
    found = probes.activations(in_place, X, ["0", "1"])
    assert found["0"].min() < 0 and torch.equal(found["0"].relu(), found["1"])


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_compiled_network_is_looked_into_as_it_is(wrapped):
    net, own = (get_model("resnet8").eval() for _ in range(2))
    own.load_state_dict(net.state_dict())
    if wrapped:
        own = torch.compile(own, backend="eager")
    else:
        own.compile(backend="eager")
    with torch.no_grad():
        own(X)  # compiled now, without a hook
    seen = probes.activations(own, X, ["_orig_mod.fc" if wrapped else "fc"])
    torch.testing.assert_close(*seen.values(), net(X))
    assert len(probes.block_parts(own, X)) == len(probes.block_parts(net, X)) == 3


def test_an_unknown_layer_gets_near_names_and_a_spare_one_its_own(refused):
    model = get_model("resnet8")
    model.spare = nn.Linear(1, 1)
    for names, told in {
        ("layer1", "layer4.0"): r"no layer 'layer4\.0'.*'layer3\.0'",
        ("zzz",): "'layer1', 'layer2', 'layer3'",
        ("spare",): "never calls its layer 'spare'",
    }.items():
        refused(told, probes.activations, model, X, list(names))
    assert hook_count(model) == 0


def test_images_are_brought_to_the_model_and_results_back():
    model, seen = nn.Sequential(nn.Linear(2, 2, device="meta")), []
    model.register_forward_pre_hook(lambda net, given: seen.append(given[0].device))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta"):
        probes.activations(model, torch.rand(1, 2), ["0"])  # it came to the way back
    assert seen == [torch.device("meta")]
    assert probes.activations(model, torch.rand(1, 2, device="meta"), "0")["0"].is_meta
    bare = nn.Sequential(nn.ReLU())  # without weights, the images stay where they are
    assert torch.equal(probes.activations(bare, X, "0")["0"], X.relu())
    assert probes.layer_table(bare).empty


# --- gradient_norms -------------------------------------------------------------------


def test_gradient_norms_agree_with_backward_and_leave_no_trace(refused):
    torch.manual_seed(0)
    model = get_model("resnet20")
    loss = F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4))
    norms = probes.gradient_norms(model, loss)
    assert all(parameter.grad is None for parameter in model.parameters())
    loss.backward()  # the graph is still there
    names = list(norms)
    assert (names[0], names[-1], len(names)) == ("conv1", "fc", 20)
    for name, norm in norms.items():
        right = model.get_submodule(name).weight.grad.norm()
        assert norm == pytest.approx(right.item())
    stray = nn.Linear(3, 2)(torch.ones(3)).sum()
    for other in (loss.detach(), model.conv1.weight.sum(), stray):
        told = "does not depend on the weight of"
        refused(told, probes.gradient_norms, model, other)
    model.fc.requires_grad_(False)
    loss = model(torch.randn(4, 3, 8, 8)).sum()
    refused("weight of 'fc' is frozen .*: thaw it", probes.gradient_norms, model, loss)


# --- blocks and lesions ---------------------------------------------------------------


def test_parts_add_up_to_the_blocks_output():
    for model in (shaken("resnet14"), shaken("resnet18")):
        parts = probes.block_parts(model.train(), X)
        assert list(parts) == probes.block_names(model)
        outputs = probes.activations(model.eval(), X, list(parts))
        for block, part in parts.items():
            assert torch.equal(part.out, outputs[block])
            assert torch.equal(part.sum, part.x + part.f)
        assert torch.equal(parts["layer1.1"].x, outputs["layer1.0"])
        part = parts["layer2.0"]
        assert part.ratio == pytest.approx((part.f.norm() / part.x.norm()).item())
    plain = get_model("plain8")
    assert probes.block_names(plain) == ["layer1.0", "layer2.0", "layer3.0"]
    assert probes.block_parts(plain, X) == {}


def test_confident_mistakes_come_first_and_path_lengths_are_binomial():
    logits = torch.tensor([[0.0, 9.0], [0.0, 1.0], [3.0, 0.0], [0.0, 4.0]])
    assert probes.confident_mistakes(logits, torch.tensor([0, 0, 0, 1])) == [0, 1]
    assert inside.path_lengths(0) == [1] and inside.path_lengths(3) == [1, 3, 3, 1]
    assert sum(inside.path_lengths(54)) == 2**54


@torch.no_grad()
@pytest.mark.parametrize("scale", [0, 0.3, 1])
def test_a_lesion_is_its_equation(scale):
    x = torch.rand(2, 16, 8, 8)
    lent = {"layer1.1": x}  # strided, and zeros in the new channels
    lent["layer2.0"] = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 16, 4, 4)], 1)
    for where, around in lent.items():
        model = shaken("resnet14")
        block = model.get_submodule(where)
        expected = F.relu(scale * block.residual(x) + block.shortcut(x))
        with probes.lesion(model, {where: scale}):
            torch.testing.assert_close(block(x), expected)
        model = shaken("plain14")
        block = model.get_submodule(where)
        expected = scale * block(x) + (1 - scale) * around
        with probes.lesion(model, {where: scale}):
            torch.testing.assert_close(block(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet14", "plain14"])
def test_the_model_is_whole_again_whatever_happens(name):
    model = shaken(name)
    whole, order = model(X), list(model.layer2)
    with pytest.raises(KeyboardInterrupt), probes.lesion(model, {"layer1.1": 0}):
        assert not torch.equal(model(X), whole)
        raise KeyboardInterrupt
    with probes.lesion(model, {"layer1.1": 0}):
        outer = model(X)
        with probes.lesion(model, {"layer1.1": 1, "layer3.1": 0}):
            pass
        assert torch.equal(model(X), outer)
    assert torch.equal(model(X), whole)
    assert list(model.layer2) == order
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_block_that_computes_something_else_is_refused(refused):
    class ReluFirst(BasicBlock):
        def forward(self, x):
            return F.relu(self.residual(x)) + self.shortcut(x)

    model = shaken("resnet14")
    model.layer2[1] = ReluFirst(32, 32)
    told = "'layer2.1' has a forward of its own"
    refused(told, probes.lesion(model, {"layer2.1": 1}).__enter__)
    assert not inside.is_open(model, X) and inside.is_open(shaken("resnet14"), X)


LESIONS = [{}, {"layer2.1": 0.5}, {"layer2.1": 0.2, "layer3.0": 0}]
LESIONS += [{"layer1.0": 1, "layer3.1": 0}, {"layer1.0": 0.0}, {"layer1.0": 1.0}]
LESIONS += [{"layer1.1": 0, "layer2.0": 0.5, "layer3.1": 0.25}]
SHAKEN = [("resnet14", 3), ("plain14", 3), ("resnet18", 3), ("resnet14", 1)]


@torch.no_grad()
@pytest.mark.parametrize(("name", "channels"), SHAKEN)
def test_what_the_explorer_computes_is_what_a_whole_pass_gives(name, channels, refused):
    model, x = shaken(name, channels), X[:, :channels]
    folded = inside.fold_batch_norm(model.train())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    net = inside.LesionedNet(model, x, batch_size=4)
    assert model.training and not model.eval().training
    for found in (net.intact, folded(x)):
        torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-4)
    for scales in LESIONS:
        seen = inside.look_inside(model, x, scales)
        with probes.lesion(model, scales):
            for found in (net(scales), seen.logits):
                torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-4)
            for block, part in probes.block_parts(model, x).items():
                torch.testing.assert_close(seen.parts[f"{block}.f"], part.f)
                torch.testing.assert_close(seen.parts[f"{block}.x"], part.x)
        assert (seen.parts["layer1.0.h"] >= 0).all()
    refused("no layer 'layer9.0'", net, {"layer9.0": 0})
    refused("no block", net, {"layer1": 0})
    for scale in (1.5, float("nan")):
        refused("from 0 to 1", net, {"layer1.0": scale})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_on_a_gpu_is_measured_on_images_that_are_not():
    here, there = shaken("resnet14"), shaken("resnet14").cuda()
    assert probes.layer_table(there).equals(probes.layer_table(here))
    near = {"rtol": 1e-2, "atol": 1e-2}  # and on the device of the images
    for name in PROBES.keys() - {"layer_table"}:
        found, right = (PROBES[name](net, X) for net in (there, here))
        torch.testing.assert_close(found, right, **near)
    logits = here(X)
    net = inside.LesionedNet(there, X)
    torch.testing.assert_close(net.intact, logits, **near)
    assert net({"layer2.1": 0.5}).device.type == "cpu"
    probes.confident_mistakes(logits.cuda(), torch.arange(6))
    assert len(probes.gradient_norms(there, there(X.cuda()).sum())) == 14
    assert probes.activations(there, X.cuda(), "fc")["fc"].is_cuda
