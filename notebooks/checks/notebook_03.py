"""Checks of notebook 03, ResNet-18."""

import math
import operator
from collections.abc import Callable
from unittest import mock

import torch
from torch import nn

from checks.base import Hint, check, number, tell, whole
from resnet_lib.basic_block import BasicBlock
from resnet_lib.resnet import get_model


@check
def check_parameter_count(parameter_count: Callable[[int], int]) -> str:
    """Judge the formula `parameter_count(depth)` for 6n+2 layers and shortcut A."""
    hint = Hint("you build a network: write the sum of its layers instead.")
    with mock.patch.object(nn.Module, "__init__", side_effect=hint):
        mine = {depth: parameter_count(depth) for depth in (20, 56, 1202)}
    mine = {
        depth: number(
            count, f"for {depth} layers you return {count!r}: a number is wanted."
        )
        for depth, count in mine.items()
    }
    right = {depth: sum(_count_parts(depth).values()) for depth in mine}
    millions = all(math.isclose(mine[d], right[d] / 1e6, rel_tol=1e-6) for d in mine)
    off = {depth: mine[depth] - right[depth] for depth in mine}
    tell(
        {
            "you count in millions: return the number itself.": millions,
            **{
                hint: all(off[depth] == difference(depth) for depth in off)
                for hint, difference in _wrong_counts().items()
            },
            f"right for 20 layers, but for 56 you count {mine[56]:,.10g} and it should "
            f"be {right[56]:,}: which terms grow with n?": off[56] and not off[20],
            **{
                f"for {depth} layers you count {mine[depth]:,.10g} and it should be "
                f"{right[depth]:,}: compare with layer_table(get_model('resnet20')), "
                "stage by stage.": off[depth]
                for depth in off
            },
        }
    )
    return f"Right. 1202 layers have {right[1202]:,} parameters: Table 6's 19.4M."


def _count_parts(depth: int) -> dict[str, int]:
    """The parameters of a net with 6n+2 layers and shortcut A, by kind of layer."""
    n = (depth - 2) // 6
    same = sum(9 * c * c for c in (16, 32, 64))
    return {
        "stem": 9 * 3 * 16,
        "convolutions": 2 * n * same - (9 * 32 * 16 + 9 * 64 * 32),
        "bn": 2 * (16 + 2 * n * (16 + 32 + 64)),
        "fc": 64 * 10,
        "fc bias": 10,
    }


def _wrong_counts() -> dict[str, Callable[[int], int]]:
    """By how much a known mistake is off, as a function of depth."""

    def part(depth: int, *names: str) -> int:
        return sum(_count_parts(depth)[name] for name in names)

    block = 2 * 9 * (16**2 + 32**2 + 64**2) + 2 * 2 * (16 + 32 + 64)
    stem, stem_bn = 9 * 3 * 16, 2 * 16
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    return {
        "BN is missing: γ and β for every channel.": lambda d: -part(d, "bn"),
        "BN has two parameters per channel: γ and β.": lambda d: -part(d, "bn") // 2,
        "you count BN's running mean and variance, which are not learned: they are "
        "buffers and not parameters.": lambda d: part(d, "bn"),
        "the convolutions here have no bias: BN follows.": lambda d: part(d, "bn") // 2,
        "the BN after the stem is missing.": lambda d: -stem_bn,
        "the stem's convolution is missing: 3×3, from 3 to 16.": lambda d: -stem,
        "the stem is missing: a convolution and its BN.": lambda d: -stem - stem_bn,
        "the stem is 3×3 on CIFAR-10, not 7×7.": lambda d: (49 - 9) * 3 * 16,
        "the linear layer is missing.": lambda d: -part(d, "fc", "fc bias"),
        "the linear layer has a bias as well.": lambda d: -10,
        "the first convolution of stages 2 and 3 reads half as many channels as it "
        "writes.": lambda d: 9 * 32 * 16 + 9 * 64 * 32,
        "you count the projections of shortcut B: A has no parameters.": lambda d: (
            projections
        ),
        "you count one block too many in every stage: see (depth - 2) / 6.": lambda d: (
            block
        ),
        "you count one block too few in every stage: see (depth - 2) / 6.": lambda d: (
            -block
        ),
        "a block has two convolutions: you count one.": lambda d: (
            -((d - 2) // 6) * block // 2
        ),
    }


@check
def check_receptive_field(receptive_field: Callable[..., int]) -> str:
    """Judge `receptive_field(layers)` for chains of (kernel, stride)."""
    long = [(7, 2), (3, 2), (3, 3), (5, 1)]
    chains = ([(3, 1)], [(3, 1), (5, 1)], [(3, 2), (3, 1)], long)
    answers = [(chain, receptive_field(list(chain))) for chain in chains]
    mine = [
        whole(field, f"for {chain} you return {field!r}: a whole number is wanted.")
        for chain, field in answers
    ]
    right = [_receptive_field(chain) for chain in chains]
    if mine == right:
        if receptive_field([(1, 2), (3, 1)]) != 5:
            raise Hint("for [(1, 2), (3, 1)] it is 5: a 1×1 kernel has a stride too.")
        if receptive_field([(2, 2), (3, 1)]) != 6:
            raise Hint("for [(2, 2), (3, 1)] it is 6: an even kernel has no middle.")
        return "Right: each kernel adds k - 1 steps, and strides make the steps longer."
    tell(
        {
            hint: mine == [wrong(chain) for chain in chains]
            for hint, wrong in _WRONG_FIELDS.items()
        }
    )
    i = next(i for i, field in enumerate(mine) if field != right[i])
    raise Hint(
        f"for {chains[i]} you say {mine[i]}, and it is {right[i]}: draw it on paper."
    )


def _receptive_field(
    chain, first: int = 1, less: int = 1, jump: Callable[[int, int], int] = operator.mul
) -> int:
    """The right answer; the options are known mistakes."""
    field, step = first, 1
    for kernel, stride in chain:
        field += (kernel - less) * step
        step = jump(step, stride)
    return field


def _field_with_early_stride(chain) -> int:
    field, step = 1, 1
    for kernel, stride in chain:
        step *= stride
        field += (kernel - 1) * step
    return field


_WRONG_FIELDS: dict[str, Callable] = {
    "strides are ignored: after a stride of 2 a kernel reaches twice as "
    "far.": lambda chain: _receptive_field(chain, jump=lambda j, s: j),
    "the count starts at 0, but a number sees 1 place before any "
    "layer.": lambda chain: _receptive_field(chain, first=0),
    "each kernel adds k: neighbouring windows overlap, so it adds k - "
    "1.": lambda chain: _receptive_field(chain, first=0, less=0),
    "each kernel adds k steps to the 1 you start from: it adds k - 1.": lambda chain: (
        _receptive_field(chain, less=0)
    ),
    "a layer's stride lengthens its own step: it counts from the next layer "
    "on.": _field_with_early_stride,
    "only the stride just before is used: strides multiply along the "
    "chain.": lambda chain: _receptive_field(chain, jump=lambda j, s: s),
    "strides are added up: two strides of 2 make steps of 4, three make "
    "8.": lambda chain: _receptive_field(chain, jump=operator.add),
    "the chain is read from its end: the first pair is next to the "
    "image.": lambda chain: _receptive_field(chain[::-1]),
    "you return the area: the side is asked for.": lambda chain: (
        _receptive_field(chain) ** 2
    ),
}


@check
def check_silent_start(silence: Callable[[nn.Module], None]) -> str:
    """Judge `silence(net)`: branches that add nothing at first and can still learn."""
    net = get_model("resnet14", "B")
    before = {name: value.clone() for name, value in net.named_parameters()}
    silence(net)
    after = dict(net.named_parameters())
    if set(after) != set(before):
        raise Hint("the net has lost or gained parameters: change them where they are.")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    if not changed:
        raise Hint(
            "nothing has changed in the net that you are given: which parameter scales "
            "a branch at its end? Write into it, not into that of a copy."
        )
    if any("shortcut" in name for name in changed):
        raise Hint("you silence a shortcut as well: only the branches should be quiet.")
    blocks = [name for name, m in net.named_modules() if isinstance(m, BasicBlock)]
    for name in blocks:
        _look_at_branch(name, net.train().get_submodule(name))
    for name in blocks:  # either silences a branch that can wake again
        enough = [f"{name}.{last}.weight" for last in ("bn2", "conv2")]
        changed.discard(next((path for path in enough if path in changed), ""))
    if changed:
        raise Hint(
            f"silent, but you also changed {min(changed)}: one parameter per block is "
            "enough."
        )
    deep = get_model("resnet56")
    loud = _first_loss(deep)
    silence(deep)
    quiet = _first_loss(deep)
    if quiet > 2.5:
        raise Hint(
            f"right for resnet14, but resnet56 still starts at {quiet:.2f}: go through "
            "all blocks."
        )
    return (
        f"Silent, and able to learn: on noise, resnet56 now starts at {quiet:.2f}, "
        f"before at {loud:.2f}; ln 10 is {math.log(10):.2f}."
    )


def _look_at_branch(name: str, block: BasicBlock) -> None:
    """Raise a Hint unless the branch is silent and an update can wake it."""
    x = torch.randn(4, block.conv1.in_channels, 8, 8)
    added = block.residual(x)
    if not added.isfinite().all() or added.abs().max() > 1e-6:
        raise Hint(
            f"the branch of {name} still adds something: which layer comes last in it, "
            "and which of its numbers multiplies?"
        )
    block.zero_grad()
    (block(x) * torch.randn_like(added)).sum().backward()
    # The last bias moves in any case, and only adds a constant; so do projections.
    names = [f"{part}.weight" for part in ("conv1", "bn1", "conv2", "bn2")]
    branch = [block.get_parameter(name).grad for name in names]
    if not any(gradient is not None and gradient.any() for gradient in branch):
        raise Hint(
            f"the branch of {name} is silent for ever: nothing in it gets a gradient, "
            "so no update wakes it. Silence its last step alone, and leave it free."
        )


@torch.no_grad()
def _first_loss(net: nn.Module) -> float:
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = net.train()(x)
    return (logits.logsumexp(1) - logits.mean(1)).mean().item()
