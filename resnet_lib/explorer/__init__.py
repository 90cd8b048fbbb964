"""The explorer: one widget opens a network, drawn in the browser."""

from resnet_lib.explorer.widget import Explorer

__all__ = ["Explorer"]
