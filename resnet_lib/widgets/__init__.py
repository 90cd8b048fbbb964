"""ipywidgets over probes and plots: controls, a picture, and a sentence."""

from resnet_lib.widgets.depth import DepthExplorer

__all__ = ["DepthExplorer"]
