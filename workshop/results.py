"""The README's results, two tables and a figure drawn from data/runs: `make results`.

Notebook 05 shows the same table beside the paper's.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from resnet_lib import plots
from resnet_lib.paths import data_home
from resnet_lib.recipe import PAPER, Recipe
from resnet_lib.runs import MAY_DIFFER, Run, histories, longest_study, recorded_runs

__all__ = ["PAPER_ERRORS", "beside_the_paper", "draw", "pages", "plain_vs_residual"]

# Read off the curves of Fig. 6, so only about right.
PAPER_PLAIN = {"plain20": 9.5, "plain32": 10, "plain44": 12, "plain56": 13.5}

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
    return same and not run.extra_warmup


def comparison(runs: Mapping[str, Run]) -> str:
    """Markdown: our runs of the paper's length, and the longest shorter, beside it."""
    found, rows = beside_the_paper(runs), []
    for network in ["resnet18", "plain18", *PAPER_PLAIN, *PAPER_ERRORS]:
        ours = found[found["network"] == network]
        if ours.empty:
            continue
        paper = _number(PAPER_ERRORS.get(network, PAPER_PLAIN.get(network, math.nan)))
        whole = ours["iterations"] == PAPER.iterations
        full, shorter = _ours(ours[whole]), _ours(ours[~whole])
        about = "≈ " if network in PAPER_PLAIN else ""
        rows.append([f"`{network}`", about + paper, full, shorter])
    return _markdown(
        f"test error (%) | the paper, {PAPER.iterations:,} iterations | ours, "
        f"{PAPER.iterations:,} | ours, shorter",
        rows,
    )


def _ours(rows: pd.DataFrame) -> str:
    """The longest of the rows in words: mean ± deviation, length and number of runs."""
    if rows.empty:
        return "not recorded yet"
    row = rows.loc[rows["iterations"].idxmax()]
    error = f"**{row['ours']:.2f}**" + _number(row["std"], " ± {:.2f}", "")
    notes = []
    if row["iterations"] < PAPER.iterations:
        notes.append(f"{row['iterations']:,} iterations")
    if row["n"] > 1:
        notes.append(f"{row['n']} runs")
    return f"{error} ({', '.join(notes)})" if notes else error


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
            f"{run.environment['device']}, {run.environment['computation']}",
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


def plain_vs_residual(histories: pd.DataFrame) -> Sequence[plt.Axes]:
    """Error against iterations, plain nets left and residual nets right, as in Fig. 6.

    `histories` is a table of `runs.histories`. Training error dashed, test error solid,
    deeper nets in stronger colours. Where a depth has several seeds the line is their
    mean, and a band reaches from the lowest to the highest.
    """
    axes = plt.subplots(1, 2, figsize=(10, 4), sharex=True, sharey=True)[1]
    shown = histories[histories["part"] != "validation"]
    depths = sorted(shown["layers"].unique())
    nets = {"plain": plots.PLAIN, "residual": plots.RESIDUAL}
    for ax, (net, colour) in zip(axes, nets.items(), strict=True):
        colours = sns.light_palette(colour, len(depths) + 1)[1:]
        sns.lineplot(
            shown[shown["net"] == net],
            x="iteration",
            y="error (%)",
            hue="layers",
            style="part",
            dashes={"train": (3, 1.5), "test": ""},
            hue_order=depths,
            palette=dict(zip(depths, colours, strict=True)),
            errorbar=("pi", 100),
            ax=ax,
        )
        ax.set(title=f"{net} nets", ylim=(0, 100))
        sns.move_legend(ax, "upper right", ncols=2)
    return axes


def draw(runs: Mapping[str, Run], path: Path) -> None:
    """The figure that makes the point: plain against residual, deep against shallow."""
    plots.use_style()
    study = longest_study(runs)
    axes = plain_vs_residual(histories(study))
    length = next(iter(study.values())).recipe["iterations"]
    part = (
        ", the paper's length"
        if length == PAPER.iterations
        else (f", {length / PAPER.iterations:.1%} of the paper's {PAPER.iterations:,}")
    )
    figure = axes[0].figure
    figure.suptitle(f"CIFAR-10, {length:,} iterations{part}", fontsize=12)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    runs = cifar10_runs()
    for path, text in pages(runs).items():
        path.write_text(text, "utf-8")
    draw(runs, data_home() / "results.png")
    print(comparison(runs))


if __name__ == "__main__":
    main()
