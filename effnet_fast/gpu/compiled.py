"""A compiled kernel: one kind of object, whichever compiler made it, and the packing of its
arguments.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from effnet_fast.errors import ArgumentError, BackendError
from effnet_fast.gpu.ptx_text import TYPE_BYTES, Entry, Parameter, Ptx, read_ptx
from effnet_fast.gpu.resources import WARP, Occupancy, Resources, occupancy

if TYPE_CHECKING:
    from effnet_fast.gpu.device import Device, Kernel

LANGUAGES = ("cuda", "triton")


@dataclass(frozen=True)
class Argument:
    """An argument of the function in the source; Triton's alone, for nvcc's PTX has no names.

    Attributes
    ----------
    type : as in Triton's signatures: ``"*fp32"``, ``"i64"``, or ``"constexpr"``.
    constant : its value, when it was compiled in: the kernel has no parameter for it.
    multiple : what its value has to be a multiple of.
    """

    name: str
    type: str
    constant: Any = None
    multiple: int = 1

    @property
    def passed(self) -> bool:
        """Whether the kernel has a parameter for it."""
        return self.type != "constexpr"


@dataclass(frozen=True)
class Scratch:
    """Memory that a Triton kernel wants to be lent, for each block of the grid."""

    bytes: int = 0
    align: int = 1


@dataclass(frozen=True, eq=False)
class CompiledKernel:
    """A kernel as PTX and machine code for one architecture.

    Attributes
    ----------
    name : of the ``.entry``.
    language : ``"cuda"`` or ``"triton"``.
    capability : what it is compiled for: 80 for sm_80.
    ptx : the whole module's text; other kernels may be in it.
    cubin : its machine code; None when it was not assembled.
    resources : what ptxas gave it; None when it was not assembled.
    dynamic_shared : bytes of shared memory that a launch has to ask for. Triton's compiler says;
        0 for CUDA, where it is the caller's.
    arguments : of the function in the source, Triton's alone.
    scratch : memory that every launch has to lend, Triton's alone.
    """

    name: str
    language: str
    capability: int
    ptx: str = field(repr=False)
    cubin: bytes | None = field(default=None, repr=False)
    resources: Resources | None = None
    dynamic_shared: int = 0
    arguments: tuple[Argument, ...] = ()
    scratch: Scratch = Scratch()

    def __post_init__(self):
        if self.name not in self.module.entries:
            raise ArgumentError(
                f"name is {self.name!r}; the PTX has {', '.join(self.module.entries) or 'none'}"
            )

    @cached_property
    def module(self) -> Ptx:
        """What its PTX says of all the kernels in it."""
        return read_ptx(self.ptx)

    @property
    def entry(self) -> Entry:
        """What its PTX says of this kernel."""
        return self.module.entries[self.name]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Of the ``.entry``, in order."""
        return self.entry.parameters

    @property
    def threads(self) -> int | None:
        """Threads of a block, when it can be launched with one block size only."""
        block = self.entry.required_block
        return math.prod(block) if block else None

    @property
    def warps(self) -> int | None:
        """Warps of a block, when it can be launched with one block size only."""
        return None if self.threads is None else -(-self.threads // WARP)

    @property
    def static_shared(self) -> int:
        """Bytes of shared memory that it declares."""
        return self.resources.static_shared if self.resources else self.entry.static_shared

    def occupancy(self, threads: int | None = None, dynamic_shared: int | None = None) -> Occupancy:
        """How many of its blocks fit on a multiprocessor of its architecture.

        Parameters
        ----------
        threads : int, optional
            Of a block; may be left out when only one number is possible.
        dynamic_shared : int, optional
            Bytes; what the kernel needs by default.

        Raises
        ------
        BackendError
            The kernel was not assembled.
        ArgumentError
            ``threads`` is left out where several numbers are possible, or not 1 to 1024.
        """
        if self.resources is None:
            raise BackendError(f"{self.name} was not assembled: its registers are not known")
        threads = self.threads if threads is None else threads
        if threads is None:
            raise ArgumentError(f"threads is None; {self.name} runs with more than one number")
        shared = self.dynamic_shared if dynamic_shared is None else dynamic_shared
        return occupancy(self.resources, threads, shared, self.capability)

    def image(self, device: Device) -> bytes | str:
        """What to load on a device: its machine code if the device runs that, its PTX otherwise.

        Raises
        ------
        BackendError
            The device runs neither.
        """
        target, has = self.module.target, device.capability
        # A target like sm_90a is for that capability and no other.
        runs = has == self.capability if target[-1].isalpha() else has >= self.capability
        if not runs:
            message = f"{self.name} is compiled for {target}; {device.name} is an sm_{has}"
            raise BackendError(message)
        # Machine code is for one generation; the PTX machine reads PTX alone.
        if device.backend == "cuda" and self.cubin and has // 10 == self.capability // 10:
            return self.cubin
        return self.ptx

    def load(self, device: Device) -> Kernel:
        """The kernel on a device, which keeps it; the PTX machine is told of its registers."""
        if self not in device.kernels:
            registers = {self.name: self.resources.registers} if self.resources else None
            device.kernels[self] = device.load(self.image(device), registers).kernel(self.name)
        return device.kernels[self]


# ---- arguments -----------------------------------------------------------------------------------


def pack_arguments(kernel: CompiledKernel, values: Sequence[Any]) -> bytes:
    """Pack arguments as the kernel takes them, each at its offset.

    Parameters
    ----------
    kernel : CompiledKernel
    values : sequence
        One for each parameter. For an integer or a pointer: an int in range, or a numpy integer of
        its size; for a pointer also a :class:`Buffer`, or a torch tensor on a GPU. For a
        floating-point number: an int, a float, or a numpy number of its size. For a struct or a
        half: a numpy scalar of its size. For any: ``bytes`` or a ``ctypes`` value of its size.

    Returns
    -------
    bytes
        ``kernel.entry.parameter_bytes`` of them, zeros between the parameters.

    Raises
    ------
    ArgumentError
        There are more or fewer values than parameters, or one does not fit.
    """
    packed = bytearray(kernel.entry.parameter_bytes)
    for parameter, data in zip(kernel.parameters, encode_arguments(kernel, values), strict=True):
        packed[parameter.offset : parameter.offset + parameter.bytes] = data
    return bytes(packed)


def encode_arguments(kernel: CompiledKernel, values: Sequence[Any]) -> tuple[bytes, ...]:
    """As :func:`pack_arguments`, in one piece for each parameter."""
    parameters = kernel.parameters
    if len(values) != len(parameters):
        raise ArgumentError(
            f"{kernel.name} takes {len(parameters)} arguments, {len(values)} are given; accepted: "
            + (", ".join(map(str, parameters)) or "none")
        )
    passed = [argument for argument in kernel.arguments if argument.passed]
    encoded = []
    for i, (parameter, value) in enumerate(zip(parameters, values, strict=True)):
        if i >= len(passed):  # the source's name and type are not known
            kind = _ptx_kind(parameter)
            encoded.append(_encode(f"argument {i} of {kernel.name}", value, kind))
            continue
        argument = passed[i]
        data = _encode(argument.name, value, _triton_kind(argument.type, parameter.bytes))
        if int.from_bytes(data, "little") % argument.multiple:
            raise ArgumentError(
                f"{argument.name} is {value!r}; {kernel.name} is compiled for multiples of "
                f"{argument.multiple}"
            )
        encoded.append(data)
    return tuple(encoded)


@dataclass(frozen=True)
class _Kind:
    """What a parameter takes: integers from `low` to `high`, floats, or bits alone."""

    name: str
    bytes: int
    low: int = 0
    high: int = -1
    is_float: bool = False

    def __str__(self) -> str:
        accepted = f"bytes or a numpy scalar of {self.bytes} bytes"
        if self.is_float:
            return f"a float, {accepted} for {self.name}"
        if self.name.startswith("*"):
            return f"an address, a Buffer, {accepted} for {self.name}"
        if self.low < self.high:
            return f"an int from {self.low} to {self.high}, {accepted} for {self.name}"
        return accepted


def _ptx_kind(parameter: Parameter) -> _Kind:
    name, size = parameter.type, parameter.bytes
    if name in ("f32", "f64"):
        return _Kind(name, size, is_float=True)
    if size > TYPE_BYTES[name] or name == "b8":
        return _Kind(name, size)
    # nvcc calls an int u32 as well.
    return _Kind(name, size, -(1 << 8 * size - 1), (1 << 8 * size) - 1)


def _triton_kind(name: str, size: int) -> _Kind:
    bits = 1 if name in ("i1", "u1") else 8 * size
    if name.startswith(("*", "u")) or bits == 1:
        return _Kind(name, size, 0, (1 << bits) - 1)
    if name.startswith("i"):
        return _Kind(name, size, -(1 << bits - 1), (1 << bits - 1) - 1)
    return _Kind(name, size, is_float=True)


def _encode(name: str, value: Any, kind: _Kind) -> bytes:
    def refused() -> ArgumentError:
        # Made only then: the text of a tensor is read from its GPU.
        return ArgumentError(f"{name} is {value!r}; accepted: {kind}")

    if isinstance(value, (bytes, bytearray, ctypes._SimpleCData, ctypes.Structure, ctypes.Array)):
        data = bytes(value)
        if len(data) != kind.bytes:
            raise ArgumentError(f"{name} has {len(data)} bytes; accepted: {kind}")
        return data
    number = value if isinstance(value, (int, float, np.generic)) else _address(value)
    if isinstance(number, np.generic) and number.nbytes != kind.bytes:
        raise refused()
    if kind.is_float:
        if not isinstance(number, (int, float, np.floating)) or number is not value:
            raise refused()
        try:
            return _encode_float(float(number), kind)
        except OverflowError:
            raise refused() from None
    if kind.high < kind.low:
        if not isinstance(number, np.generic):
            raise refused()
        return number.tobytes()
    if not isinstance(number, (int, np.integer, np.bool_)):
        raise refused()
    if not kind.low <= int(number) <= kind.high:
        raise refused()
    return (int(number) % (1 << 8 * kind.bytes)).to_bytes(kind.bytes, "little")


def _address(value: Any) -> int | None:
    """Of a buffer, or of a torch tensor on a GPU."""
    if getattr(value, "is_cuda", False):
        return value.data_ptr()
    return getattr(value, "address", None)


def _encode_float(value: float, kind: _Kind) -> bytes:
    if kind.name != "bf16":
        return struct.pack({2: "<e", 4: "<f", 8: "<d"}[kind.bytes], value)
    # The upper half of a float32, to nearest even.
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    if not math.isnan(value):
        bits += 0x7FFF + (bits >> 16 & 1)
    if bits >> 16 & 0x7FFF == 0x7F80 and not math.isinf(value):
        raise OverflowError
    return (bits >> 16).to_bytes(2, "little")
