"""Where and how a network computes: device, precision, threads, and a step that the
device repeats by itself."""

import contextlib
import ctypes
import os
import platform
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from resnet_lib.inputs import one_of

__all__ = [
    "DeviceProfile",
    "GraphedStep",
    "RecordableSGD",
    "can_record",
    "cores",
    "device_profile",
    "faster_threads",
    "keeping_freed_memory",
    "keeping_random_states",
    "random_states",
    "set_random_states",
    "threads",
    "threads_given",
]

PRECISIONS = ("auto", "bf16", "tf32", "fp32")


@dataclass(frozen=True)
class DeviceProfile:
    """Where and how a network computes: device, precision, memory format.

    `precision` is "bf16" (autocast), "fp32", or "tf32", which is fp32 whose factors a
    GPU rounds to ten bits of mantissa.
    """

    device: torch.device
    precision: str
    memory_format: torch.memory_format

    def autocast(self) -> contextlib.AbstractContextManager:
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    @contextlib.contextmanager
    def exactly(self) -> Iterator[None]:
        """Inside, a GPU computes in the precision that is named, and in the same order
        each time; PyTorch alone lets convolutions in fp32 take TF32."""
        if self.device.type != "cuda":
            yield
            return
        flags = []
        for read, write, value in _exact_flags(self.precision == "tf32"):
            with contextlib.suppress(RuntimeError):  # old and new ones that disagree
                flags.append((write, read(), value))
        try:
            for write, _, value in flags:
                write(value)
            yield
        finally:
            for write, before, _ in flags:
                write(before)

    def suiting(self, model: nn.Module) -> "DeviceProfile":
        """The same, but for a network that channels last would harm on a CPU.

        There PyTorch's backward pass of a narrow, strided 1×1 convolution writes beyond
        its memory, and the process dies (seen with 2.14 and 2.15 on AVX2, 2 to 7
        channels, strides of 2, 4 and 8).
        """
        harmed = self.device.type == "cpu" and any(
            isinstance(layer, nn.Conv2d)
            and layer.kernel_size == (1, 1) != layer.stride
            and layer.in_channels < 8
            for layer in model.modules()
        )
        return self.contiguous if harmed else self

    @property
    def contiguous(self) -> "DeviceProfile":
        """The same with PyTorch's own layout, for a network that takes no other: one
        that calls `view` on its maps, say."""
        return replace(self, memory_format=torch.contiguous_format)

    def __str__(self) -> str:
        nhwc = self.memory_format == torch.channels_last
        layout = "channels_last" if nhwc else "contiguous"
        return f"{self.device.type}, {self.precision}, {layout}"


def _exact_flags(tf32: bool) -> Iterator[tuple[Callable, Callable, object]]:
    """Of the process: how to read a flag, how to write it, and what it should be.

    PyTorch 2.9 has new ones for the precision. The old ones come first, since to write
    one changes some of the new.
    """
    backends = torch.backends
    cudnn = backends.cudnn
    wanted = {(cudnn, "enabled"): True, (cudnn, "benchmark"): False}
    wanted |= {(cudnn, "deterministic"): True, (cudnn, "allow_tf32"): tf32}
    matmul = "high" if tf32 else "highest"
    yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, matmul
    if hasattr(cudnn, "conv"):
        for works in (cudnn.conv, cudnn.rnn, backends.cuda.matmul):
            wanted[works, "fp32_precision"] = "tf32" if tf32 else "ieee"
        cpu = backends.mkldnn.matmul  # which the first flag would change as well
        wanted[cpu, "fp32_precision"] = cpu.fp32_precision
    for flag, value in wanted.items():
        yield partial(getattr, *flag), partial(setattr, *flag), value


def device_profile(precision: str = "auto", device: str | None = None) -> DeviceProfile:
    """The fastest honest way to train on this machine.

    CUDA and CPU: channels last, and bf16 where units of its own multiply it (GPUs from
    Ampere on, processors with AMX), else fp32: emulated bf16 is several times slower,
    and with AVX512-BF16 alone it took 1.4 times the seconds of fp32 on one processor
    and 0.5 to 0.6 of them on another, so try both on such a one.
    Apple's MPS: fp32, default format. `precision` "bf16", "tf32" or "fp32" overrules,
    as does `device`.

    Raises ValueError for another precision and for a device that is not there; a GPU
    that is there and cannot compute is passed over with a warning.
    """
    one_of("precision", precision, PRECISIONS)
    target = _best_device() if device is None else _usable(device)
    if precision == "auto":
        precision = "bf16" if _has_bf16(target) else "fp32"
    layout = torch.contiguous_format if target.type == "mps" else torch.channels_last
    return DeviceProfile(target, precision, layout)


def _usable(device: str) -> torch.device:
    """The device, if it can add 1: an old GPU takes a tensor and then has no kernel."""
    try:
        target = torch.device(device)
        (torch.zeros(1, device=target) + 1).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"Device {device!r} is not usable here ({error}). "
            "Use 'cpu', or leave it out."
        ) from error
    return target


def _best_device() -> torch.device:
    for name, kind in (("mps", torch.backends.mps), ("cuda", torch.cuda)):
        if kind.is_available():
            try:
                return _usable(name)
            except ValueError as error:
                warnings.warn(f"{error} Going on with the CPU.", stacklevel=3)
    return torch.device("cpu")


def _has_bf16(target: torch.device) -> bool:
    """Whether bf16 is faster there; on a GPU before Ampere, as a T4, it is not."""
    if target.type == "cuda":
        with torch.cuda.device(target):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return target.type == "cpu" and amx()


# --- the process ----------------------------------------------------------------------

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # from glibc's malloc.h
KEEPING = {MMAP_THRESHOLD: 1 << 30, TRIM_THRESHOLD: (1 << 31) - 1, TOP_PAD: 64 << 20}
# Where glibc's own thresholds end on 64 bits. They begin at 128 KiB and grow with the
# blocks that are freed, but never again once they have been set.
GROWN = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20, TOP_PAD: 128 << 10}


@contextlib.contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Inside, glibc keeps freed blocks instead of returning them to the system.

    Each step on the CPU frees its activations and asks for them again; handing every
    page back and forth costs several percent of the time. Afterwards glibc has the
    values that it would have grown to. Other C libraries are left alone.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    for parameter, value in KEEPING.items():
        libc.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in GROWN.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)


def random_states(device: torch.device) -> dict:
    """Where the random numbers of the process stand: PyTorch's, on the CPU and on a GPU
    that computes, Python's and numpy's. For networks that draw some."""
    name, keys, *rest = np.random.get_state()
    states = {"random": torch.get_rng_state(), "python_random": random.getstate()}
    states["numpy_random"] = (name, keys.tolist(), *rest)
    if device.type == "cuda":
        states["cuda_random"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict, device: torch.device) -> None:
    """Go on from `random_states`. Checkpoints of before know PyTorch's alone."""
    torch.set_rng_state(states["random"])
    if "python_random" in states:
        random.setstate(states["python_random"])
        np.random.set_state(states["numpy_random"])
    if device.type == "cuda" and "cuda_random" in states:
        torch.cuda.set_rng_state(states["cuda_random"], device)


@contextlib.contextmanager
def keeping_random_states(device: torch.device) -> Iterator[None]:
    """Afterwards, random numbers go on as if nothing inside had drawn any."""
    before = random_states(device)
    try:
        yield
    finally:
        set_random_states(before, device)


def cores() -> int:
    """How many this process may use: a cluster lends it a few of a machine's many."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_given() -> bool:
    """Whether somebody said how many threads PyTorch may take."""
    named = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys()
    return bool(named) or torch.get_num_threads() == 1


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Inside, PyTorch computes with so many threads; None leaves the number alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def faster_threads(step: Callable[[], None]) -> dict[int, float]:
    """Seconds of `step` with one thread and with all of them, the faster one first.

    Beside other work two threads can be many times slower than one: each update waits
    for the one that does not get its core.
    """
    seconds = {}
    for count in (1, torch.get_num_threads()):
        with threads(count):
            step()  # the first has caches to fill
            start = time.perf_counter()
            step()
            seconds[count] = time.perf_counter() - start
    return dict(sorted(seconds.items(), key=lambda item: item[1]))


# --- a step that the device repeats ---------------------------------------------------


NOT_RECORDED = (
    "An update is recorded once, as a CUDA graph, and repeated: a network that decides "
    "anything in Python on the way needs graphed=False."
)


class GraphedStep:
    """A step that is recorded on the GPU once and replayed from then on.

    An update of a small network is hundreds of kernels, each shorter than the time it
    takes to launch it. As one CUDA graph they are launched together. `step` takes a
    tensor and reads nothing back to the host; `state` lists every tensor that it
    changes. The warm-up that CUDA asks for leaves no trace in them, so each call counts
    as exactly one step.

    A replay reads and writes the very addresses of the recording: where one of these
    tensors is replaced, make a new one.
    """

    def __init__(
        self,
        step: Callable[[Tensor], None],
        state: Callable[[], list[Tensor]],
        before_recording: Callable[[], None],
    ) -> None:
        self.step, self.state, self.before_recording = step, state, before_recording
        self.replay: Callable[[], None] | None = None

    def __call__(self, given: Tensor) -> None:
        if self.replay is None:
            self.given = given.clone()  # the address that the recording reads
            self._warm_up()
            self.before_recording()
            try:
                self.replay = record_cuda_graph(self._step_given, given.device)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise RuntimeError(
                    f"{NOT_RECORDED} Restart the kernel first: CUDA may not recover "
                    f"from a recording that failed. ({error})"
                ) from error
        self.given.copy_(given)
        self.replay()

    def _step_given(self) -> None:
        self.step(self.given)

    def _warm_up(self) -> None:
        """Three steps, as CUDA asks for, undone in place."""
        kept = [tensor.clone() for tensor in self.state()]
        device, luck = self.given.device, _luck()
        with on_side_stream(device), keeping_random_states(device):
            for _ in range(3):
                self._step_given()
            same = _luck() == luck
        with torch.no_grad():
            for tensor, value in zip(self.state(), kept, strict=True):
                tensor.copy_(value)
        if not same:
            raise RuntimeError(f"The network draws random numbers. {NOT_RECORDED}")


def _luck() -> dict:
    """Where the CPU's random numbers stand."""
    states = random_states(torch.device("cpu"))
    return states | {"random": states["random"].tolist()}


class RecordableSGD(torch.optim.SGD):
    """SGD that a recording can hold, and whose state any machine can load.

    If `recordable`, the rate is a tensor that the fused kernel reads on the device, so
    that a recorded step takes the rate of the day; and momentum begins as zeros, since
    a recording of the first step, which has none yet, would begin anew each time.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], recordable: bool, lr: float, **options
    ) -> None:
        parameters = list(parameters)
        rate = torch.tensor(lr, device=parameters[0].device) if recordable else lr
        super().__init__(parameters, rate, fused=recordable or None, **options)
        if recordable and options.get("momentum"):
            for parameter in parameters:
                zeros = torch.zeros_like(parameter)
                self.state[parameter]["momentum_buffer"] = zeros

    def set_rate(self, lr: float) -> None:
        (group,) = self.param_groups
        recordable = isinstance(group["lr"], Tensor)
        group["lr"] = group["lr"].fill_(lr) if recordable else lr

    def momentum(self) -> dict[nn.Parameter, Tensor]:
        buffers = {p: state.get("momentum_buffer") for p, state in self.state.items()}
        return {p: buffer for p, buffer in buffers.items() if buffer is not None}

    def state_dict(self) -> dict:
        state = super().state_dict()
        for group in state["param_groups"]:
            group |= {"lr": float(group["lr"]), "fused": None}
        return state

    def load_state_dict(self, state: dict) -> None:
        """Momentum, at the addresses of before; rate and kernel stay as they are."""
        (group,), before = self.param_groups, self.momentum()
        ours = {"lr": group["lr"], "fused": group["fused"]}
        super().load_state_dict(state)
        self.param_groups[0].update(ours)
        for parameter, loaded in self.momentum().items():
            if parameter in before:
                buffer = before[parameter].copy_(loaded)
                self.state[parameter]["momentum_buffer"] = buffer


def can_record(device: torch.device) -> bool:
    """Whether steps on this device can be recorded and replayed."""
    return device.type == "cuda"


@contextlib.contextmanager
def on_side_stream(device: torch.device) -> Iterator[None]:
    """Work inside waits for what came before, and what comes after waits for it."""
    if device.type != "cuda":
        yield
        return
    stream, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(main)
    with torch.cuda.stream(stream):
        yield
    main.wait_stream(stream)


def record_cuda_graph(
    work: Callable[[], None], device: torch.device
) -> Callable[[], None]:
    """Record the kernels of `work` without running them; returns their replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        work()
    return graph.replay
