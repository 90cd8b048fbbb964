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

LAST = "return F.relu(self.residual(x) + self.shortcut(x))"
CHANGES = {
    "operator": ("self.residual(x) + self", "self.residual(x) - self"),
    "dropped ReLU": ("F.relu(self.bn1(self.conv1(x)))", "self.bn1(self.conv1(x))"),
    "moved ReLU": (LAST, "return F.relu(self.residual(x)) + self.shortcut(x)"),
    "default": ("stride: int = 1", "stride: int = 2"),
    "number": ("3, stride, padding=1", "3, stride, padding=0"),
    "renamed attribute": ("self.bn2", "self.norm2"),
    "renamed argument": ("out_channels", "planes"),
    "annotation": ("x: Tensor", "x: nn.Module"),
    "base class": ("BasicBlock(nn.Module)", "BasicBlock(nn.Sequential)"),
    "extra statement": ("super().__init__()", "super().__init__(); self.n = 0"),
    "missing statement": ("        super().__init__()\n", ""),
    "decorator": ("class BasicBlock", "@staticmethod\nclass BasicBlock"),
}
SAME = {
    "nothing": ("", ""),
    "docstring": ('"""relu(F(x)', '"""In my own words: relu(F(x)'),
    "docstring of a method": ('"""F(x): what', '"""The residual: what'),
    "comment": ("# No bias:", "# There is no bias:"),
    "line break": (LAST, LAST.replace("F.relu(", "F.relu(\n            ")),
    "blank lines": ("    def forward", "\n\n    def forward"),
    "quotes": ('"B"', "'B'"),
    "parentheses": (LAST, f"return ({LAST[7:]})"),
}


@pytest.mark.parametrize("change", [*CHANGES, *SAME])
def test_planted_differences_are_seen_and_layout_is_free(change):
    before, after = (CHANGES | SAME)[change]
    assert before in BLOCK
    found = problems(BLOCK.replace(before, after), ["BasicBlock"], LIBRARY)
    told = "BasicBlock differs from resnet_lib's"
    assert found == ([told] if change in CHANGES else [])


HOME = ["BasicBlock"]
DRIFTS = [
    (BLOCK.replace("BasicBlock", "Blok"), ["Blok"], "no public class"),
    ("plain9 = 1", ["plain9"], "no public class"),
    (BLOCK.replace("BasicBlock", "Other"), HOME, "does not define"),
    (BLOCK + "\n\nBasicBlock.expansion = 1", HOME, "more than definitions"),
    (BLOCK + "\n\n" + SHORTCUT, HOME, "make_shortcut is redefined"),
]
DRIFTS += [  # functions are compared like classes
    (SHORTCUT.replace(*change), ["make_shortcut"], "make_shortcut differs")
    for change in (('!= "C"', '!= "B"'), ("raise ValueError", "raise TypeError"))
]
DRIFTS += [
    (cell, [], f"{name} is redefined")
    for name, cell in [
        ("BasicBlock", BLOCK),
        ("make_shortcut", "def make_shortcut():\n    pass"),
        ("BasicBlock", "a, (b, BasicBlock) = 1, (2, 3)"),
        ("BasicBlock", "BasicBlock: type = int"),
        ("BasicBlock", "if True:\n    class BasicBlock:\n        pass"),
        ("ResNet", "for ResNet in range(3):\n    pass"),
        ("fit", "with open('x') as fit:\n    pass"),
        ("fit", "print(fit := 3)"),
        ("BasicBlock", "from timm.models.resnet import BasicBlock"),
        ("BasicBlock", "from resnet_lib import PlainBlock as BasicBlock"),
        ("fit", "import torch as fit"),
    ]
]


@pytest.mark.parametrize(("cell", "homes", "words"), DRIFTS)
def test_other_drifts_are_seen(cell, homes, words):
    assert any(words in complaint for complaint in problems(cell, homes, LIBRARY))


USES = [  # which are no redefinition
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
]


def test_use_is_not_redefinition():
    assert problems(SHORTCUT, ["make_shortcut"], LIBRARY) == []
    for cell in USES:
        assert problems(cell, [], LIBRARY) == [], cell


def test_a_notebook_on_disk_is_read_with_its_tags(tmp_path):
    def cell(source, kind="code", *tags):
        return {"cell_type": kind, "metadata": {"tags": tags}, "source": source}

    block = BLOCK.replace("+ self.shortcut", "- self.shortcut").splitlines(True)
    content = [cell(["BasicBlock = 1"], "markdown"), cell("x = 1")]
    content.insert(1, cell(block, "code", "home:BasicBlock"))
    path = tmp_path / "x.ipynb"
    path.write_text(json.dumps({"cells": content}), encoding="utf-8")
    (source, homes), plain = cells(path)
    assert plain == ("x = 1", []) and homes == ["BasicBlock"]
    assert problems(source, homes, LIBRARY)
