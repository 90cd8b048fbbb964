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
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_lib import (
    PAPER,
    Batches,
    Dataset,
    Images,
    Normalisation,
    ResNet,
    evaluate,
    fit,
    get_model,
    learning_rate_at,
)
from resnet_lib import device as devices
from resnet_lib.fit import expected_minutes
from resnet_lib.runs import read_json
from resnet_lib.training import Training

DRAW = torch.Generator().manual_seed(0)


def pictures(count):
    pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=DRAW)
    return Images(pixels.to(torch.uint8), torch.arange(count) % 10)


DATA = Dataset("random", tuple("abcdefghij"), pictures(50), pictures(20))
RECIPE = dataclasses.replace(
    PAPER.scaled(8), batch_size=16, validation=0, precision="fp32", log_every=4
)


def small_net(seed=0):
    torch.manual_seed(seed)
    return get_model("resnet8")


def bits(model):
    return torch.cat([v.flatten().double() for v in model.state_dict().values()])


# --- on the CPU -----------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fit_is_a_plain_loop_to_the_last_bit(precision):
    recipe = dataclasses.replace(RECIPE, precision=precision)
    net, layout = small_net().train(), {"memory_format": torch.channels_last}
    net = net.to(**layout)
    batches = Batches(DATA.train, 16, Normalisation.of(DATA.train.images), recipe.seed)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=1e-4)
    losses = []
    for iteration in range(8):
        optimizer.param_groups[0]["lr"] = learning_rate_at(iteration, recipe)
        images, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = net(images.contiguous(**layout))
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    ours = small_net()
    rows = fit(ours, DATA, recipe, progress=False).history
    assert torch.equal(bits(ours), bits(net))
    means = [sum(losses[i : i + 4]) / 4 for i in (0, 4)]
    assert [row["train_loss"] for row in rows] == pytest.approx(means, rel=1e-6)


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
    for size in (16, 8):
        with NoHostReads():
            state.update(plan, size)
    with pytest.raises(AssertionError), NoHostReads():
        state.progress()  # the mode does see reading


def addresses(state):
    return [tensor.data_ptr() for tensor in state._changing()]


def test_nothing_moves_in_a_step_or_a_load():
    state, other = (Training(small_net(n), DATA, RECIPE, "cpu") for n in (0, 1))
    for training in (state, other):
        training.step()  # momentum has its place from here on
    before = addresses(state)
    assert len(before) == len(set(before)) > 50
    state.step()
    assert addresses(state) == before
    state.add_row()
    state.load_state_dict(other.state_dict())
    assert addresses(state) == before
    for ours, theirs in zip(state._changing(), other._changing(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_quiet_run_reads_no_loss_between_rows(monkeypatch):
    reads = []
    window = Training._window
    monkeypatch.setattr(
        Training,
        "_window",
        lambda state: reads.append(state.iteration) or window(state),
    )
    recipe = dataclasses.replace(RECIPE.scaled(25), log_every=22, eval_every=25)
    fit(small_net(), DATA, recipe, progress=False)
    assert reads == [22, 25]


# --- as on a GPU ----------------------------------------------------------------------


@pytest.fixture
def recorder(monkeypatch):
    """A device on which steps are recorded and replayed; counts the recordings."""
    recordings = []

    def record(work):
        recordings.append(work)
        return work

    monkeypatch.setattr(
        sys.modules["resnet_lib.training"], "can_record", lambda _: True
    )
    monkeypatch.setattr(devices, "record_cuda_graph", record)
    return recordings


def test_a_replayed_training_is_the_eager_one(recorder):
    """Warm-up leaves no trace, momentum begins as zeros, each call counts once."""
    recipe = dataclasses.replace(RECIPE, small_until=(3,), small_size=(8,))
    eager, replayed = (
        Training(small_net(), DATA, recipe, "cpu", graphed=graphed)
        for graphed in (False, True)
    )
    assert replayed.graphed and not eager.graphed
    for _ in range(8):
        eager.step()
        replayed.step()
        for ours, theirs in zip(replayed._changing(), eager._changing(), strict=True):
            assert torch.equal(ours, theirs)
    assert len(recorder) == 2  # one for each image size
    assert replayed.model.bn1.num_batches_tracked == 8


def test_a_network_that_cannot_be_recorded_is_trained_step_by_step(recorder):
    for graphed, count in ((False, 0), (True, 1)):
        fit(small_net(), DATA, RECIPE, device="cpu", graphed=graphed, progress=False)
        assert len(recorder) == count


def test_a_replay_reads_the_rate_of_the_day(recorder):
    state = Training(small_net(), DATA, RECIPE, "cpu")
    state.step()
    before = state.model.conv1.weight.clone()
    plan = state.batches.next_plan()
    state.optimizer.set_rate(0.0)
    state.graphs[16](plan)
    assert torch.equal(state.model.conv1.weight, before)
    state.optimizer.set_rate(1.0)
    state.graphs[16](plan)
    assert (state.model.conv1.weight - before).abs().max() > 0.01


def test_a_replay_reads_the_plan_of_the_day(recorder):
    state = Training(small_net(), DATA, RECIPE, "cpu")
    state.step()
    (graph,) = state.graphs.values()
    place = graph.given.data_ptr()
    state.step()
    assert graph.given.data_ptr() == place
    assert state.batches.position == 32


def test_a_checkpoint_goes_from_cpu_to_gpu_and_back(recorder, monkeypatch):
    gpu = Training(small_net(), DATA, RECIPE, "cpu")
    module = sys.modules["resnet_lib.training"]
    monkeypatch.setattr(module, "can_record", lambda _: False)
    cpu = Training(small_net(1), DATA, RECIPE, "cpu")
    cpu.step()
    rate = gpu.optimizer.param_groups[0]["lr"]
    gpu.load_state_dict(cpu.state_dict())
    (group,) = gpu.optimizer.param_groups
    assert group["lr"] is rate and rate.ndim == 0 and group["fused"] is True
    assert torch.equal(bits(gpu.model), bits(cpu.model))
    gpu.step()
    (written,) = gpu.state_dict()["optimizer"]["param_groups"]
    assert type(written["lr"]) is float and written["fused"] is None  # for any machine
    cpu.load_state_dict(gpu.state_dict())
    (group,) = cpu.optimizer.param_groups
    assert isinstance(group["lr"], float) and not group["fused"]
    cpu.step()
    assert cpu.iteration == 3


def test_a_cut_replayed_run_ends_with_the_same_bits(recorder, tmp_path):
    whole, halves = small_net(), small_net()
    fit(whole, DATA, RECIPE, device="cpu", progress=False)
    status = ""
    while status != "finished":
        run = fit(halves, DATA, RECIPE, tmp_path, max_minutes=1e-9, progress=False)
        status = run.status
    assert torch.equal(bits(whole), bits(halves))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_replayed_training_is_the_eager_one():
    runs = []
    for graphed in (False, True):
        net = small_net()
        runs.append(fit(net, DATA, RECIPE, graphed=graphed, progress=False).history)
    for ours, theirs in zip(*runs, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)


# --- what a training does to its process ----------------------------------------------


def test_fp32_on_a_gpu_is_no_tf32():
    profile = devices.DeviceProfile(torch.device("cuda"), "fp32", torch.channels_last)
    before = torch.backends.cudnn.allow_tf32
    assert before  # PyTorch's default, which "fp32" must not be
    for precision, allowed in (("fp32", False), ("tf32", True)):
        profile = dataclasses.replace(profile, precision=precision)
        with profile.exactly():
            assert torch.backends.cudnn.allow_tf32 is allowed
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
            assert torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.allow_tf32 is before
    assert not torch.backends.cudnn.deterministic


def test_threads_are_chosen_once_and_kept(tmp_path, monkeypatch, capsys):
    module = sys.modules["resnet_lib.fit"]
    monkeypatch.setattr(module, "threads_given", lambda: False)
    monkeypatch.setattr(module, "faster_threads", lambda step: {3: 0.1, 1: 0.2})
    before, used = torch.get_num_threads(), []

    def look(rows):
        used.append(torch.get_num_threads())

    def sit(**options):
        run = {"on_row": look, **options}
        return fit(small_net(), DATA, RECIPE, tmp_path, device="cpu", **run)

    sit(max_minutes=1e-9)
    assert "Threads: 3 (0.1 s an update; 1: 0.2 s)." in capsys.readouterr().out
    monkeypatch.setattr(module, "faster_threads", lambda step: {1: 0.1, 3: 0.2})
    assert sit(progress=False).finished
    assert set(used) == {3} and torch.get_num_threads() == before
    assert read_json(tmp_path / "environment.json")["threads"] == 3


def test_both_numbers_of_threads_are_tried():
    torch_threads = []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        tried = devices.faster_threads(
            lambda: torch_threads.append(torch.get_num_threads())
        )
    finally:
        torch.set_num_threads(before)
    assert torch_threads == [1, 1, 2, 2]
    assert tried.keys() == {1, 2} and list(tried.values()) == sorted(tried.values())


def test_the_expected_time_is_cut_short_on_a_slow_machine(monkeypatch):
    clock, steps = [0.0], []

    def step(state):
        clock[0] += 2.0
        steps.append(state)

    monkeypatch.setattr(Training, "step", step)
    monkeypatch.setattr(sys.modules["time"], "perf_counter", lambda: clock[0])
    minutes = expected_minutes(small_net(), DATA, RECIPE, "cpu")
    assert len(steps) == 3  # two that warm up, and one
    assert minutes == pytest.approx(8 * 2 / 60, rel=0.2)


# --- evaluation -----------------------------------------------------------------------


def test_evaluate_says_what_it_wants():
    net, norm = small_net(), Normalisation.of(DATA.train.images)
    with pytest.raises(
        TypeError,
        match=r"The data is of type Dataset: give .*Images, such as data\.test",
    ):
        evaluate(net, DATA, norm)
    loader = torch.utils.data.DataLoader([1, 2])
    with pytest.raises(TypeError, match=r"of type DataLoader: give .*Images"):
        evaluate(net, loader, norm)
    with pytest.raises(
        TypeError, match=r"^The norm.* of type float: give .*Normalisation\.of"
    ):
        evaluate(net, DATA.test, 0.5)


def test_a_network_without_weights_is_judged_too():
    norm = Normalisation.of(DATA.train.images)
    logits = evaluate(nn.Flatten(), DATA.test, norm).logits
    assert torch.equal(logits, norm(DATA.test.images).flatten(1))


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_evaluate_takes_a_model_on_a_gpu_and_data_that_are_not():
    net, norm = small_net(), Normalisation.of(DATA.train.images)
    here = evaluate(net, DATA.test, norm)
    there = evaluate(net.cuda(), DATA.test, norm)
    torch.testing.assert_close(there.logits, here.logits, rtol=1e-3, atol=1e-3)


def test_wrapped_networks_train_as_what_they_wrap(tmp_path):
    plain, wrapped = small_net(), small_net()
    fit(plain, DATA, RECIPE, tmp_path / "a", progress=False)
    fit(nn.DataParallel(wrapped), DATA, RECIPE, tmp_path / "b", progress=False)
    assert torch.equal(bits(plain), bits(wrapped))
    ours, theirs = (read_json(tmp_path / x / "recipe.json") for x in "ab")
    assert ours == theirs


def test_one_value_per_channel_is_told():
    recipe = dataclasses.replace(
        RECIPE, batch_size=1, small_until=(8,), small_size=(4,)
    )
    with pytest.raises(ValueError, match=r"a batch of 1 leaves it.*2 or more"):
        fit(small_net(), DATA, recipe, progress=False)
