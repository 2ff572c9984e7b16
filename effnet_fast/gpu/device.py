"""Devices, memory, streams and launches, the same on a real GPU and on the PTX machine."""

from __future__ import annotations

import ctypes
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from effnet_fast import _C
from effnet_fast.errors import ArgumentError

BACKENDS = ("cuda", "ptx")
# What each option of the machine accepts is checked by the machine, which names it.
MACHINE_OPTIONS = (
    "threads", "shuffle", "approx", "seed", "max_instructions", "last_blocks", "capacity",
)  # fmt: skip
FLOAT_FORMATS = {2: "<e", 4: "<f", 8: "<d"}


def machine_library() -> Path:
    """Path of the PTX machine's library, built beside ``effnet_fast._C``."""
    return Path(_C.__file__).with_name("libeffnet_ptx_machine.so")


class Device:
    """A GPU, or the PTX machine that stands in for one.

    All devices of one ordinal share the primary context, with torch too. A device is given back by
    :meth:`close`, at the end of a ``with`` block, or with the last object that lives on it.

    Parameters
    ----------
    backend : {"cuda", "ptx"}
        ``"cuda"`` opens ``libcuda.so.1``, ``"ptx"`` the PTX machine.
    index : int
        The device's ordinal. The machine has three: 0 is an sm_80, 1 an sm_89, 2 an sm_120.
    **options
        Of the machine: ``threads`` of the host (0: one per core), ``shuffle`` blocks and warps,
        ``approx`` (``"perturbed"`` or ``"exact"``), ``seed``, ``max_instructions`` of a block's
        threads, ``last_blocks`` of a grid, that alone run (0: all), ``capacity`` in bytes.

    Raises
    ------
    BackendError
        There is no usable driver or no such device, or it is older than sm_80.
    ArgumentError
        An option has a value that is not accepted, or a real GPU was given one.
    GpuError
        A call of the driver failed.
    """

    def __init__(self, backend: str = "cuda", index: int = 0, **options: Any):
        if backend not in BACKENDS:
            raise ArgumentError(f"backend is {backend!r}; accepted: {', '.join(BACKENDS)}")
        for name in options:
            if name not in MACHINE_OPTIONS:
                raise TypeError(
                    f"Device() has no option {name!r}; accepted: {', '.join(MACHINE_OPTIONS)}"
                )
        if backend == "cuda" and options:
            raise ArgumentError(f"{next(iter(options))!r} is an option of the backend 'ptx'")
        self.backend = backend
        self.index = index
        if backend == "cuda":
            self._driver = _C.gpu.Driver.open_cuda()
            self._native = _C.gpu.Device.open(self._driver, index)
        else:
            self._driver = _C.gpu.Driver.open_machine(str(machine_library()))
            self._native = self._open_machine(self._driver, index, options)
        self.stream = Stream(self)
        # Loaded once and kept: unloading one under a launch or a captured graph is undefined.
        self.kernels: dict[Any, Kernel] = {}

    @staticmethod
    def _open_machine(
        driver: _C.gpu.Driver, index: int, options: Mapping[str, Any]
    ) -> _C.gpu.Device:
        # Kept for contexts to come; 0 is the device's own.
        driver.set_option("capacity", str(options.get("capacity", 0)))
        native = _C.gpu.Device.open(driver, index)
        for name, value in options.items():
            if name != "capacity":
                text = str(int(value)) if isinstance(value, bool) else str(value)
                native.set_option(name, text)
        if options.get("capacity", native.memory()[1]) != native.memory()[1]:
            raise ArgumentError(
                f"capacity is {options['capacity']}; the context of device {index} is in use "
                f"already, with {native.memory()[1]}"
            )
        return native

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"Device({self.backend!r}, {self.index}: {self.name}{state})"

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The device's name."""
        return self._native.name

    @property
    def capability(self) -> int:
        """10 * major + minor of the compute capability: 80 for sm_80."""
        return self._native.capability

    @property
    def driver_version(self) -> int:
        """Of the CUDA that the driver is of: 13000 for 13.0."""
        return self._driver.version

    @cached_property
    def attributes(self) -> dict[str, int]:
        """The driver's device attributes, as in ``attributes["multiprocessor_count"]``."""
        return self._native.attributes()

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes of device memory: free, total."""
        return self._native.memory()

    @property
    def closed(self) -> bool:
        """Whether the device has been given back."""
        return self._native.closed

    def close(self) -> None:
        """Free everything on the device and give its context back.

        This is the way out after a :class:`~effnet_fast.errors.KernelFault`, too: the next device
        has a new context, when no other one holds the broken one.
        """
        self.kernels.clear()
        self._native.close()

    # ---- code -----------------------------------------------------------------------------------

    def load(self, image: bytes | str, registers: Mapping[str, int] | None = None) -> Module:
        """Load kernels; the same image is loaded once.

        Parameters
        ----------
        image : bytes or str
            PTX, or a fat binary; a real GPU takes cubins as well.
        registers : mapping of str to int, optional
            What ptxas gave to each kernel, per thread. The machine cannot know, and checks it
            against the register file; a real driver knows, and ignores this.

        Raises
        ------
        GpuError
            The image does not compile, has nothing for this device, or lacks a kernel of
            ``registers``.
        """
        data = image.encode() if isinstance(image, str) else bytes(image)
        module = Module(self, self._native.load(data))
        if self.backend == "ptx":
            for name, count in (registers or {}).items():
                module.kernel(name)._native.set_registers(count)
        return module

    # ---- memory ---------------------------------------------------------------------------------

    def empty(self, bytes: int) -> Buffer:
        """Allocate device memory. On the machine, reading it before it is written is a fault."""
        return Buffer(self, bytes)

    def upload(
        self, source: np.ndarray | torch.Tensor, into: Buffer | None = None, stream=None
    ) -> Buffer:
        """Copy host data to the device, and wait until it is there.

        Parameters
        ----------
        source : numpy.ndarray or torch.Tensor
            On the CPU; copied first if it is not contiguous.
        into : Buffer, optional
            Where to; a new buffer by default.
        stream : Stream or int, optional
            Where in the order of work; the device's own stream by default.

        Returns
        -------
        Buffer
        """
        address, count, kept = _host_bytes(source)
        buffer = Buffer(self, count) if into is None else into
        if count > buffer.bytes:
            raise ArgumentError(f"source has {count} bytes; the buffer has {buffer.bytes}")
        native = self._stream(stream)._native
        _C.gpu.copy_to_device(native, buffer.address, address, count)
        native.synchronize()
        del kept
        return buffer

    def download(self, source: Buffer, dtype=np.uint8, shape=None, stream=None):
        """Copy a buffer's contents to the host, after the work before it in the stream.

        Parameters
        ----------
        source : Buffer
        dtype : numpy dtype or torch.dtype
            Of the elements; says whether an array or a tensor is returned.
        shape : tuple of int, optional
            Of the result; all that the buffer holds, in one dimension, by default.
        stream : Stream or int, optional
            Where in the order of work; the device's own stream by default.

        Returns
        -------
        numpy.ndarray or torch.Tensor
        """
        is_tensor = isinstance(dtype, torch.dtype)
        size = dtype.itemsize if is_tensor else np.dtype(dtype).itemsize
        shape = (source.bytes // size,) if shape is None else tuple(shape)
        result = torch.empty(shape, dtype=dtype) if is_tensor else np.empty(shape, dtype)
        count = size * math.prod(shape)
        if count > source.bytes:
            raise ArgumentError(f"shape {shape} has {count} bytes; the buffer has {source.bytes}")
        native = self._stream(stream)._native
        _C.gpu.copy_to_host(native, _host_bytes(result)[0], source.address, count)
        native.synchronize()
        return result

    def pinned(self, bytes: int) -> np.ndarray:
        """Allocate page-locked host memory, as an array of bytes that frees it when it goes."""
        return np.asarray(_C.gpu.PinnedBuffer(self._native, bytes))

    # ---- work -----------------------------------------------------------------------------------

    def launch(self, launches: Launch | Iterable[Launch], stream=None) -> None:
        """Hand launches to a stream, in order, in one call.

        Parameters
        ----------
        launches : Launch or iterable of Launch
        stream : Stream or int, optional
            The device's own stream by default. An int is the handle of a foreign stream, as
            ``torch.cuda.current_stream().cuda_stream`` is.

        Raises
        ------
        GpuError
            The driver refuses a launch; those before it are made.
        """
        _C.gpu.run(_natives(launches), self._stream(stream)._native)

    def capture(self, launches: Launch | Iterable[Launch]) -> Graph:
        """Make a graph of launches, to be replayed."""
        return Graph(self, launches)

    def synchronize(self) -> None:
        """Wait for all work of the context; a kernel that failed is reported here at the latest."""
        self._native.synchronize()

    def take_counts(self) -> list[dict[str, Any]]:
        """What the machine counted in each launch that ran since the last call, oldest first."""
        return json.loads(self._native.take_counts())

    def _stream(self, stream: Stream | int | None) -> Stream:
        if stream is None:
            return self.stream
        return stream if isinstance(stream, Stream) else Stream(self, stream)


class Buffer:
    """Device memory; freed with its last reference.

    Parameters
    ----------
    device : Device
    bytes : int
        0 or more; an empty buffer has an address as well.
    """

    def __init__(self, device: Device, bytes: int):
        if bytes < 0:
            raise ArgumentError(f"bytes is {bytes}; accepted: 0 or more")
        self.device = device
        self._native = _C.gpu.Buffer(device._native, bytes)

    def __repr__(self) -> str:
        return f"Buffer({self.address:#x}, {self.bytes} bytes)"

    @property
    def address(self) -> int:
        """Where it is on the device."""
        return self._native.address

    @property
    def bytes(self) -> int:
        """Its size."""
        return self._native.bytes

    def region(self, name: str, mode: str = "rw") -> Region:
        """Declare the buffer for a launch, as ``"r"``, ``"w"`` or ``"rw"``."""
        if mode not in ("r", "w", "rw"):
            raise ArgumentError(f"mode is {mode!r}; accepted: 'r', 'w', 'rw'")
        return Region(name, self.address, self.bytes, "r" in mode, "w" in mode)

    def poison(self) -> None:
        """Forget the contents, as if just allocated. The machine only."""
        self._native.poison()


class Stream:
    """Work in order.

    Parameters
    ----------
    device : Device
    handle : int, optional
        Somebody else's stream, not destroyed here; 0 is the legacy stream. A new one by default,
        which does not wait for the legacy stream.
    """

    def __init__(self, device: Device, handle: int | None = None):
        arguments = (device._native,) if handle is None else (device._native, handle)
        self._native = _C.gpu.Stream(*arguments)

    @property
    def handle(self) -> int:
        """The driver's ``CUstream``."""
        return self._native.handle

    @property
    def done(self) -> bool:
        """Whether all its work has run."""
        return self._native.done()

    @property
    def capturing(self) -> bool:
        """Whether it is being captured into a graph."""
        return self._native.capturing()

    def synchronize(self) -> None:
        """Wait for its work."""
        self._native.synchronize()

    def wait(self, event: Event) -> None:
        """Let later work here wait for the event; the host does not."""
        self._native.wait(event._native)


class Event:
    """A point in a stream's work.

    Parameters
    ----------
    device : Device
    timing : bool
        Whether it can be used for :meth:`elapsed_since`.
    """

    def __init__(self, device: Device, timing: bool = True):
        self.device = device
        self._native = _C.gpu.Event(device._native, timing)

    def record(self, stream: Stream | int | None = None) -> Event:
        """Set it behind the work that the stream has now; returns the event."""
        self._native.record(self.device._stream(stream)._native)
        return self

    @property
    def done(self) -> bool:
        """Whether the work before it has run."""
        return self._native.done()

    def synchronize(self) -> None:
        """Wait for the work before it."""
        self._native.synchronize()

    def elapsed_since(self, start: Event) -> float:
        """Milliseconds from another event to this one."""
        return self._native.elapsed_since(start._native)


class Module:
    """Loaded kernels; made by :meth:`Device.load`."""

    def __init__(self, device: Device, native: _C.gpu.Module):
        self.device = device
        self._native = native
        self._kernels: dict[str, Kernel] = {}

    @property
    def kernels(self) -> list[str]:
        """The kernels' names, where the driver says (CUDA 12.4 or newer)."""
        return self._native.names()

    def kernel(self, name: str) -> Kernel:
        """A kernel, loaded and ready to be captured."""
        if name not in self._kernels:
            self._kernels[name] = Kernel(self, self._native.function(name))
        return self._kernels[name]

    def variable(self, name: str) -> tuple[int, int]:
        """Address and bytes of a ``__device__`` or ``__constant__`` variable."""
        return self._native.global_(name)


class Kernel:
    """A kernel of a module; made by :meth:`Module.kernel`."""

    def __init__(self, module: Module, native: _C.gpu.Function):
        self.module = module
        self._native = native

    def __repr__(self) -> str:
        return f"Kernel({self.name!r})"

    @property
    def name(self) -> str:
        """Its name in the image."""
        return self._native.name

    @cached_property
    def parameters(self) -> list[tuple[int, int]] | None:
        """Offset and bytes of each parameter; None where the driver does not say (before 12.4)."""
        return self._native.parameters

    @property
    def max_threads(self) -> int:
        """Threads that a block of it may have."""
        return self._native.max_threads

    @property
    def static_shared(self) -> int:
        """Bytes of shared memory that it declares."""
        return self._native.static_shared

    @property
    def local(self) -> int:
        """Bytes of local memory of a thread."""
        return self._native.local

    @property
    def registers(self) -> int:
        """Registers of a thread; 0 on the machine until :meth:`Device.load` is told."""
        return self._native.registers

    def max_active_blocks(self, threads: int, shared: int = 0) -> int:
        """Blocks that fit on a multiprocessor, with that much dynamic shared memory."""
        return self._native.max_active_blocks(threads, shared)


@dataclass(frozen=True)
class Region:
    """Device memory that a launch touches; :meth:`Buffer.region` makes one of a whole buffer."""

    name: str
    address: int
    bytes: int
    readable: bool = True
    writable: bool = True


@dataclass(frozen=True, eq=False)
class Launch:
    """A launch as data: it can be made once and run, or captured, many times.

    Parameters
    ----------
    kernel : Kernel
    grid, block : tuple of int
        Up to three dimensions, x first.
    shared : int
        Bytes of dynamic shared memory; the function is allowed what it takes.
    arguments : tuple
        One for each parameter: a :class:`Buffer` or a torch tensor on the GPU for a pointer; a
        numpy scalar, a ``ctypes`` value or ``bytes``, of just the parameter's size; or an int or
        float, which take the parameter's size.
    regions : tuple of Region
        What it reads and writes. The machine takes any other access for a fault, and counts by
        these names; with none declared it may touch every allocation. A GPU ignores them.
    alive : tuple
        What is to live as long as this, beside ``arguments``: the memory that a struct points to.

    Raises
    ------
    ArgumentError
        When first used: the arguments are not the parameters, in number or size.
    """

    kernel: Kernel
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int = 0
    arguments: tuple[Any, ...] = ()
    regions: tuple[Region, ...] = ()
    alive: tuple[Any, ...] = ()

    @cached_property
    def _native(self) -> _C.gpu.Launch:
        packed, layout = pack(self.kernel, self.arguments)
        return _C.gpu.Launch(
            self.kernel.module._native,
            self.kernel.name,
            _dims(self.grid, "grid"),
            _dims(self.block, "block"),
            self.shared,
            packed,
            layout,
            [(r.name, r.address, r.bytes, r.readable, r.writable) for r in self.regions],
        )


class Graph:
    """Launches captured once, on a stream of its own, and replayed on any.

    Replayed on a stream that is itself being captured, it makes plain launches.

    Parameters
    ----------
    device : Device
    launches : Launch or iterable of Launch
        Their arguments stay alive with the graph.
    """

    def __init__(self, device: Device, launches: Launch | Iterable[Launch]):
        self.device = device
        self._launches = (launches,) if isinstance(launches, Launch) else tuple(launches)
        self._native = _C.gpu.Graph(device._native, _natives(self._launches))

    @property
    def nodes(self) -> int:
        """How many it has."""
        return self._native.nodes

    def launch(self, stream: Stream | int | None = None) -> None:
        """Replay it, on the device's own stream by default."""
        self._native.launch(self.device._stream(stream)._native)


def pack(kernel: Kernel, arguments: Sequence[Any]) -> tuple[bytes, list[tuple[int, int]]]:
    """Pack arguments as a kernel takes them.

    Returns
    -------
    packed : bytes
    layout : list of (int, int)
        Offset and bytes of each argument.
    """
    parameters = kernel.parameters
    if parameters is not None and len(parameters) != len(arguments):
        raise ArgumentError(
            f"{kernel.name} takes {len(parameters)} arguments; {len(arguments)} are given"
        )
    packed, layout = bytearray(), []
    for i, value in enumerate(arguments):
        offset, size = parameters[i] if parameters is not None else (None, None)
        data = _encode(f"argument {i} of {kernel.name}", value, size)
        if offset is None:  # as the C ABI does
            offset = -(-len(packed) // len(data)) * len(data)
        packed.extend(bytes(offset - len(packed)))
        packed.extend(data)
        layout.append((offset, len(data)))
    return bytes(packed), layout


def _encode(what: str, value: Any, size: int | None) -> bytes:
    """The bytes of an argument; `size` is the parameter's, None where it is not known."""
    if isinstance(address := getattr(value, "address", None), int):  # a Buffer, a DeviceTensor
        data = address.to_bytes(8, "little")
    elif isinstance(value, torch.Tensor):
        if not value.is_cuda:
            raise ArgumentError(f"{what} is a tensor on {value.device}; accepted: one on the GPU")
        data = value.data_ptr().to_bytes(8, "little")
    elif isinstance(value, np.generic):
        data = value.tobytes()
    elif isinstance(value, (bytes, ctypes._SimpleCData, ctypes.Structure, ctypes.Array)):
        data = bytes(value)
    elif isinstance(value, (int, float)) and size is None:
        raise ArgumentError(
            f"{what} is {value!r}; this driver does not say what size a parameter has: give a "
            "numpy scalar, as numpy.int32 or numpy.float32"
        )
    elif isinstance(value, int):
        bits = 8 * size
        if not -(1 << (bits - 1)) <= value < 1 << bits:
            raise ArgumentError(f"{what} is {value}, which does not fit its {size} bytes")
        data = (value % (1 << bits)).to_bytes(size, "little")
    elif isinstance(value, float) and size in FLOAT_FORMATS:
        data = struct.pack(FLOAT_FORMATS[size], value)
    else:
        raise ArgumentError(
            f"{what} is {value!r}, for a parameter of {size} bytes; accepted: a Buffer, a tensor "
            "on the GPU, a numpy scalar, an int, a float, a ctypes value or bytes"
        )
    if size is not None and len(data) != size:
        raise ArgumentError(f"{what} has {len(data)} bytes; the parameter has {size}")
    return data


def _dims(dims: Sequence[int], name: str) -> tuple[int, int, int]:
    if not 1 <= len(dims) <= 3 or any(not 0 <= d < 1 << 32 for d in dims):
        raise ArgumentError(f"{name} is {tuple(dims)}; accepted: one to three sizes below 2**32")
    return (*dims, *(1,) * (3 - len(dims)))


def _natives(launches: Launch | Iterable[Launch]) -> list[_C.gpu.Launch]:
    if isinstance(launches, Launch):
        return [launches._native]
    return [launch._native for launch in launches]


def _host_bytes(source: np.ndarray | torch.Tensor) -> tuple[int, int, object]:
    """Address and size of host data, and what must stay alive while they are used."""
    if isinstance(source, torch.Tensor):
        if source.device.type != "cpu":
            raise ArgumentError(f"the tensor is on {source.device}; accepted: one on the CPU")
        tensor = source.detach().contiguous()
        return tensor.data_ptr(), tensor.numel() * tensor.element_size(), tensor
    array = np.ascontiguousarray(source)
    return array.ctypes.data, array.nbytes, array
