"""GPU kernels on the layers of whole models, and on tensors too large for 32-bit offsets."""

from __future__ import annotations

import math

import pytest
import torch
from layers import MODELS, layers
from operators import GPU_IMPLS, SM_120, Random
from tolerances import (
    UNIT,
    Exact,
    activation,
    add,
    assert_parity,
    conv,
    divided,
    exact,
    linear,
    sums,
)

from effnet_fast import _C, ops
from effnet_fast.gpu import Device
from effnet_fast.gpu.packing import pack_depthwise
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act, Window
from effnet_fast.ops import gpu_step

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
IMPLS = [*GPU_IMPLS, pytest.param("triton", id="triton-sm_120", marks=SM_120)]
# An image of more pixels than this times its channels is tested on a slice of its channels: the
# machine takes a second for some million outputs.
ELEMENTS = 600_000


def cases(kind):
    """(layer, act), each layer once, with what it is called."""
    seen = {}
    for model in MODELS:
        act = "relu6" if "lite" in model else "swish"
        for layer in getattr(layers(model), kind):
            seen.setdefault((layer, act), f"{model.partition('_')[2]}-{layer}")
    return [pytest.param(*case, id=name) for case, name in seen.items()]


def slice_of(c, pixels):
    """First channel and number of channels to look at: in the middle of a map that is large."""
    kept = min(c, max(16, ELEMENTS // pixels // 16 * 16))
    return (c - kept) // 2 // 16 * 16, kept


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer, act", cases("depthwise"))
def test_depthwise_layers(impl, dtype, layer, act):
    r = Random(dtype)
    c, size, k, stride, padding = layer
    first, kept = slice_of(c, size * size)
    whole = r(1, c, size, size).contiguous(memory_format=torch.channels_last)
    x = whole[:, first : first + kept]
    weight, bias = r.weight(kept, 1, k, k), r(kept)
    y, total = ops.depthwise_conv(
        x, weight, bias, stride=stride, padding=padding, act=act, sums=True, impl=impl
    )
    expected = conv(x, weight, bias, act, layer.window)
    assert_parity(y, expected)
    assert_parity(total, sums(expected))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer, act", cases("squeeze"))
def test_squeeze_layers(impl, dtype, layer, act):
    r, wide = Random(dtype), Random()
    c, squeezed, pixels = layer
    mean = wide(2, c)
    w1, b1, w2, b2 = r.weight(squeezed, c), r(squeezed), r.weight(c, squeezed), r(c)
    gate = ops.squeeze_excite(pixels * mean, pixels, w1, b1, w2, b2, act=act, impl=impl)
    middle = linear(divided(pixels * mean, pixels), w1, b1, act)
    assert_parity(gate, linear(middle, w2, b2, "sigmoid"))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer, act", cases("activations"))
def test_activation_layers(impl, dtype, layer, act):
    c, size = layer
    _, kept = slice_of(c, size * size)
    x = Random(dtype)(1, kept, size, size, scale=3).contiguous(memory_format=torch.channels_last)
    y = ops.swish(x, act, impl=impl)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_parity(y, activation(Exact(exact(x).value, 4 * UNIT * x.double().abs()), act))


# Products in float32 are one by one on the machine; matrix units take 2,048 at a time.
PRODUCTS = {torch.float32: 500_000, torch.float16: 5_000_000, torch.bfloat16: 5_000_000}
# A tile of its own for most layers: seconds to compile.
LONG = [
    pytest.param(dtype, id=str(dtype), marks=[pytest.mark.full] if dtype != torch.float16 else [])
    for dtype in DTYPES
]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", LONG)
@pytest.mark.parametrize("layer, act", cases("pointwise"))
def test_pointwise_layers(impl, dtype, layer, act):
    """A layer that widens the map has an activation, one that narrows it a gate and a residual."""
    r = Random(dtype)
    cin, cout, size = layer
    rows = max(1, min(size, PRODUCTS[dtype] // (cin * cout * size)))
    x = r(1, cin, rows, size).contiguous(memory_format=torch.channels_last)
    weight, bias = r.weight(cout, cin, 1, 1), r(cout)
    if cout > cin:
        y = ops.pointwise_conv(x, weight, bias, act=act, impl=impl)
        assert_parity(y, conv(x, weight, bias, act))
        return
    gate = r(1, cin).sigmoid()
    residual = r(1, cout, rows, size).contiguous(memory_format=torch.channels_last)
    y = ops.pointwise_conv(x, weight, bias, gate=gate, residual=residual, impl=impl)
    assert_parity(y, add(conv(x, weight, bias, "none", gate=gate), residual))


@pytest.mark.parametrize("impl", GPU_IMPLS)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_offsets_beyond_32_bits(impl, stride):
    """Rows 2^30 elements from each other, images 3 * 2^30: most of it is never touched."""
    host_side = gpu_step.host_side(impl, "depthwise_conv")
    dtype, n, c, h, w = torch.float16, 2, 16, 3, 5
    r, row = Random(dtype), (1 << 30) + 64
    strides = (h * row, 1, row, c)
    window = Window((3, 3), (stride, stride), (1, 1), (1, 1, 1, 1))
    x = r(n, h, w, c)
    weight, bias = r.weight(c, 1, 3, 3), r(c)
    expected = conv(x.permute(0, 3, 1, 2), weight, bias, "swish", window)
    out_h, out_w = window.output_size(h, w)

    def pieces(there, rows, columns):
        """Address and bytes of each image's rows."""
        for image in range(n):
            for i in range(rows):
                offset = image * strides[0] + i * strides[2]
                assert i == image == 0 or offset >= 1 << 30
                yield (image, i), there.address + 2 * offset, 2 * columns * c

    with Device("ptx", threads=2) as device:
        there, to = (
            DeviceTensor.empty(device, (n, c, *size), strides, dtype)
            for size in ((h, w), (out_h, out_w))
        )
        assert there.bytes > 2 << 32
        stream = device.stream._native
        for at, address, count in pieces(there, h, w):
            _C.gpu.copy_to_device(stream, address, x[at].data_ptr(), count)
        constants = DeviceTensor.upload(device, pack_depthwise(weight, bias))
        device.launch(host_side.launch(device, there, constants, to, window, Act.SWISH))
        y = torch.empty(n, out_h, out_w, c, dtype=dtype)
        for at, address, count in pieces(to, out_h, out_w):
            _C.gpu.copy_to_host(stream, y[at].data_ptr(), address, count)
        device.synchronize()
    assert_parity(y.permute(0, 3, 1, 2), expected)
    assert math.prod(y.shape) == expected.value.numel()


@pytest.mark.parametrize("impl", GPU_IMPLS)
@pytest.mark.parametrize("operator", ["pointwise_conv", "depthwise_conv"])
def test_b7_at_batch_128(impl, operator):
    """Its first widened map at 600 pixels has 2.2e9 elements: the last blocks that make it, and
    that read it."""
    dtype, n, c, size, window = (
        torch.float16,
        128,
        192,
        300,
        Window((3, 3), (2, 2), (1, 1), (0, 0, 1, 1)),
    )
    side, r = gpu_step.host_side(impl, operator), Random(dtype)
    cin, out = (32, size) if operator == "pointwise_conv" else (c, size // 2)
    image, bias = r(1, size, size, cin).permute(0, 3, 1, 2), r(c)
    weight = r.weight(c, cin, 1, 1) if operator == "pointwise_conv" else r.weight(c, 1, 3, 3)
    with Device("ptx", threads=1, last_blocks=12) as device:
        stream = device.stream._native

        def last_of(there, image):
            """Address and bytes of the last image, of the batch and here."""
            bytes = image.numel() * dtype.itemsize
            return there.address + (n - 1) * bytes, image.data_ptr(), bytes

        def placed(c, size, image):
            strides = (size * size * c, 1, size * c, c)
            there = DeviceTensor.empty(device, (n, c, size, size), strides, dtype)
            to, source, bytes = last_of(there, image)
            _C.gpu.copy_to_device(stream, to, source, bytes)
            return there

        y = torch.full((1, out, out, c), torch.nan, dtype=dtype)
        x, there = placed(cin, size, image), placed(c, out, y)
        assert max(math.prod(x.shape), math.prod(there.shape)) > 1 << 31
        if operator == "pointwise_conv":
            packed = [DeviceTensor.upload(device, t) for t in side.pack(weight, bias)]
            launch = side.launch(device, x, packed, there, Act.SWISH)
            expected = conv(image, weight, bias, "swish")
        else:
            constants = DeviceTensor.upload(device, side.pack(weight, bias))
            launch = side.launch(device, x, constants, there, window, Act.SWISH)
            expected = conv(image, weight, bias, "swish", window)
        device.launch(launch)
        source, to, bytes = last_of(there, y)
        _C.gpu.copy_to_host(stream, to, source, bytes)
        device.synchronize()
    y = y.permute(0, 3, 1, 2)
    made = ~y.isnan()
    assert made[0, :, -1, -1].any() and made.sum() >= 4096
    assert not made[0, :, 0].any()
    assert_parity(y[made], Exact(*(part[made] for part in expected)))
