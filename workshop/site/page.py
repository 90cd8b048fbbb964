"""The explorer's page without a kernel: networks as ONNX files, pictures, the engine.

Written into a folder of the site: `python -m workshop.site.page FOLDER`. The weights
lie in a file of their own, kernels in half precision and vectors in full as in the
runs; the engine and the view both read it. A run that kept weights along its way has
one such file for each iteration. Every page reads only files that lie beside it, and
files that are no text are packed: not every host packs them on their way.
"""

import gzip
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from resnet_lib import explorer
from resnet_lib.basic_block import BasicBlock, PaddedIdentity
from resnet_lib.data import Dataset, Normalisation
from resnet_lib.datasets import load_data
from resnet_lib.explorer.inside import way_around
from resnet_lib.explorer.widget import describe_net, kept_by, pictures_for
from resnet_lib.probes import block_names, confident_mistakes
from resnet_lib.runs import Run, load_run

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
ENGINE = ROOT / ".site" / "engine"  # what `make site` unpacked of onnxruntime-web
ENGINE_SCRIPT = "ort.wasm.bundle.min.mjs"
ENGINE_BINARY = "ort-wasm-simd-threaded.wasm"
JUDGED = 200  # test images that the page brings along for the accuracy
NETS = {"residual": "resnet20-paper-64k", "plain": "plain20-paper-64k"}
DIGITS = {"residual": "resnet18-digits", "plain": "plain18-digits"}
HISTORY = {"residual": "resnet18-paper-64k"}  # a training to play back


class Graph:
    """Nodes and weights of one network, collected layer by layer."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.weights: list = []
        self.outputs: dict[str, tuple] = {}
        self.file = bytearray()
        self.places: dict[str, list] = {}  # by tensor: its byte in the file, its shape

    def node(self, kind: str, inputs: list[str], output: str, **options) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **options))
        return output

    def weight(self, name: str, values: torch.Tensor) -> str:
        """A tensor in the file of weights; kernels are 32 bits again when read."""
        half = values.ndim > 1
        stored = (values.half() if half else values).detach().numpy()
        place = len(self.file)
        self.places[name] = [place, list(stored.shape)]
        self.file += stored.tobytes()
        self.file += bytes(-len(self.file) % 64)
        kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        tensor = TensorProto(name=f"{name}/half" if half else name, data_type=kind)
        tensor.dims.extend(stored.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", "weights"),
            ("offset", place),
            ("length", stored.nbytes),
        ):
            tensor.external_data.add(key=key, value=str(value))
        self.weights.append(tensor)
        if not half:
            return name
        return self.node("Cast", [tensor.name], name, to=TensorProto.FLOAT)

    def constant(self, name: str, values: list, kind=np.int64) -> str:
        self.weights.append(onnx.numpy_helper.from_array(np.array(values, kind), name))
        return name

    def layer(
        self, conv: nn.Conv2d, bn: nn.BatchNorm2d, names: tuple, x: str, out: str
    ) -> str:
        """A convolution and its BN, whose `names` are those of the model's layers."""
        conv_name, bn_name = names
        weight = self.weight(f"{conv_name}.weight", conv.weight)
        pads = [conv.padding[0]] * 4
        made = self.node(
            "Conv", [x, weight], f"{conv_name}/out", pads=pads, strides=conv.stride
        )
        parts = [
            self.weight(f"{bn_name}.{part}", getattr(bn, part))
            for part in ("weight", "bias", "running_mean", "running_var")
        ]
        return self.node("BatchNormalization", [made, *parts], out, epsilon=bn.eps)

    def around(self, block: nn.Module, name: str, x: str) -> str:
        """What goes around the branch: x itself, or the shortcut's output."""
        way = way_around(block)
        if isinstance(way, nn.Identity):
            return x
        if isinstance(way, PaddedIdentity):
            step, new = way.stride, way.new_channels
            options = [
                self.constant(f"{name}/{what}", values)
                for what, values in (
                    ("from", [0, 0]),
                    ("to", [2**31, 2**31]),
                    ("axes", [2, 3]),
                    ("steps", [step, step]),
                )
            ]
            some = self.node("Slice", [x, *options], f"{name}/strided")
            pads = self.constant(f"{name}/pads", [0, 0, 0, 0, 0, new, 0, 0])
            return self.node("Pad", [some, pads], f"{name}.x")
        conv, bn = way
        layers = (f"{name}.shortcut.0", f"{name}.shortcut.1")
        return self.layer(conv, bn, layers, x, f"{name}.x")


def graph_of(model: nn.Module) -> Graph:
    """The network with its inner tensors as outputs, and a scale for every branch."""
    graph = Graph()
    f = graph.layer(model.conv1, model.bn1, ("conv1", "bn1"), "picture", "stem.f")
    outputs, x = [f], graph.node("Relu", [f], "stem.out")
    for number, block_name in enumerate(block_names(model)):
        block = model.get_submodule(block_name)
        names = [(f"{block_name}.conv{i}", f"{block_name}.bn{i}") for i in (1, 2)]
        inner = graph.layer(block.conv1, block.bn1, names[0], x, f"{block_name}/inner")
        h = graph.node("Relu", [inner], f"{block_name}.h")
        f = graph.layer(block.conv2, block.bn2, names[1], h, f"{block_name}.f")
        around = graph.around(block, block_name, x)
        outputs += [h, f] + ([around] if around != x else [])
        index = graph.constant(f"{block_name}/index", number)
        scale = graph.node("Gather", ["scales", index], f"{block_name}/scale")
        if isinstance(block, BasicBlock):
            weak = graph.node("Mul", [f, scale], f"{block_name}/weak")
            added = graph.node("Add", [weak, around], f"{block_name}/sum")
            x = graph.node("Relu", [added], f"{block_name}.out")
        else:
            clipped = graph.node("Relu", [f], f"{block_name}/clipped")
            weak = graph.node("Mul", [clipped, scale], f"{block_name}/weak")
            one = graph.constant(f"{block_name}/one", 1.0, np.float32)
            rest = graph.node("Sub", [one, scale], f"{block_name}/rest")
            past = graph.node("Mul", [around, rest], f"{block_name}/past")
            x = graph.node("Add", [weak, past], f"{block_name}.out")
    mean = graph.node("GlobalAveragePool", [x], "mean")
    flat = graph.node("Flatten", [mean], "features")
    weight, bias = (graph.weight(f"fc.{p}", v) for p, v in model.fc.named_parameters())
    graph.node("Gemm", [flat, weight, bias], "logits", transB=1)
    graph.outputs = dict.fromkeys([*outputs, "logits"])
    return graph


def write_net(run: Run, folder: Path) -> dict:
    """NAME.onnx and the weights, by iteration if the run kept several.

    Returns what the page has to know of them.
    """
    models = {-1: run.model()}
    if run.snapshots:
        final, kept = run.recipe["iterations"], kept_by(run)
        models = {i: run.model(None if i == final else i) for i in kept}
    files = {}
    for iteration, model in models.items():
        graph = graph_of(model)
        files[iteration] = f"{run.name}{'' if iteration < 0 else f'-{iteration}'}.bin"
        write_packed(folder / files[iteration], graph.file)
    floats = TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("picture", floats, ["N", 3, 32, 32]),
        helper.make_tensor_value_info("scales", floats, [len(block_names(model))]),
    ]
    outputs = [helper.make_tensor_value_info(n, floats, None) for n in graph.outputs]
    proto = helper.make_graph(graph.nodes, run.name, inputs, outputs, graph.weights)
    opset = [helper.make_opsetid("", 17)]
    content = helper.make_model(proto, opset_imports=opset, ir_version=8)
    write_packed(folder / f"{run.name}-graph.bin", content.SerializeToString())
    return {
        "graph": f"{run.name}-graph.bin",
        "weights": files,
        "outputs": list(graph.outputs),
        "places": graph.places,
    }


def write_explorer(
    names: dict[str, str], data: Dataset, folder: Path, file: str
) -> None:
    """One or two networks and the strip of pictures, as the page opens them."""
    runs = {title: load_run(name) for title, name in names.items()}
    first = next(iter(runs.values()))
    train, _ = data.split(first.recipe["validation"])
    norm = Normalisation.of(train.images)
    judged = data.test[:JUDGED]
    with torch.no_grad():
        wrong = confident_mistakes(first.model()(norm(judged.images)), judged.labels)
    strip = pictures_for(data, wrong[:6])
    for place, picture in enumerate(strip):
        picture["place"] = place
    pixels = torch.cat([data.test.images[[p["index"] for p in strip]], judged.images])
    about = {
        "nets": [
            describe_net(title, run.model(), run) | write_net(run, folder)
            for title, run in runs.items()
        ],
        "classes": list(data.classes),
        "pictures": strip,
        "pixels": f"{file}.bin",
        "judged": len(judged),
        "labels": judged.labels.tolist(),
        "mean": norm.mean.flatten().tolist(),
        "std": norm.std.flatten().tolist(),
        "eps": 1e-5,
        "note": f"{data.note} Networks: {', '.join(r.name for r in runs.values())}.",
    }
    (folder / f"{file}.json").write_text(json.dumps(about))
    write_packed(folder / f"{file}.bin", pixels.numpy().tobytes())


def write_packed(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content, mtime=0))


def write_page(folder: Path, data: Dataset | None = None) -> None:
    """Everything that `explorer.html` reads, and the page itself."""
    data = data or load_data()
    folder.mkdir(parents=True, exist_ok=True)
    real = data.name == "cifar10"
    write_explorer(NETS if real else DIGITS, data, folder, "pair")
    if real:  # no run on the digits kept weights along its way
        write_explorer(HISTORY, data, folder, "history")
    library = Path(explorer.__file__).parent
    scripts = [library / "explorer.js", HERE / "page.js", ENGINE / ENGINE_SCRIPT]
    for file in (*scripts, library / "explorer.css"):
        shutil.copy(file, folder)
    write_packed(folder / "engine.bin", (ENGINE / ENGINE_BINARY).read_bytes())
    page = (HERE / "explorer.html").read_text("utf-8")
    if not real:
        page = page.replace('<details id="history">', '<details id="history" hidden>')
    (folder.parent / "explorer.html").write_text(page, "utf-8")


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
