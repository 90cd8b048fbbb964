"""Execute notebooks in place, top to bottom, each in a fresh kernel: `make notebooks`.

On one CPU a second run changes no output but times and rates: what Jupyter and pandas
draw by lot, the names of widgets and of styled tables, is numbered instead; addresses
in memory are left out, and printed lines that came in pieces are joined.
"""

import base64
import hashlib
import io
import json
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

__all__ = ["STATE", "VIEW", "execute", "lost_widgets"]

FOLDER = Path(__file__).parents[1] / "notebooks"
STATE = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"


def numbered(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with every drawn name replaced by one made from its number."""
    text = re.sub(r" at 0x[0-9a-f]{6,}>", ">", nbformat.writes(notebook))
    widgets = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    tables = re.findall(r"\bT_[0-9a-f]{5}(?=[\W_])", text)
    for prefix, names in (("", widgets), ("T_", dict.fromkeys(tables))):
        for number, name in enumerate(list(names)):  # in the order they were made
            digest = hashlib.md5(str(number).encode()).hexdigest()
            text = text.replace(name, prefix + digest[: len(name) - len(prefix)])
    return nbformat.reads(text, as_version=4)


def small(png: str, colours: int | None = None) -> str:
    """The same picture, base64 in and out, in fewer bytes."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    if colours:
        picture = picture.quantize(colours, method=Image.Quantize.FASTOCTREE)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def shrink(notebook: nbformat.NotebookNode) -> None:
    """Draw fast, keep small: outputs as they are, a widget's picture in 256 colours.

    Where a kernel runs the widget draws itself anew.
    """
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = small(output.data["image/png"])
    widgets = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    for widget in widgets.values():
        for buffer in widget.get("buffers", []):
            if buffer["data"].startswith("iVBORw0KGgo"):  # a PNG file
                buffer["data"] = small(buffer["data"], colours=256)
        value = widget["state"].get("value")
        if isinstance(value, str):  # HTML with a picture in it
            here = r'(?<=data:image/png;base64,)[^"]+'
            widget["state"]["value"] = re.sub(
                here, lambda png: small(png[0], colours=256), value
            )


def lost_widgets(notebook: dict) -> list[str]:
    """The widgets that a notebook shows, or that lie in those, and whose state was not
    saved. Where no kernel runs they are blank gaps."""
    saved = notebook["metadata"].get("widgets", {}).get(STATE, {}).get("state", {})
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
    views = [output.get("data", {}).get(VIEW) for output in outputs]
    shown = [view["model_id"] for view in views if view]
    inside = re.findall(r"IPY_MODEL_(\w+)", json.dumps(saved))
    return sorted({name for name in (*shown, *inside) if name not in saved})


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    # Of the last run: its numbers would be given away a second time.
    notebook.metadata.pop("widgets", None)
    options = {"timeout": 3600, "record_timing": False, "coalesce_streams": True}
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, resources=where, **options).execute()
    if lost := lost_widgets(notebook):
        raise RuntimeError(
            f"{path}: the state of {len(lost)} widgets was not saved. Execute it once "
            "more; the file is as it was."
        )
    shrink(notebook)
    nbformat.write(numbered(notebook), path)


def main(paths: list[str]) -> None:
    for path in map(Path, paths) if paths else sorted(FOLDER.rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            print(path, flush=True)
            execute(path)


if __name__ == "__main__":
    main(sys.argv[1:])
