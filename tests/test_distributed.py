"""Real processes on two ranks; this file is also what torchrun runs.

One job does everything that leaves the ranks in good order and notes what each saw. A
killed rank takes jobs of its own, whose processes are forked and told their ranks.
"""

import dataclasses
import itertools
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked import Forked, wait_until
from nets import bits, outcome, small_net
from torch import nn

from resnet_lib import fit
from resnet_lib.datasets import load_digits
from resnet_lib.distributed import DataParallelTraining, Ranks, process_group
from resnet_lib.runs import load_weights, read_history
from resnet_lib.train import parser, recipe_from

DIGITS = load_digits()
ARGUMENTS = shlex.split(
    "--model resnet8 --data digits --iterations 30 --batch-size 32 --validation 100 "
    "--log-every 5 --eval-every 10 --precision fp32 --device cpu --checkpoint-seconds 0"
)
RECIPE = recipe_from(parser().parse_args(ARGUMENTS))
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def net_without_bn(seed=0):
    torch.manual_seed(seed)
    conv = nn.Conv2d(3, 8, 3, stride=4)
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))


class Viewed(nn.Flatten):
    """What cannot flatten a batch of nothing."""

    def forward(self, x):
        return x.view(x.size(0), -1)


def train(net, run=None, **options):
    recipe = dataclasses.replace(RECIPE, **options.pop("change", {}))
    options = {"device": "cpu", "progress": False, **options}
    return fit(net, DIGITS, recipe, run, **options)


def on_pass(net, number, action):
    """Act on one forward pass in training mode; passes are counted from 1."""
    passes = itertools.count(1)

    def count(module, inputs, output):
        if module.training and next(passes) == number:
            return action(output)

    net.register_forward_hook(count)
    return net


def complaint(error, *arguments, **options):
    """What `fit` says when it refuses."""
    try:
        train(*arguments, **options)
    except error as refusal:
        return str(refusal)


def job(folder):
    with process_group("cpu") as ranks:
        second = ranks.rank == 1
        seen = {"ranks": (ranks.rank, ranks.size)}
        # Other weights on each rank: rank 0's have to win.
        seen["history"] = train(net_without_bn(ranks.rank), folder / "no-bn").history
        net = small_net()
        seen["status"] = train(net, folder / "alone").status
        seen["bits"] = bits(net)
        net = small_net()
        if second:  # the first pass is a trial
            on_pass(net, 8, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        result = train(net, folder / "stopped")
        seen["stopped"] = (result.status, result.iteration)
        train(small_net(seed=5), folder / "stopped")
        result = train(small_net(), folder / "late", max_minutes=1e-9)
        seen["late"] = (result.status, result.iteration)

        net = small_net()
        if second:
            on_pass(net, 4, lambda output: output * torch.nan)
        late = {"log_every": 30, "eval_every": 30}  # the bar of rank 0 sees it before
        options = {"progress": True, "change": late}
        seen["nan"] = complaint(FloatingPointError, net, folder / "nan", **options)
        net, change = small_net(), {"lr": 0.2}
        seen["other"] = complaint(ValueError, net, folder / "alone", change=change)
        seen["one"] = complaint(ValueError, net, folder / "one")
        (folder / "file").touch()
        seen["unwritable"] = complaint(OSError, net, folder / "file" / "run")
        net = net_without_bn()
        net[2] = Viewed()
        state = DataParallelTraining(net, DIGITS, RECIPE, ranks, "cpu")
        # The last part is one picture, for two ranks.
        many = DIGITS.test[[i % 100 for i in range(1_001)]]
        seen["judged"] = state.evaluate(many).logits
        seen["odd"] = complaint(ValueError, net, change={"batch_size": 33})
        # The ranks still understand each other.
        seen["sum"] = ranks.all_reduce(torch.tensor(ranks.rank + 1.0))
        torch.save(seen, folder / f"rank-{ranks.rank}.pt")
        del net


def training(folder, *options):
    """The command on two ranks, which meet as those of torchrun do."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "resnet_lib.train", *ARGUMENTS, "--run", folder]
    return [
        Forked([*command, *options], env=os.environ | shared | {"RANK": rank})
        for rank in ("0", "1")
    ]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The job's folder, and what each of the two ranks saw."""
    if sys.platform != "linux":
        pytest.skip("gloo on several processes is tried on Linux")
    folder = tmp_path_factory.mktemp("job")
    train(small_net(), folder / "one", max_minutes=1e-9)
    command = [sys.executable, *TORCHRUN, __file__, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # An abort at the exit would show here.
    subprocess.run(command, env=environment, check=True, timeout=180)
    paths = [folder / f"rank-{rank}.pt" for rank in (0, 1)]
    return folder, [torch.load(path, weights_only=True) for path in paths]


def test_shares_are_whole_and_a_batch_that_does_not_divide_is_told(refused):
    for count, size in [(128, 2), (7, 3), (1, 4), (10, 1)]:
        things = list(range(count))
        shares = [things[Ranks(rank, size).shard(count)] for rank in range(size)]
        assert [thing for share in shares for thing in share] == things
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    remedies = {(128, 3): "126 or 129", (2, 4): "4", (7, 8): "8", (9, 8): "8 or 16"}
    for (batch, ranks), sizes in remedies.items():
        told = f"{batch} does not .* {ranks} .* a batch size of {sizes}, or start"
        refused(told, Ranks(0, ranks).batch_shard, batch)
        for size in map(int, sizes.split(" or ")):
            assert Ranks(0, ranks).batch_shard(size) == slice(0, size // ranks)


def test_history_and_weights_are_those_of_one_training(both, tmp_path):
    folder, (first, second) = both
    assert (first["ranks"], second["ranks"]) == ((0, 2), (1, 2))
    alone = train(net_without_bn(), tmp_path).history
    kept = read_history(folder / "no-bn" / "history.csv")
    for rows in (first["history"], second["history"], kept):
        assert len(rows) == len(alone) == 6
        for ours, theirs in zip(rows, alone, strict=True):
            theirs = {**theirs, "seconds": ours["seconds"]}
            assert ours == pytest.approx(theirs, rel=1e-3, nan_ok=True)
    weights = bits(load_weights(folder / "alone" / "weights.pt"))
    for rank in (first, second):
        assert rank["status"] == "finished" and torch.equal(rank["bits"], weights)


def test_signal_or_clock_of_one_rank_stops_all_at_one_iteration(both):
    folder, seen = both
    for rank in seen:
        assert rank["stopped"] == ("interrupted", 7)
        assert rank["late"] == ("out of time", 1)
    assert outcome(folder / "stopped") == outcome(folder / "alone")  # it went on


def test_a_part_with_fewer_images_than_ranks_is_judged(both):
    _, (first, second) = both
    assert first["judged"].shape == (1_001, 10)
    assert torch.equal(first["judged"], second["judged"])
    assert torch.allclose(first["judged"][1_000], first["judged"][0], atol=1e-5)


def test_error_of_one_rank_reaches_all(both):
    _, (first, second) = both
    for key, words in {
        "nan": "The loss is nan at iteration 30",
        "other": "lr = 0.1, not 0.2",
        "one": "begun with 1 process, not 2, .* Go on with 1 process, or",
        "unwritable": "cannot be written: .* Choose another",
        "odd": "33 does not divide into 2 equal shares",
    }.items():
        assert re.search(words, first[key]) and first[key] == second[key]
    assert first["sum"] == second["sum"] == (torch.tensor(3.0),)


def test_killed_rank_ends_the_job_and_the_run_goes_on(both, tmp_path, refused):
    folder = tmp_path / "run"
    first, second = training(folder)
    kept = folder / "checkpoint.pt"
    wait_until(lambda: kept.exists() or first.poll() is not None)
    second.send_signal(signal.SIGKILL)
    code, said = first.end()
    assert code == 1 and "Finished" not in said
    assert "Another process of this training ended" in said
    assert "The same command goes on from the last checkpoint. (Here: [" in said

    refused("begun with 2 processes.*Go on with 2", train, small_net(), folder)
    first, second = training(folder)
    assert first.end()[0] == second.end()[0] == 0
    assert "Finished" in first.end()[1]
    assert outcome(folder) == outcome(both[0] / "alone")

    for rank, process in enumerate(training(folder, "--seed", "1")):
        code, said = process.end()
        assert code == 1 and "Finished" not in said
        assert f"resnet_lib.train (rank {rank}): " in said
        assert "seed = 0, not 1. Choose another folder" in said


if __name__ == "__main__":
    job(Path(sys.argv[1]))
