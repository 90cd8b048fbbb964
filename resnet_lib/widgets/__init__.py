"""ipywidgets over probes and plots: controls, a picture, and a sentence."""

from resnet_lib.widgets.activations import ActivationInspector
from resnet_lib.widgets.depth import DepthExplorer
from resnet_lib.widgets.gradients import GradientExplorer
from resnet_lib.widgets.images import ImagePicker
from resnet_lib.widgets.lesions import LesionLab
from resnet_lib.widgets.timemachine import TimeMachine
from resnet_lib.widgets.xray import BlockXray

__all__ = [
    "ActivationInspector",
    "BlockXray",
    "DepthExplorer",
    "GradientExplorer",
    "ImagePicker",
    "LesionLab",
    "TimeMachine",
]
