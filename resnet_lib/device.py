"""Where and how a network computes: device, precision, memory format."""

import contextlib
import ctypes
import platform
from dataclasses import dataclass

import torch

__all__ = ["DeviceProfile", "device_profile"]


@dataclass(frozen=True)
class DeviceProfile:
    """Where and how a network computes: device, precision, memory format."""

    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format

    def autocast(self) -> contextlib.AbstractContextManager:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    def __str__(self) -> str:
        layout = (
            "channels_last"
            if self.memory_format == torch.channels_last
            else "contiguous"
        )
        precision = "bf16" if self.dtype == torch.bfloat16 else "fp32"
        return f"{self.device.type}, {precision}, {layout}"


def device_profile(precision: str = "auto", device: str | None = None) -> DeviceProfile:
    """The fastest honest way to train on this machine.

    CUDA and CPU: channels last, and bf16 where it is multiplied natively (GPUs from
    Ampere on, processors with AVX512-BF16 or AMX), else fp32, since emulated bf16 is
    several times slower. Apple's MPS: fp32, default format. `precision` "bf16" or
    "fp32" overrules, as does `device`.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.backends.mps.is_available():
            device = "mps"
    try:
        target = torch.device(device)
        torch.empty(1, device=target)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"Device {device!r} is not usable here ({error}). "
            "Use 'cpu', or leave it out."
        ) from error
    if precision == "auto":
        precision = "bf16" if _has_bf16(target.type) else "fp32"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    layout = torch.contiguous_format if target.type == "mps" else torch.channels_last
    if target.type == "cpu":
        _keep_freed_memory()
    return DeviceProfile(target, dtype, layout)


def _has_bf16(device: str) -> bool:
    """Whether it multiplies bf16 natively; a GPU before Ampere, as a T4, does not."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of returning them to the system.

    Each step frees its activations and asks for them again; handing every page back and
    forth costs several percent of the time. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # from malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, (1 << 31) - 1)
    libc.mallopt(top_pad, 64 << 20)
