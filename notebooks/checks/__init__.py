"""Friendly checks of the reader's own answers to the exercises.

A notebook stands beside this folder and does `import checks`. Each check takes what the
reader wrote, prints one sentence, and returns whether the answer is right. It never
raises into the notebook: an unsolved exercise reads "Not yet".

Every `check_…` of a `notebook_NN.py` is a name of this package.
"""


    "check_activation",
    "check_average",
    "check_basic_block",
    "check_bottleneck",
    "check_branch_ratio",
    "check_crop_and_flip",
    "check_deepened",
    "check_diagnosis",
    "check_gradient_ratio",
    "check_identity_weights",
    "check_parameter_count",
    "check_path_lengths",
    "check_ramped_rate",
    "check_receptive_field",
    "check_repaired_loss",
    "check_repaired_net",
    "check_repaired_normalisation",
    "check_repaired_rates",
    "check_repaired_report",
    "check_repaired_stem",
    "check_scaled_recipe",
    "check_seed_summary",
    "check_shortcut_a",
    "check_smoothed_loss",
    "check_stack_jacobian",
    "check_stage",
    "check_transparent",
    __all__ += _found
    _found = {name: it for name, it in _judges.items() if name.startswith("check_")}
    _judges = vars(importlib.import_module(f"checks.{_file.stem}"))
    check_activation,
    check_basic_block,
    check_bottleneck,
    check_branch_ratio,
    check_crop_and_flip,
    check_deepened,
    check_diagnosis,
    check_gradient_ratio,
    check_identity_weights,
    check_parameter_count,
    check_path_lengths,
    check_ramped_rate,
    check_receptive_field,
    check_repaired_loss,
    check_repaired_net,
    check_repaired_normalisation,
    check_repaired_rates,
    check_repaired_report,
    check_repaired_stem,
    check_seed_summary,
    check_shortcut_a,
    check_smoothed_loss,
    check_stack_jacobian,
    check_stage,
    check_transparent,
    globals().update(_found)
)
]
__all__ = [
__all__ = []
for _file in sorted(pathlib.Path(__file__).parent.glob("notebook_*.py")):
from checks.notebook_01 import (
from checks.notebook_02 import (
from checks.notebook_03 import (
from checks.notebook_04 import (
from checks.notebook_05 import (
from checks.notebook_06 import (
from checks.notebook_07 import (
from checks.notebook_08 import check_average, check_scaled_recipe
import importlib
import pathlib
