"""squeeze_excite: gate = gate_act(w2 act(w1 mean + b1) + b2), from a map's sums."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

from effnet_fast.gpu.compiled import CompiledKernel
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.packing import pack_squeeze_excite as pack
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.gpu.triton_compile import TYPES, compile_triton, launch_arguments
from effnet_fast.network import Act
from effnet_fast.triton.activation import activate

__all__ = ["compiled", "launch", "pack"]

WARPS = 8
# Elements of a tile of weights: 16 for each thread.
TILE = 32 * WARPS * 16


@triton.jit
def squeeze_excite_kernel(
    sums_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, gate_ptr,
    tiles, channels, squeezed, scale,
    ACT: tl.constexpr, GATE_ACT: tl.constexpr, has_b1: tl.constexpr, has_b2: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Both layers of one image; BLOCK_R is at least `squeezed`.

    sums [image][tile][channel] times `scale` are the means; w1 and w2 are both [squeezed][channel].
    """
    image = tl.program_id(0).to(tl.int64)
    sums_ptr += image * tiles * channels
    r_offs = tl.arange(0, BLOCK_R)
    r_mask = r_offs < squeezed
    acc = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for first in tl.range(0, channels, BLOCK_C):
        c_offs = first + tl.arange(0, BLOCK_C)
        c_mask = c_offs < channels
        mean = tl.zeros((BLOCK_C,), tl.float32)
        for tile in tl.range(tiles):
            ptrs = sums_ptr + tile.to(tl.int64) * channels + c_offs
            mean += tl.load(ptrs, mask=c_mask, other=0.0)
        mean *= scale
        offs = r_offs[:, None] * channels + c_offs[None, :]
        mask = r_mask[:, None] & c_mask[None, :]
        w1 = tl.load(w1_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        acc += w1 * mean[None, :]
    squeezed_sum = tl.sum(acc, axis=1)
    if has_b1:
        squeezed_sum += tl.load(b1_ptr + r_offs, mask=r_mask, other=0.0).to(tl.float32)
    middle = activate(squeezed_sum, ACT)
    for first in tl.range(0, channels, BLOCK_C):
        c_offs = first + tl.arange(0, BLOCK_C)
        c_mask = c_offs < channels
        offs = r_offs[:, None] * channels + c_offs[None, :]
        mask = r_mask[:, None] & c_mask[None, :]
        w2 = tl.load(w2_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        # mul_rn: fused into the sums over lanes, the products would give each lane other last bits,
        # and whichever stores the common sum would decide.
        gate = tl.sum(libdevice.mul_rn(w2, middle[:, None]), axis=0)
        if has_b2:
            gate += tl.load(b2_ptr + c_offs, mask=c_mask, other=0.0).to(tl.float32)
        out = activate(gate, GATE_ACT).to(gate_ptr.dtype.element_ty)
        tl.store(gate_ptr + image * channels + c_offs, out, mask=c_mask)


@functools.cache
def compiled(
    capability: int,
    dtype: torch.dtype,
    squeezed: int,
    act: Act,
    gate_act: Act,
    has_b1: bool,
    has_b2: bool,
    aligned: bool,
) -> CompiledKernel:
    """The kernel for a type and activations.

    Parameters
    ----------
    capability : int
    dtype : torch.dtype
        Of the weights.
    squeezed : int
        The most squeezed channels: a power of two.
    act, gate_act : Act
    has_b1, has_b2 : bool
    aligned : bool
        Whether the channels are a multiple of 16 and all tensors begin at multiples of 16 bytes.
    """
    pointer = "*" + TYPES[dtype]
    pointers = {"sums_ptr": "*fp32", "w1_ptr": pointer, "w2_ptr": pointer, "gate_ptr": pointer}
    pointers |= {"b1_ptr": pointer} if has_b1 else {}
    pointers |= {"b2_ptr": pointer} if has_b2 else {}
    absent = {name: None for name in ("b1_ptr", "b2_ptr") if name not in pointers}
    return compile_triton(
        squeeze_excite_kernel,
        pointers | {"tiles": "i32", "channels": "i32", "squeezed": "i32", "scale": "fp32"},
        absent
        | {
            "ACT": int(act), "GATE_ACT": int(gate_act), "has_b1": has_b1, "has_b2": has_b2,
            "BLOCK_R": squeezed, "BLOCK_C": max(16, min(256, TILE // squeezed)),
        },
        capability,
        num_warps=WARPS,
        divisible=("channels", *pointers) if aligned else (),
    )  # fmt: skip


def launch(
    device: Device,
    sums: DeviceTensor,
    pixels: int,
    packed: tuple[DeviceTensor | None, ...],
    gate: DeviceTensor,
    act: Act,
    gate_act: Act,
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
    """
    n, tiles, c = sums.shape
    tensors = dict(zip(("w1_ptr", "b1_ptr", "w2_ptr", "b2_ptr"), packed, strict=True))
    tensors |= {"sums_ptr": sums, "gate_ptr": gate}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    squeezed = packed[0].shape[0]
    kernel = compiled(
        device.capability,
        packed[0].dtype,
        max(2, 1 << (squeezed - 1).bit_length()),
        act,
        gate_act,
        "b1_ptr" in given,
        "b2_ptr" in given,
        c % 16 == 0 and all(tensor.address % 16 == 0 for tensor in given.values()),
    )
    values = {"tiles": tiles, "channels": c, "squeezed": squeezed, "scale": 1 / pixels}
    return Launch(
        kernel.load(device),
        grid=(n,),
        block=(kernel.threads,),
        shared=kernel.dynamic_shared,
        arguments=launch_arguments(kernel, given | values),
        regions=tuple(
            tensor.region(name.removesuffix("_ptr"), "w" if tensor is gate else "r")
            for name, tensor in given.items()
        ),
    )
