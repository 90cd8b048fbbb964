"""Record the clinic's runs: `python -m workshop.patients [cifar10|digits]`.

What the record holds already is not made again; delete the file to begin anew. A run
takes about a minute of one core, the whole record a quarter of an hour.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "notebooks"))

from checks import patients

from resnet_lib.datasets import load_cifar10, load_digits
from resnet_lib.runs import write_atomically

SEEDS = (0, 1, 2)


def record(name: str) -> None:
    """One run of each case with seed 0; each measurement on every seed, untrained."""
    data = {"cifar10": load_cifar10, "digits": load_digits}[name]()
    where = patients.RECORDS / f"{name}.json"
    found = {"runs": {}, "measured": {}}
    if where.exists():
        found = json.loads(where.read_text("utf-8"))
    for key, patient in patients.PATIENTS.items():
        if key not in found["measured"]:
            pairs = [patient.cases(data, seed) for seed in SEEDS]
            numbers = [[patient.measure(case) for case in pair] for pair in pairs]
            found["measured"][key] = numbers
            _write(where, found)
    bases = {"healthy": patients.healthy, "late_relu": patients.late_relu}
    for key in (*bases, *patients.PATIENTS):
        if key not in found["runs"]:
            base = bases.get(key)
            case = base(data) if base else patients.PATIENTS[key].cases(data)[1]
            torch.manual_seed(0)
            found["runs"][key] = patients.train(case)
            print(key, found["runs"][key][-1], flush=True)
            _write(where, found)


def _write(where: Path, found: dict) -> None:
    where.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(where, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    torch.set_num_threads(1)
    record(*(sys.argv[1:2] or ["cifar10"]))
