"""The host side of csrc/cuda/squeeze_excite.cu."""

from __future__ import annotations

import ctypes

from effnet_fast.cuda.kernels import kernel, suffix
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.packing import pack_squeeze_excite as pack
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act

__all__ = ["images_of_block", "launch", "pack"]

THREADS = 256
SHARED = 48 << 10  # bytes, without a function attribute


class Arguments(ctypes.Structure):
    """SqueezeExcite of csrc/cuda/squeeze_excite.h."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("sums", "w1", "b1", "w2", "b2", "gate")),
        *((name, ctypes.c_int32) for name in ("images", "tiles", "channels", "squeezed")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("act", "gate_act", "is_aligned")),
    ]


def launch(
    device: Device,
    sums: DeviceTensor,
    pixels: int,
    packed: tuple[DeviceTensor | None, ...],
    gate: DeviceTensor,
    act: Act,
    gate_act: Act,
    images: int | None = None,
) -> Launch:
    """Compute gate = gate_act(w2 act(w1 mean + b1) + b2).

    Parameters
    ----------
    device : Device
    sums : DeviceTensor
        (N, tiles, C), float32, contiguous, N at least 1: the mean is their sum over the tiles,
        divided by ``pixels``.
    pixels : int
    packed : tuple of DeviceTensor or None
        What :func:`pack` returned.
    gate : DeviceTensor
        (N, C), contiguous, of the weights' type.
    act, gate_act : Act
    images : int, optional
        Of a block, other than :func:`images_of_block` says.
    """
    n, tiles, c = sums.shape
    w1, b1, w2, b2 = packed
    squeezed = w1.shape[0]
    quad = 4 * w1.dtype.itemsize
    images = images or images_of_block(n, c, squeezed, device.attributes["multiprocessor_count"])
    arguments = Arguments(
        sums=sums.address, w1=w1.address, b1=0 if b1 is None else b1.address,
        w2=w2.address, b2=0 if b2 is None else b2.address, gate=gate.address,
        images=n, tiles=tiles, channels=c, squeezed=squeezed,
        scale=1 / pixels,
        act=act, gate_act=gate_act,
        is_aligned=c % 4 == 0 and all(t.address % quad == 0 for t in (w1, w2)),
    )  # fmt: skip
    named = {"sums": sums, "w1": w1, "b1": b1, "w2": w2, "b2": b2}
    return Launch(
        kernel(device, "squeeze_excite", f"squeeze_excite_{images}_{suffix(w1.dtype)}"),
        grid=(-(-n // images),),
        block=(THREADS,),
        shared=_shared(images, c, squeezed),
        arguments=(arguments,),
        regions=(
            *(t.region(name, "r") for name, t in named.items() if t is not None),
            gate.region("gate", "w"),
        ),
        alive=(*named.values(), gate),
    )


def images_of_block(n: int, c: int, squeezed: int, multiprocessors: int) -> int:
    """As many as leave few multiprocessors idle: they share the weights that a block reads."""
    for images in (4, 2):
        if 8 * n >= 7 * images * multiprocessors and _shared(images, c, squeezed) <= SHARED:
            return images
    return 1


def _shared(images: int, c: int, squeezed: int) -> int:
    return 4 * images * (-(-c // 4) * 4 + squeezed)
