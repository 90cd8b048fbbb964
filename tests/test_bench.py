import json
import re
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from workshop.benchmarks import throughput
from workshop.benchmarks.throughput import flop, markdown, rate, summary, take_turns

HOME = Path(__file__).parent.parent
ROW = "resnet20, training"
ALIKE = {"compute alone": 400.0, "matmul, GFLOP/s": 100.0}
ROUNDS = [
    {
        ROW: {"textbook": textbook, "ours": ours, "data alone": 10 * ours} | ALIKE,
        "machine": {"copy, GB/s": 9.5},
        "resnet20, fused": {"as is": ours / 50, "changed": ours / 50 + 1},
    }
    for textbook, ours in ((100.0, 200.0), (200.0, 300.0), (50.0, 150.0))
]


def test_a_ratio_compares_neighbours_of_one_round():
    results = summary(ROUNDS)
    cells = results[ROW]
    assert cells["ours"] == (150, 200, 300)
    assert cells["ours / textbook"] == (1.5, 2, 3)  # not 200 / 100 of the medians alone
    assert cells["ours / compute"] == (0.375, 0.5, 0.75)
    assert cells["data's share"] == pytest.approx((0.1, 0.1, 0.1))
    peak = [ours * flop("resnet20", "training") / 100e9 for ours in (150, 200, 300)]
    assert cells["of matmul"] == pytest.approx(tuple(peak))
    change = results["resnet20, fused"]["changed / as is"]
    assert change == pytest.approx((7 / 6, 5 / 4, 4 / 3))
    lines = markdown(results).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert "200 (150–300)" in lines[2] and "2.00 (1.50–3.00)" in lines[2]
    assert "| – " in lines[3] and "9.50 (9.50–9.50)" in lines[3]


def test_readme_tells_what_the_benchmark_recorded():
    readme = (HOME / "workshop/benchmarks/README.md").read_text(encoding="utf-8")
    report = json.loads((HOME / "data/bench.json").read_text())
    changes = [row["changed / as is"] for row in report["changes"]["results"].values()]
    recorded = ["{1:.2f} ({0:.2f}–{2:.2f})".format(*change) for change in changes]
    assert recorded == re.findall(r"\| (\d\.\d\d \(.+\)) \|", readme)
    results = report["throughput"]["results"]
    for what in ("training", "evaluation"):
        rows = [row for name, row in results.items() if name.endswith(what)]
        gains = [row["ours / textbook"][1] for row in rows]
        assert f"{min(gains):.2f} to {max(gains):.2f} times" in readme


def test_multiply_adds_are_those_of_the_layers():
    first, rest = 16 * 27 * 32**2, 16 * 16 * 9 * 32**2
    # Six layers in each stage; halving the size and doubling the width leaves their
    # work as it is, but the first of a stage reads half the channels.
    adds = first + 6 * rest + 2 * (rest // 2 + 5 * rest) + 64 * 10
    assert flop("resnet20", "evaluation") == 2 * adds
    assert flop("resnet20", "training") == 3 * 2 * adds - 2 * first


def test_rate_is_work_over_time(monkeypatch):
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(throughput, "time", clock)

    def job(done, work):
        while True:
            now[0] += 0.5
            done(work)

    assert rate(100, job, 3.0) == 6.0


def test_ctrl_c_keeps_the_whole_rounds(capsys):
    process = Mock()
    process.submit().result.side_effect = [1.0, 2.0, KeyboardInterrupt]
    rounds = take_turns({"row": {"a": (process, None)}}, 5, 1)
    assert rounds == [{"row": {"a": 1.0}}, {"row": {"a": 2.0}}]
    assert "round 2 of 5 · row: a 2.00" in capsys.readouterr().out
