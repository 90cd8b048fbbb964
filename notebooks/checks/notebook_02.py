"""Checks of notebook 02, the basic block."""

import contextlib
import copy
import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from checks.base import Hint, check, compare, near, row, shake, values
from resnet_lib.basic_block import BasicBlock
from resnet_lib.probes import block_parts
from resnet_lib.resnet import get_model


@check
def check_basic_block(block_class: type[nn.Module]) -> str:
    """Judge a block of two layers, built as `block_class(in, out, stride)`."""
    for arguments in ((4, 4, 1), (4, 8, 2), (4, 8, 1), (4, 4, 2)):
        in_channels, out_channels, stride = arguments
        layers = [(in_channels, out_channels, 3, stride)]
        layers += [(out_channels, out_channels, 3, 1)]
        _judge_block(block_class, arguments, layers)
    return (
        "This is the paper's block: outputs and gradients are right, in train and in "
        "eval mode, with and without a projection."
    )


@check
def check_bottleneck(block_class: type[nn.Module]) -> str:
    """Judge a block of three layers, built as `block_class(in, middle, stride)`."""
    for arguments in ((8, 2, 1), (8, 4, 2), (8, 4, 1), (8, 2, 2)):
        in_channels, channels, stride = arguments
        layers = [(in_channels, channels, 1, 1), (channels, channels, 3, stride)]
        layers += [(channels, 4 * channels, 1, 1)]
        _judge_block(block_class, arguments, layers)
    mine = _build(
        block_class, (256, 64, 1), torch.zeros(1, 256, 1, 1).expand(2, -1, 2, 2)
    )
    sizes = [
        sum(parameter.numel() for parameter in block.parameters())
        for block in (mine, BasicBlock(256, 256))
    ]
    return (
        f"A bottleneck. At 256 channels it has {sizes[0]:,} parameters, and a "
        f"BasicBlock {sizes[1]:,}."
    )


def _judge_block(
    block_class: type[nn.Module],
    arguments: tuple[int, int, int],
    layers: Sequence[tuple[int, int, int, int]],
) -> None:
    """Raise a Hint unless the class builds a residual block of these layers.

    `layers` gives in_channels, out_channels, kernel size and stride of each
    convolution. The layers are inspected first. Then they are run in the right order
    and in likely wrong ones: the one that gives the reader's output is what they wrote.
    """
    if not isinstance(block_class, type) or not issubclass(block_class, nn.Module):
        raise Hint("hand over the class, a subclass of nn.Module, without brackets.")
    x = torch.randn(3, arguments[0], 6, 6)
    block = _build(block_class, arguments, x)
    call = f"{block_class.__name__}{arguments}"
    _look_at_layers(block, x, layers, call)
    _look_at_projection(block, x, layers, call)
    # Random γ, β and running statistics: nothing may hide behind 1 and 0.
    for name, value in block.state_dict().items():
        if value.ndim > 1 or name.endswith("bias"):
            nn.init.normal_(value)
        elif value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1.5)
    for training in (True, False):
        _look_at_output(block.train(training), x, len(layers), call)
    _look_at_gradients(block.train(), x, len(layers))


def _build(block_class: type[nn.Module], arguments: tuple, x: Tensor) -> nn.Module:
    block = block_class(*arguments)
    if any(isinstance(layer, LazyModuleMixin) for layer in block.modules()):
        block(x)  # a lazy layer learns its shape from what it sees first
    return block


def _look_at_layers(block, x: Tensor, layers: Sequence, call: str) -> None:
    """Is every layer there once, with the right shape?"""
    names = [(f"conv{i}", f"bn{i}") for i in range(1, len(layers) + 1)]
    for conv, bn in names:
        for name, kind in ((conv, nn.Conv2d), (bn, nn.BatchNorm2d)):
            layer = getattr(block, name, None)
            if (
                name == bn != "bn1"
                and layer is None
                and _used(block, x).count(block.bn1) > 1
            ):
                raise Hint(
                    f"bn1 works twice and {bn} is missing: each convolution needs a BN "
                    "with γ, β and running statistics of its own."
                )
            if not isinstance(layer, kind):
                raise Hint(
                    f"{call} has no nn.{kind.__name__} called {name}: each convolution "
                    "is followed by its own BN, and the check finds layers by name."
                )
    for pair in zip(*names, strict=True):
        if len({id(getattr(block, name)) for name in pair}) < len(layers):
            raise Hint(f"two of {', '.join(pair)} are one object: build one for each.")
    for (conv, bn), shape in zip(names, layers, strict=True):
        in_channels, out_channels, size, stride = shape
        layer, norm = getattr(block, conv), getattr(block, bn)
        before, after, border = layer.in_channels, layer.out_channels, (size // 2,) * 2
        padding = {"same": border, "valid": (0, 0)}.get(layer.padding, layer.padding)
        if layer.kernel_size != (size, size):
            raise Hint(f"the kernel of {conv} is not {size}×{size}.")
        if (before, after) != (in_channels, out_channels):
            raise Hint(
                f"in {call}, {conv} maps {before} to {after} channels and should map "
                f"{in_channels} to {out_channels}."
            )
        if layer.stride != (stride, stride):
            raise Hint(
                f"in {call}, {conv} has stride {layer.stride[0]} and should have "
                f"{stride}: exactly one convolution takes the stride."
            )
        if (layer.dilation, layer.groups, layer.padding_mode) != ((1, 1), 1, "zeros"):
            raise Hint(f"{conv}: leave dilation, groups and padding_mode as they are.")
        if padding != border:
            raise Hint(
                f"{conv} needs padding={size // 2}, or it changes the map's size."
            )
        if layer.bias is not None:
            raise Hint(f"{conv} has a bias, which {bn} subtracts: say bias=False.")
        if norm.num_features != out_channels:
            raise Hint(f"{bn} follows {conv}: it normalises {out_channels} channels.")
        if not norm.track_running_stats:
            raise Hint(f"{bn} keeps no running statistics: eval mode needs them.")
        if not norm.affine:
            raise Hint(f"{bn} has no γ and no β: leave `affine` as it is.")


def _used(module: nn.Module, x: Tensor) -> list[nn.Module]:
    """The layers inside, in the order in which `forward` uses them."""
    used = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: used.append(layer))
        for layer in module.modules()
        if not list(layer.children())
    ]
    with contextlib.suppress(Exception), torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    return used


def _look_at_projection(block, x: Tensor, layers: Sequence, call: str) -> None:
    """Is there a 1×1 convolution + BN where the shape changes, and only there?"""
    out_channels, stride = layers[-1][1], max(layer[3] for layer in layers)
    shortcut = getattr(block, "shortcut", None)
    if isinstance(shortcut, nn.ModuleList | nn.ModuleDict):
        raise Hint("`shortcut` cannot be called: put its layers into an nn.Sequential.")
    parts = list(shortcut.modules()) if isinstance(shortcut, nn.Module) else []
    parts = [part for part in parts if not list(part.children())]
    if layers[0][0] == out_channels and stride == 1:
        if any(list(part.parameters()) for part in parts):
            raise Hint(
                f"{call} has a projection although the shape stays the same: that is "
                "option C. Under B the input passes as it is."
            )
        return
    nothing = nn.Identity | nn.Sequential  # the latter empty
    parts = [part for part in parts if not isinstance(part, nothing)]
    convs = [part for part in parts if isinstance(part, nn.Conv2d)]
    norms = [part for part in parts if isinstance(part, nn.BatchNorm2d)]
    if not convs:
        raise Hint(
            f"in {call} the shape changes and `shortcut` has no 1×1 convolution: F(x) "
            "and x cannot be added."
        )
    if not norms:
        raise Hint(
            "`shortcut` holds a convolution and no BN after it: put both into it, as "
            "nn.Sequential(conv, bn)."
        )
    if len(parts) > 2:
        raise Hint("the projection is a convolution and a BN, and nothing else.")
    conv, norm = convs[0], norms[0]
    if norm in _used(shortcut, x)[:1]:
        raise Hint("the shortcut's BN stands before its convolution: BN comes last.")
    if conv.kernel_size != (1, 1):
        raise Hint("the shortcut's convolution is not 1×1: it only mixes channels.")
    if conv.stride != (stride, stride):
        raise Hint(f"the shortcut's convolution needs the block's stride, {stride}.")
    if conv.bias is not None:
        raise Hint("the shortcut's convolution has a bias in front of its BN.")
    if conv.groups != 1:
        raise Hint("the shortcut's convolution has groups: leave them out.")
    if norm in [getattr(block, f"bn{i + 1}") for i in range(len(layers))]:
        raise Hint("the shortcut's BN works in the branch as well: build another.")
    if not norm.track_running_stats:
        raise Hint("the shortcut's BN keeps no running statistics: eval mode needs it.")
    if not norm.affine:
        raise Hint("the shortcut's BN has no γ and no β: leave `affine` as it is.")


def _branch(block, x: Tensor, depth: int, **wrong: int) -> Tensor:
    """F(x) from the reader's own layers; `wrong` names a mistake and its layer."""
    for i in range(1, depth + 1):
        conv, bn = getattr(block, f"conv{i}"), getattr(block, f"bn{i}")
        x = conv(x)
        if wrong.get("relu_first") == i:
            x = F.relu(x)
        if wrong.get("no_bn") != i:
            x = bn(x)
        if i < depth and i not in (wrong.get("no_relu"), wrong.get("relu_first")):
            x = F.relu(x)
    return x


def _around(block, x: Tensor) -> Tensor:
    """The shortcut from the reader's own layers, in the right order."""
    shortcut = getattr(block, "shortcut", None)
    layers = list(shortcut.modules()) if isinstance(shortcut, nn.Module) else []
    for kind in (nn.Conv2d, nn.BatchNorm2d):
        for layer in layers:
            x = layer(x) if isinstance(layer, kind) else x
    return x


def _right_output(block, x: Tensor, depth: int) -> Tensor:
    return F.relu(_branch(block, x, depth) + _around(block, x))


def _wrong_outputs(block, x: Tensor, depth: int) -> dict[str, Tensor]:
    """What the reader's layers return under each known mistake, by its hint."""
    around, f = _around(block, x), _branch(block, x, depth)
    first, last_bn = F.relu(block.bn1(block.conv1(x))), getattr(block, f"bn{depth}")
    wrong = {}
    for i in range(1, depth + 1):
        for hint, mistake in {
            f"the ReLU after bn{i} is missing.": "no_relu",
            f"the ReLU stands before bn{i}: BN comes first.": "relu_first",
            f"bn{i} is built and never used in forward.": "no_bn",
        }.items():
            if i < depth or mistake == "no_bn":
                g = _branch(block, x, depth, **{mistake: i})
                wrong[hint] = F.relu(g + around)
    return wrong | {
        "your output has negative entries: the last ReLU is missing.": f + around,
        "the last ReLU stands before the addition, so F(x) can only raise values: add "
        "first.": F.relu(f) + around,
        f"F(x) is never negative: there is a ReLU between bn{depth} and the "
        "addition.": F.relu(F.relu(f) + around),
        "the input is never added: this is the plain block.": F.relu(f),
        "F(x) is added to itself: `x` was overwritten, so keep the input under another "
        "name.": F.relu(2 * f),
        "the shortcut starts after the first layer: keep the block's own input for "
        "the addition.": F.relu(f + first) if first.shape == f.shape else f,
        f"bn{depth} stands after the addition and rescales the shortcut: it belongs to "
        "the branch.": F.relu(last_bn(_branch(block, x, depth, no_bn=depth) + around)),
        "a ReLU stands in the shortcut: take it out.": F.relu(f + F.relu(around)),
        "you subtract the shortcut from F(x): add it.": F.relu(f - around),
        "the input is added twice.": F.relu(f + 2 * around),
        "each path has its own ReLU: add, then one ReLU.": (F.relu(f) + F.relu(around)),
    }


def _look_at_output(block, x: Tensor, depth: int, call: str) -> None:
    mode = "train" if block.training else "eval"
    given = x.clone()
    with torch.no_grad():
        right = _right_output(copy.deepcopy(block), x, depth)
        y = copy.deepcopy(block)(given)
    if not isinstance(y, Tensor):
        raise Hint(f"forward returns {type(y).__name__}, not a tensor: `return`?")
    if not torch.equal(given, x):
        raise Hint("your block changes its input: look for relu_, += and inplace.")
    if y.shape != right.shape:
        raise Hint(
            f"{call} returns the shape {tuple(y.shape)}, not {tuple(right.shape)}."
        )
    if near(y, right, atol=1e-5):
        return
    with torch.no_grad():
        wrong = _wrong_outputs(copy.deepcopy(block), x, depth) if block.training else {}
    compare(
        y,
        right,
        wrong,
        f"in {mode} mode {call} does not return relu(F(x) + shortcut(x)), computed "
        "with your own layers: compare forward with that line, term by term.",
        functools.partial(near, atol=1e-5),
    )


def _look_at_gradients(block, x: Tensor, depth: int) -> None:
    if not all(parameter.requires_grad for parameter in block.parameters()):
        raise Hint("some parameters are frozen: leave requires_grad on.")
    found = []
    for run in (lambda b, x: b(x), lambda b, x: _right_output(b, x, depth)):
        twin, given = copy.deepcopy(block), x.clone().requires_grad_()
        y = run(twin, given)
        if not y.requires_grad:
            raise Hint("no gradient can flow back: is there a no_grad or a detach?")
        y.square().sum().backward()
        gradients = {name: p.grad for name, p in twin.named_parameters()}
        found.append(gradients | {"x": given.grad})
    mine, right = found
    for name, gradient in right.items():
        if gradient is None:
            layer = name.rsplit(".", 1)[0]
            raise Hint(f"{layer} is built and has no part in the output: take it out.")
        if mine[name] is None and name != "x":
            raise Hint(f"no gradient reaches {name}: something detaches its path.")
        if mine[name] is None or not near(mine[name], gradient, 1e-3, 1e-4):
            raise Hint(
                f"the output is right, but the gradient of {name} is not: something "
                "detaches one of the two paths."
            )


@check
def check_predicted_block(predict: Callable[[], Sequence[Sequence[float]]]) -> str:
    """Judge y, predicted by hand, for a kernel that subtracts the right neighbour."""
    hint = "return four rows of four numbers, as lists in a list."
    found = values(predict(), hint).squeeze()
    if found.shape != (4, 4):
        raise Hint(f"y is 4×4, and your answer has the shape {tuple(found.shape)}.")
    x = torch.zeros(1, 1, 4, 4)
    x[:, :, 1:3, 1:3] = 1
    w = torch.tensor([[0.0, 0, 0], [0, 1, -1], [0, 0, 0]])[None, None]

    def conv(z: Tensor) -> Tensor:
        return F.conv2d(z, w, padding=1)

    def bn(z: Tensor) -> Tensor:
        return F.batch_norm(z, None, None, training=True)

    h = F.relu(bn(conv(x)))
    f = bn(conv(h))
    y = F.relu(f + x)
    compare(
        found[None, None],
        y,
        {
            "this is the y of the first kernel. Which edge does this one see?": y.flip(
                3
            ),
            "this is the sum: the last ReLU is missing.": f + x,
            "this is F(x): add x, then apply the last ReLU.": f,
            "the ReLU comes after the addition, not before.": F.relu(f) + x,
            "x has not been added, or both BNs are left out.": F.relu(f),
            "you add what stands after the first ReLU: add x.": F.relu(conv(h) + h),
            "the ReLU inside the branch is missing.": F.relu(bn(conv(bn(conv(x)))) + x),
            "rows and columns are exchanged.": y.transpose(2, 3),
        },
        "not this. Write down the second row after each step: the convolution gives "
        "−1, 0, 1, 0.",
        functools.partial(near, atol=0.01),
    )
    return "Right: this kernel sees the other edge, so y is the mirror image."


@check
def check_clipped_shares(measure: Callable[[nn.Module, Tensor], list[float]]) -> str:
    """Judge a function (net, images) for the share of sums that each block cuts off."""
    net = get_model("resnet14")
    shake(net)
    images = torch.randn(8, 3, 32, 32)
    parts = block_parts(net, images).values()
    right = [(part.sum < 0).float().mean().item() for part in parts]
    in_training = _clipped_in_training(copy.deepcopy(net).train(), images)
    found = measure(copy.deepcopy(net).eval(), images)
    found = row(found, "return a list of shares, not {}.")
    if len(found) != len(right):
        raise Hint(
            f"this net has {len(right)} blocks and your list {len(found)} numbers: "
            "go through every stage."
        )
    counts = [
        share * part.sum.numel() for share, part in zip(right, parts, strict=True)
    ]
    compare(
        found,
        right,
        {
            "these are percents: return shares from 0 to 1.": [100 * s for s in right],
            "this is the share that the last ReLU keeps.": [1 - s for s in right],
            "this is the share of F(x) below zero: add the shortcut first.": [
                (part.f < 0).float().mean().item() for part in parts
            ],
            "the last block stands first: keep the order of the net.": right[::-1],
            "your net is in training mode, so BN uses the batch: call "
            "net.eval().": in_training,
            "these are counts: divide by how many numbers there are.": counts,
            "these are nearly the shares: do not round them.": [
                round(share, 2) for share in right
            ],
        },
        "the numbers are wrong. For each block: its input x, then block.residual(x) + "
        "block.shortcut(x), then the share below zero; block(x) is the next input.",
        functools.partial(near, atol=1e-3),
    )
    return "Right. Now look at the nine numbers of the trained net."


@torch.no_grad()
def _clipped_in_training(net: nn.Module, images: Tensor) -> list[float]:
    shares, h = [], F.relu(net.bn1(net.conv1(images)))
    for stage in net.stages:
        for block in getattr(net, stage):
            total = copy.deepcopy(block).residual(h) + block.shortcut(h)
            shares.append((total < 0).float().mean().item())
            h = F.relu(total)
    return shares
