"""The README's results: `make results`.

The tables from the runs in data, and the figure from notebook 05: execute that first.
"""

import base64
import dataclasses
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from resnet_lib.paths import data_home
from resnet_lib.recipe import PAPER, Recipe
from resnet_lib.runs import MAY_DIFFER, Run, recorded_runs

__all__ = [
    "PAPER_ERRORS",
    "beside_the_paper",
    "hero",
    "pages",
]

# Read off the curves of Fig. 6, so only about right.
PAPER_PLAIN = {"plain20": 9.5, "plain32": 10, "plain44": 12, "plain56": 13.5}

STUDY = data_home().parent / "notebooks" / "05_plain_vs_residual.ipynb"
START, END = "<!-- results: written by `make results` -->", "<!-- end of results -->"

# Test error (%) at 64,000 iterations, Table 6. For 110 layers the paper gives the best
# of five runs, 6.43, and their mean, 6.61 ± 0.16: ours are means too. It has no numbers
# for plain nets, only the curves of Fig. 6.
PAPER_ERRORS = {
    "resnet20": 8.75,
    "resnet32": 7.51,
    "resnet44": 7.17,
    "resnet56": 6.97,
    "resnet110": 6.61,
}


def cifar10_runs() -> dict[str, Run]:
    runs = recorded_runs()
    return {name: run for name, run in runs.items() if run.about["data"] == "cifar10"}


def beside_the_paper(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Final test errors beside the paper's Table 6, a row per network and schedule.

    Of runs by the paper's recipe on CIFAR-10, at any length: mean and standard
    deviation over the seeds in percent, their number n, and the difference to the
    paper's 64,000 iterations in percentage points. NaN where there is nothing to
    compare, and for the deviation of a single run.
    """
    groups = defaultdict(list)
    for run in runs.values():
        if _by_the_paper(run):
            iterations = run.recipe["iterations"]
            groups[run.layers, run.about["model"], iterations].append(run)
    rows = []
    for (_, model, iterations), group in sorted(groups.items()):
        errors = pd.Series([100 * run.final["test_error"] for run in group])
        paper = PAPER_ERRORS.get(model, float("nan"))
        rows.append(
            {
                "network": model,
                "paper, 64,000": paper,
                "iterations": iterations,
                "n": len(group),
                "ours": errors.mean(),
                "std": errors.std(),  # of a sample: NaN for one run
                "difference": errors.mean() - paper,
            }
        )
    return pd.DataFrame(rows)


def _by_the_paper(run: Run) -> bool:
    own = {key: run.recipe[key] for key in MAY_DIFFER}
    paper = dataclasses.replace(PAPER.scaled(run.recipe["iterations"]), **own)
    same = run.about["data"] == "cifar10" and Recipe(**run.recipe) == paper
    return same and run.network is not None and not run.extra_warmup


def comparison(runs: Mapping[str, Run]) -> str:
    """Markdown: our runs of the paper's length beside the paper's."""
    found = beside_the_paper(runs)
    full = found[found["iterations"] == PAPER.iterations].set_index("network")
    rows = []
    known = ["resnet18", "plain18", *PAPER_PLAIN, *PAPER_ERRORS]
    for network in dict.fromkeys([*known, *full.index]):
        paper = PAPER_ERRORS.get(network, PAPER_PLAIN.get(network, math.nan))
        about, form = "", "{:.2f}"
        if network in PAPER_PLAIN:  # read off a figure
            about, form = "≈ ", "{:.1f}"
        if network not in full.index:
            continue
        row = full.loc[network]
        count = f"{row['n']:.0f} runs" if row["n"] > 1 else "1 run"
        error = f"**{row['ours']:.2f}**" + _number(row["std"], " ± {:.2f}", "")
        difference = about + _number(row["ours"] - paper, form.replace(":", ":+"))
        paper = about + _number(paper, form)
        rows.append([f"`{network}`", paper, f"{error} ({count})", difference])
    head = f"test error (%), {PAPER.iterations:,} iterations | the paper | ours"
    return _markdown(f"{head} | difference", rows)


def tables(runs: Mapping[str, Run]) -> str:
    """Markdown: means at every length, then every run with its conditions."""
    compared = [
        [
            f"`{row['network']}`",
            f"{row['iterations']:,}",
            row["n"],
            f"**{row['ours']:.2f}**" + _number(row["std"], " ± {:.2f}", ""),
        ]
        for row in beside_the_paper(runs).to_dict("records")
    ]
    single = [
        [
            f"[`{name}`](runs/{name})",
            f"{run.recipe['iterations']:,}",
            f"{50_000 - run.recipe['validation']:,}",
            f"{run.final['train_error']:.2%}",
            f"**{run.final['test_error']:.2%}**",
            run.recipe["seed"],
            _machines(run),
        ]
        for name, run in runs.items()
    ]
    means = (
        "network, the paper's recipe | iterations | runs | test error (%), mean ± std"
    )
    each = (
        "run | iterations | trained on | final training error | final test error "
        "| seed | machine"
    )
    return _markdown(means, compared) + "\n\n" + _markdown(each, single)


def _machines(run: Run) -> str:
    """Where a run was computed, in the order of its sittings."""
    sittings = [run.environment]
    for changed in run.environment.get("resumed", []):
        sittings.append(sittings[-1] | changed)
    places = [f"{sitting['device']}, {sitting['computation']}" for sitting in sittings]
    return "; then ".join(place for place, _ in itertools.groupby(places))


def _number(value: float, form: str = "{:.2f}", missing: str = "–") -> str:
    return missing if pd.isna(value) else form.format(value)


def _markdown(head: str, rows: Sequence[Sequence]) -> str:
    """A table whose first column is text and whose others are set right."""
    count = head.count("|")
    lines = [f"| {head} |", "|---|" + "---:|" * count]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def updated(text: str, table: str) -> str:
    """A page with what stands between its two marks written anew."""
    before, rest = text.split(START)
    after = rest.split(END)[1]
    return f"{before}{START}\n{table}\n{END}{after}"


def pages(runs: Mapping[str, Run]) -> dict[Path, str]:
    """The pages that show results, by their place, and what they should say."""
    home = data_home()
    shown = {home.parent / "README.md": comparison, home / "results.md": tables}
    return {
        path: updated(path.read_text(encoding="utf-8"), table(runs))
        for path, table in shown.items()
    }


def hero() -> bytes:
    """The first picture of notebook 05, as it was executed: a PNG file."""
    notebook = json.loads(STUDY.read_text("utf-8"))
    outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
    shown = (output.get("data", {}) for output in outputs)
    return base64.b64decode(next(d["image/png"] for d in shown if "image/png" in d))


def main() -> None:
    runs = cifar10_runs()
    for path, text in pages(runs).items():
        path.write_text(text, "utf-8")
    (data_home() / "results.png").write_bytes(hero())
    print(comparison(runs))


if __name__ == "__main__":
    main()
