"""Friendly checks of the reader's own answers to the exercises.

A notebook stands beside this folder and does `import checks`. Each check takes what the
reader wrote, prints one sentence, and returns whether the answer is right. It never
raises into the notebook: an unsolved exercise reads "Not yet".

Every `check_…` of a `notebook_NN.py` is a name of this package.
"""

import importlib
import pathlib

from checks.examine import examine

__all__ = ["examine"]

for _file in sorted(pathlib.Path(__file__).parent.glob("notebook_*.py")):
    _judges = vars(importlib.import_module(f"checks.{_file.stem}"))
    _found = {name: it for name, it in _judges.items() if name.startswith("check_")}
    globals().update(_found)
    __all__ += _found
