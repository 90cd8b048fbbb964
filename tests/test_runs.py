import math
from pathlib import Path

import pytest

from resnet_lib import Recipe
from resnet_lib.results import cifar10_runs, updated
from resnet_lib.runs import load_run, recorded_runs, runs_table

RUNS = recorded_runs()
README = Path(__file__).parent.parent / "README.md"


def test_readme_table_is_what_the_records_say():
    text = README.read_text(encoding="utf-8")
    assert text == updated(text, cifar10_runs()), "run `make results`"


def test_both_recipes_reach_about_91_percent():
    for recipe in ("paper", "smoothed"):
        run = load_run(f"resnet18-{recipe}-32k")
        assert run.final["test_error"] < 0.095
        assert run.recipe["iterations"] >= 16_000
        assert len(run.recipe["milestones"]) == 2


@pytest.mark.parametrize("name", RUNS)
def test_recorded_run_is_whole(name):
    run = RUNS[name]
    Recipe(**run.recipe)
    assert run.finished and "-dirty" not in run.environment["commit"]
    history = run.history
    assert history["iteration"].is_monotonic_increasing
    assert history["seconds"].is_monotonic_increasing
    assert not math.isnan(run.final["test_error"])
    network = run.model()
    assert not network.training
    size = sum(path.stat().st_size for path in run.folder.glob("*.*"))
    assert size < 4_000_000
    assert not list(run.folder.glob("checkpoint*"))


def test_table_has_a_row_per_run():
    assert runs_table(RUNS)["run"].tolist() == list(RUNS)


def test_unknown_run_names_the_others():
    with pytest.raises(KeyError, match="resnet18-digits"):
        load_run("resnet19")
