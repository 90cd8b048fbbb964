"""The ways in: one address, one list of packages, a set-up cell that opens Colab."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest.mock import Mock

import nbformat
import pytest
from packaging.specifiers import SpecifierSet

from resnet_lib import train
from workshop import badges, reproduce

ROOT = Path(__file__).parent.parent
TABLE = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PYPROJECT = TABLE["project"]
ADDRESS, TAG = PYPROJECT["urls"]["Repository"], f"v{PYPROJECT['version']}"


def python_files(folder):
    return list((ROOT / folder).rglob("*.py"))


# --- the Makefile's paths -------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_a_data_folder_reaches_the_recipes_whole(tmp_path):
    show = tmp_path / "show.mk"  # macOS's make has no --eval
    show.write_text('show:; @printf %s "$$RESNET_LIB_DATA"')
    command = ["make", "-s", "--no-print-directory", "-f", "Makefile", "-f", show]
    command.append("show")
    relative = ("a/$HOME $(x)", "it's #1", 'a"b\\c')
    absolute = ("/with a space/x", "~/pictures", "~")  # the library knows what ~ is
    for given in relative + absolute:
        # What an outer make was told would come first.
        environment = os.environ | {"RESNET_LIB_DATA": given, "MAKEFLAGS": ""}
        found = subprocess.check_output(command, cwd=ROOT, env=environment, text=True)
        assert found == (given if given in absolute else f"{ROOT}/{given}")


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_a_python_that_is_too_old_is_refused_before_it_leaves_anything(tmp_path):
    """A virtual environment keeps its Python, whatever the next call names."""
    bound = PYPROJECT["requires-python"].removeprefix(">=")
    major, minor = map(int, bound.split("."))
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    older = f"import sys; sys.version_info = ({major}, {minor - 1}); exec(sys.argv[2])"
    script = f"#!/bin/sh\nexec '{sys.executable}' -c '{older}' \"$@\"\n"
    (tmp_path / "old").write_text(script)
    (tmp_path / "old").chmod(0o755)
    command = ["make", "-C", tmp_path, ".venv/ready", "PYTHON=./old"]
    alone = os.environ | {"MAKEFLAGS": ""}
    told = subprocess.run(command, env=alone, capture_output=True, text=True)
    assert told.returncode and f"needs Python {bound} or later" in told.stderr
    assert "PYTHON=" in told.stderr and not (tmp_path / ".venv").exists()


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


# ipywidgets and JupyterLab bring IPython. Only Jupyter starts JupyterLab and nbval.
BROUGHT, STARTED = {"IPython"}, {"jupyterlab", "nbval"}
OURS = {"resnet_lib", "workshop", "checks", "drawings"}
NOT_PACKAGES = OURS | set(sys.stdlib_module_names)


def declared(requirements):
    names = {re.match(r"[\w-]+", line)[0] for line in requirements}
    imported_as = {"pillow": "PIL", "scikit-learn": "sklearn"}
    return {imported_as.get(name, name) for name in names}


def imported(sources):
    """The packages, not of Python itself, that texts of Python import."""
    names = set()
    for node in (node for text in sources for node in ast.walk(ast.parse(text))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names - NOT_PACKAGES


def test_what_is_imported_is_declared():
    """Directly, whatever else might bring it along; and nothing is declared in vain."""
    code = [
        re.sub(r"(?m)^([ \t]*)[!%].*$", r"\1pass", cell.source)
        for path in (ROOT / "notebooks").glob("**/*_*.ipynb")
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code" and not cell.source.startswith("%")
    ]
    files = python_files("resnet_lib") + python_files("notebooks")
    code += [path.read_text("utf-8") for path in files]
    needs = declared(PYPROJECT["dependencies"])
    assert imported(code) - BROUGHT == needs - STARTED
    workshop = (path.read_text("utf-8") for path in python_files("workshop"))
    extras = map(declared, PYPROJECT["optional-dependencies"].values())
    assert imported(workshop) <= needs.union(*extras)
    packages = {path.relative_to(ROOT).parent for path in python_files("resnet_lib")}
    installed = TABLE["tool"]["setuptools"]["packages"]
    assert set(installed) == {".".join(folder.parts) for folder in packages}


# --- the address ----------------------------------------------------------------------


@pytest.mark.usefixtures("checkout")
def test_one_command_writes_every_address_and_moves_it(tmp_path):
    names = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True)
    texts = [name for name in names.splitlines() if name[-3:] not in (".pt", "png")]
    copies = {tmp_path / name: ROOT / name for name in texts if (ROOT / name).is_file()}
    for copy, path in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    badges.main(tmp_path)
    for copy, path in copies.items():
        assert copy.read_bytes() == path.read_bytes(), f"run `make badges`: {path}"
    pyproject = tmp_path / "pyproject.toml"
    text = pyproject.read_text("utf-8").replace(ADDRESS, "https://github.com/me/mine")
    version = f'version = "{PYPROJECT["version"]}"'
    pyproject.write_text(text.replace(version, 'version = "7.8.9"'), "utf-8")
    badges.main(tmp_path)
    for path in copies:
        text = path.read_text("utf-8")
        assert ADDRESS.removeprefix("https://github.com/") not in text, path
        if path.suffix == ".ipynb":
            assert "/github/me/mine/blob/v7.8.9/notebooks/" in text, path.name
            assert "--branch v7.8.9" in text, path.name
    assert "cd mine && make lab" in (tmp_path / "README.md").read_text("utf-8")


# --- the set-up cell ------------------------------------------------------------------

SETUP = badges.Project(ADDRESS, TAG).with_setup("")
COLAB = {"COLAB_RELEASE_TAG": "release-colab"}


def python(folder, *arguments, source="", **more):
    """Run Python in a folder; `source` stands in for the public address."""
    environment = os.environ | more | {"GIT_TERMINAL_PROMPT": "0"}
    environment |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_VALUE_0": ADDRESS}
    environment["GIT_CONFIG_KEY_0"] = f"url.{source}.insteadOf"
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_colab_gets_the_project_once_and_a_failed_fetch_can_be_repeated(
    tmp_path, monkeypatch
):
    monkeypatch.delenv(*COLAB, raising=False)
    origin, colab = tmp_path / "origin", tmp_path / "content"
    library, source = origin / "resnet_lib", origin.as_uri()
    colab.mkdir()
    assert python(colab, "-c", SETUP, source=source) == (0, "", "")  # not in Colab
    *_, error = python(colab, "-c", SETUP, source=source, **COLAB)
    last = error.strip().splitlines()[-1]
    assert last.startswith("OSError: ") and ADDRESS in last and "run this again" in last
    assert not list(colab.iterdir()), "half a project would be in the way"
    library.mkdir(parents=True)
    (library / "__init__.py").touch()
    # The real one imports torch; that it works there, `make colab` shows.
    (library / "colab.py").write_text("def set_up():\n    print('set up')\n")
    git = ["git", "-C", origin, "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in ("init -q", "add .", "commit -qm x", f"tag {TAG}"):
        subprocess.run([*git, *words.split()], check=True)
    # Twice in one kernel, then in a new one that finds the project there.
    for code in (SETUP + SETUP, SETUP):
        where = "import resnet_lib; print(resnet_lib.__file__)"
        fetched = colab / "project" / "resnet_lib" / "__init__.py"
        done = python(colab, "-c", code + where, source=source, **COLAB)
        assert done == (0, f"set up\n{fetched}\n", "")
    assert [path.name for path in colab.iterdir()] == ["project"]


# --- Ctrl-C ---------------------------------------------------------------------------


def test_ctrl_c_while_a_command_starts_is_one_line(tmp_path):
    interrupt = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "torch.py").write_text(f"{interrupt}; time.sleep(60)")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    for command in ("resnet_lib.train", "resnet_lib.cifar10", "workshop.reproduce"):
        done = python(tmp_path, "-m", command, PYTHONPATH=path)
        assert done == (130, "", "Stopped.\n"), command


def test_ctrl_c_stays_with_the_program_that_imports_the_library(tmp_path):
    (tmp_path / "theirs").mkdir()
    # A shell that starts the tests in the background lets them inherit no Ctrl-C.
    (tmp_path / "theirs" / "__init__.py").write_text(
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import resnet_lib"
    )
    (tmp_path / "theirs" / "run.py").write_text(
        "import signal\n"
        "try: signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt: print('saved')"
    )
    assert python(tmp_path, "-m", "theirs.run", PYTHONPATH=str(ROOT))[1] == "saved\n"


def test_a_download_that_fails_is_one_line(tmp_path):
    where = {"RESNET_LIB_DATA": str(tmp_path), "RESNET_LIB_CIFAR10_URL": "file:///no"}
    code, out, told = python(ROOT, "-m", "resnet_lib.cifar10", **where)
    assert (code, out) == (1, "") and re.fullmatch("file:///no could not .*\n", told)
    code, out, told = python(ROOT, "-m", "resnet_lib.cifar10", "--hlep", **where)
    assert (code, out) == (2, "") and "usage: python -m resnet_lib.cifar10" in told
    (tmp_path / "cifar-10-batches-py").mkdir()
    for folder in (tmp_path, __file__):  # damaged, and no folder
        where["RESNET_LIB_DATA"] = str(folder)
        code, out, told = python(ROOT, "-m", "resnet_lib.cifar10", **where)
        assert (code, out, told.count("\n")) == (1, "", 1), told


def test_ctrl_c_before_a_training_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = {train: "--data=digits", reproduce: f"--records={tmp_path}"}
    for module, option in given.items():
        monkeypatch.setattr(module, "load", Mock(side_effect=KeyboardInterrupt))
        assert module.main([option]) == 130
        assert capsys.readouterr().err == "Stopped.\n"
        assert not list(tmp_path.iterdir())
