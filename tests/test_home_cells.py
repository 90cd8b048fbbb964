"""Built in the notebook, kept in the library, never drifting.

A cell tagged `home:NAME` holds the library's definition of NAME, and nothing else does.
Compared are the syntax trees without docstrings: layout, comments and docstrings are
free.
"""

import ast
import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The vocabulary of the notebooks; `train` is a command, never imported.
MODULES = sorted((ROOT / "resnet_lib").glob("*.py"))
MODULES += sorted((ROOT / "resnet_lib").glob("*/__init__.py"))
MODULES = [path for path in MODULES if path.stem != "train"]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
NOTEBOOKS = [path for path in NOTEBOOKS if ".ipynb_checkpoints" not in path.parts]

HOMES = {
    "02_basic_block": {"PaddedIdentity", "make_shortcut", "BasicBlock", "PlainBlock"},
    "03_resnet18": {"ResNet"},
    "04_training_on_cifar10": {"learning_rate_at", "train_step"},
}

Definition = ast.ClassDef | ast.FunctionDef


# --- the comparison -------------------------------------------------------------------


def tree(definition: Definition) -> str:
    """The syntax tree as text, without docstrings and positions."""
    definition = copy.deepcopy(definition)
    for node in ast.walk(definition):
        if isinstance(node, Definition) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(definition, indent=1)


def public_names(modules: list[Path]) -> dict[str, Definition | None]:
    """Every name in an `__all__`, with its class or function if it is one."""
    names, definitions = set(), {}
    for path in modules:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
            if "__all__" in {getattr(target, "id", None) for target in targets}:
                names |= set(ast.literal_eval(node.value))
            if isinstance(node, Definition):
                definitions[node.name] = node
    return {name: definitions.get(name) for name in names}


def bound_names(body: list[ast.stmt]) -> Iterator[str]:
    """The names that a cell binds, leaving out those local to a function or a class."""
    for node in body:
        if isinstance(node, Definition):
            yield node.name
        elif isinstance(node, ast.Lambda | ast.comprehension):
            continue
        elif isinstance(node, ast.Import | ast.ImportFrom):
            ours = (getattr(node, "module", None) or "").startswith("resnet_lib")
            for alias in node.names:
                if not (ours and alias.asname in (None, alias.name)):
                    yield alias.asname or alias.name
        else:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            yield from bound_names(list(ast.iter_child_nodes(node)))


def cells(notebook: Path) -> list[tuple[str, list[str]]]:
    """The source and the home names of every code cell."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [
        ("".join(cell["source"]), [tag[5:] for tag in tags if tag.startswith("home:")])
        for cell in content["cells"]
        if cell["cell_type"] == "code"
        for tags in [cell["metadata"].get("tags", [])]
    ]


def problems(source: str, homes: list[str], library: dict) -> list[str]:
    """What is wrong with one cell, in words; empty if nothing is."""
    lines = source.splitlines()  # IPython's own commands are no Python
    source = "\n".join(
        line for line in lines if not line.lstrip().startswith(("%", "!"))
    )
    body = ast.parse(source).body
    found = [
        f"{name} is redefined outside its home cell"
        for name in bound_names(body)
        if name in library and name not in homes
    ]
    if homes and not all(isinstance(node, Definition) for node in body):
        found.append("a home cell holds more than definitions")
    if homes and len(body) != len(homes):
        found.append(f"{len(body)} statements for the homes {homes}")
    here = {node.name: node for node in body if isinstance(node, Definition)}
    for name in homes:
        if library.get(name) is None:
            found.append(f"{name} is no public class or function of resnet_lib")
        elif name not in here:
            found.append(f"the home of {name} does not define it")
        elif tree(here[name]) != tree(library[name]):
            found.append(f"{name} differs from resnet_lib's")
    return found


# --- the notebooks --------------------------------------------------------------------

LIBRARY = public_names(MODULES)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_and_library_agree(notebook):
    found = {
        number: complaints
        for number, (source, homes) in enumerate(cells(notebook), start=1)
        if (complaints := problems(source, homes, LIBRARY))
    }
    assert not found, f"code cells of {notebook.name}: {found}"


def test_every_idea_has_one_home():
    homes = {
        path.stem: [name for _, names in cells(path) for name in names]
        for path in NOTEBOOKS
    }
    everything = [name for names in homes.values() for name in names]
    assert len(everything) == len(set(everything))
    for stem, names in HOMES.items():
        assert names <= set(homes.get(stem, [])), f"{stem} misses a home cell"


# --- planted differences --------------------------------------------------------------

SOURCE = (ROOT / "resnet_lib" / "basic_block.py").read_text(encoding="utf-8")
BLOCK = ast.get_source_segment(SOURCE, LIBRARY["BasicBlock"])
SHORTCUT = ast.get_source_segment(SOURCE, LIBRARY["make_shortcut"])

CHANGES = {
    "operator": ("self.residual(x) + self", "self.residual(x) - self"),
    "dropped inner ReLU": (
        "F.relu(self.bn1(self.conv1(x)))",
        "self.bn1(self.conv1(x))",
    ),
    "dropped last ReLU": (
        "return F.relu(self.residual(x) + self.shortcut(x))",
        "return self.residual(x) + self.shortcut(x)",
    ),
    "moved ReLU": (
        "F.relu(self.residual(x) + self.shortcut(x))",
        "F.relu(self.residual(x)) + self.shortcut(x)",
    ),
    "default of shortcut": ('shortcut: str = "B"', 'shortcut: str = "A"'),
    "default of stride": ("stride: int = 1", "stride: int = 2"),
    "moved stride": (
        "self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1",
        "self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, padding=1",
    ),
    "padding": ("3, stride, padding=1", "3, stride, padding=0"),
    "renamed attribute": ("self.bn2", "self.norm2"),
    "renamed argument": ("out_channels", "planes"),
    "annotation": ("x: Tensor", "x: nn.Module"),
    "base class": ("BasicBlock(nn.Module)", "BasicBlock(nn.Sequential)"),
    "order of layers": (
        "return self.bn2(self.conv2(out))",
        "return self.conv2(self.bn2(out))",
    ),
    "extra statement": ("super().__init__()", "super().__init__()\n        self.n = 0"),
    "missing statement": ("        super().__init__()\n", ""),
    "decorator": ("class BasicBlock", "@staticmethod\nclass BasicBlock"),
}

SAME = {
    "nothing": ("", ""),
    "docstring": ('"""relu(F(x)', '"""In my own words: relu(F(x)'),
    "docstring of a method": ('"""F(x): what', '"""The residual: what'),
    "comment": ("# No bias:", "# There is no bias:"),
    "comment dropped": ("# (N, C_out, H/stride, W/stride)", ""),
    "line break": (
        "return F.relu(self.residual(x) + self.shortcut(x))",
        "return F.relu(\n            self.residual(x) + self.shortcut(x)\n        )",
    ),
    "blank lines": ("    def forward", "\n\n    def forward"),
    "quotes": ('"B"', "'B'"),
    "parentheses": (
        "return self.bn2(self.conv2(out))",
        "return (self.bn2(self.conv2(out)))",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_planted_differences_are_seen(change):
    before, after = CHANGES[change]
    assert before in BLOCK
    cell = BLOCK.replace(before, after)
    assert problems(cell, ["BasicBlock"], LIBRARY) == [
        "BasicBlock differs from resnet_lib's"
    ]


@pytest.mark.parametrize("change", SAME)
def test_layout_comments_and_docstrings_are_free(change):
    before, after = SAME[change]
    assert before in BLOCK
    assert problems(BLOCK.replace(before, after), ["BasicBlock"], LIBRARY) == []


def test_functions_are_compared_like_classes():
    assert problems(SHORTCUT, ["make_shortcut"], LIBRARY) == []
    for before, after in (
        ('!= "C"', '!= "B"'),
        ("raise ValueError", "raise TypeError"),
    ):
        cell = SHORTCUT.replace(before, after)
        assert cell != SHORTCUT and problems(cell, ["make_shortcut"], LIBRARY)


@pytest.mark.parametrize(
    ("cell", "homes", "words"),
    [
        (BLOCK.replace("BasicBlock", "Blok"), ["Blok"], "no public class"),
        (BLOCK, ["_branch"], "no public class"),
        ("plain9 = 1", ["plain9"], "no public class"),
        (BLOCK.replace("BasicBlock", "Other"), ["BasicBlock"], "does not define"),
        (
            BLOCK + "\n\nBasicBlock.expansion = 1",
            ["BasicBlock"],
            "more than definitions",
        ),
        (BLOCK + "\n\n" + SHORTCUT, ["BasicBlock"], "make_shortcut is redefined"),
        (BLOCK, [], "BasicBlock is redefined"),
        ("class BasicBlock:\n    pass", [], "BasicBlock is redefined"),
        ("def make_shortcut():\n    pass", [], "make_shortcut is redefined"),
        ("BasicBlock = None", [], "BasicBlock is redefined"),
        ("a, (b, BasicBlock) = 1, (2, 3)", [], "BasicBlock is redefined"),
        ("BasicBlock: type = int", [], "BasicBlock is redefined"),
        (
            "if True:\n    class BasicBlock:\n        pass",
            [],
            "BasicBlock is redefined",
        ),
        ("for ResNet in range(3):\n    pass", [], "ResNet is redefined"),
        ("with open('x') as fit:\n    pass", [], "fit is redefined"),
        ("print(fit := 3)", [], "fit is redefined"),
        ("get_model = 1", [], "get_model is redefined"),
        ("from timm.models.resnet import BasicBlock", [], "BasicBlock is redefined"),
        ("from resnet_lib import PlainBlock as BasicBlock", [], "BasicBlock is"),
        ("import torch as fit", [], "fit is redefined"),
    ],
)
def test_other_drifts_are_seen(cell, homes, words):
    assert any(words in complaint for complaint in problems(cell, homes, LIBRARY))


@pytest.mark.parametrize(
    "cell",
    [
        "from resnet_lib import BasicBlock, fit",
        "from resnet_lib.basic_block import BasicBlock as BasicBlock",
        "from torchvision.models.resnet import BasicBlock as TorchvisionBlock",
        "import resnet_lib.basic_block as library",
        "class FirstAttempt:\n    BasicBlock = None",
        "def f(fit):\n    BasicBlock = fit\n    return BasicBlock",
        "[fit for fit in range(3)]",
        "use = lambda fit: fit",
        "model.fit = 3\nmodels['fit'] = BasicBlock(fit=2)",
        "%matplotlib inline\n!pip list\nfit(1)",
    ],
)
def test_use_is_not_redefinition(cell):
    assert problems(cell, [], LIBRARY) == []


def test_a_notebook_on_disk_is_read_with_its_tags(tmp_path):
    path = tmp_path / "x.ipynb"
    block = BLOCK.replace("+ self.shortcut", "- self.shortcut").splitlines(
        keepends=True
    )
    content = [
        {"cell_type": "markdown", "metadata": {}, "source": ["BasicBlock = 1"]},
        {
            "cell_type": "code",
            "metadata": {"tags": ["home:BasicBlock"]},
            "source": block,
        },
        {"cell_type": "code", "metadata": {}, "source": "x = 1"},
    ]
    path.write_text(json.dumps({"cells": content}), encoding="utf-8")
    (source, homes), plain = cells(path)
    assert plain == ("x = 1", []) and homes == ["BasicBlock"]
    assert problems(source, homes, LIBRARY)
