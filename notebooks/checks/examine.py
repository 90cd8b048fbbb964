"""`examine(model, batch)`: the clinic's procedure on any classifier of images."""

import contextlib
import copy
import math
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENOUGH = 500  # images from which labels are compared with what the images look like


class Findings:
    """What is odd, what is fine, and what cannot be known from what was given."""

    def __init__(self) -> None:
        self.odd: list[str] = []
        self.fine: list[str] = []
        self.unknown: list[str] = []

    def __str__(self) -> str:
        parts = (
            ("Odd", self.odd or ["nothing that this procedure can see"]),
            ("Fine", self.fine or ["nothing could be confirmed"]),
            ("Not known", self.unknown or ["nothing was left out"]),
        )
        return "\n".join(
            f"{title}:\n" + "\n".join(f"  - {line}" for line in lines)
            for title, lines in parts
        )

    __repr__ = __str__

    def say(self, bad: bool, odd: str, fine: str) -> None:
        (self.odd if bad else self.fine).append(odd if bad else fine)


@torch.random.fork_rng(devices=[])
def examine(
    model: nn.Module,
    batch: object,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    rates: Sequence[float] | None = None,
    judge: Callable[[Tensor], Tensor] | None = None,
    report: Callable[[list[float]], float] | None = None,
) -> Findings:
    """Run the procedure on a copy of the model; never raises.

    `batch` is images (N, 3, H, W) as the network gets them, or (images, labels). More
    can be said of whoever gives more: `loss` maps (logits, labels) to a number, `rates`
    are the learning rates update by update, `judge` maps images to the logits of the
    test, `report` turns the test errors of a run into the one that is published.
    """
    found = Findings()
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    images, labels = batch if pair else (batch, None)
    patient = _tried(found, "the network", _copied, model)
    images = _tried(found, "the batch", _taken, images, patient)
    labels = _tried(found, "the labels", _numbered, labels, images)
    # What is not finite is said once, of the images, and not laid to the network.
    seen = None if images is None else images.nan_to_num(0, 0, 0)
    # A name, a step, what it cannot do without, and what else it takes.
    steps = (
        ("the images", _images, [images], []),
        ("the labels", _labels, [seen], [labels]),
        ("the answers", _answers, [patient, seen], [labels]),
        ("the maps", _maps, [patient, seen], []),
        ("the blocks", _blocks, [patient, seen], []),
        ("the layers", _layers, [patient], [model]),
        ("the gradients", _gradients, [patient, seen], [labels]),
        ("the loss", _loss, [patient, seen], [labels, loss]),
        ("the rates", _rates, [], [rates]),
        ("the test", _test, [seen], [judge]),
        ("the report", _report, [], [report]),
    )
    for name, step, needed, more in steps:
        if all(given is not None for given in needed):
            _tried(found, name, step, *needed, *more)
    return found


def _tried(found: Findings, name: str, step: Callable, *given: object) -> object:
    """What the step returns; None where it stops, which is said."""
    try:
        return step(found, *given)
    except (Exception, SystemExit) as error:
        line = (str(error).strip() or "no message").splitlines()[0]
        kind = type(error).__name__
        found.unknown.append(f"{name}: stopped with {kind}: {line[:120]}")
        return None


def _copied(found: Findings, model: object) -> nn.Module | None:
    """A copy of the model; None, saying why, where there can be none."""
    if not isinstance(model, nn.Module):
        found.odd.append(f"a {type(model).__name__} is no network: give an nn.Module")
        return None
    try:
        patient = copy.deepcopy(model)
    except Exception as error:
        found.unknown.append(
            "everything about the network: it cannot be copied, and the procedure "
            f"would change it ({str(error)[:120]}). Does it keep its last answer?"
        )
        return None
    for weight in patient.parameters():
        if not weight.is_leaf:  # a script's, whose gradient goes to the model's own
            weight.detach_().requires_grad_()
    return patient


def _taken(found: Findings, images: object, patient: nn.Module | None) -> Tensor | None:
    """The images as a tensor of its own, where the network is."""
    if not isinstance(images, Tensor | np.ndarray):
        found.odd.append(
            f"the batch: {type(images).__name__} is no tensor of images. Give images "
            "(N, 3, H, W) as the network gets them, or (images, labels), as "
            "next(iter(loader)) does"
        )
        return None
    weight = next(iter(patient.parameters() if patient else ()), torch.zeros(()))
    images = torch.as_tensor(images).detach()
    # In numpy, numbers have 64 bits unless told otherwise.
    return images.to(weight if images.dtype == torch.double else weight.device)


def _numbered(_: Findings, labels: object, images: Tensor | None) -> Tensor | None:
    """The labels as a tensor, where the images are; None without them."""
    if labels is None or images is None:
        return None
    return torch.as_tensor(labels).to(images.device)


def _images(found: Findings, x: Tensor) -> None:
    if x.numel() == 0:
        found.odd.append("there are no images in the batch")
        return
    if not x.is_floating_point():
        found.odd.append(f"the images are {x.dtype}: normalise them to floats first")
        return
    if not x.isfinite().all():
        found.odd.append("some pixels are not finite")
        return
    mean, std = x.mean().item(), x.std().item()
    bad = abs(mean) > 0.5 or not 0.4 < std < 2.5
    found.say(
        bad,
        f"normalisation: the images have mean {mean:.2f} and spread {std:.2f} where 0 "
        "and 1 are usual: were the numbers measured on another data set, or in other "
        "units?",
        f"the images have mean {mean:.2f} and spread {std:.2f}",
    )


def _labels(found: Findings, x: Tensor, y: Tensor | None) -> None:
    if y is None or len(y) < ENOUGH:
        found.unknown.append(
            f"whether labels belong to their images: give {ENOUGH} or more of both"
        )
        return
    x = F.adaptive_avg_pool2d(x.float(), 8).flatten(1)
    kinds, y = y.unique(return_inverse=True)
    if len(kinds) < 2 or len(y) < 20 * len(kinds):
        found.unknown.append(
            "whether labels belong to their images: too few of a class"
        )
        return
    # The mean image of each class, without the image that is asked about.
    count = torch.bincount(y).to(x)
    total = x.new_zeros(len(kinds), x.shape[1]).index_add_(0, y, x)
    distance = torch.cdist(x, total / count[:, None])
    own = (x - (total[y] - x) / (count[y] - 1)[:, None]).norm(dim=1)
    distance[torch.arange(len(y)), y] = own
    said = distance.argmin(1)
    right = (said == y).float().mean().item()
    # Of labels that have nothing to do with what is said, however rare a class is.
    told = torch.bincount(said, minlength=len(kinds)).to(count)
    chance = (told @ count).item() / len(y) ** 2
    limit = chance + 3 * math.sqrt(chance * (1 - chance) / len(y))
    found.say(
        right < limit,
        f"labels: the nearest mean image of a class is right for {right:.0%}, no more "
        "than by chance. Were labels shuffled against their images?",
        f"the nearest mean image of a class is right for {right:.0%}: labels and "
        "images belong together",
    )


def _answers(found: Findings, model: nn.Module, x: Tensor, y: Tensor | None) -> None:
    with torch.no_grad():
        z = model.train()(x[:64])
    if not isinstance(z, Tensor):  # GoogLeNet and its like return a tuple
        z = z[0]
    if z.ndim != 2:
        found.odd.append(f"the network answers with {tuple(z.shape)}, not (N, classes)")
        return
    if not z.isfinite().all():
        found.odd.append("some answers are not finite")
        return
    # A log-softmax is harmless: another one changes nothing.
    normalised = (z >= 0).all() and (z.sum(1) - 1).abs().max() < 1e-3
    found.say(
        bool(normalised) and z.shape[1] > 1,
        "softmax: the answers are probabilities already, and cross-entropy would take "
        "the softmax once more",
        "the answers are logits, not probabilities",
    )
    if y is not None and len(y):
        first, chance = F.cross_entropy(z, y[:64]).item(), math.log(z.shape[1])
        found.fine.append(
            f"the loss now is {first:.2f}; guessing would cost {chance:.2f}"
        )


def _maps(found: Findings, model: nn.Module, x: Tensor) -> None:
    side = x.shape[-1]
    sizes, larger, shrinks = [], [], []

    def note(conv: nn.Conv2d, inputs: tuple, out: Tensor) -> None:
        sizes.append(out.shape[-1])
        if out.shape[-1] > math.ceil(inputs[0].shape[-1] / conv.stride[-1]):
            larger.append(out.shape[-1])

    def note_block(_, inputs: tuple, out: Tensor) -> None:
        shrinks.append(out.shape[-1] < inputs[0].shape[-1])

    kinds = [type(block) for block, _ in _pairs(model)] or [type(None)]
    with _watching(model, nn.Conv2d, note), _watching(model, kinds[0], note_block):
        model(x[:2])
    if not sizes:
        found.unknown.append("the sizes of the maps: there is no convolution")
        return
    found.say(
        bool(larger),
        f"padding: a convolution makes its map larger, to {max(larger, default=0)} "
        "pixels a side. A 3×3 convolution keeps the size with padding 1",
        "no convolution makes its map larger",
    )
    # A net made for small images keeps them at first; one that halves at once is the
    # other family, made for images of some 200 pixels.
    found.say(
        sizes[0] >= side and shrinks[:1] == [True],
        f"stride: after a first layer that keeps {sizes[0]} pixels, the very next "
        f"block halves them, and {sizes[-1]} are left at the end. Does a block stride "
        "that should keep the size?",
        f"the maps end with {sizes[-1]} pixels a side",
    )


def _pairs(model: nn.Module) -> list[tuple[nn.Module, nn.Module | None]]:
    """Residual blocks, known by two or more convolutions and a shortcut by name."""
    pairs = []
    for module in model.modules():
        children = dict(module.named_children())
        convs = [c for c in children.values() if isinstance(c, nn.Conv2d)]
        names = [n for n in ("shortcut", "downsample") if hasattr(module, n)]
        if len(convs) >= 2 and names:
            pairs.append((module, getattr(module, names[0])))
    # Some give a shortcut to those blocks alone that change the shape.
    kinds, known = {type(block) for block, _ in pairs}, {block for block, _ in pairs}
    alike = [m for m in model.modules() if type(m) in kinds and m not in known]
    return pairs + [(block, None) for block in alike]


def _normalises_first(block: nn.Module) -> bool:
    """Whether it is pre-activation: its projection needs no normalisation."""
    kinds = [type(child).__name__ for child in block.children()]
    return "Norm" in next((k for k in kinds if "Norm" in k or "Conv" in k), "")


def _blocks(found: Findings, model: nn.Module, x: Tensor) -> None:
    pairs = _pairs(model)
    if not pairs:
        found.unknown.append("the residual blocks: none was recognised")
        return
    entering: dict[nn.Module, Tensor] = {}

    def note(block, args) -> None:
        entering[block] = args[0].detach().clone()

    hooks = [block.register_forward_pre_hook(note) for block, _ in pairs]
    with torch.no_grad():
        model.train()(x[:32])
    for hook in hooks:
        hook.remove()
    changed = narrow = bare = lifted = identities = 0
    for block, shortcut in pairs:
        if block not in entering:
            continue
        before = entering[block]
        given = before.clone()
        with torch.no_grad():
            out = block(given)
            changed += not torch.equal(given.nan_to_num(), before.nan_to_num())
            way = before if shortcut is None else shortcut(before.clone())
        narrow += way.shape[1] == 1 != out.shape[1]
        layers = [] if shortcut is None else shortcut.modules()
        kinds = [type(m).__name__ for m in layers]
        normed = any("Norm" in kind for kind in kinds) or _normalises_first(block)
        bare += "Conv2d" in kinds and not normed
        same = way.shape == out.shape and torch.equal(way, before)
        if same and (before >= 0).all() and not torch.equal(out, before):
            positive = before > 0
            identities += 1
            lifted += bool(positive.any() and not (out < before)[positive].any())
    found.say(
        changed > 0,
        f"in place: {changed} blocks change their own input, which the shortcut still "
        "needs",
        "no block changes its own input",
    )
    found.say(
        narrow > 0,
        f"broadcasting: in {narrow} blocks the shortcut has other channels than the "
        "sum, and broadcasting hides it",
        "shortcuts have the shape of the sum",
    )
    found.say(
        bare > 0,
        f"projection: {bare} of the shortcuts' convolutions have no normalisation "
        "after them",
        "projections are normalised, or there are none",
    )
    if identities:
        found.say(
            lifted == identities,
            "ReLU before the addition: no block ever lowers a value of its shortcut, "
            "so the branch can only add",
            "branches raise and lower their shortcut",
        )


def _layers(found: Findings, model: nn.Module, original: nn.Module) -> None:
    count = sum(
        isinstance(module, nn.Linear | nn.Conv2d)
        and not re.search("shortcut|downsample", name)
        for name, module in model.named_modules()
    )
    name = getattr(original, "name", None) or ""
    told = re.match(r"(?:resnet|plain)(\d+)", name) if isinstance(name, str) else None
    if told is None:
        found.unknown.append(f"the depth that was meant: {count} layers were counted")
        return
    found.say(
        int(told[1]) != count,
        f"depth: it is called {name} and has {count} layers with weights",
        f"it has the {count} layers of its name",
    )


def _gradients(found: Findings, model: nn.Module, x: Tensor, y: Tensor | None) -> None:
    if y is None:
        found.unknown.append("the gradients: give (images, labels)")
        return
    z = model.train()(x[:32])
    z = z if isinstance(z, Tensor) else z[0]
    model.zero_grad()
    F.cross_entropy(z, y[:32]).backward()
    asked = [(n, p.grad) for n, p in model.named_parameters() if p.requires_grad]
    broken = [n for n, g in asked if g is not None and not g.isfinite().all()]
    # An auxiliary head takes no part in the first answer, and zero γ is a choice.
    silent = [n for n, g in asked if g is None and "aux" not in n.lower()]
    found.say(
        bool(broken or silent),
        f"gradients: missing or not finite for {', '.join((broken + silent)[:3])}",
        "every weight has a finite gradient",
    )


def _loss(found: Findings, model: nn.Module, x: Tensor, y: Tensor | None, loss) -> None:
    if loss is None or y is None:
        found.unknown.append("what is minimised: give the loss as `loss`")
        return
    y = y[:32]
    classes = model.eval()(x[:2]).shape[1]
    perfect = 100.0 * F.one_hot(y, classes)
    at_best, right = loss(perfect, y).item(), F.cross_entropy(perfect, y).item()
    wrong = loss(-perfect, y).item()
    found.say(
        at_best - right > 0.6 and wrong < 10,
        f"softmax: right and sure answers still cost {at_best:.2f}, and wrong and sure "
        f"ones only {wrong:.2f}. Is a softmax taken twice?",
        "right and sure answers cost little",
    )
    found.unknown.append(
        "the weight decay: compare its pull with λw, as the clinic does"
    )


def _rates(found: Findings, rates) -> None:
    if rates is None:
        found.unknown.append("the learning rate: log it and give it as `rates`")
        return
    rates = [float(rate) for rate in rates]
    if max(rates) < 0.005:
        found.unknown.append(
            f"the learning rate: at most {max(rates):g}, usual for Adam and for "
            "fine-tuning, small for SGD"
        )
        return
    found.say(
        min(rates) > 0.2 * max(rates) or rates[-1] > 0.2 * max(rates),
        f"rate: it ends at {rates[-1]:g}, not far from its highest, {max(rates):g}. It "
        "should fall",
        f"the rate falls from {max(rates):g} to {rates[-1]:g}",
    )
    found.say(
        max(rates) < 0.05,
        f"rate: it never rises above {max(rates):g}, where nets with BN and SGD train "
        "at 0.1. Was a warm-up's value never taken back?",
        f"its highest value is {max(rates):g}",
    )


def _test(found: Findings, x: Tensor, judge) -> None:
    if judge is None:
        found.unknown.append(
            "how the test is made, and whether eval() comes before: give it as `judge`"
        )
        return
    with torch.no_grad():
        first, second, two = judge(x[:32]), judge(x[:32]), judge(x[:2])
    again = (first - second).abs().max().item()
    neighbours = (first[:2] - two).abs().max().item()
    scale = first.std().item() + 1e-6
    if again > 1e-3 * scale:
        found.odd.append(
            "the test is random: two tests of the same images differ. Are they cropped "
            "or flipped at random, or is eval() missing where there is dropout?"
        )
    else:
        found.say(
            neighbours > 1e-2 * scale,
            "eval(): an image's answer depends on its neighbours in the batch",
            "two tests agree, and neighbours do not matter",
        )


def _report(found: Findings, report) -> None:
    if report is None:
        found.unknown.append("which error is published: give the rule as `report`")
        return
    draw = torch.Generator().manual_seed(0)
    runs = (torch.rand(50, 20, 500, generator=draw) < 0.3).float().mean(2).tolist()
    said = sum(float(report(run)) for run in runs) / len(runs)
    found.say(
        said < 0.285,
        f"report: of runs that are wrong for 30 % at every test, it makes {said:.1%}. "
        "The smallest of many is no fair choice",
        "the report does not flatter",
    )


@contextlib.contextmanager
def _watching(model: nn.Module, kind: type, note: Callable) -> Iterator[None]:
    """Call `note` behind every layer of a kind while it lasts, in evaluation mode."""
    hooks = [m.register_forward_hook(note) for m in model.modules() if type(m) is kind]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()
