"""The clinic's sixteen faults, each a few lines, and the measurement that finds it.

A `Case` is a short training in pieces. A fault changes one piece of it and nothing
else, so that the same case without the fault is the run after the repair.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_lib.basic_block import BasicBlock
from resnet_lib.data import Augmenter, Batches, Dataset, Normalisation, plan_epoch
from resnet_lib.resnet import ResNet, init_weights

RECORDS = Path(__file__).parents[2] / "data" / "patients"
RATE, DECAY, BATCH = 0.1, 1e-4, 64
FEW, UPDATES = 10_000, 240  # training images and updates of a short run


class LateReLU(BasicBlock):
    """x + F(relu(x)), without a ReLU after the sum: what enters may be negative."""

    def start(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(self.start(x)) + self.shortcut(x)


@dataclass
class Case:
    """A resnet8 with shortcut B, and all that decides how it is trained and judged."""

    net: nn.Module
    data: Dataset
    rates: list[float]  # one per update
    normalisation: Normalisation
    seed: int = 0
    weight_decay: float = DECAY
    # (net, logits, labels) to the loss that is minimised
    loss: Callable = field(default=lambda net, z, y: F.cross_entropy(z, y))
    evaluates: bool = True  # net.eval() before the test
    crops_test: bool = False  # random crops and flips in the test
    report: Callable[[list[float]], float] = field(default=lambda errors: errors[-1])

    def batch(self, count: int = 256) -> tuple[Tensor, Tensor]:
        """The first training images, as this case feeds them, and their labels."""
        part = self.data.train[:count]
        return self.normalisation(part.images), part.labels

    def judge(self, images: Tensor) -> Tensor:
        """The logits that this case's test would see for uint8 (N, 3, H, W)."""
        self.net.train(not self.evaluates)
        if self.crops_test:
            plan = plan_epoch(len(images), torch.Generator())
            plan[:, 1:] = torch.randint(0, 9, (len(images), 3))
            plan[:, 0], plan[:, 3] = torch.arange(len(images)), plan[:, 3] % 2
            x = Augmenter(images, self.normalisation)(plan)
        else:
            x = self.normalisation(images)
        with torch.no_grad():
            logits = self.net(x)
        self.net.train()
        return logits


def healthy(
    data: Dataset, seed: int = 0, updates: int = UPDATES, block=BasicBlock
) -> Case:
    """The case that nothing is wrong with."""
    torch.manual_seed(seed)
    net = ResNet((16, 32, 64), (1, 1, 1), "B", len(data.classes))
    for each in _blocks(net):
        each.__class__ = block
    net.name = "resnet8"
    data = Dataset(data.name, data.classes, data.train[:FEW], data.test)
    drops = (updates // 2, 3 * updates // 4)
    rates = [RATE * 0.1 ** sum(i >= drop for drop in drops) for i in range(updates)]
    return Case(net, data, rates, Normalisation.of(data.train.images), seed)


def late_relu(data: Dataset, seed: int = 0, updates: int = UPDATES) -> Case:
    """The healthy twin of the patient whose ReLU works in place."""
    case = healthy(data, seed, updates, LateReLU)
    case.net.relu = nn.Identity()  # each block has its own, at its start
    return case


def _blocks(net: nn.Module) -> list[BasicBlock]:
    return [module for module in net.modules() if isinstance(module, BasicBlock)]


def _inputs(case: Case) -> list[tuple[BasicBlock, Tensor]]:
    """Each block and what enters it, (N, C, H, W), for the first training images."""
    found, hooks = [], []
    for block in _blocks(case.net):
        note = lambda block, args: found.append((block, args[0].clone()))  # noqa: E731
        hooks.append(block.register_forward_pre_hook(note))
    with torch.no_grad():
        case.net.train()(case.batch(64)[0])
    for hook in hooks:
        hook.remove()
    return found


# Faults ------------------------------------------------------------------------------


def relu_first(case: Case) -> None:
    class ReluFirst(BasicBlock):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(F.relu(self.residual(x)) + self.shortcut(x))

    for block in _blocks(case.net):
        block.__class__ = ReluFirst


def in_place(case: Case) -> None:
    class InPlace(LateReLU):
        def start(self, x: Tensor) -> Tensor:
            return F.relu(x, inplace=True)

    for block in _blocks(case.net):
        block.__class__ = InPlace


def one_map(case: Case) -> None:
    class OneMap(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1, keepdim=True)[:, :, ::2, ::2]  # (N, 1, H/2, W/2)

    for block in _blocks(case.net)[1:]:
        block.shortcut = OneMap()


def bare_projection(case: Case) -> None:
    for block in _blocks(case.net)[1:]:
        block.shortcut = block.shortcut[0]  # the convolution, without its BN


def stride_everywhere(case: Case) -> None:
    case.net.layer1[0] = BasicBlock(16, 16, stride=2).apply(init_weights)


def miscounted(case: Case) -> None:
    n = (8 + 4) // 6  # of 6n + 2 = 8
    case.net = ResNet((16, 32, 64), (n, n, n), "B", len(case.data.classes))
    case.net.name = "resnet8"


def wide_stem(case: Case) -> None:
    case.net.conv1.padding = (2, 2)


def flat_rate(case: Case) -> None:
    case.rates = [RATE] * len(case.rates)


def stuck_warmup(case: Case) -> None:
    updates = len(case.rates)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], RATE)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [updates // 2, 3 * updates // 4]
    )
    optimizer.param_groups[0]["lr"] = RATE / 10  # the warm-up; who ends it?
    for i in range(updates):
        case.rates[i] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()


def double_decay(case: Case) -> None:
    case.loss = lambda net, z, y: (
        F.cross_entropy(z, y) + DECAY * sum(w.square().sum() for w in net.parameters())
    )
    case.weight_decay = 0.0


def foreign_normalisation(case: Case) -> None:
    mean, std = torch.full((3, 1, 1), 0.1307), torch.full((3, 1, 1), 0.3081)
    case.normalisation = Normalisation(255 * mean, 255 * std)  # MNIST's


def cropped_test(case: Case) -> None:
    case.crops_test = True


def no_eval(case: Case) -> None:
    case.evaluates = False


def double_softmax(case: Case) -> None:
    case.net = nn.Sequential(case.net, nn.Softmax(1))


def shuffled_labels(case: Case) -> None:
    train = case.data.train
    order = torch.randperm(
        len(train), generator=torch.Generator().manual_seed(case.seed)
    )
    train = type(train)(train.images, train.labels[order])
    case.data = Dataset(case.data.name, case.data.classes, train, case.data.test)


def best_epoch(case: Case) -> None:
    case.report = min


# Measurements ------------------------------------------------------------------------


def share_below_shortcut(case: Case) -> float:
    """The share of a block's outputs that lie below its positive shortcut."""
    with torch.no_grad():
        block, x = _inputs(case)[0]
        return (block(x) < x)[x > 0].float().mean().item()


def changed_input(case: Case) -> float:
    """The largest change that a block makes to its own input."""
    with torch.no_grad():
        changes = []
        for block, x in _inputs(case):
            given = x.clone()
            block(given)
            changes.append((given - x).abs().max().item())
    return max(changes)


def channels_added(case: Case) -> float:
    """The shortcut's channels over the branch's, where they differ most."""
    with torch.no_grad():
        shares = [
            block.shortcut(x).shape[1] / block.residual(x).shape[1]
            for block, x in _inputs(case)
        ]
    return max(shares, key=lambda share: abs(math.log(share)))


def projection_spread(case: Case) -> float:
    """Mean square of the projections' outputs about zero, per channel, at the start."""
    with torch.no_grad():
        outs = [block.shortcut(x) for block, x in _inputs(case)[1:]]
    return max(out.square().mean((0, 2, 3)).max().item() for out in outs)


def last_map(case: Case) -> float:
    """Pixels along a side of the maps that the average pooling gets."""
    block, x = _inputs(case)[-1]
    with torch.no_grad():
        return float(block(x).shape[-1])


def layers(case: Case) -> float:
    """Layers with weights, without the projections: 6n + 2."""
    return float(
        sum(
            isinstance(m, nn.Linear)
            or (isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1))
            for m in case.net.modules()
        )
    )


def first_map(case: Case) -> float:
    """Pixels along a side of what the stem makes of 32×32."""
    return float(_inputs(case)[0][1].shape[-1])


def last_rate(case: Case) -> float:
    """The last learning rate over the highest."""
    return case.rates[-1] / max(case.rates)


def highest_rate(case: Case) -> float:
    """The highest learning rate, over the one that was asked for."""
    return max(case.rates) / RATE


def pull(case: Case) -> float:
    """How strongly one update pulls at the weights, in units of the wanted λw."""
    x, y = case.batch(16)
    w = list(case.net.parameters())
    z = case.net(x)
    extra = case.loss(case.net, z, y) - F.cross_entropy(z, y)
    if extra.abs() < 1e-9:
        found = [torch.zeros_like(p) for p in w]
    else:
        found = torch.autograd.grad(extra, w)
    with torch.no_grad():
        dot = sum(
            ((g + case.weight_decay * p) * p).sum()
            for g, p in zip(found, w, strict=True)
        )
        return (dot / sum(p.square().sum() for p in w) / DECAY).item()


def mean_input(case: Case) -> float:
    """The mean of the images as the network gets them."""
    return case.batch(512)[0].mean().abs().item()


def asked_twice(case: Case) -> float:
    """The largest difference between two answers to the same test images."""
    images = case.data.test.images[:64]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        return (case.judge(images) - case.judge(images)).abs().max().item()


def alone(case: Case) -> float:
    """How much an image's answer depends on its neighbours in the batch."""
    images = case.data.test.images[:64]
    return (case.judge(images)[:1] - case.judge(images[:1])).abs().max().item()


def sum_of_answers(case: Case) -> float:
    """The largest distance from 1 of the sum of an image's ten answers."""
    with torch.no_grad():
        return (case.net(case.batch(64)[0]).sum(1) - 1).abs().max().item()


def nearest_mean(case: Case) -> float:
    """Share of test images whose nearest mean image is that of their class."""
    train, test = case.data.train[:5000], case.data.test[:500]
    x, classes = train.images.float().flatten(1), range(len(case.data.classes))
    means = torch.stack([x[train.labels == c].mean(0) for c in classes])
    nearest = torch.cdist(test.images.float().flatten(1), means).argmin(1)
    return (nearest == test.labels).float().mean().item()


def from_noise(case: Case) -> float:
    """Mean report over runs of twenty tests whose true error is 30 %."""
    draw = torch.Generator().manual_seed(case.seed)
    wrong = torch.rand(50, 20, 500, generator=draw) < 0.3
    errors = wrong.float().mean(2).tolist()
    return sum(case.report(run) for run in errors) / len(errors)


@dataclass(frozen=True)
class Patient:
    """A fault, its measurement, and the values of it that a healthy case has."""

    fault: Callable[[Case], None]
    measure: Callable[[Case], float]
    low: float
    high: float
    base: Callable[..., Case] = healthy

    def cases(self, data: Dataset, seed: int = 0, updates: int = UPDATES) -> list[Case]:
        """[healthy, sick], drawn from the same seed."""
        pair = [self.base(data, seed, updates) for _ in range(2)]
        self.fault(pair[1])
        return pair

    def caught(self, value: float) -> bool:
        return not self.low <= value <= self.high


PATIENTS = {
    "relu_first": Patient(relu_first, share_below_shortcut, 0.05, 1),
    "in_place": Patient(in_place, changed_input, 0, 0, late_relu),
    "one_map": Patient(one_map, channels_added, 1, 1),
    "bare_projection": Patient(bare_projection, projection_spread, 0.9, 1.1),
    "stride_everywhere": Patient(stride_everywhere, last_map, 8, 8),
    "miscounted": Patient(miscounted, layers, 8, 8),
    "wide_stem": Patient(wide_stem, first_map, 32, 32),
    "flat_rate": Patient(flat_rate, last_rate, 0, 0.5),
    "stuck_warmup": Patient(stuck_warmup, highest_rate, 0.99, 1.01),
    "double_decay": Patient(double_decay, pull, 0.99, 1.01),
    "foreign_normalisation": Patient(foreign_normalisation, mean_input, 0, 0.3),
    "cropped_test": Patient(cropped_test, asked_twice, 0, 1e-6),
    "no_eval": Patient(no_eval, alone, 0, 1e-3),
    "double_softmax": Patient(double_softmax, sum_of_answers, 0.01, 1e9),
    "shuffled_labels": Patient(shuffled_labels, nearest_mean, 0.17, 1),
    "best_epoch": Patient(best_epoch, from_noise, 0.29, 0.31),
}


# The beds of the exercise. Whoever reads on has the answer and loses the exercise.
BEDS = {"A": "no_eval", "B": "healthy", "C": "one_map", "D": "shuffled_labels"}


def beds(data: Dataset, seed: int = 7) -> dict[str, Case]:
    """Four cases of the ward, one of them healthy, without their names."""
    return {
        bed: healthy(data, seed)
        if name == "healthy"
        else PATIENTS[name].cases(data, seed)[1]
        for bed, name in BEDS.items()
    }


def train(case: Case, judged: int = 1000, every: int = 12) -> list[dict]:
    """Train a case: rows of iteration, rate, training loss and error, test error."""
    net = case.net.train()
    optimizer = torch.optim.SGD(
        net.parameters(), RATE, momentum=0.9, weight_decay=case.weight_decay
    )
    batches = Batches(case.data.train, BATCH, case.normalisation, case.seed)
    test, rows, losses, wrong = case.data.test[:judged], [], [], []
    for i, rate in enumerate(case.rates):
        optimizer.param_groups[0]["lr"] = rate
        x, y = next(batches)
        z = net(x)
        loss = case.loss(net, z, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        wrong.append((z.argmax(1) != y).float().mean().item())
        if (i + 1) % every == 0:
            error = (case.judge(test.images).argmax(1) != test.labels).float().mean()
            rows.append(
                {
                    "iteration": i + 1,
                    "rate": round(rate, 6),
                    "train_loss": round(sum(losses) / len(losses), 4),
                    "train_error": round(sum(wrong) / len(wrong), 4),
                    "test_error": round(error.item(), 4),
                }
            )
            losses, wrong = [], []
    return rows


def recorded(data_name: str = "cifar10") -> dict:
    """The recorded runs, {name: rows}, and measurements, {name: [[healthy, sick]]}."""
    return json.loads((RECORDS / f"{data_name}.json").read_text(encoding="utf-8"))
