"""Write the repository's address into every place where a reader meets it.

The address and the version stand in pyproject.toml alone. `make badges` carries them to
the Colab badge and the set-up cell of every notebook, and to the links of README.md and
CITATION.cff. A second call changes nothing.
"""

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BADGE", "Project"]

BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
FIRST_LINE = "# In Colab these lines fetch the project. Elsewhere they do nothing."
SETUP = """\
{first_line}
import os
import sys

if "COLAB_RELEASE_TAG" in os.environ and "resnet_lib" not in sys.modules:
    home = "{url}"
    clone = "git -c advice.detachedHead=false clone -q --depth 1 --branch {tag}"
    if not os.path.exists("project") and os.system(f"{{clone}} {{home}} project"):
        raise OSError(f"{{home}} could not be read. Wait a minute and run this again.")
    sys.path.insert(0, os.path.abspath("project"))
    from resnet_lib.colab import set_up

    set_up()

"""
# From the first line to the last indented one, with the blank lines after it.
SETUP_PATTERN = re.compile(
    re.escape(FIRST_LINE) + r"\n(?:import .*\n)+\nif .*\n(?:(?: {4}.*)?\n)*"
)


@dataclass(frozen=True)
class Project:
    url: str  # https://github.com/OWNER/NAME
    tag: str

    @classmethod
    def read(cls, root: Path) -> "Project":
        project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
        return cls(project["urls"]["Repository"], f"v{project['version']}")

    @property
    def slug(self) -> str:
        return self.url.removeprefix("https://github.com/")

    def badge(self, notebook: str) -> str:
        """A Colab badge in Markdown; `notebook` is a path from the project's root."""
        colab = "https://colab.research.google.com/github"
        return (
            f"[![Open in Colab]({BADGE})]"
            f"({colab}/{self.slug}/blob/{self.tag}/{notebook})"
        )

    def with_badge(self, opening: str, notebook: str) -> str:
        """A notebook's first cell with its badge below title and navigation."""
        blocks = opening.split("\n\n")
        blocks = [
            block for block in blocks if not block.startswith("[![Open in Colab]")
        ]
        blocks.insert(2, self.badge(notebook))
        return "\n\n".join(blocks)

    def with_setup(self, source: str) -> str:
        """A notebook's first code cell with the lines for Colab on top."""
        setup = SETUP.format(first_line=FIRST_LINE, url=self.url, tag=self.tag)
        return setup + SETUP_PATTERN.sub("", source)

    def with_links(self, text: str) -> str:
        """README.md or CITATION.cff with every address of the project written anew."""
        here = (
            (r"(colab\.research\.google\.com/github/)[^/]+/[^/]+/blob/[^/]+", "blob/"),
            (r"(mybinder\.org/v2/gh/)[^/]+/[^/]+/[^?)]+", ""),
        )
        for pattern, between in here:
            text = re.sub(pattern, rf"\g<1>{self.slug}/{between}{self.tag}", text)
        github = r"https://github\.com/[^/]+/[^/\s.]+(?=\.git$|/actions/)"
        text = re.sub(github, self.url, text, flags=re.M)
        folder = self.slug.rpartition("/")[2]
        text = re.sub(r"(?m)^cd \S+ && make lab$", f"cd {folder} && make lab", text)
        text = re.sub(r"(?m)^(repository-code: ).*$", rf"\g<1>{self.url}", text)
        return re.sub(r"(?m)^(version: ).*$", rf"\g<1>{self.tag[1:]}", text)


def _lines(source: str) -> list[str]:
    return source.splitlines(keepends=True)


def write_notebook(path: Path, project: Project, root: Path) -> None:
    notebook = json.loads(path.read_text("utf-8"))
    opening = notebook["cells"][0]
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    place = path.relative_to(root).as_posix()
    opening["source"] = _lines(project.with_badge("".join(opening["source"]), place))
    code["source"] = _lines(project.with_setup("".join(code["source"])))
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main(root: Path = Path(__file__).parents[1]) -> None:
    project = Project.read(root)
    for path in sorted(root.glob("notebooks/**/*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            write_notebook(path, project, root)
    for name in ("README.md", "CITATION.cff", "workshop/handbook.md"):
        path = root / name
        path.write_text(project.with_links(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
