"""The ways in: one address, one list of packages, a set-up cell that opens Colab."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.specifiers import SpecifierSet

from resnet_lib import train
from workshop import badges, execute, reproduce

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("**/*_*.ipynb"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
ADDRESS = PYPROJECT["urls"]["Repository"]


# --- the Makefile's paths -------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("/with a space/x", "/with a space/x"),
        ("a/$HOME $(x)", f"{ROOT}/a/$HOME $(x)"),
        ("~/pictures", "~/pictures"),  # the library knows what ~ is
        ("~", "~"),
        ("it's #1", f"{ROOT}/it's #1"),
        ('a"b\\c', f'{ROOT}/a"b\\c'),
    ],
)
def test_a_data_folder_reaches_the_recipes_whole(given, meant):
    show = 'show:; @printf %s "$$RESNET_LIB_DATA"'
    found = subprocess.run(
        ["make", "--silent", "--no-print-directory", "--eval", show, "show"],
        cwd=ROOT,
        env=os.environ | {"RESNET_LIB_DATA": given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == meant


# --- packages -------------------------------------------------------------------------


def test_conda_and_pip_ask_for_the_same_packages():
    lines = (ROOT / "environment.yml").read_text("utf-8").splitlines()
    found = dict(re.findall(r"^  - (\S+) (>?=\S+)", "\n".join(lines), re.M))
    found["torch"] = found.pop("pytorch")  # conda's name
    # One version, not a bound: repo2docker builds from its own default otherwise.
    python = found.pop("python").removeprefix("=")
    assert python in SpecifierSet(PYPROJECT["requires-python"])
    needs = PYPROJECT["dependencies"]
    assert found == dict(re.match(r"([\w-]+)(.+)", x).groups() for x in needs)


IMPORTED_AS = {"pillow": "PIL", "scikit-learn": "sklearn"}
# ipywidgets and JupyterLab bring IPython. Only Jupyter starts JupyterLab and nbval.
BROUGHT = {"IPython"}
STARTED = {"jupyterlab", "nbval"}
OURS = {"resnet_lib", "workshop", "checks"}


def declared(requirements):
    names = [re.match(r"[\w-]+", line)[0] for line in requirements]
    return {IMPORTED_AS.get(name, name) for name in names}


def imported(source):
    """The packages, not of Python itself, that a text of Python imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - OURS


def test_what_is_imported_is_declared():
    """Directly, whatever else might bring it along; and nothing is declared in vain."""
    files = {folder: (ROOT / folder).rglob("*.py") for folder in sorted(OURS)}
    files["checks"] = (ROOT / "notebooks" / "checks").rglob("*.py")
    found = {
        folder: set().union(*(imported(path.read_text("utf-8")) for path in paths))
        for folder, paths in files.items()
    }
    cells = [
        cell.source
        for path in NOTEBOOKS
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code" and not cell.source.startswith("%")
    ]
    for cell in cells:
        found["checks"] |= imported(re.sub(r"(?m)^([ \t]*)[!%].*$", r"\1pass", cell))
    users = found["resnet_lib"] | found["checks"]
    needs = declared(PYPROJECT["dependencies"])
    assert users - BROUGHT == needs - STARTED
    extras = map(declared, PYPROJECT["optional-dependencies"].values())
    assert found["workshop"] <= needs.union(*extras)


def test_every_package_of_the_library_is_installed():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    listed = table["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "resnet_lib").rglob("*.py")}
    names = {".".join(path.relative_to(ROOT).parts) for path in folders}
    assert set(listed) == names


# --- the address ----------------------------------------------------------------------


def copied(names, folder):
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def test_one_command_moves_every_address(tmp_path):
    names = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True)
    copied([n for n in names.splitlines() if n[-3:] not in (".pt", "png")], tmp_path)
    pyproject = tmp_path / "pyproject.toml"
    text = pyproject.read_text("utf-8").replace(ADDRESS, "https://github.com/me/mine")
    version = f'version = "{PYPROJECT["version"]}"'
    pyproject.write_text(text.replace(version, 'version = "7.8.9"'), "utf-8")
    badges.main(tmp_path)
    slug = badges.Project.read(ROOT).slug
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        text = path.read_text("utf-8")
        assert slug not in text, path
        if path.suffix == ".ipynb":
            assert "/github/me/mine/blob/v7.8.9/notebooks/" in text, path.name
            assert "--branch v7.8.9" in text, path.name


def test_badges_and_set_up_cells_are_written(tmp_path):
    names = ["README.md", "CITATION.cff", "workshop/handbook.md", "pyproject.toml"]
    names += [str(path.relative_to(ROOT)) for path in NOTEBOOKS]
    copied(names, tmp_path)
    badges.main(tmp_path)
    for name in names:
        written = (tmp_path / name).read_text("utf-8")
        assert written == (ROOT / name).read_text("utf-8"), f"run `make badges`: {name}"


# --- the set-up cell ------------------------------------------------------------------

SETUP = badges.SETUP.format(
    first_line=badges.FIRST_LINE, url=ADDRESS, tag=f"v{PYPROJECT['version']}"
)


def run_setup(folder, source=None, code=SETUP, colab=True):
    """Run the set-up lines in a folder; `source` stands in for the public address."""
    environment = dict(os.environ, GIT_CONFIG_COUNT="1", GIT_TERMINAL_PROMPT="0")
    environment["GIT_CONFIG_KEY_0"] = f"url.{source}.insteadOf"
    environment["GIT_CONFIG_VALUE_0"] = ADDRESS
    environment.pop("COLAB_RELEASE_TAG", None)
    if colab:
        environment["COLAB_RELEASE_TAG"] = "release-colab"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_outside_colab_nothing_happens(tmp_path):
    done = run_setup(tmp_path, "file:///nowhere", colab=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_failed_fetch_says_the_remedy(tmp_path):
    done = run_setup(tmp_path, f"file://{tmp_path}/nowhere")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("OSError: ") and ADDRESS in last and "run this again" in last
    assert not list(tmp_path.iterdir()), "half a project would be in the way"


def test_colab_gets_the_project_once(tmp_path):
    origin = tmp_path / "origin"
    library = origin / "resnet_lib"
    library.mkdir(parents=True)
    (library / "__init__.py").touch()
    # The real one imports torch; that it works there, `make colab` shows.
    (library / "colab.py").write_text("def set_up():\n    print('set up')\n")
    git = ["git", "-C", origin, "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    subprocess.run([*git, "tag", f"v{PYPROJECT['version']}"], check=True)
    colab = tmp_path / "content"
    colab.mkdir()
    # Twice in one kernel, then in a new one that finds the project there.
    for code in (SETUP + SETUP, SETUP):
        where = "import resnet_lib; print(resnet_lib.__file__)"
        done = run_setup(colab, origin.as_uri(), code + where)
        assert done.stderr == "" and done.returncode == 0
        fetched = colab / "project" / "resnet_lib" / "__init__.py"
        assert done.stdout.splitlines() == ["set up", str(fetched)]
    assert [path.name for path in colab.iterdir()] == ["project"]


# --- executing in place ---------------------------------------------------------------


def drawn(widget, table):
    """A notebook with a widget and a styled table, under the names given."""
    html = f'<style>#{table}_row0 {{}}</style><table id="{table}"></table>'
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": html}),
        nbformat.v4.new_output(
            "display_data",
            {"application/vnd.jupyter.widget-view+json": {"model_id": widget}},
        ),
    ]
    cell = nbformat.v4.new_code_cell("draw()", outputs=outputs, id="draw")
    state = {widget: {"state": {"children": [f"IPY_MODEL_{widget}"]}}}
    widgets = {execute.STATE: {"state": state}}
    return nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": widgets})


def test_drawn_names_are_the_same_in_every_run():
    runs = (drawn("0" * 31 + "a", "T_1a2b3"), drawn("f" * 32, "T_fffff"))
    first, second = (nbformat.writes(execute.numbered(run)) for run in runs)
    assert first == second
    assert "f" * 32 not in second and "T_fffff" not in second
    content = json.loads(first)
    (name,) = content["metadata"]["widgets"][execute.STATE]["state"]
    view = content["cells"][0]["outputs"][1]["data"]
    assert view["application/vnd.jupyter.widget-view+json"]["model_id"] == name


# --- Ctrl-C ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["resnet_lib.train", "resnet_lib.cifar10", "workshop.reproduce"]
)
def test_ctrl_c_while_a_command_starts_is_one_line(tmp_path, command):
    interrupt = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "torch.py").write_text(f"{interrupt}; time.sleep(60)")
    done = subprocess.run(
        [sys.executable, "-m", command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    expected = (130, "", "Stopped.\n")
    assert (done.returncode, done.stdout, done.stderr) == expected


@pytest.mark.parametrize("module", [train, reproduce])
def test_ctrl_c_before_a_training_is_one_line(monkeypatch, capsys, tmp_path, module):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "load", interrupted)
    monkeypatch.setattr(reproduce, "load", interrupted)
    monkeypatch.chdir(tmp_path)
    given = {train: ["--data", "digits"], reproduce: ["--records", str(tmp_path)]}
    assert module.main(given[module]) == 130
    assert capsys.readouterr().err == "Stopped.\n"
    assert not list(tmp_path.iterdir())
