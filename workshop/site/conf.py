"""The web site: README, notebooks as committed, reference from docstrings. `make site`.

Sources are read where they lie, from the project's root. Nothing is executed and
nothing is fetched when a page is opened.
"""

import json
import logging
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "notebooks"))

from workshop.badges import BADGE, Project  # noqa: E402
from workshop.execute import STATE, VIEW, lost_widgets  # noqa: E402
from workshop.site.page import write_page  # noqa: E402

PROJECT = Project.read(ROOT)

# Of Sphinx, which counts its warnings; `make site` makes errors of them.
logger = logging.getLogger("sphinx.notebooks")

project = "Residual learning, from scratch"
author = "the authors of this project"
copyright = "2026, the authors of this project"
version = release = PROJECT.tag

extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "README"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "data/README.md",
    "data/results.md",
    "workshop/handbook.md",
    "workshop/benchmarks/README.md",
    "notebooks/*.ipynb",
    "notebooks/solutions/*.ipynb",
    "workshop/site/reference.md",
]
exclude_patterns = [".*", "**/.ipynb_checkpoints", "runs"]

nb_execution_mode = "off"
nb_ipywidgets_js = {"embed.js": {}}  # the html-manager, served from the site
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
mathjax_path = "tex-svg.js"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
default_role = "code"  # docstrings write `fit`, as Markdown does

html_theme = "sphinx_book_theme"
html_favicon = "favicon.svg"
html_title = project
html_static_path = ["../../.site/static", "style.css", "mathjax.js"]
html_css_files = ["style.css"]
html_js_files = [("mathjax.js", {"defer": "defer", "priority": 100})]  # before MathJax
html_copy_source = False
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_theme_options = {
    "repository_url": PROJECT.url,
    "repository_branch": PROJECT.tag,
    "use_repository_button": True,
    "use_download_button": False,
    "home_page_in_toc": True,
}

CONTENTS = """
```{toctree}
:hidden:
:caption: Notebooks
:glob:

notebooks/*
```

```{toctree}
:hidden:
:caption: Solutions
:glob:

notebooks/solutions/*
```

```{toctree}
:hidden:
:caption: Project

workshop/site/reference
data/README
data/results
workshop/handbook
workshop/benchmarks/README
CONTRIBUTING
CHANGELOG
```
"""


def adapt(app, docname: str, source: list[str]) -> None:
    """Serve the badge from here, and lead to the repository where no page stands."""
    text = source[0].replace(BADGE, "/workshop/site/open-in-colab.svg")
    if docname.startswith("notebooks/"):
        if lost := lost_widgets(json.loads(text)):
            logger.warning(
                f"{docname} keeps no state of {len(lost)} widgets, which would be "
                "blank: run `make notebooks` for it."
            )
        text = with_links(with_explorer(with_alternative_text(text)), docname)
    else:
        text = linked(text, docname)
    if docname == root_doc:  # the front page
        head, picture, rest = text.partition("![The explorer")
        if not picture:
            logger.warning(
                "README shows no picture of the explorer to put its door to."
            )
        text = f"{head}{DOOR.format(up='')}\n\n{picture}{rest}\n{CONTENTS}"
    source[0] = text


# Closed, the page inside is not loaded; open, it brings its engine along.
DOOR = """<details class="explorer-door"><summary>Open the explorer here: it runs in
this page, without a kernel</summary><iframe loading="lazy" title="the explorer"
src="{up}explorer.html"></iframe></details>"""


def with_explorer(notebook: str) -> str:
    """The explorer's saved picture, and a door to its page: no kernel answers here."""
    content = json.loads(notebook)
    state = content["metadata"].get("widgets", {}).get(STATE, {}).get("state", {})
    ours = {key for key, w in state.items() if w.get("model_module") == "anywidget"}
    for key in ours:
        del state[key]
    for cell in content["cells"]:
        for output in list(cell.get("outputs", [])):
            view = output.get("data", {}).get(VIEW, {})
            if view.get("model_id") in ours:
                del output["data"][VIEW]
                door = {"text/html": DOOR.format(up="../"), "text/plain": ""}
                new = {"output_type": "display_data", "data": door, "metadata": {}}
                cell["outputs"].append(new)
    return json.dumps(content)


def with_alternative_text(notebook: str) -> str:
    """What `plots.describe` says of a figure, where MyST-NB looks for it."""
    content = json.loads(notebook)
    for cell in content["cells"]:
        outputs = cell.get("outputs", [])
        said = [o.get("metadata", {}).get("image/png", {}).get("alt") for o in outputs]
        if words := " ".join(alt for alt in said if alt):
            cell["metadata"].setdefault("mystnb", {})["image"] = {"alt": words}
            # The clear pixel for JupyterLab would be read here a second time.
            cell["outputs"] = [o for o in outputs if not is_pixel(o)]
    return json.dumps(content)


def is_pixel(output: dict) -> bool:
    return "data:image/gif;base64" in "".join(
        output.get("data", {}).get("text/html", "")
    )


def linked(text: str, docname: str) -> str:
    here = (ROOT / docname).parent
    return re.sub(r"\]\(([^):#]+)\)", lambda link: address(here, link), text)


def with_links(notebook: str, docname: str) -> str:
    content = json.loads(notebook)
    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = linked("".join(cell["source"]), docname)
    return json.dumps(content)


def address(here: Path, link: re.Match) -> str:
    """A link of a Markdown page: kept for pages and pictures, else into the project."""
    target = (here / link[1]).resolve()
    if target.suffix in (".md", ".ipynb", ".png", ".svg") or not target.exists():
        return link[0]
    kind = "tree" if target.is_dir() else "blob"
    place = target.relative_to(ROOT.resolve()).as_posix()
    return f"]({PROJECT.url}/{kind}/{PROJECT.tag}/{place})"


def name_front_page(app, exception: Exception | None) -> None:
    if exception is None and app.builder.name == "html":
        pages = Path(app.outdir)
        shutil.copy(pages / f"{root_doc}.html", pages / "index.html")
        # The theme's style sheet has the same icons as a font; this is half a megabyte.
        (pages / "_static" / "scripts" / "fontawesome.js").write_text("")
        write_page(pages / "explorer")


def setup(app) -> None:
    app.connect("source-read", adapt)
    app.connect("build-finished", name_front_page)
