"""Record the clinic's runs: `python -m workshop.patients [cifar10|digits]`."""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "notebooks"))

from checks import patients

from resnet_lib.datasets import load_cifar10, load_digits

SEEDS = (0, 1, 2)


def record(name: str, updates: int) -> None:
    """One run of each case with seed 0; each measurement on every seed, untrained."""
    data = {"cifar10": load_cifar10, "digits": load_digits}[name]()
    where = patients.RECORDS / f"{name}.json"
    found = {"updates": updates, "batch": patients.BATCH, "runs": {}, "measured": {}}
    for key, patient in patients.PATIENTS.items():
        pairs = [patient.cases(data, seed, updates) for seed in SEEDS]
        found["measured"][key] = [[patient.measure(c) for c in pair] for pair in pairs]
        print(key, found["measured"][key], flush=True)
    _write(where, found)
    cases = {
        "healthy": patients.healthy(data, 0, updates),
        "late_relu": patients.late_relu(data, 0, updates),
    }
    for key, patient in patients.PATIENTS.items():
        cases[key] = patient.cases(data, 0, updates)[1]
    for key, case in cases.items():
        torch.manual_seed(0)
        found["runs"][key] = patients.train(case)
        print(key, found["runs"][key][-1], flush=True)
        _write(where, found)


def _write(where: Path, found: dict) -> None:
    where.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found).replace("}, {", "},\n{")
    where.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    record(*(sys.argv[1:2] or ["cifar10"]), updates=int((sys.argv[2:] or ["160"])[0]))
