"""The README's results, a table and a figure drawn from data/runs: `make results`."""

from pathlib import Path

import matplotlib.pyplot as plt

from resnet_lib import plots
from resnet_lib.data import data_home
from resnet_lib.runs import Run, recorded_runs

__all__ = ["draw", "table", "updated"]

START, END = "<!-- results: written by `make results` -->", "<!-- end of results -->"


def cifar10_runs() -> dict[str, Run]:
    runs = recorded_runs()
    return {name: run for name, run in runs.items() if run.about["data"] == "cifar10"}


def table(runs: dict[str, Run]) -> str:
    """Markdown, a row per run, with the conditions that a number needs."""
    lines = [
        "| run | iterations | trained on | final training error | final test error "
        "| seed | machine |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, run in runs.items():
        recipe, final, environment = run.recipe, run.final, run.environment
        cells = [
            f"[`{name}`](data/runs/{name})",
            f"{recipe['iterations']:,}",
            f"{50_000 - recipe['validation']:,}",
            f"{final['train_error']:.2%}",
            f"**{final['test_error']:.2%}**",
            recipe["seed"],
            f"{environment['device']}, {environment['computation']}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def updated(text: str, runs: dict[str, Run]) -> str:
    """The README with the table between its two marks written anew."""
    before, rest = text.split(START)
    after = rest.split(END)[1]
    return f"{before}{START}\n{table(runs)}\n{END}{after}"


def draw(runs: dict[str, Run], path: Path) -> None:
    """Training and test error of each run against its iterations."""
    plots.use_style()
    figure, axes = plt.subplots(1, len(runs), figsize=(10, 3.4), sharey=True)
    for ax, (name, run) in zip(axes, runs.items(), strict=True):
        for part, style in (("train", "-"), ("test", "--")):
            curve = run.history[["iteration", f"{part}_error"]].dropna()
            ax.plot(curve["iteration"], 100 * curve[f"{part}_error"], style, label=part)
        for milestone in run.recipe["milestones"]:
            ax.axvline(milestone, color="black", linestyle=":", linewidth=1)
        ax.set(title=f"{name}: {run.final['test_error']:.2%}", ylim=(0, 40))
        ax.set(xlabel="iteration")
    axes[0].set_ylabel("error (%)")
    axes[0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    runs = cifar10_runs()
    readme = data_home().parent / "README.md"
    readme.write_text(updated(readme.read_text(encoding="utf-8"), runs), "utf-8")
    draw(runs, data_home() / "results.png")
    print(table(runs))


if __name__ == "__main__":
    main()
