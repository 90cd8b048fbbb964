"""Widgets: the explorer of networks, and small controls over a picture."""

from resnet_lib.explorer.depth import DepthExplorer
from resnet_lib.explorer.gradients import GradientExplorer
from resnet_lib.explorer.pictures import read_picture
from resnet_lib.explorer.widget import Explorer

__all__ = ["DepthExplorer", "Explorer", "GradientExplorer", "read_picture"]
