"""Friendly checks of the reader's own answers to the exercises.

Each check takes what the reader wrote, prints one sentence, and returns whether the
answer is right. It never raises into the notebook: an unsolved exercise reads "Not
yet".
"""

from checks.notebook_01 import (
    check_deepened,
    check_identity_weights,
    check_stack_jacobian,
)
from checks.notebook_02 import (
    check_basic_block,
    check_bottleneck,
    check_shortcut_a,
)
from checks.notebook_03 import (
    check_parameter_count,
    check_receptive_field,
    check_stage,
)
from checks.notebook_04 import (
    check_crop_and_flip,
    check_ramped_rate,
    check_smoothed_loss,
)
from checks.notebook_05 import (
    check_diagnosis,
    check_gradient_ratio,
    check_seed_summary,
    check_transparent,
)
from checks.notebook_06 import (
    check_activation,
    check_branch_ratio,
    check_path_lengths,
)
from checks.notebook_07 import (
    check_repaired_loss,
    check_repaired_net,
    check_repaired_normalisation,
    check_repaired_rates,
    check_repaired_report,
    check_repaired_stem,
)
from checks.notebook_08 import check_average, check_scaled_recipe

__all__ = [
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
]
