"""The checks of notebook 02 catch plausible wrong answers, each in its own words."""

import checks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_lib.basic_block import PaddedIdentity, make_shortcut

# --- the right answers ----------------------------------------------------------------


class Block(nn.Module):
    """A right answer in the reader's style; the wrong ones change one thing each."""

    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, 3, stride=stride, padding=1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out_channels))

    def branch(self, x):
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    def forward(self, x):
        out = self.branch(x)
        out += self.shortcut(x)
        return F.relu(out)


class WithoutShortcutLayer(Block):
    """torchvision's way: nothing is built where nothing changes."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        if not list(self.shortcut.parameters()):
            self.shortcut = None

    def forward(self, x):
        around = x if self.shortcut is None else self.shortcut(x)
        return torch.relu(around + self.branch(x))


class FromLibrary(Block):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = make_shortcut("B", in_channels, out_channels, stride)


class Bottleneck(nn.Module):
    def __init__(self, in_channels, channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.shortcut = make_shortcut("B", in_channels, 4 * channels, stride)

    def branch(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out))

    def forward(self, x):
        return F.relu(self.branch(x) + self.shortcut(x))


def shortcut_a(x: Tensor, out_channels: int, stride: int) -> Tensor:
    new = out_channels - x.shape[1]
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, new))


def shortcut_a_by_cat(x: Tensor, out_channels: int, stride: int) -> Tensor:
    x = x[..., ::stride, ::stride]
    shape = (len(x), out_channels - x.shape[1], *x.shape[2:])
    return torch.cat([x, x.new_zeros(shape)], dim=1)


RIGHT = [
    (checks.check_basic_block, Block),
    (checks.check_basic_block, WithoutShortcutLayer),
    (checks.check_basic_block, FromLibrary),
    (checks.check_bottleneck, Bottleneck),
    (checks.check_shortcut_a, shortcut_a),
    (checks.check_shortcut_a, shortcut_a_by_cat),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_right_answers_pass(says, check, answer):
    verdict, line = says(check, answer)
    assert verdict and line.startswith("✓"), line


def test_a_bottleneck_is_told_what_it_saves(says):
    _, line = says(checks.check_bottleneck, Bottleneck)
    assert "70,400" in line and "1,180,672" in line


def test_checks_leave_the_readers_random_numbers_alone(says):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    says(checks.check_basic_block, Block)
    says(checks.check_shortcut_a, shortcut_a)
    assert torch.equal(torch.rand(1), expected)


# --- wrong blocks ---------------------------------------------------------------------


def with_forward(forward, base=Block):
    return type("Wrong", (base,), {"forward": forward})


def with_layers(change, base=Block):
    """The right block with one layer changed by `change(block, in, out, stride)`."""

    class Wrong(base):
        def __init__(self, in_channels, out_channels, stride=1):
            super().__init__(in_channels, out_channels, stride)
            change(self, in_channels, out_channels, stride)

    return Wrong


def conv(in_channels, out_channels, size=3, stride=1, bias=False, padding=None):
    padding = size // 2 if padding is None else padding
    return nn.Conv2d(in_channels, out_channels, size, stride, padding, bias=bias)


def stride_on_second(self, before, after, stride):
    self.conv1, self.conv2 = conv(before, after), conv(after, after, stride=stride)


def projection(conv, *rest):
    """Replace the shortcut where the shape changes; `conv` is its recipe."""

    def change(self, before, after, stride):
        if self.shortcut is not None and list(self.shortcut.parameters()):
            layers = [conv(before, after, stride)]
            self.shortcut = nn.Sequential(*layers, *(layer(after) for layer in rest))

    return change


def one_bn(self, x):
    out = F.relu(self.bn1(self.conv1(x)))
    return F.relu(self.bn1(self.conv2(out)) + self.shortcut(x))


def from_first_layer(self, x):
    x = F.relu(self.bn1(self.conv1(x)))
    return F.relu(self.bn2(self.conv2(x)) + x)


def in_place(self, x):
    out = self.branch(x)
    if x.shape == out.shape:
        x += out
        return F.relu(x)
    return F.relu(out + self.shortcut(x))


def always_training(self, x):
    def bn(layer, z):
        return F.batch_norm(z, None, None, layer.weight, layer.bias, training=True)

    out = F.relu(bn(self.bn1, self.conv1(x)))
    return F.relu(bn(self.bn2, self.conv2(out)) + self.shortcut(x))


class SharedBN(Block):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        del self.bn2

    forward = one_bn


class NoSecondBN(Block):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        del self.bn2

    def forward(self, x):
        out = self.conv2(F.relu(self.bn1(self.conv1(x))))
        return F.relu(out + self.shortcut(x))


class OneLayerTwice(Block):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__(in_channels, out_channels, stride)
        if in_channels == out_channels:
            self.conv2 = self.conv1


class OtherNames(nn.Module):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.layers = nn.Sequential(
            conv(in_channels, out_channels, 3, stride), nn.BatchNorm2d(out_channels)
        )

    def forward(self, x):
        return self.layers(x)


def projects_only(where):
    """The right layers, with a projection only `where(in, out, stride)` says so."""

    def change(self, before, after, stride):
        if not where(before, after, stride):
            self.shortcut = nn.Sequential()

    return change


WRONG_BLOCKS = {
    "projects only for a stride": (
        with_layers(projects_only(lambda before, after, stride: stride != 1)),
        "in Wrong(4, 8, 1) the shape changes",
    ),
    "projects only for channels": (
        with_layers(projects_only(lambda before, after, stride: before != after)),
        "in Wrong(4, 4, 2) the shape changes",
    ),
    "no inner ReLU": (
        with_forward(
            lambda self, x: F.relu(
                self.bn2(self.conv2(self.bn1(self.conv1(x)))) + self.shortcut(x)
            )
        ),
        "ReLU after bn1 is missing",
    ),
    "ReLU before BN": (
        with_forward(
            lambda self, x: F.relu(
                self.bn2(self.conv2(self.bn1(F.relu(self.conv1(x))))) + self.shortcut(x)
            )
        ),
        "stands before bn1",
    ),
    "no last ReLU": (
        with_forward(lambda self, x: self.branch(x) + self.shortcut(x)),
        "last ReLU is missing",
    ),
    "ReLU, then add": (
        with_forward(lambda self, x: F.relu(self.branch(x)) + self.shortcut(x)),
        "stands before the addition",
    ),
    "ReLU on both sides": (
        with_forward(lambda self, x: F.relu(F.relu(self.branch(x)) + self.shortcut(x))),
        "never negative",
    ),
    "ReLU on each path": (
        with_forward(lambda self, x: F.relu(self.branch(x)) + F.relu(self.shortcut(x))),
        "each path has its own ReLU",
    ),
    "ReLU in the shortcut": (
        with_forward(lambda self, x: F.relu(self.branch(x) + F.relu(self.shortcut(x)))),
        "ReLU stands in the shortcut",
    ),
    "no addition": (
        with_forward(lambda self, x: F.relu(self.branch(x))),
        "never added",
    ),
    "subtraction": (
        with_forward(lambda self, x: F.relu(self.branch(x) - self.shortcut(x))),
        "subtract",
    ),
    "shortcut from the first layer": (
        with_forward(from_first_layer),
        "behind the first layer",
    ),
    "BN after the addition": (
        with_forward(
            lambda self, x: F.relu(
                self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))) + self.shortcut(x))
            )
        ),
        "bn2 stands after the addition",
    ),
    "first BN unused": (
        with_forward(
            lambda self, x: F.relu(
                self.bn2(self.conv2(F.relu(self.conv1(x)))) + self.shortcut(x)
            )
        ),
        "bn1 is built and never used",
    ),
    "second BN unused": (
        with_forward(
            lambda self, x: F.relu(
                self.conv2(F.relu(self.bn1(self.conv1(x)))) + self.shortcut(x)
            )
        ),
        "bn2 is built and never used",
    ),
    "second BN forgotten": (NoSecondBN, "no nn.BatchNorm2d called bn2"),
    "shared BN, no second": (SharedBN, "bn1 works twice"),
    "shared BN, two names": (
        with_layers(lambda self, *_: setattr(self, "bn2", self.bn1)),
        "two of bn1, bn2 are one object",
    ),
    "shared convolution": (OneLayerTwice, "two of conv1, conv2 are one object"),
    "BN without statistics": (
        with_layers(
            lambda self, before, after, stride: setattr(
                self, "bn1", nn.BatchNorm2d(after, track_running_stats=False)
            )
        ),
        "no running statistics",
    ),
    "BN always in training": (with_forward(always_training), "in eval mode"),
    "stride on the second convolution": (
        with_layers(stride_on_second),
        "conv1 has stride 1 and should have 2",
    ),
    "stride twice": (
        with_layers(
            lambda self, before, after, stride: setattr(
                self, "conv2", conv(after, after, stride=stride)
            )
        ),
        "conv2 has stride 2 and should have 1",
    ),
    "biases": (
        with_layers(
            lambda self, before, after, stride: setattr(
                self, "conv1", conv(before, after, stride=stride, bias=True)
            )
        ),
        "conv1 has a bias",
    ),
    "no padding": (
        with_layers(
            lambda self, before, after, stride: setattr(
                self, "conv1", conv(before, after, stride=stride, padding=0)
            )
        ),
        "conv1 needs padding=1",
    ),
    "5×5 kernel": (
        with_layers(
            lambda self, before, after, stride: setattr(
                self, "conv2", conv(after, after, 5)
            )
        ),
        "kernel of conv2 is not 3×3",
    ),
    "channels never change": (
        with_layers(
            lambda self, before, after, stride: setattr(
                self, "conv1", conv(before, before, stride=stride)
            )
        ),
        "conv1 maps 4 to 4",
    ),
    "no projection": (
        with_layers(
            lambda self, *_: setattr(self, "shortcut", nn.Identity()),
        ),
        "no 1×1 convolution",
    ),
    "shortcut A": (
        with_layers(
            lambda self, *shape: setattr(self, "shortcut", make_shortcut("A", *shape)),
        ),
        "no 1×1 convolution",
    ),
    "shortcut C": (
        with_layers(
            lambda self, *shape: setattr(self, "shortcut", make_shortcut("C", *shape)),
        ),
        "that is option C",
    ),
    "projection without BN": (
        with_layers(projection(lambda b, a, s: conv(b, a, 1, s))),
        "no BN behind it",
    ),
    "projection with ReLU": (
        with_layers(
            projection(
                lambda b, a, s: conv(b, a, 1, s), nn.BatchNorm2d, lambda _: nn.ReLU()
            )
        ),
        "and nothing else",
    ),
    "projection without stride": (
        with_layers(projection(lambda b, a, s: conv(b, a, 1), nn.BatchNorm2d)),
        "needs the block's stride",
    ),
    "3×3 projection": (
        with_layers(projection(lambda b, a, s: conv(b, a, 3, s), nn.BatchNorm2d)),
        "is not 1×1",
    ),
    "projection with bias": (
        with_layers(projection(lambda b, a, s: conv(b, a, 1, s, True), nn.BatchNorm2d)),
        "has a bias in front of its BN",
    ),
    "detached branch": (
        with_forward(
            lambda self, x: F.relu(self.branch(x).detach() + self.shortcut(x))
        ),
        "no gradient reaches conv1.weight",
    ),
    "detached shortcut": (
        with_forward(
            lambda self, x: F.relu(self.branch(x) + self.shortcut(x).detach())
        ),
        "gradient of x is not",
    ),
    "no gradient at all": (
        with_forward(torch.no_grad()(Block.forward)),
        "no gradient can flow back",
    ),
    "input changed in place": (with_forward(in_place), "changes its input"),
    "nothing returned": (with_forward(lambda self, x: None), "returns NoneType"),
    "pooled at the end": (
        with_forward(lambda self, x: F.max_pool2d(Block.forward(self, x), 2)),
        "returns the shape",
    ),
    "scaled residual": (
        with_forward(lambda self, x: F.relu(0.1 * self.branch(x) + self.shortcut(x))),
        "in train mode",
    ),
    "other names": (OtherNames, "no nn.Conv2d called conv1"),
    "an object": (Block(4, 4), "hand over the class"),
    "a function": (lambda x: x, "hand over the class"),
}


@pytest.mark.parametrize("mistake", WRONG_BLOCKS)
def test_wrong_blocks_are_caught(says, mistake):
    answer, words = WRONG_BLOCKS[mistake]
    verdict, line = says(checks.check_basic_block, answer)
    assert not verdict and line.startswith("✗ Not yet: ") and words in line, line
    assert line.endswith((".", "?"))


WRONG_BOTTLENECKS = {
    "projects only for a stride": (
        with_layers(
            projects_only(lambda before, middle, stride: stride != 1), Bottleneck
        ),
        "in Wrong(8, 4, 1) the shape changes",
    ),
    "no expansion": (
        with_layers(
            lambda self, before, channels, stride: setattr(
                self, "conv3", conv(channels, channels, 1)
            ),
            Bottleneck,
        ),
        "conv3 maps 2 to 2 channels and should map 2 to 8",
    ),
    "3×3 first": (
        with_layers(
            lambda self, before, channels, stride: setattr(
                self, "conv1", conv(before, channels, 3)
            ),
            Bottleneck,
        ),
        "kernel of conv1 is not 1×1",
    ),
    "stride on the first": (
        with_layers(
            lambda self, before, channels, stride: [
                setattr(self, "conv1", conv(before, channels, 1, stride)),
                setattr(self, "conv2", conv(channels, channels)),
            ],
            Bottleneck,
        ),
        "conv1 has stride 2 and should have 1",
    ),
    "no ReLU after the second": (
        with_forward(
            lambda self, x: F.relu(
                self.bn3(
                    self.conv3(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
                )
                + self.shortcut(x)
            ),
            Bottleneck,
        ),
        "ReLU after bn2 is missing",
    ),
    "no last ReLU": (
        with_forward(lambda self, x: self.branch(x) + self.shortcut(x), Bottleneck),
        "last ReLU is missing",
    ),
    "third ReLU before the addition": (
        with_forward(
            lambda self, x: F.relu(F.relu(self.branch(x)) + self.shortcut(x)),
            Bottleneck,
        ),
        "ReLU between bn3 and the addition",
    ),
    "last BN unused": (
        with_forward(
            lambda self, x: F.relu(
                self.conv3(
                    F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
                )
                + self.shortcut(x)
            ),
            Bottleneck,
        ),
        "bn3 is built and never used",
    ),
    "no addition": (
        with_forward(lambda self, x: F.relu(self.branch(x)), Bottleneck),
        "never added",
    ),
    "a basic block": (Block, "no nn.Conv2d called conv3"),
    "projection everywhere": (
        with_layers(
            lambda self, before, channels, stride: setattr(
                self, "shortcut", make_shortcut("C", before, 4 * channels, stride)
            ),
            Bottleneck,
        ),
        "option C",
    ),
}


@pytest.mark.parametrize("mistake", WRONG_BOTTLENECKS)
def test_wrong_bottlenecks_are_caught(says, mistake):
    answer, words = WRONG_BOTTLENECKS[mistake]
    verdict, line = says(checks.check_bottleneck, answer)
    assert not verdict and line.startswith("✗ Not yet: ") and words in line, line


# --- wrong shortcuts ------------------------------------------------------------------


def pad(x, new):
    return F.pad(x, (0, 0, 0, 0, 0, new))


def new_in(x, out_channels):
    return out_channels - x.shape[1]


def with_new_channels(fill):
    """Shortcut A with `fill(kept, new)` for the new channels instead of zeros."""

    def answer(x, out, stride):
        x = x[..., ::stride, ::stride]
        return torch.cat([x, fill(x, out - x.shape[1])], dim=1)

    return answer


WRONG_SHORTCUTS = {
    "average pooling": (
        lambda x, out, s: pad(F.avg_pool2d(x, s, ceil_mode=True), new_in(x, out)),
        "average neighbouring pixels",
    ),
    "max pooling": (
        lambda x, out, s: pad(F.max_pool2d(x, s, ceil_mode=True), new_in(x, out)),
        "largest of neighbouring",
    ),
    "a crop": (
        lambda x, out, s: pad(
            x[:, :, : -(-x.shape[2] // s), : -(-x.shape[3] // s)], new_in(x, out)
        ),
        "cut out the top left corner",
    ),
    "starts at the second pixel": (
        lambda x, out, s: pad(x.roll((-1, -1), (2, 3))[..., ::s, ::s], new_in(x, out)),
        "start at the second pixel",
    ),
    "no stride": (lambda x, out, s: pad(x, new_in(x, out)), "keep one in 2 rows"),
    "stride on rows only": (
        lambda x, out, s: pad(x[:, :, ::s], new_in(x, out)),
        "keep one in 2 rows",
    ),
    "floor for odd sizes": (
        lambda x, out, s: pad(
            x[:, :, : x.shape[2] // s * s : s, : x.shape[3] // s * s : s],
            new_in(x, out),
        ),
        "(2, 8, 3, 2) instead of (2, 8, 4, 3)",
    ),
    "stride always 2": (
        lambda x, out, s: pad(x[..., ::2, ::2], new_in(x, out)),
        "(2, 4, 3, 3) instead of (2, 4, 6, 6)",
    ),
    "no new channels": (lambda x, out, s: x[..., ::s, ::s], "should hold 8 channels"),
    "padding the width": (
        lambda x, out, s: F.pad(x[..., ::s, ::s], (0, new_in(x, out))),
        "F.pad counts from the last dimension",
    ),
    "zeros in front": (
        lambda x, out, s: F.pad(x[..., ::s, ::s], (0, 0, 0, 0, new_in(x, out), 0)),
        "zeros stand in front",
    ),
    "zeros on both sides": (
        lambda x, out, s: F.pad(
            x[..., ::s, ::s],
            (0, 0, 0, 0, new_in(x, out) // 2, -(-new_in(x, out) // 2)),
        ),
        "zeros are split",
    ),
    "repeated channels": (
        with_new_channels(lambda x, new: x[:, :new]),
        "new channels hold values",
    ),
    "float32 zeros": (
        lambda x, out, s: pad(x[..., ::s, ::s], new_in(x, out)).float(),
        "make the zeros like x",
    ),
    "zeros on the CPU": (
        with_new_channels(
            lambda x, new: torch.zeros(len(x), new, *x.shape[2:], dtype=x.dtype)
        ),
        "on another device",
    ),
    "detached": (
        lambda x, out, s: pad(x[..., ::s, ::s], new_in(x, out)).detach(),
        "no gradient flows back",
    ),
    "doubled": (
        lambda x, out, s: pad(x[..., ::s, ::s] * 1.0 + x[..., ::s, ::s], 4),
        "the values are not",
    ),
    "columns mirrored": (
        lambda x, out, s: pad(
            x[..., ::s, ::s].index_copy(
                3, torch.tensor([1, 2]), x[..., ::s, ::s][..., [2, 1]]
            ),
            new_in(x, out),
        ),
        "the values are not",
    ),
    "the module": (
        lambda x, out, s: PaddedIdentity(x.shape[1], out, s),
        "you return PaddedIdentity",
    ),
}


@pytest.mark.parametrize("mistake", WRONG_SHORTCUTS)
def test_wrong_shortcuts_are_caught(says, mistake):
    answer, words = WRONG_SHORTCUTS[mistake]
    verdict, line = says(checks.check_shortcut_a, answer)
    assert not verdict and line.startswith("✗ Not yet: ") and words in line, line


# --- all of them ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "mistakes", "like_another"),
    [
        (checks.check_basic_block, WRONG_BLOCKS, {"shortcut A", "a function"}),
        (checks.check_bottleneck, WRONG_BOTTLENECKS, set()),
        (checks.check_shortcut_a, WRONG_SHORTCUTS, {"doubled"}),
    ],
)
def test_each_mistake_has_its_own_message(says, check, mistakes, like_another):
    lines = [
        says(check, mistakes[name][0])[1] for name in mistakes.keys() - like_another
    ]
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize(
    "check",
    [checks.check_basic_block, checks.check_bottleneck, checks.check_shortcut_a],
)
def test_an_unsolved_exercise_is_not_an_error(says, check):
    class Unsolved(nn.Module):
        def __init__(self, *_):
            super().__init__()
            raise NotImplementedError

    def unsolved(x, out_channels, stride):
        raise NotImplementedError

    answer = unsolved if check is checks.check_shortcut_a else Unsolved
    verdict, line = says(check, answer)
    assert not verdict and line.startswith("○ Not yet")


def test_a_crash_is_reported_in_one_line(says):
    answer = with_forward(lambda self, x: self.conv1(x) + self.no_such_layer)
    verdict, line = says(checks.check_basic_block, answer)
    assert not verdict and "AttributeError" in line
