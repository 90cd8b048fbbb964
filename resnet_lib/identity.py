"""What tells one network, or one set of data, from another, and what rebuilds it."""

import ast
import hashlib
import inspect
import json
import textwrap

import torch
from torch import Tensor, nn

from resnet_lib.data import Dataset
from resnet_lib.resnet import ResNet

__all__ = ["data_digest", "describe", "network_digest"]

LIBRARIES = ("builtins", "resnet_lib", "torch", "torchvision")
# How a layer is used, or was looked at, not what it computes.
MODES = ("training", "_is_torch_compile", "_is_full_backward_hook")
PLAIN = (str, int, float)


def _hung_on(module: nn.Module) -> list[object]:
    """Hooks around its passes, and methods of its class that it has its own of."""
    kinds = ("forward_pre", "forward", "backward_pre", "backward")
    hooks = [h for kind in kinds for h in vars(module)[f"_{kind}_hooks"].values()]
    own = vars(module).items()
    return hooks + [v for k, v in own if callable(getattr(type(module), k, None))]


def network_digest(model: nn.Module) -> str:
    """16 hexadecimal digits of its layers, their options, what is hung on them, frozen
    weights, and the code of classes that are neither PyTorch's nor ours.

    Not of what PyTorch prints of a layer, which changes from version to version.
    """
    about = []
    for path, module in model.named_modules():
        layer = type(module)
        # The code of a reader's class counts, not the file or cell that it stands in.
        file = f"{layer.__module__}." if _known(layer) else ""
        about.append(f"{path} {file}{layer.__qualname__}")
        theirs = [kind for kind in layer.__mro__ if not _known(kind)]
        for kind in theirs:
            about += [kind.__qualname__, *map(_told, _members(kind))]
        about += map(_code, _hung_on(module))
        for name, value in vars(module).items():
            if name in MODES:
                continue
            if theirs and not name.startswith("_"):
                about.append(f"{name} {_told(value)}")
            elif all(isinstance(v, PLAIN) for v in _items(value)):
                about.append(f"{name} {value}")
    about += [f"{k} {v.shape} {v.requires_grad}" for k, v in model.named_parameters()]
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]


def _items(value: object) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _known(thing: object) -> bool:
    """Whether Python, PyTorch or we have defined it."""
    module = getattr(thing, "__module__", None) or ""
    return module.split(".")[0] in LIBRARIES


def _members(kind: type) -> list[object]:
    """What a class's body says; not what one version of Python notes of it."""
    own = vars(kind).items()
    return [v for k, v in own if not k.startswith("__") or inspect.isfunction(v)]


def _told(value: object) -> str:
    """Plain data in full, a function's code, of anything else its name or class."""
    if isinstance(value, list | tuple):
        return str([_told(v) for v in value if not isinstance(v, Tensor)])
    return repr(value) if isinstance(value, PLAIN) else _code(value)


def _code(member: object) -> str:
    """A function without its comments; of what has no source, its name at most."""
    member = getattr(member, "fget", getattr(member, "__func__", member))
    name = getattr(member, "__qualname__", type(member).__name__)
    if _known(member):  # its code may differ from version to version
        return name
    try:
        return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(member))))
    except (TypeError, OSError, SyntaxError):  # no function, typed at a prompt, lambda
        return name


def describe(model: nn.Module) -> dict | None:
    """What rebuilds this network: `{"class": "ResNet", **model.config}`.

    None for a network that cannot be rebuilt by `ResNet(**config)`: one of another
    class, or one whose layers were changed, or hooked, after it was built.
    """
    if type(model) is not ResNet:
        return None
    with torch.device("meta"):  # no memory, and no random number is drawn
        twin = ResNet(**model.config)
    if str(model) != str(twin):
        return None
    for module, other in zip(model.modules(), twin.modules(), strict=True):
        # What `str` does not tell: a class of the same name, a hook, a method hung on a
        # layer, the stride of shortcut A.
        if type(module) is not type(other) or _hung_on(module):
            return None
        for name, value in vars(other).items():
            public = name != "training" and not name.startswith("_")
            if public and vars(module).get(name) != value:
                return None
    config = json.loads(json.dumps(model.config, default=int))  # numpy's numbers too
    return {"class": "ResNet", **config}


def data_digest(data: Dataset) -> str:
    """16 hexadecimal digits that tell this data, as it is now, from other data.

    From the names of the classes, the sizes, every label, and some 150,000 pixels of
    each part, spread over all images.
    """
    digest = hashlib.sha256(repr(list(data.classes)).encode())
    for part in (data.train, data.test):
        digest.update(repr(tuple(part.images.shape)).encode())
        # An odd step, so that the sample is not one column of all pictures.
        step = part.images.numel() // 150_000 | 1
        for values in (part.labels, part.images.reshape(-1)[::step]):
            digest.update(values.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
