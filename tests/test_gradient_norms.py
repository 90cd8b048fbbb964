"""`resnet_lib.probes.gradient_norms`, built in notebook 01."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib.probes import gradient_norms
from resnet_lib.resnet import get_model


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
