"""One operator call on a GPU, or on the PTX machine: its tensors there, and its launches."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import threading
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from effnet_fast.errors import BackendError
from effnet_fast.ops.extension import extension
from effnet_fast.ops.step import nhwc

if TYPE_CHECKING:  # effnet_fast.gpu needs the compiled part, which operators can be without
    from effnet_fast.gpu.device import Device, Launch
    from effnet_fast.gpu.tensor import DeviceTensor

LANGUAGES = ("cuda", "triton")
_machine: contextvars.ContextVar[Device | None] = contextvars.ContextVar("machine", default=None)
_lock = threading.Lock()


@contextlib.contextmanager
def emulated(device: Device | None = None) -> Iterator[Device]:
    """Run operators on the PTX machine: within the block, tensors on the CPU count as on a GPU.

    That is of this thread; threads that begin in the block are not in it.

    Parameters
    ----------
    device : Device, optional
        Of the backend ``"ptx"``; by default a new one, closed at the end.

    Yields
    ------
    Device
        For :meth:`~effnet_fast.gpu.Device.take_counts`.
    """
    with contextlib.ExitStack() as stack:
        if device is None:
            device = stack.enter_context(_device("ptx"))
        token = _machine.set(device)
        stack.callback(_machine.reset, token)
        yield device


def machine() -> Device | None:
    """The PTX machine of the :func:`emulated` block that this is in."""
    if torch.compiler.is_dynamo_compiling():
        return None  # a graph's operators ask when they run; PyTorch 2.11 can't trace the question
    return _machine.get()


def _device(backend: str, index: int = 0) -> Device:
    extension()  # or the reason why it is not there
    from effnet_fast.gpu.device import Device

    return Device(backend, index)


@functools.cache
def _gpu(index: int) -> Device:
    return _device("cuda", index)


def host_side(language: str, stem: str) -> ModuleType:
    """``effnet_fast.<language>.<stem>``.

    Raises
    ------
    BackendError
        Triton is not installed.
    """
    if language == "triton":
        from effnet_fast.gpu.triton_compile import import_triton

        import_triton()
    return importlib.import_module(f"effnet_fast.{language}.{stem}")


@functools.cache
def preferred_language(languages: tuple[str, ...] = LANGUAGES) -> str:
    """What ``impl="auto"`` takes: the first that is there. CUDA kernels need not be built.

    Raises
    ------
    BackendError
        There is none.
    """
    reasons = []
    for language in languages:
        try:
            CHECKS[language]()
        except BackendError as error:
            reasons.append(str(error))
        else:
            return language
    raise BackendError("; ".join(reasons))


def check_cuda() -> None:
    """Raise a BackendError where the CUDA kernels were not built."""
    from effnet_fast.gpu import fat_binary

    for stem in fat_binary.STEMS:
        fat_binary.path(stem)


def check_triton() -> None:
    """Raise a BackendError where Triton is missing, or of another version."""
    from effnet_fast.gpu.triton_compile import import_triton

    import_triton()


CHECKS = {"cuda": check_cuda, "triton": check_triton}


def aligned_map(x: torch.Tensor) -> torch.Tensor:
    """A map with adjacent channels and pixels that begin at 16 bytes: copied if it is not one."""
    x, unit = nhwc(x)[0], 16 // x.element_size()
    strides = (x.stride(i) for i in (0, 2, 3) if x.shape[i] > 1)
    if x.data_ptr() % 16 or any(stride % unit for stride in strides):
        c = x.shape[1]
        x = F.pad(x.permute(0, 2, 3, 1), (0, -c % unit)).contiguous().permute(0, 3, 1, 2)[:, :c]
    return x


class GpuStep:
    """The operands of one call, like :class:`~effnet_fast.ops.step.Step` on a CPU.

    Parameters
    ----------
    like : Tensor
        On the GPU, or on the CPU in an :func:`emulated` block.
    """

    def __init__(self, like: torch.Tensor):
        extension()
        from effnet_fast.gpu.tensor import DeviceTensor

        self._tensor = DeviceTensor
        self.emulated = not like.is_cuda
        if self.emulated:
            self.device = machine()
            self.stream = None
        else:
            with _lock:
                self.device = _gpu(like.device.index)
            self.stream = torch.cuda.current_stream(like.device).cuda_stream
        self._outputs: list[tuple[DeviceTensor, torch.Tensor]] = []

    def tensor(self, x: torch.Tensor) -> DeviceTensor:
        """An input, as it lies in memory."""
        return self._tensor.upload(self.device, x) if self.emulated else self._tensor.of(x)

    def map(self, x: torch.Tensor) -> DeviceTensor:
        """An input (N, C, H, W) with adjacent channels, its strides below 2^31 but for images."""
        x = nhwc(x)[0]
        if max(x.stride()[2:]) >= 1 << 31:
            x = x.clone(memory_format=torch.channels_last)
        return self.tensor(x)

    def aligned_map(self, x: torch.Tensor) -> DeviceTensor:
        """An input (N, C, H, W) whose pixels begin at 16 bytes: copied where they do not."""
        return self.tensor(aligned_map(x))

    def packed(self, constants: Iterable[torch.Tensor | None]) -> tuple[DeviceTensor | None, ...]:
        """What a kernel's ``pack`` returned."""
        return tuple(None if t is None else self.tensor(t) for t in constants)

    def output(self, y: torch.Tensor) -> DeviceTensor:
        """An output, to be written by launches."""
        if not self.emulated:
            return self._tensor.of(y)
        there = self._tensor.empty(self.device, tuple(y.shape), y.stride(), y.dtype)
        self._outputs.append((there, y))
        return there

    def scratch(self, shape: tuple[int, ...], like: torch.Tensor) -> DeviceTensor:
        """Float32 memory for this call, contiguous."""
        return self.output(torch.empty(shape, dtype=torch.float32, device=like.device))

    def run(self, *launches: Launch) -> None:
        """Launch, in order; on the machine also wait, and copy the outputs back."""
        self.device.launch(launches, self.stream)
        for there, y in self._outputs:
            there.download(self.device, y)
