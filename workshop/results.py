"""The README's results, two tables and a figure, from the runs in data: `make results`.

Notebook 05 shows the same curves beside the paper's ends.
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
from resnet_lib.runs import MAY_DIFFER, Run, histories, longest_study, runs_so_far

__all__ = [
    "PAPER_ERRORS",
    "beside_the_paper",
    "draw",
    "ends",
    "pages",
    "plain_vs_residual",
]

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
    """Those on their way, too."""
    runs = runs_so_far()
    return {name: run for name, run in runs.items() if run.about["data"] == "cifar10"}


def beside_the_paper(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Final test errors beside the paper's Table 6, a row per network and schedule.

    Of finished runs by the paper's recipe on CIFAR-10, at any length: mean and standard
    deviation over the seeds in percent, their number n, and the difference to the
    paper's 64,000 iterations in percentage points. NaN where there is nothing to
    compare, and for the deviation of a single run.
    """
    groups = defaultdict(list)
    for run in runs.values():
        if run.finished and _by_the_paper(run):
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
    """Markdown: our runs of the paper's length beside the paper's."""
    found = beside_the_paper(runs)
    full = found[found["iterations"] == PAPER.iterations].set_index("network")
    rows = []
    for network in ["resnet18", "plain18", *PAPER_PLAIN, *PAPER_ERRORS]:
        paper = PAPER_ERRORS.get(network, PAPER_PLAIN.get(network, math.nan))
        about = "≈ " if network in PAPER_PLAIN else ""
        ours, difference = _on_its_way(network, runs), "–"
        if network in full.index:
            row = full.loc[network]
            count = f"{row['n']} runs" if row["n"] > 1 else "1 run"
            error = f"**{row['ours']:.2f}**" + _number(row["std"], " ± {:.2f}", "")
            ours = f"{error} ({count})"
            difference = _number(row["ours"] - paper, about + "{:+.2f}")
        if ours:
            rows.append([f"`{network}`", about + _number(paper), ours, difference])
    head = f"test error (%), {PAPER.iterations:,} iterations | the paper | ours"
    return _markdown(f"{head} | difference", rows)


def _on_its_way(network: str, runs: Mapping[str, Run]) -> str:
    """How far the furthest unfinished run of the paper's length has come, in words."""
    ends = [
        run.final
        for run in runs.values()
        if (run.about["model"], run.recipe["iterations"]) == (network, PAPER.iterations)
        and _by_the_paper(run)
        and not run.finished
    ]
    if not ends:
        return ""
    end = max(ends, key=lambda row: row["iteration"])
    return f"on its way: {100 * end['test_error']:.2f} after {end['iteration']:,.0f}"


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
        if run.finished
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
    return "; then ".join(dict.fromkeys(places))


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
    deeper nets in stronger colours, their last test error beside them. Where a depth
    has several seeds the line is their mean, and a band reaches from the lowest to the
    highest. Up to 20 %, as the paper, if all nets end well below.
    """
    axes = plt.subplots(1, 2, figsize=(10, 4), sharex=True, sharey=True)[1]
    shown = histories[histories["part"] != "validation"]
    depths = sorted(shown["layers"].unique())
    nets = {"plain": plots.PLAIN, "residual": plots.RESIDUAL}
    tests = shown[shown["part"] == "test"].groupby(["net", "layers", "iteration"])
    ends = tests["error (%)"].mean().groupby(["net", "layers"]).last()
    top = 20 if ends.max() < 18 else 100
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
            linewidth=1.4,
            legend=False,
            ax=ax,
        )
        ax.set(title=f"{net} nets", ylim=(0, top))
        height = -top
        for layers, end in ends[net].sort_values().items():
            height = max(end, height + 0.06 * top)  # or close labels cover each other
            place = (1.13 * shown["iteration"].max(), height)
            ax.text(*place, f"{layers} layers: {end:.2f} %", va="center", color=colour)
    axes[0].set_xlim(0, 1.62 * shown["iteration"].max())
    return axes


def draw(runs: Mapping[str, Run], path: Path) -> None:
    """The figure that makes the point: plain against residual, deep against shallow."""
    plots.use_style()
    study = longest_study(runs)
    axes = plain_vs_residual(histories(study))
    length = next(iter(study.values())).recipe["iterations"]
    axes[0].set_xticks([length * i // 4 for i in range(5)])
    look = {"color": "0.3", "lw": 1.4}
    key = {
        "training error": plt.Line2D([], [], ls=(0, (3, 1.5)), **look),
        "test error": plt.Line2D([], [], **look),
    }
    if length == PAPER.iterations:
        key["the paper's test error at its end"] = plt.Line2D(
            [], [], marker="<", ls="", c="black"
        )
        _mark_the_paper(axes, sorted({run.layers for run in study.values()}))
    figure = axes[0].figure
    figure.legend(key.values(), key, loc="outside lower center", ncols=3)
    figure.suptitle(_about(study, length), fontsize=12)
    figure.savefig(path, dpi=110, metadata={"Description": ends(study)})
    plt.close(figure)


def ends(study: Mapping[str, Run]) -> str:
    """Every run's last test error in words, kept in the figure to be held against."""
    return "; ".join(
        f"{name} {run.final['test_error']:.2%} at {run.final['iteration']:,.0f}"
        for name, run in study.items()
    )


def _mark_the_paper(axes: Sequence[plt.Axes], depths: Sequence[int]) -> None:
    paper = PAPER_PLAIN | PAPER_ERRORS
    for ax, kind in zip(axes, ("plain", "resnet"), strict=True):
        errors = {n: paper[f"{kind}{n}"] for n in depths if f"{kind}{n}" in paper}
        places = [1.02 * PAPER.iterations] * len(errors)
        ax.scatter(places, errors.values(), marker="<", s=22, color="black", zorder=3)
        for layers, error in errors.items():
            ax.text(1.045 * PAPER.iterations, error, layers, va="center", size=9)


def _about(study: Mapping[str, Run], length: int) -> str:
    """A title: how long the runs are, and which are not at their end."""
    part = f"{length / PAPER.iterations:.1%} of the paper's {PAPER.iterations:,}"
    part = "the paper's length" if length == PAPER.iterations else part
    far = [
        f"{run.about['model']} is at {run.final['iteration']:,.0f}"
        for run in study.values()
        if not run.finished
    ]
    return "; ".join([f"CIFAR-10, {length:,} iterations, {part}", *far])


def main() -> None:
    runs = cifar10_runs()
    for path, text in pages(runs).items():
        path.write_text(text, "utf-8")
    draw(runs, data_home() / "results.png")
    print(comparison(runs))


if __name__ == "__main__":
    main()
