"""Several processes, one training: what each takes, and what all agree on.

`torchrun` starts the processes and numbers them: their ranks. Every rank draws the same
batches and computes on its own share of each; gradients are averaged before every
update, so the weights stay equal. Rank 0 alone reads and writes the run's folder. All
ranks go on from its random numbers, so dropout draws the same masks on each.
"""

import contextlib
import copy
import gc
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnet_lib.data import Dataset, Images
from resnet_lib.device import keeping_random_states
from resnet_lib.recipe import Recipe
from resnet_lib.training import Evaluation, Training

__all__ = ["DataParallelTraining", "Ranks", "process_group"]

# Ranks meet several times in every update and in every part of an evaluation. So long
# a silence means that one of them is lost.
TIMEOUT = 45  # seconds

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Every method has to be called by all ranks alike: each waits for the others. A
    single process waits for nobody; it needs `any_rank` and `on_rank_zero` alone.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> "Ranks":
        """What the process group says; a process without one is alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        """Whether this rank writes."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """This rank's contiguous part of `count` things; none is left out or shared."""
        start, stop = (count * r // self.size for r in (self.rank, self.rank + 1))
        return slice(start, stop)

    def batch_shard(self, batch_size: int) -> slice:
        """The same for a batch; ValueError if the parts would differ in size."""
        if batch_size % self.size:
            below = batch_size // self.size * self.size
            sizes = [str(size) for size in (below, below + self.size) if size]
            raise ValueError(
                f"A batch of {batch_size} does not divide into {self.size} equal "
                f"shares. Choose a batch size of {' or '.join(sizes)}, or start "
                "another number of processes."
            )
        return self.shard(batch_size)

    def wrap(self, model: nn.Module, images: Tensor) -> nn.Module:
        """The same weights everywhere, rank 0's, and gradients that are averaged.

        `images` (N, C, H, W), two or more, are for a trial pass that changes nothing.
        Running statistics of BN stay each rank's own until an evaluation takes rank
        0's, which is cheaper than at every update; they play no part in training. The
        paper, on two GPUs, says nothing of exchanging them.
        """
        known = inspect.signature(DistributedDataParallel).parameters
        new, old = "forward_sync_buffers", "broadcast_buffers"  # renamed by PyTorch
        off = {new if new in known else old: False}
        wrapped = DistributedDataParallel(model, **off)
        # After its first backward pass it lays the gradients out anew, and the layout
        # decides in which order three ranks or more are summed. Past this trial, a run
        # that goes on has the layout, and so the bits, of one that never stopped.
        before = copy.deepcopy(model.state_dict())
        with keeping_random_states(images.device):
            wrapped(images).sum().backward()
        model.zero_grad()
        model.load_state_dict(before)
        return wrapped

    def all_reduce(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Scalars on one device, each summed over the ranks."""
        sums = torch.stack([value.double() for value in values])
        dist.all_reduce(sums)
        return tuple(s.to(v.dtype) for s, v in zip(sums, values, strict=True))

    def any_rank(self, *flags: bool) -> list[bool]:
        """For each flag, whether some rank raised it."""
        if self.size == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32)  # on the CPU: a GPU goes on
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return votes.bool().tolist()

    def on_rank_zero(self, action: Callable[[], T]) -> T:
        """Rank 0 acts; what it returns or raises, every rank returns or raises.

        An error on rank 0 alone would leave the others waiting for it.
        """
        if self.size == 1:
            return action()
        answer = [None, None]  # a result, an error
        if self.first:
            try:
                answer[0] = action()
            except Exception as error:
                answer[1] = error
        dist.broadcast_object_list(answer, 0)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]


class DataParallelTraining(Training):
    """A training of which this process computes one shard of every batch."""

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        recipe: Recipe,
        ranks: Ranks,
        device: str | None = None,
    ) -> None:
        self.ranks = ranks
        shard = ranks.batch_shard(recipe.batch_size)
        super().__init__(model, data, recipe, device, shard, graphed=False)
        shape = data.train.images.shape[1:]
        trial = torch.zeros(2, *shape, device=self.profile.device)
        self.forward = ranks.wrap(self.model, trial)

    def _count(self, loss: Tensor, wrong: Tensor) -> None:
        loss, wrong = self.ranks.all_reduce(loss, wrong)
        # Equal shards: the mean over the batch is the mean of their means.
        super()._count(loss / self.ranks.size, wrong)

    def progress(self) -> str:
        """The same, but no error of rank 0 alone, for which the others would wait: the
        next row raises it on all ranks."""
        try:
            return super().progress()
        except FloatingPointError as error:
            return str(error)

    def evaluate(self, images: Images) -> Evaluation:
        """Judge a whole set; each part of it is shared, so that no rank waits long."""
        for buffer in self.model.buffers():  # rank 0's running statistics
            dist.broadcast(buffer, 0)
        logits = []
        for start in range(0, len(images), 1_000):
            part = images[start : start + 1_000]
            part = part[self.ranks.shard(len(part))]
            mine = torch.empty(0, len(self.data.classes))  # more ranks than images
            if len(part):
                mine = super().evaluate(part).logits
            shares = [None] * self.ranks.size
            dist.all_gather_object(shares, mine)
            logits += shares
        return Evaluation(torch.cat(logits), images.labels.cpu())


@contextlib.contextmanager
def process_group(device: str | None = None) -> Iterator[Ranks]:
    """Join the processes that torchrun started, if it did, and leave them at the end.

    NCCL carries what lies on GPUs, one GPU to a process, and gloo the rest. Raises
    ValueError for more processes than GPUs, RuntimeError when another one is lost.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Ranks()
        return
    backend = "gloo"
    if torch.cuda.is_available() and not str(device).startswith("cpu"):
        _take_gpu()
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT))
        yield Ranks.here()
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise RuntimeError(
                "Another process of this training ended, or was silent for "
                f"{TIMEOUT} seconds; its own message says why. The same command goes "
                f"on from the last checkpoint. (Here: {error})"
            ) from error
        raise
    # The wrapped network holds on to the group in a circle of references. Left to the
    # end of the process, it would call a group that is gone, and abort.
    gc.collect()
    dist.destroy_process_group()


def _take_gpu() -> None:
    """Make one GPU of this machine what "cuda" means in this process."""
    local_rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local_rank >= count:
        raise ValueError(
            f"This machine has {count} GPU{'s' * (count > 1)} and more processes than "
            f"that. Start {count} per machine (--nproc-per-node={count}), or add "
            "--device cpu."
        )
    torch.cuda.set_device(local_rank)
