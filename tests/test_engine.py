"""The engine: one update as it is on a CPU and as a GPU would replay it.

No GPU is needed. A recorder that simply runs the step again stands in for CUDA graphs;
what it cannot show, that a step never waits for the device and never moves a tensor,
is shown on the CPU.
"""

import dataclasses
import sys
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from nets import DATA, bits, small_net
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_lib import PAPER, Batches, Normalisation, ResNet, evaluate, fit
from resnet_lib import device as devices
from resnet_lib.recipe import learning_rate_at
from resnet_lib.runs import read_json
from resnet_lib.training import Training

RECIPE = dataclasses.replace(
    PAPER.scaled(8), batch_size=16, validation=0, precision="fp32", log_every=4
)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fit_is_a_plain_loop_to_the_last_bit(precision):
    recipe = dataclasses.replace(RECIPE, precision=precision)
    layout = {"memory_format": torch.channels_last}
    net, ours = small_net().train().to(**layout), small_net()
    batches = Batches(DATA.train, 16, Normalisation.of(DATA.train.images), recipe.seed)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=1e-4)
    for iteration in range(8):
        optimizer.param_groups[0]["lr"] = learning_rate_at(iteration, recipe)
        images, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = net(images.contiguous(**layout))
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
    fit(ours, DATA, recipe, progress=False)
    assert torch.equal(bits(ours), bits(net))


class NoHostReads(TorchDispatchMode):
    """Fail where a number is read back: there a GPU would be waited for."""

    WAITING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in self.WAITING, function
        return function(*args, **(kwargs or {}))


def test_a_narrow_strided_shortcut_is_kept_from_channels_last():
    """Where it would end the process."""
    nets = {(4, 8): torch.contiguous_format, (8, 16): torch.channels_last}
    for widths, layout in nets.items():
        state = Training(ResNet(widths, (1, 1), "B"), DATA, RECIPE, "cpu")
        assert state.profile.memory_format == layout
        state.step()


def test_an_update_reads_no_number_back():
    state = Training(small_net(), DATA, RECIPE, "cpu")
    plan = state.batches.next_plan()
    for size in (8, 4):
        with NoHostReads():
            state.update(plan, size)
    with pytest.raises(AssertionError), NoHostReads():
        state.progress()  # the mode does see reading


def test_a_quiet_run_reads_no_loss_between_rows(monkeypatch):
    reads, window = [], Training._window

    def noted(state):
        reads.append(state.iteration)
        return window(state)

    monkeypatch.setattr(Training, "_window", noted)
    recipe = dataclasses.replace(RECIPE.scaled(25), log_every=22, eval_every=25)
    fit(small_net(), DATA, recipe, progress=False)
    assert reads == [22, 25]


@pytest.fixture
def recorder(monkeypatch):
    """A device on which steps are recorded and replayed; counts the recordings."""
    recordings = []

    def record(work):
        recordings.append(work)
        return work

    module = sys.modules["resnet_lib.training"]
    monkeypatch.setattr(module, "can_record", lambda _: True)
    monkeypatch.setattr(devices, "record_cuda_graph", record)
    return recordings


def test_a_replayed_training_is_the_eager_one(recorder):
    """Warm-up leaves no trace, momentum begins as zeros, each call counts once."""
    recipe = dataclasses.replace(RECIPE, small_until=(3,), small_size=(4,))
    eager, replayed, other = (
        Training(small_net(seed), DATA, recipe, "cpu", graphed=graphed)
        for seed, graphed in ((0, False), (0, True), (1, False))
    )
    assert replayed.graphed and not eager.graphed
    rate = replayed.optimizer.param_groups[0]["lr"]
    places, given = set(), set()  # what a recording reads and writes may not move

    def compare(theirs):
        for ours, other in zip(replayed._changing(), theirs._changing(), strict=True):
            assert torch.equal(ours, other)
        places.add(tuple(tensor.data_ptr() for tensor in replayed._changing()))

    for size in (4, 4, 4, 8, 8, 8, 8, 8):
        eager.step()
        replayed.step()
        compare(eager)
        given.add(replayed.graphs[size].given.data_ptr())
    assert len(recorder) == len(given) == 2  # one for each image size
    assert replayed.optimizer.param_groups[0]["lr"] is rate
    assert rate == pytest.approx(learning_rate_at(7, recipe))
    assert replayed.model.bn1.num_batches_tracked == 8
    replayed.add_row()
    other.step()
    replayed.load_state_dict(other.state_dict())
    compare(other)
    (place,) = places
    assert len(place) == len(set(place)) > 50


def test_a_checkpoint_goes_from_cpu_to_gpu_and_back(recorder, monkeypatch):
    gpu = Training(small_net(), DATA, RECIPE, "cpu")
    module = sys.modules["resnet_lib.training"]
    monkeypatch.setattr(module, "can_record", lambda _: False)
    cpu = Training(small_net(1), DATA, RECIPE, "cpu")
    cpu.step()
    rate = gpu.optimizer.param_groups[0]["lr"]
    for here, there in ((cpu, gpu), (gpu, cpu)):
        there.load_state_dict(here.state_dict())
        there.step()
        here.step()
        assert torch.equal(bits(here.model), bits(there.model))
    (ours,), (theirs,) = gpu.optimizer.param_groups, cpu.optimizer.param_groups
    assert ours["lr"] is rate and rate.ndim == 0 and ours["fused"] is True
    assert isinstance(theirs["lr"], float) and not theirs["fused"]
    (written,) = gpu.state_dict()["optimizer"]["param_groups"]
    assert type(written["lr"]) is float and written["fused"] is None  # for any machine
    assert cpu.iteration == gpu.iteration == 3


def test_a_run_is_replayed_unless_it_is_told_not_to(recorder):
    for graphed, count in ((False, 0), (True, 1)):
        fit(small_net(), DATA, RECIPE, device="cpu", graphed=graphed, progress=False)
        assert len(recorder) == count


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_replayed_training_is_the_eager_one():
    runs = []
    for graphed in (False, True):
        net, norm = small_net(), Normalisation.of(DATA.train.images)
        here = evaluate(net, DATA.test, norm).logits
        there = evaluate(net.cuda(), DATA.test, norm).logits  # the data are not there
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)
        runs.append(fit(net, DATA, RECIPE, graphed=graphed, progress=False).history)
    for ours, theirs in zip(*runs, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)


def test_fp32_on_a_gpu_is_no_tf32():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def allowed():
        return cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic

    before = allowed()
    assert before == (True, False, False)  # PyTorch's default is not "fp32"
    for precision in ("fp32", "tf32"):
        device = torch.device("cuda")
        profile = devices.DeviceProfile(device, precision, torch.channels_last)
        with profile.exactly():
            assert allowed() == (precision == "tf32", precision == "tf32", True)
        assert allowed() == before


def test_threads_are_chosen_once_and_kept(tmp_path, monkeypatch, capsys):
    module = sys.modules["resnet_lib.fit"]
    monkeypatch.setattr(module, "threads_given", lambda: False)
    before, used = torch.get_num_threads(), []

    def look(rows):
        used.append(torch.get_num_threads())

    for tried, minutes in (({3: 0.1, 1: 0.2}, 0), ({1: 0.1, 3: 0.2}, 60)):
        monkeypatch.setattr(module, "faster_threads", lambda step, tried=tried: tried)
        options = {"device": "cpu", "max_minutes": minutes, "on_row": look}
        finished = fit(small_net(), DATA, RECIPE, tmp_path, **options).finished
    assert finished and set(used) == {3} and torch.get_num_threads() == before
    assert "Threads: 3 (0.1 s an update; 1: 0.2 s)." in capsys.readouterr().out
    assert read_json(tmp_path / "environment.json")["threads"] == 3


def test_both_numbers_of_threads_are_tried():
    used = []
    with devices.threads(2):
        tried = devices.faster_threads(lambda: used.append(torch.get_num_threads()))
    assert used == [1, 1, 2, 2]
    assert tried.keys() == {1, 2} and list(tried.values()) == sorted(tried.values())


def test_evaluate_judges_any_network_and_says_what_it_wants(refused):
    net, norm = nn.Flatten(), Normalisation.of(DATA.train.images)
    logits = evaluate(net, DATA.test, norm).logits
    assert torch.equal(logits, norm(DATA.test.images).flatten(1))
    told = r"The data is of type Dataset: give .*Images, such as data\.test"
    refused(told, evaluate, net, DATA, norm, error=TypeError)
    told = r"^The norm.* of type float: give .*Normalisation\.of"
    refused(told, evaluate, net, DATA.test, 0.5, error=TypeError)


def test_evaluate_brings_images_and_statistics_to_the_model(monkeypatch):
    """A stand-in for a GPU: what is on `meta` has no values to bring back."""
    seen = []

    class Elsewhere(nn.Linear):
        def forward(self, x):
            seen.append(x.device.type)
            return super().forward(x.mean((2, 3)))

    profile = devices.DeviceProfile(torch.device("meta"), "fp32", torch.channels_last)
    monkeypatch.setattr(devices.DeviceProfile, "autocast", lambda self: nullcontext())
    for given in (profile, None):  # given, and found where the weights are
        norm = Normalisation.of(DATA.train.images, per_pixel=given is None)
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta"):
            evaluate(Elsewhere(3, 10, device="meta"), DATA.test, norm, given)
    assert set(seen) == {"meta"}


def test_one_value_per_channel_is_told(refused):
    small = {"small_until": (8,), "small_size": (4,)}
    recipe = dataclasses.replace(RECIPE, batch_size=1, **small)
    refused("a batch of 1 leaves it.*2 or more", fit, small_net(), DATA, recipe)
