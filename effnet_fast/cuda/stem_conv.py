"""The host side of csrc/cuda/stem_conv.cu."""

from __future__ import annotations

import ctypes

from effnet_fast.cuda.divisor import Divisor
from effnet_fast.cuda.epilogue import Epilogue
from effnet_fast.cuda.gemm import stages_bytes, sums_bytes, threads
from effnet_fast.cuda.kernels import kernel, suffix
from effnet_fast.cuda.pointwise_conv import pack
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act, Window

__all__ = ["launch", "pack"]

PIXELS = 128  # of a block


class Arguments(ctypes.Structure):
    """StemConv of csrc/cuda/stem_conv.h."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("x", "weight")),
        *((name, ctypes.c_int64) for name in ("x_image", "x_channel", "x_row", "x_pixel")),
        *((name, ctypes.c_int32) for name in ("depth", "weight_depth", "pixels")),
        *((name, ctypes.c_int32) for name in ("h", "w", "stride_h", "stride_w", "top", "left")),
        *(
            (name, Divisor)
            for name in ("window", "kernel_columns", "out_columns", "channel_tiles", "tiles")
        ),
        ("out", Epilogue),
    ]


def launch(
    device: Device,
    x: DeviceTensor,
    packed: tuple[DeviceTensor | None, ...],
    y: DeviceTensor,
    window: Window,
    act: Act,
) -> Launch:
    """Compute y = act(conv(x) + bias).

    Parameters
    ----------
    device : Device
    x : DeviceTensor
        (N, C, H, W), of any strides; N at least 1.
    packed : tuple of DeviceTensor or None
        What :func:`pack` returned.
    y : DeviceTensor
        (N, O, H', W') with adjacent channels.
    window : Window
        With its padding, without a dilation.
    act : Act
    """
    weight, bias = packed
    n, cin, h, w = x.shape
    _, cout, out_h, out_w = y.shape
    depth = cin * window.kernel[0] * window.kernel[1]
    channels = 32 if cout <= 32 else 64
    pixels = out_h * out_w
    blocks = -(-pixels // PIXELS), -(-cout // channels)
    arguments = Arguments(
        x=x.address, weight=weight.address,
        x_image=x.strides[0], x_channel=x.strides[1], x_row=x.strides[2], x_pixel=x.strides[3],
        depth=depth, weight_depth=weight.shape[1], pixels=pixels,
        h=h, w=w, stride_h=window.stride[0], stride_w=window.stride[1],
        top=window.padding[0], left=window.padding[1],
        window=Divisor.of(window.kernel[0] * window.kernel[1]),
        kernel_columns=Divisor.of(window.kernel[1]), out_columns=Divisor.of(out_w),
        channel_tiles=Divisor.of(blocks[1]), tiles=Divisor.of(blocks[0]),
        out=Epilogue.of(cout, act, bias, y, columns=out_w),
    )  # fmt: skip
    named = {"x": x, "weight": weight, "bias": bias, "y": y}
    given = {name: tensor for name, tensor in named.items() if tensor is not None}
    return Launch(
        kernel(device, "stem_conv", f"stem_conv_{PIXELS}x{channels}_{suffix(x.dtype)}"),
        grid=(n * blocks[0] * blocks[1],),
        block=(threads(PIXELS, channels, x.dtype.itemsize),),
        shared=max(
            stages_bytes(PIXELS + channels, depth, x.dtype.itemsize), sums_bytes(PIXELS, channels)
        ),
        arguments=(arguments,),
        regions=tuple(t.region(name, "w" if t is y else "r") for name, t in given.items()),
        alive=tuple(given.values()),
    )
