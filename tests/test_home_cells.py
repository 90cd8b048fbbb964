"""Built in the notebook, kept in the library, never drifting.

A cell tagged `home:NAME` holds the library's definition of NAME, and nothing else does.
Compared are the syntax trees without docstrings: layout, comments and docstrings are
free.
"""

import ast
import copy
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
# The vocabulary of the notebooks; `train` is a command, never imported.
MODULES = [*ROOT.glob("resnet_lib/*.py"), *ROOT.glob("resnet_lib/*/__init__.py")]
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
    return ast.dump(definition)


def public_names(modules: list[Path]) -> dict[str, Definition | None]:
    """Every name in an `__all__`, with its class or function if it is one."""
    names, definitions = set(), {}
    for path in modules:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, Definition):
                definitions[node.name] = node
            elif ast.unparse(node).startswith("__all__"):
                names |= set(ast.literal_eval(node.value))
    return {name: definitions.get(name) for name in names}


LIBRARY = public_names(MODULES)


def bound_names(body: list[ast.AST]) -> Iterator[str]:
    """The names that a cell binds, leaving out those local to a function or a class."""
    for node in body:
        if isinstance(node, Definition):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            ours = (getattr(node, "module", None) or "").startswith("resnet_lib")
            for alias in node.names:
                if not (ours and alias.asname in (None, alias.name)):
                    yield alias.asname or alias.name
        elif not isinstance(node, ast.Lambda | ast.comprehension):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            yield from bound_names(list(ast.iter_child_nodes(node)))


def cells(notebook: Path) -> list[tuple[str, list[str]]]:
    """The source and the home names of every code cell."""
    return [
        (
            cell.source,
            re.findall(r"home:(\w+)", " ".join(cell.metadata.get("tags", []))),
        )
        for cell in nbformat.read(notebook, as_version=4).cells
        if cell.cell_type == "code"
    ]


def problems(source: str, homes: list[str]) -> list[str]:
    """What is wrong with one cell, in words; empty if nothing is."""
    # IPython's own commands are no Python.
    body = ast.parse(re.sub(r"(?m)^[ \t]*[%!].*$", "", source)).body
    found = [
        f"{name} is redefined outside its home cell"
        for name in bound_names(body)
        if name in LIBRARY and name not in homes
    ]
    here = {node.name: node for node in body if isinstance(node, Definition)}
    if homes and not len(here) == len(body) == len(homes):
        found.append(f"a home cell holds more than the definitions of {homes}")
    for name in homes:
        if LIBRARY.get(name) is None:
            found.append(f"{name} is no public class or function of resnet_lib")
        elif name not in here:
            found.append(f"the home of {name} does not define it")
        elif tree(here[name]) != tree(LIBRARY[name]):
            found.append(f"{name} differs from resnet_lib's")
    return found


# --- the notebooks --------------------------------------------------------------------


def test_notebooks_and_library_agree_and_every_idea_has_one_home():
    homes, everything = {}, []
    for notebook in NOTEBOOKS:
        for number, (source, names) in enumerate(cells(notebook), start=1):
            assert not problems(source, names), f"{notebook.name}, code cell {number}"
            everything += names
            homes.setdefault(notebook.stem, set()).update(names)
    assert len(everything) == len(set(everything))
    for stem, names in HOMES.items():
        assert names <= homes[stem], f"{stem} misses a home cell"


# --- planted differences --------------------------------------------------------------

SOURCE = (ROOT / "resnet_lib" / "basic_block.py").read_text(encoding="utf-8")
BLOCK = ast.get_source_segment(SOURCE, LIBRARY["BasicBlock"])
SHORTCUT = ast.get_source_segment(SOURCE, LIBRARY["make_shortcut"])

LAST = "return F.relu(self.residual(x) + self.shortcut(x))"
DIFFERENT = [
    ("self.residual(x) + self", "self.residual(x) - self"),
    (LAST, "return F.relu(self.residual(x)) + self.shortcut(x)"),
    ("stride: int = 1", "stride: int = 2"),
    ("out_channels", "planes"),
    ("x: Tensor", "x: nn.Module"),
    ("        super().__init__()\n", ""),
    ("class BasicBlock", "@staticmethod\nclass BasicBlock"),
]
SAME = [
    ('"""relu(F(x)', '"""In my own words: relu(F(x)'),
    ('"""F(x): what', '"""The residual: what'),
    ("# No bias:", "# There is no bias:"),
    (LAST, LAST.replace("F.relu(", "F.relu(\n            ")),
    ('"B"', "'B'"),
    (LAST, f"return ({LAST[7:]})"),
]


@pytest.mark.parametrize(("before", "after"), [*DIFFERENT, *SAME])
def test_planted_differences_are_seen_and_layout_is_free(before, after):
    assert before in BLOCK
    told = ["BasicBlock differs from resnet_lib's"]
    found = problems(BLOCK.replace(before, after), ["BasicBlock"])
    assert found == (told if (before, after) in DIFFERENT else [])


HOME, MORE = ["BasicBlock"], "holds more than the definitions"
DRIFTS = [  # a cell, its homes, and words of the complaint
    (BLOCK.replace("BasicBlock", "Blok"), ["Blok"], "no public class"),
    ("plain9 = 1", ["plain9"], "no public class"),
    (BLOCK.replace("BasicBlock", "Other"), HOME, "does not define"),
    (BLOCK + "\n\nBasicBlock.expansion = 1", HOME, MORE),
    (BLOCK + "\n\ndef helper():\n    pass", HOME, MORE),
    (BLOCK + "\n\n" + SHORTCUT, HOME, "make_shortcut is redefined"),
    (SHORTCUT.replace('!= "C"', '!= "B"'), ["make_shortcut"], "make_shortcut differs"),
    (BLOCK, [], "BasicBlock is redefined"),
    ("def make_shortcut():\n    pass", [], "make_shortcut is redefined"),
    ("a, (b, BasicBlock) = 1, (2, 3)", [], "BasicBlock is redefined"),
    ("if True:\n    class BasicBlock:\n        pass", [], "BasicBlock is redefined"),
    ("print(fit := 3)", [], "fit is redefined"),
    ("from timm.models.resnet import BasicBlock", [], "BasicBlock is redefined"),
    ("from resnet_lib import PlainBlock as BasicBlock", [], "BasicBlock is redefined"),
    ("import torch as fit", [], "fit is redefined"),
]
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


def test_other_drifts_are_seen_and_use_is_free():
    for cell, homes, words in DRIFTS:
        assert any(words in complaint for complaint in problems(cell, homes)), cell
    for cell in USES:
        assert problems(cell, []) == [], cell
    assert problems(SHORTCUT, ["make_shortcut"]) == problems(BLOCK, HOME) == []


def test_a_notebook_on_disk_is_read_with_its_tags(tmp_path):
    new, tags = nbformat.v4, {"tags": ["hide", "home:BasicBlock"]}
    block = new.new_code_cell("BasicBlock = 1\nx = 2", metadata=tags)
    content = [new.new_markdown_cell("x = 1"), block, new.new_code_cell("x = 1")]
    path = tmp_path / "x.ipynb"
    nbformat.write(new.new_notebook(cells=content), path)
    assert cells(path) == [("BasicBlock = 1\nx = 2", ["BasicBlock"]), ("x = 1", [])]
