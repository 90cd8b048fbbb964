"""Mutation testing: one small change to the core at a time, and a test has to fail.

    make mutants                              # the whole core: hours on one CPU core
    make mutants ARGS="recipe data"           # some modules
    make mutants ARGS="--changed main"        # only lines that differ from a commit
    make mutants ARGS=--report                # what is known so far

Mutants come in a fixed order of chance, and each answer is kept in .mutants/: stop when
you like, what was tried is a fair sample, and the same command goes on from there. A
survivor is tried again once the tests have changed.

The changes are mutmut's. Its own runner passes over decorated functions and over all
that stands outside functions, here each property and the recipe's defaults. So a
process that has PyTorch in memory forks, imports the module with the change in it, and
runs the tests that come by the changed lines, quick ones first, to the first failure.

Some survivors change nothing that a test could see: hints at speed (`non_blocking`,
`fused`, `pin_memory`), the device where there is only one, a number's format where
both hold it.
"""

import argparse
import difflib
import hashlib
import importlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path

import coverage
import libcst as cst
import libcst.matchers as m
import pytest
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).parent.parent
KEPT = ROOT / ".mutants"
CORE = ("basic_block", "resnet", "inputs", "data", "recipe", "training")
CORE += ("identity", "fit", "runs")
FILES = ("recipe_by_hand", "blocks", "data", "training", "run_folder", "runs")
FILES = [f"tests/test_{name}.py" for name in FILES]
HEAVY = ("torch", "torchvision", "pandas", "matplotlib.pyplot", "sklearn.datasets")
LONGEST, IN_ALL = 5, 20  # CPU seconds of a test, and of all the tests of a mutant
QUIET = ("-q", "-p", "no:cacheprovider", "--tb=no", "--basetemp", str(KEPT / "scratch"))
# Annotations, the list of public names, and guards of the code itself that never act.
NOT_CODE = m.Annotation() | m.Decorator() | m.Import() | m.ImportFrom()
NOT_CODE |= m.Assign(targets=[m.AssignTarget(m.Name("__all__"))])
NOT_CODE |= m.Arg(keyword=m.Name("strict"))


@dataclass(frozen=True)
class Mutant:
    """A module with one part replaced; the lines of that part and of its function."""

    name: str  # of the line, wherever it stands, and the change
    module: str
    lines: range
    function: range
    tree: cst.Module
    before: cst.CSTNode
    after: cst.CSTNode

    @property
    def source(self) -> str:
        return self.tree.deep_replace(self.before, self.after).code

    @property
    def diff(self) -> str:
        both = (self.tree.code.splitlines(), self.source.splitlines())
        changed = [line for line in difflib.ndiff(*both) if line[0] in "-+"]
        return "\n".join([f"{self.module}.py:{self.lines[0]}", *changed])


def _changes(node: cst.CSTNode, function: cst.CSTNode) -> Iterator[tuple]:
    """(part, its replacement, the function around it); no annotation and no prose."""
    if m.matches(node, NOT_CODE):
        return
    function = node if isinstance(node, cst.FunctionDef) else function
    for kind, operator in mutation_operators:
        for new in operator(node) if isinstance(node, kind) else ():
            if getattr(new, "evaluated_value", new) == getattr(
                node, "evaluated_value", node
            ):
                continue  # 3.4e38 as 3.4e+38
            if isinstance(node, cst.SimpleString):
                word = re.fullmatch(r"\w+", str(node.evaluated_value))
                if not word or "XX" not in new.value:
                    continue
            yield node, new, function
    for child in node.children:
        yield from _changes(child, function)


def mutants_of(module: str) -> list[Mutant]:
    code = (ROOT / "resnet_lib" / f"{module}.py").read_text("utf-8")
    wrapper = MetadataWrapper(cst.parse_module(code))
    places, tree = wrapper.resolve(PositionProvider), wrapper.module
    lines, mutants = code.splitlines(), {}
    for before, after, function in _changes(tree, tree):
        old, new = (" ".join(tree.code_for_node(x).split()) for x in (before, after))
        if old.count("strict=True") > new.count("strict=True"):
            continue
        start, around = places[before].start, places[function]
        line = lines[start.line - 1]
        at = f"{lines[: start.line].count(line)}.{start.column}"
        name = f"{module}.py | {line.strip()} | {at} | {old} → {new}"
        span = range(start.line, places[before].end.line + 1)
        whole = range(around.start.line, around.end.line + 1)
        mutants[name] = Mutant(name, module, span, whole, tree, before, after)
    return list(mutants.values())


# --- in a process of its own ----------------------------------------------------------


def apart(work: Callable[[], int]) -> int:
    """The exit status of a forked process that does the work in silence."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for stream in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    status = 99
    try:
        status = work()
    finally:
        os._exit(status)


class Witness:
    """Which lines of the core each test comes by, and how long it takes."""

    def __init__(self) -> None:
        modules = [f"*/resnet_lib/{module}.py" for module in CORE]
        self.coverage = coverage.Coverage(data_file=None, include=modules)
        self.seconds, self.failed = {}, set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.coverage.switch_context(item.nodeid)
        start = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - start
        return result

    def pytest_runtest_logreport(self, report) -> None:
        if not report.passed:
            self.failed.add(report.nodeid)

    def measure(self, file: str, path: Path) -> int:
        self.coverage.start()
        pytest.main([*QUIET, file], plugins=[self])
        self.coverage.stop()
        passed = self.seconds.keys() - self.failed
        kept = {test: {"seconds": self.seconds[test]} for test in passed}
        data = self.coverage.get_data()
        for source in data.measured_files():
            for line, tests in data.contexts_by_lineno(source).items():
                for test in kept.keys() & set(tests):
                    kept[test].setdefault(Path(source).stem, []).append(line)
        path.write_text(json.dumps(kept))
        return 0


def witnesses() -> dict[str, dict]:
    """The tests with their times and lines; only files that changed are measured."""
    core = b"".join((ROOT / "resnet_lib" / f"{x}.py").read_bytes() for x in CORE)
    found = {}
    for file in FILES:
        state = hashlib.sha1(core + Path(file).read_bytes()).hexdigest()[:12]
        path = KEPT / f"{Path(file).stem}-{state}.json"
        if not path.exists():
            print(f"Which lines does each test of {file} come by? …", flush=True)
            apart(lambda file=file, path=path: Witness().measure(file, path))
        found |= json.loads(path.read_text())
    return found


def chosen(mutant: Mutant, tests: dict[str, dict]) -> list[str]:
    """The tests that come by the mutant, or else by its function, or, for what the
    import carries out, by its module: quick ones first."""
    for lines in (set(mutant.lines), set(mutant.function)):
        near = [n for n, t in tests.items() if lines & set(t.get(mutant.module, ()))]
        if near:
            break
    order, total = [], 0.0
    for name in sorted(near, key=lambda name: tests[name]["seconds"]):
        total += tests[name]["seconds"]
        if tests[name]["seconds"] <= LONGEST and total <= IN_ALL:
            order.append(name)
    return order


class Judges:
    """These tests, in this order; a file takes the name of the first that fails."""

    def __init__(self, tests: list[str]) -> None:
        self.place = {test: place for place, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list) -> None:
        items[:] = [item for item in items if item.nodeid in self.place]
        items.sort(key=lambda item: self.place[item.nodeid])

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            (KEPT / "killer").write_text(report.nodeid)


def trial(mutant: Mutant, tests: list[str]) -> int:
    """pytest's exit status; 98 for a change that is no Python."""
    name, path = f"resnet_lib.{mutant.module}", f"{ROOT}/resnet_lib/{mutant.module}.py"
    try:
        code, load = compile(mutant.source, path, "exec"), SourceFileLoader.get_code
    except SyntaxError:
        return 98
    SourceFileLoader.get_code = lambda s, n: code if n == name else load(s, n)
    # It may never end: 200 seconds of work, or much longer of waiting.
    resource.setrlimit(resource.RLIMIT_CPU, (10 * IN_ALL, 10 * IN_ALL))
    signal.alarm(100 * IN_ALL)
    files = sorted({test.split("::")[0] for test in tests})
    return pytest.main(["-x", *QUIET, *files], plugins=[Judges(tests)])


def verdict(mutant: Mutant, tests: dict[str, dict]) -> dict:
    """Whether it survived, and else what killed it."""
    (KEPT / "killer").write_text("the import")
    status = apart(lambda: trial(mutant, chosen(mutant, tests)))
    shutil.rmtree(KEPT / "scratch", ignore_errors=True)
    by = (KEPT / "killer").read_text() if status > 0 else "the clock"
    unseen = pytest.ExitCode.NO_TESTS_COLLECTED  # no test comes by
    said = {0: "survived", unseen: "survived", 98: "no Python"}.get(status, "killed")
    return {"mutant": mutant.name, "said": said, "by": by if said == "killed" else ""}


# --- the command ----------------------------------------------------------------------


def changed_lines(since: str) -> dict[str, set[int]]:
    """The lines of each module that differ from a commit."""
    git = ["git", "diff", "-U0", since, "--", "resnet_lib"]
    text = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    lines, module = {}, ""
    for line in text.splitlines():
        if line.startswith("+++"):
            module = Path(line).stem
        elif match := re.match(r"@@ .* \+(\d+)(?:,(\d+))? @@", line):
            start, count = int(match[1]), int(match[2] or 1)
            lines.setdefault(module, set()).update(range(start, start + count))
    return lines


def report(mutants: list[Mutant], known: dict[str, dict]) -> int:
    """Print the survivors, and a row for each module; how many survived."""
    said = {x: known[x.name]["said"] for x in mutants if x.name in known}
    left = [mutant for mutant in said if said[mutant] == "survived"]
    print(*(mutant.diff for mutant in left), sep="\n")
    for module in dict.fromkeys(mutant.module for mutant in mutants):
        answers = [said[mutant] for mutant in said if mutant.module == module]
        killed, count = (
            answers.count("killed"),
            sum(x.module == module for x in mutants),
        )
        tried = killed + answers.count("survived")
        share = f" ({killed / tried:.0%})" if tried else ""
        print(
            f"{module:12} {count:4} mutants, {tried:4} tried, {killed:4} killed{share}"
        )
    return len(left)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(CORE))
    parser.add_argument("--changed", metavar="COMMIT", help="lines changed since then")
    parser.add_argument("--report", action="store_true", help="try nothing")
    args = parser.parse_args()
    os.chdir(ROOT)
    KEPT.mkdir(exist_ok=True)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    mutants = [x for module in args.modules or CORE for x in mutants_of(module)]
    if args.changed:
        lines = changed_lines(args.changed)
        mutants = [x for x in mutants if lines.get(x.module, set()) & set(x.lines)]
    path, tests = KEPT / "results.jsonl", b"".join(Path(f).read_bytes() for f in FILES)
    path.touch()
    state = hashlib.sha1(tests).hexdigest()[:12]
    answers = map(json.loads, path.read_text().splitlines())
    known = {answer["mutant"]: answer for answer in answers}
    for name in [n for n, answer in known.items() if answer["said"] == "survived"]:
        if known[name]["tests"] != state and not args.report:
            del known[name]
    left = [x for x in mutants if x.name not in known and not args.report]
    left.sort(key=lambda mutant: hashlib.sha1(mutant.name.encode()).digest())
    if left:
        for name in HEAVY:
            importlib.import_module(name)
        found = witnesses()
    for number, mutant in enumerate(left, 1):
        answer = verdict(mutant, found) | {"tests": state}
        known[mutant.name] = answer
        with open(path, "a") as file:
            file.write(json.dumps(answer) + "\n")
        text = mutant.diff if answer["said"] == "survived" else answer["by"]
        print(f"{number}/{len(left)} {answer['said']}: {text}", flush=True)
    return report(mutants, known) > 0


if __name__ == "__main__":
    sys.exit(main())
