"""The explorer: open a network in the browser, block by block and pixel by pixel.

The view is drawn by `explorer.js`. It asks, and this side answers from PyTorch; in a
page without a kernel another backend gives the same answers.
"""

import copy
import json
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import ClassVar, NamedTuple

import anywidget
import torch
import traitlets
from matplotlib.figure import Figure
from torch import Tensor, nn

from resnet_lib.basic_block import BasicBlock
from resnet_lib.data import Dataset, Normalisation
from resnet_lib.datasets import read_picture
from resnet_lib.explorer.inside import (
    Inside,
    LesionedNet,
    is_open,
    kernel_of,
    look_inside,
    untouched,
)
from resnet_lib.probes import block_names, confident_mistakes, way_around
from resnet_lib.runs import Run

__all__ = ["Explorer", "describe_net", "pictures_for"]

HERE = Path(__file__).parent
OWN = -1  # the number of a picture that is not in the test set
PIXELS = 3 * 32 * 32
CHUNK = 50  # test images judged in one answer: short, since other questions wait


class Question(NamedTuple):
    """What the view asks about: a lesion, a picture, an iteration."""

    scales: Mapping[str, float]
    picture: int
    iteration: int


def describe_net(title: str, model: nn.Module, run: Run | None = None) -> dict:
    """What the view has to know of one network before it draws the map."""
    blocks = []
    for name in block_names(model):
        block = model.get_submodule(name)
        blocks.append(
            {
                "name": name,
                "channels": block.conv2.out_channels,
                "stride": block.conv1.stride[0],
                "residual": isinstance(block, BasicBlock),
                "identity": isinstance(way_around(block), nn.Identity),
            }
        )
    about = {"title": title, "stem": model.conv1.out_channels, "blocks": blocks}
    about |= {"kept": [], "curves": {}}
    if run is not None:
        about |= {"run": run.name, "iterations": run.recipe["iterations"]}
        if run.snapshots:
            about |= {"kept": kept_by(run), "curves": curves_of(run)}
    return about


def kept_by(run: Run) -> list[int]:
    """The iterations at which the explorer can show the network, the last included."""
    return sorted({*run.snapshots, run.recipe["iterations"]})


def curves_of(run: Run) -> dict[str, list]:
    """Error in percent by iteration, as (iteration, error) pairs."""
    curves = {}
    for column in ("train_error", "test_error"):
        rows = run.history[["iteration", column]].dropna()
        values = (100 * rows[column]).round(2)
        curves[column] = list(zip(rows["iteration"].tolist(), values, strict=True))
    return curves


def pictures_for(data: Dataset, mistakes: Sequence[int] = (), each: int = 2) -> list:
    """The strip of pictures: `each` per class, then `mistakes`, by test index."""
    labels = data.test.labels
    shown = [
        index
        for number in range(len(data.classes))
        for index in (labels == number).nonzero().flatten()[:each].tolist()
    ]
    return [
        {"index": int(i), "label": int(labels[i]), "mistake": i in mistakes}
        for i in dict.fromkeys([*shown, *mistakes])
    ]


class Explorer(anywidget.AnyWidget):
    """One or two networks, opened: their map, a block, a pixel, a lesion, their past.

    `nets` are networks or recorded runs by title, such as {"residual": run, "plain":
    twin}; a run that kept weights along its way can be played back. `data` gives the
    pictures, `normalisation` what the networks were trained with (by default that of
    the training images). Used in notebook 06.

    Everything that is shown can be read and set:

    - `net`, `block` ("stem", "layer2.0", …), `channel` (-1: the strongest)
    - `pixel`: () or (row, column) of the block's maps
    - `scales`: the factor on each weakened branch, by block name; see `probes.lesion`
    - `picture`: a test image's index; `show()` takes any other picture
    - `iteration`: where the run stands; the latest weights kept until then are shown

    `figure()` draws the same for paper. Raises ValueError for no network or more than
    two and for one that is no ResNet of these blocks, and TraitError for a state that
    is not there.
    """

    _esm = HERE / "explorer.js"
    _css = HERE / "explorer.css"

    net = traitlets.Unicode().tag(sync=True)
    block = traitlets.Unicode().tag(sync=True)
    channel = traitlets.Int(-1).tag(sync=True)
    pixel = traitlets.List(traitlets.Int()).tag(sync=True)
    scales = traitlets.Dict().tag(sync=True)
    picture = traitlets.Int(0).tag(sync=True)
    iteration = traitlets.Int(-1).tag(sync=True)
    own = traitlets.Bytes(bytes(PIXELS))  # a picture of one's own, at first black
    saved = traitlets.Bytes(b"").tag(sync=True)  # for a page without a kernel
    words = traitlets.Unicode().tag(sync=True)  # the same, said

    # The explorer that counted last. It alone keeps what it counts with: that is
    # hundreds of MB, and Jupyter never lets go of an explorer whose cell ran again.
    counting: ClassVar[Callable[[], "Explorer | None"]] = staticmethod(lambda: None)

    def __init__(
        self,
        nets: Mapping[str, nn.Module | Run],
        data: Dataset,
        normalisation: Normalisation | None = None,
        judged: int = 1_000,
        **state,
    ) -> None:
        if not 1 <= len(nets) <= 2:
            raise ValueError(
                f"Give one network or two, by title, not {len(nets)}: "
                '{"residual": model, "plain": twin}.'
            )
        self.runs = {title: n for title, n in nets.items() if isinstance(n, Run)}
        self.models = {  # the final ones
            title: n.model() if isinstance(n, Run) else n for title, n in nets.items()
        }
        for title, model in self.models.items():
            if not block_names(model):
                raise ValueError(
                    f"{title!r} has no BasicBlock or PlainBlock of this library to "
                    "look into. Build it with get_model."
                )
        if (shape := tuple(data.test.images.shape[1:])) != (3, 32, 32):
            raise ValueError(
                f"The explorer shows pictures of shape (3, 32, 32); those of "
                f"{data.name} have {shape}."
            )
        self.data = data
        self.normalisation = normalisation or _trained_with(data, nets)
        x = self.normalisation(data.test.images[:1])
        for title, model in self.models.items():
            if not is_open(model, x):
                raise ValueError(
                    f"{title!r} computes something other than a ResNet of our blocks: "
                    "the explorer would show other numbers than the network's own. "
                    "Build it with get_model."
                )
        self.judged = data.test[:judged]
        self.past: dict[tuple[str, int], nn.Module] = {}  # as they were, by iteration
        self.copies: dict[str, tuple] = {}  # by title: which weights, and the copy
        self.wholes: dict[str, tuple] = {}
        # By title: key, scales and Inside of the last answer.
        self.last: dict[str, tuple] = {}
        self.lesioned: dict[tuple, LesionedNet] = {}  # with what it judges
        first = next(iter(self.models))
        start = {
            "net": first,
            "block": block_names(self.models[first])[0],
            "iteration": max((kept_by(r)[-1] for r in self.runs.values()), default=-1),
        }
        super().__init__(**(start | state))
        self.on_msg(self._answer)
        self._save()

    # --- state ------------------------------------------------------------------------

    @traitlets.validate("net")
    def _check_net(self, proposal: dict) -> str:
        return self._one_of("network", proposal["value"], list(self.models))

    @traitlets.validate("block")
    def _check_block(self, proposal: dict) -> str:
        return self._one_of("block", proposal["value"], ["stem", *self.blocks])

    @traitlets.validate("scales")
    def _scales_proposed(self, proposal: dict) -> dict:
        return self._check_scales(proposal["value"])

    def _check_scales(self, scales: Mapping[str, float]) -> dict[str, float]:
        for name, scale in scales.items():
            self._one_of("block", name, self.blocks)
            if not isinstance(scale, Real) or not 0 <= scale <= 1:
                raise traitlets.TraitError(
                    f"{name} is scaled by {scale}: give a number from 0 to 1."
                )
        return {name: float(scale) for name, scale in scales.items()}

    @traitlets.validate("pixel")
    def _check_pixel(self, proposal: dict) -> list[int]:
        if len(proposal["value"]) not in (0, 2):
            raise traitlets.TraitError(
                f"No pixel {proposal['value']}: give (row, column), or () for none."
            )
        return proposal["value"]

    @traitlets.validate("picture")
    def _picture_proposed(self, proposal: dict) -> int:
        return self._check_picture(proposal["value"])

    def _check_picture(self, number: int) -> int:
        count = len(self.data.test)
        if not OWN <= number < count:
            raise traitlets.TraitError(
                f"There is no test image {number}: choose from 0 to "
                f"{count - 1}, or give a picture of your own to show()."
            )
        return number

    @traitlets.validate("own")
    def _own_proposed(self, proposal: dict) -> bytes:
        if len(proposal["value"]) != PIXELS:
            raise traitlets.TraitError(f"A picture has {PIXELS} bytes: (3, 32, 32).")
        return proposal["value"]

    @staticmethod
    def _one_of(what: str, value: str, offer: list[str]) -> str:
        if value not in offer:
            raise traitlets.TraitError(f"No {what} {value!r}: choose from {offer}.")
        return value

    @property
    def blocks(self) -> list[str]:
        """The names of all blocks, in the order in which they run."""
        names = (name for model in self.models.values() for name in block_names(model))
        return list(dict.fromkeys(names))

    @property
    def opened(self) -> str:
        """The block that is shown: the stem where the network has none of that name."""
        known = self.block in block_names(self.models[self.net])
        return self.block if known else "stem"

    def show(self, picture: Tensor | bytes | str | Path) -> None:
        """Show a picture of one's own: a file, its bytes, or uint8 (3, 32, 32).

        Raises ValueError, in words, for what is no picture.
        """
        if not isinstance(picture, Tensor):
            picture = read_picture(picture, size=32)
        if tuple(picture.shape) != (3, 32, 32) or picture.dtype != torch.uint8:
            raise ValueError(
                f"A picture is uint8 of shape (3, 32, 32), not {picture.dtype} of "
                f"{tuple(picture.shape)}."
            )
        self.own = picture.cpu().numpy().tobytes()
        self.picture = OWN

    @traitlets.observe("own")
    def _own_changed(self, _) -> None:
        if self.picture == OWN:  # the number is the same, the picture is not
            self.send({"kind": "again"})

    def link(self, other: "Explorer") -> None:
        """Let two explorers show the same block, channel, pixel, picture and lesion."""
        for name in ("block", "channel", "pixel", "own", "picture", "scales"):
            traitlets.link((self, name), (other, name))

    # --- numbers ----------------------------------------------------------------------

    @property
    def image(self) -> Tensor:
        """The picture shown, uint8 (3, 32, 32); black until one's own is there."""
        return self._image(self.picture)

    def _image(self, number: int) -> Tensor:
        if number != OWN:
            return self.data.test.images[number]
        pixels = torch.frombuffer(bytearray(self.own), dtype=torch.uint8)
        return pixels.view(3, 32, 32)

    @property
    def label(self) -> int | None:
        """The class of the picture; None for one's own."""
        return self._label(self.picture)

    def _label(self, number: int) -> int | None:
        return None if number == OWN else int(self.data.test.labels[number])

    def shown(self, title: str, iteration: int | None = None) -> int | None:
        """The iteration whose weights are shown; None where the run kept none so far.

        -1 for a network that has no past.
        """
        run = self.runs.get(title)
        if run is None or not run.snapshots:
            return -1
        now = self.iteration if iteration is None else iteration
        return max((kept for kept in kept_by(run) if kept <= now), default=None)

    def model(self, title: str, iteration: int | None = None) -> nn.Module:
        """The network as it is shown.

        A copy, where it is no run's: the view may ask while a cell trains the network,
        from a second thread, and must not turn its training mode off meanwhile.
        """
        model = self._original(title, iteration)
        if title in self.runs:
            return model
        if self.copies.get(title, ("",))[0] != (weights := _weights_of(model)):
            self.copies[title] = weights, copy.deepcopy(model).eval()
        return self.copies[title][1]

    def _original(self, title: str, iteration: int | None) -> nn.Module:
        shown = self.shown(title, iteration)
        run = self.runs.get(title)
        if shown in (-1, None) or shown not in run.snapshots:
            return self.models[title]
        if (title, shown) not in self.past:
            self.past[title, shown] = run.model(shown)
        return self.past[title, shown]

    def look(self, title: str, scales: Mapping[str, float] | None = None) -> Inside:
        """Every number of one network for the picture shown, by default as shown."""
        now = self._question({} if scales is None else {"scales": scales})
        x = self.normalisation(self.image[None])
        return look_inside(self.model(title), x, now.scales)

    def _inside(self, title: str, asked: Question) -> Inside:
        """The same for an answer: computed from where it differs from the last one."""
        key = self._key(title, asked)  # first: a training may go on meanwhile
        model = self.model(title, asked.iteration)
        last_key, scales, inside = self.last.get(title, ("", {}, None))
        known = None
        if key == last_key:
            known = untouched(model, inside, scales, asked.scales)
        x = self.normalisation(self._image(asked.picture)[None])
        inside = look_inside(model, x, asked.scales, known)
        self.last[title] = (key, asked.scales, inside)
        return inside

    def _key(self, title: str, asked: Question) -> str:
        """Stands for the weights, as they are now, and for the picture."""
        picture = self._image(asked.picture).numpy().tobytes()
        return str(hash((self._weights(title, asked), picture)))

    def _weights(self, title: str, asked: Question) -> tuple:
        """Stands for the weights, as they are now."""
        model = self._original(title, asked.iteration)
        return self.shown(title, asked.iteration), _weights_of(model)

    @property
    def probabilities(self) -> dict[str, Tensor]:
        """(classes,) for the picture shown, by network, under the lesion."""
        return {title: self.look(title).logits[0].softmax(0) for title in self.models}

    def _right(self, title: str, start: int, asked: Question) -> int:
        """How many of the `CHUNK` test images from `start` on are right."""
        if (former := Explorer.counting()) is not self:
            if former is not None:
                former.lesioned.clear()
            Explorer.counting = weakref.ref(self)
        part = self.judged[start : start + CHUNK]
        key = (title, self._weights(title, asked), start)
        if key not in self.lesioned:
            here = [k for k in self.lesioned if k[0] == title and k[1] != key[1]]
            for old in here:  # of another iteration, or before more training
                del self.lesioned[old]
            x = self.normalisation(part.images)
            self.lesioned[key] = LesionedNet(self.model(title, asked.iteration), x)
        judge = self.lesioned[key]
        scales = {name: s for name, s in asked.scales.items() if name in judge.names}
        return int((judge(scales).argmax(1) == part.labels).sum())

    # --- answers ----------------------------------------------------------------------

    def _answer(self, _, content: dict, buffers: list) -> None:
        """Answer one question of the view; an error becomes a sentence there."""
        reply = {"kind": "reply", "id": content.get("id")}
        try:
            asked = {
                "about": self._about,
                "look": self._look,
                "kernel": self._kernel,
                "judge": self._judge,
                "own": self._take,
                "ping": lambda *_: ({}, []),
            }
            body, out = asked[content["kind"]](content, buffers)
            self.send(reply | body, out)
        except Exception as error:  # nobody could catch it
            self.send(reply | {"error": f"{type(error).__name__}: {error}"})

    def _about(self, content: dict, buffers: list) -> tuple[dict, list]:
        mistakes = self._mistakes()
        strip = pictures_for(self.data, mistakes)
        pixels = self.data.test.images[[p["index"] for p in strip]]
        nets = [
            describe_net(title, model, self.runs.get(title))
            for title, model in self.models.items()
        ]
        about = {
            "nets": nets,
            "classes": list(self.data.classes),
            "pictures": strip,
            "judged": len(self.judged),
            "note": self.data.note,
        }
        return {"about": json.loads(json.dumps(about))}, [pixels.numpy().tobytes()]

    def _mistakes(self, count: int = 6) -> list[int]:
        part = self.judged[:200]
        title = next(iter(self.models))
        judge = LesionedNet(self.models[title], self.normalisation(part.images))
        return confident_mistakes(judge.intact, part.labels)[:count]

    def _look(self, content: dict, buffers: list) -> tuple[dict, list]:
        """Two answers: the logits, and then the maps that the view does not have."""
        asked, have = self._question(content), content.get("have")
        insides = {title: self._inside(title, asked) for title in self.models}
        nets = [
            {
                "title": title,
                "key": self.last[title][0],
                "weights": str(self._weights(title, asked)),
                "shown": self.shown(title, asked.iteration),
                "logits": _finite(inside.logits[0]),
                "whole": _finite(self._whole(title, asked, inside)),
            }
            for title, inside in insides.items()
        ]
        body = {"nets": nets, "label": self._label(asked.picture)}
        self.send({"kind": "reply", "id": content.get("id"), "early": True} | body)
        out = [self._image(asked.picture).numpy().tobytes()]
        for net, (title, inside) in zip(nets, insides.items(), strict=True):
            sent = self._wired(title, inside)
            if have and have["keys"].get(title) == net["key"]:
                model = self.model(title, asked.iteration)
                for name in untouched(model, inside, have["scales"], asked.scales):
                    sent.pop(name, None)
            net["parts"] = [[name, list(t.shape[1:])] for name, t in sent.items()]
            flat = [tensor.flatten() for tensor in sent.values()]
            out.append(torch.cat(flat or [torch.empty(0)]).float().numpy().tobytes())
        return body, out

    def _whole(self, title: str, asked: Question, inside: Inside) -> Tensor:
        """The logits (classes,) without the lesion, kept while all else is the same."""
        key = self.last[title][0]
        if self.wholes.get(title, ("",))[0] != key:
            model = self.model(title, asked.iteration)
            known = untouched(model, inside, asked.scales, {})
            whole = look_inside(model, inside.parts["input"], {}, known)
            self.wholes[title] = (key, whole.logits[0])
        return self.wholes[title][1]

    def _wired(self, title: str, inside: Inside) -> dict[str, Tensor]:
        """What the view cannot work out itself: no `h`, no `x` of an identity."""
        model = self.models[title]
        same = {
            f"{name}.x"
            for name in block_names(model)
            if isinstance(way_around(model.get_submodule(name)), nn.Identity)
        }
        return {
            name: tensor
            for name, tensor in inside.parts.items()
            if not name.endswith(".h") and name not in same
        }

    def _question(self, content: dict) -> Question:
        """The state that is asked about, by default the present one.

        A question may overtake the traits on their way here. It leaves them alone: to
        set them would send an old state back to a view that has moved on.
        """
        scales = self._check_scales(content.get("scales", self.scales))
        picture = self._check_picture(content.get("picture", self.picture))
        return Question(scales, picture, content.get("iteration", self.iteration))

    def _kernel(self, content: dict, buffers: list) -> tuple[dict, list]:
        title, block = content["net"], content["block"]
        asked = self._question(content)
        model = self.model(title, asked.iteration)
        kernel = kernel_of(model, block, content["channel"])
        parts = self._inside(title, asked).parts
        h = parts["input" if block == "stem" else f"{block}.h"][0]
        body = {"scale": kernel.scale, "shift": kernel.shift, "shape": list(h.shape)}
        body["key"] = self.last[title][0]  # of which weights it tells
        return body, [kernel.weights.numpy().tobytes(), h.float().numpy().tobytes()]

    def _judge(self, content: dict, buffers: list) -> tuple[dict, list]:
        asked, start = self._question(content), content["start"]
        right = {title: self._right(title, start, asked) for title in self.models}
        return {"right": right, "of": len(self.judged[start : start + CHUNK])}, []

    def _take(self, content: dict, buffers: list) -> tuple[dict, list]:
        self.own = bytes(buffers[0])
        return {}, []

    # --- paper ------------------------------------------------------------------------

    def figure(self) -> Figure:
        """The block for the picture shown, and the answers, for a page of paper."""
        from resnet_lib.explorer.figure import draw

        return draw(self)

    def sentence(self) -> str:
        """What is shown, in one sentence: the alternative text."""
        words = [f"{self.net}, {self.opened}"]
        if self.scales:
            words.append(
                "with "
                + ", ".join(f"{name} × {s:g}" for name, s in self.scales.items())
            )
        what = "a picture of your own"
        if self.label is not None:
            what = f"test image {self.picture} ({self.data.classes[self.label]})"
        words.append(f"for {what}")
        for title, found in self.probabilities.items():
            best = int(found.argmax())
            words.append(f"{title}: {self.data.classes[best]} {100 * found[best]:.0f}%")
        return ", ".join(words)

    def _save(self) -> None:
        """Keep a picture for pages without a kernel; without one if it cannot be."""
        try:
            from resnet_lib.explorer.figure import png

            self.saved, self.words = png(self.figure()), self.sentence()
        except Exception as error:
            self.words = f"No picture: {error}"

    def _repr_mimebundle_(self, **kwargs):
        self._save()
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        if data is None:
            return bundle
        words = f"Explorer, {self.words}. It moves when the cell runs."
        data |= {"text/plain": words, "image/png": self.saved}
        return data, {**metadata, "image/png": {"alt": words}}


def _weights_of(model: nn.Module) -> str:
    """Stands for a network's weights; a change of `.data` leaves versions alone."""
    state = model.state_dict().values()
    version = sum(tensor._version for tensor in state)
    return f"{version}, {sum(tensor.float().sum().item() for tensor in state)}"


def _finite(numbers: Tensor) -> list[float | None]:
    """For JSON, which knows no other numbers; None stands for those."""
    return [n if math.isfinite(n) else None for n in numbers.tolist()]


def _trained_with(data: Dataset, nets: Mapping[str, nn.Module | Run]) -> Normalisation:
    """That of the first run on this data; without one, that of all training images."""
    for net in nets.values():
        if isinstance(net, Run) and net.about["data"] == data.name:
            images = data.split(net.recipe["validation"])[0].images
            return Normalisation.of(images, net.recipe["per_pixel_mean"])
    return Normalisation.of(data.train.images)
