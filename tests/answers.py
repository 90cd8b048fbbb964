"""What the answers to all exercises share: the solutions, and ways to spoil them."""

import ast
import json
import pathlib
from types import SimpleNamespace
from unittest import mock

import checks

SOLUTIONS = pathlib.Path(checks.__file__).parents[1] / "solutions"
DEFINITIONS = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef


def solutions(notebook: str) -> SimpleNamespace:
    """What the solutions to a notebook import and define; nothing else of it is run."""
    cells = json.loads((SOLUTIONS / f"{notebook}_solutions.ipynb").read_text("utf-8"))
    sources = ["".join(c["source"]) for c in cells["cells"] if c["cell_type"] == "code"]
    body = [s for s in ast.parse("\n".join(sources)).body if isinstance(s, DEFINITIONS)]
    found = {"__name__": f"solutions_{notebook}"}
    exec(compile(ast.Module(body, []), found["__name__"], "exec"), found)
    return SimpleNamespace(**found)


def always(answer):
    return lambda *_: answer


def but(answer, change):
    """The answer, which then changes what it was given first."""

    def run(given, *more):
        found = answer(given, *more)
        change(given)
        return found

    return run


def patched(answer, name, other):
    """The answer with something else under a name that it uses."""

    def run(*given):
        with mock.patch(name, other):
            return answer(*given)

    return run
