"""The residual block and its plain twin. Notebook 02; paper §3.2, §3.3 and Fig. 2."""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BasicBlock", "PaddedIdentity", "PlainBlock", "make_shortcut"]


class PaddedIdentity(nn.Module):
    """Shortcut A: every `stride`-th pixel, and zeros for the channels that are new.

    Maps (N, in_channels, H, W) to (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉) without a
    parameter. Built in notebook 02; paper §3.3 and §4.2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ValueError(
                f"Shortcut A pads channels and cannot drop them: {in_channels} in, "
                f"{out_channels} out. Use shortcut 'B' to go to fewer channels."
            )
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        # F.pad counts from the last dimension: W, W, H, H, then C.
        return F.pad(x, [0, 0, 0, 0, 0, self.new_channels])


def make_shortcut(
    kind: str, in_channels: int, out_channels: int, stride: int = 1
) -> nn.Module:
    """The path around a block. Paper §4.1, options A, B and C.

    - "A": the identity; where the shape changes, strided and padded with zero channels.
    - "B": the identity; where the shape changes, a 1×1 convolution + BN.
    - "C": a 1×1 convolution + BN everywhere.

    Raises ValueError for any other kind. Built in notebook 02.
    """
    if kind not in ("A", "B", "C"):
        raise ValueError(
            f"Unknown shortcut {kind!r}: choose 'A', 'B' or 'C' (paper §4.1)."
        )
    same_shape = stride == 1 and in_channels == out_channels
    if same_shape and kind != "C":
        return nn.Identity()
    if kind == "A":
        return PaddedIdentity(in_channels, out_channels, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """relu(F(x) + shortcut(x)), where F is Conv → BN → ReLU → Conv → BN.

    Both kernels are 3×3; the first convolution takes the stride.
    Maps (N, in_channels, H, W) to (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉).
    Built in notebook 02; paper §3.2, Eqs. (1) and (2), and Fig. 2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, shortcut: str = "B"
    ) -> None:
        super().__init__()
        # No bias: the BN that follows each convolution subtracts it again.
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, 3, stride, padding=1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(shortcut, in_channels, out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        """F(x): what the block adds to its input; no ReLU follows it."""
        out = F.relu(self.bn1(self.conv1(x)))  # (N, C_out, H/stride, W/stride)
        return self.bn2(self.conv2(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))


class PlainBlock(nn.Module):
    """The same two layers without the addition: Conv → BN → ReLU → Conv → BN → ReLU.

    Maps (N, in_channels, H, W) to (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉).
    Built in notebook 02; paper §3.3, "Plain Network".
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, 3, stride, padding=1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)))
