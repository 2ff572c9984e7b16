"""depthwise_conv: parity with float64, the sums, every kernel size, layouts, errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import ALL_RUNS, GPU_IMPLS, LAYOUTS, Random
from tolerances import ACTIVATIONS, assert_parity, conv, sums

from effnet_fast import ops
from effnet_fast.errors import ArgumentError, DtypeError, ShapeError
from effnet_fast.network import Window


def compare(impl, dtype, x, window, act="none", layout="nhwc", bias=True):
    r = Random(dtype, seed=1)
    x = LAYOUTS[layout](x.to(dtype))
    c = x.shape[1]
    weight, bias = r.weight(c, 1, *window.kernel), r(c) if bias else None
    options = {
        "stride": window.stride,
        "padding": window.padding,
        "dilation": window.dilation,
        "act": act,
        "impl": impl,
    }
    y, total = ops.depthwise_conv(x, weight, bias, sums=True, **options)
    assert y.dtype == dtype
    assert total.dtype == torch.float32
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = conv(x, weight, bias, act, window)
    assert_parity(y, expected)
    assert_parity(total, sums(expected))
    if impl != "triton":  # compiles another kernel for that: test_triton_without_sums
        assert torch.equal(y, ops.depthwise_conv(x, weight, bias, **options))


@pytest.mark.parametrize("impl, dtype", ALL_RUNS)
@pytest.mark.parametrize("size", [3, 5, 7, 9, 2, 11])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_parity(impl, dtype, size, stride):
    low = (size - 1) // 2
    window = Window((size, size), (stride, stride), (1, 1), (low, low, size // 2, size // 2))
    compare(impl, dtype, Random()(2, 24, 15, 13), window, "swish")


@pytest.mark.parametrize("impl, dtype", ALL_RUNS)
@pytest.mark.parametrize(
    "shape, window",
    [
        ((2, 32, 14, 14), Window((3, 3), (2, 2), (1, 1), (0, 0, 1, 1))),
        ((1, 9, 16, 11), Window((3, 5), (1, 2), (2, 3), (2, 6, 2, 6))),
        ((1, 16, 1, 1), Window((5, 5), (1, 1), (1, 1), (2, 2, 2, 2))),
        ((3, 5, 1, 8), Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))),
        ((1, 8, 6, 6), Window((1, 1))),
        # rows and columns of outputs that see nothing but padding
        ((1, 12, 3, 3), Window((3, 3), (1, 1), (1, 1), (5, 5, 5, 5))),
    ],
)
def test_windows(impl, dtype, shape, window):
    compare(impl, dtype, Random()(*shape), window, "swish")


@pytest.mark.parametrize("impl, dtype", ALL_RUNS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(impl, dtype, act):
    window = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    compare(impl, dtype, Random()(2, 11, 8, 7, scale=3), window, act)


NATIVE = [("cpu", torch.float32), *((impl, torch.float16) for impl in GPU_IMPLS)]


@pytest.mark.parametrize("impl, dtype", NATIVE)
@pytest.mark.parametrize("channels", range(1, 18))
@pytest.mark.parametrize("size", [3, 5])
def test_few_channels(impl, dtype, channels, size):
    window = Window((size, size), (1, 1), (1, 1), (size // 2,) * 4)
    compare(impl, dtype, Random()(1, channels, 6, 5), window)


@pytest.mark.parametrize("impl, dtype", NATIVE)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels", [19, 40])
def test_layouts(impl, dtype, layout, bias, channels):
    window = Window((3, 3), (2, 2), (1, 1), (0, 0, 1, 1))
    compare(impl, dtype, Random()(2, channels, 9, 10), window, "swish", layout, bias)


@pytest.mark.parametrize("impl", ["triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [21, 48])
def test_triton_without_sums(impl, dtype, channels):
    r, window = Random(dtype), Window((3, 3), (2, 2), (1, 1), (0, 0, 1, 1))
    x = LAYOUTS["nhwc"](r(2, channels, 17, 10))
    weight, bias = r.weight(channels, 1, 3, 3), r(channels)
    y = ops.depthwise_conv(
        x, weight, bias, stride=2, padding=window.padding, act="swish", impl=impl
    )
    assert_parity(y, conv(x, weight, bias, "swish", window))


SHAPES = {
    "n": st.integers(0, 3),
    "c": st.integers(1, 40),
    "h": st.integers(1, 12),
    "w": st.integers(1, 12),
    "padding": st.tuples(*[st.integers(0, 4)] * 4),
    "layout": st.sampled_from(sorted(LAYOUTS)),
}


def compare_any(impl, dtype, act, kernel, stride, dilation, n, c, h, w, padding, layout):
    top, left, bottom, right = padding
    h = max(h, dilation[0] * (kernel[0] - 1) + 1 - top - bottom)
    w = max(w, dilation[1] * (kernel[1] - 1) + 1 - left - right)
    window = Window(kernel, stride, dilation, padding)
    compare(impl, dtype, Random()(n, c, h, w), window, act, layout)


@pytest.mark.parametrize("impl", ["cpu", "cuda"])
@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    act=st.sampled_from(["swish", "relu6", "gelu"]),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    **SHAPES,
)
def test_any_shape(impl, data, **drawn):
    dtypes = [torch.float32] if impl == "cpu" else [torch.float32, torch.float16, torch.bfloat16]
    compare_any(impl, data.draw(st.sampled_from(dtypes)), **drawn)


# Each line is compiled twice, for aligned maps and for others, in seconds.
@pytest.mark.parametrize("impl", ["triton"])
@pytest.mark.parametrize(
    "dtype, act, kernel, stride, dilation",
    [
        (torch.float32, "gelu", (1, 4), (1, 3), (1, 2)),
        (torch.float16, "swish", (3, 3), (2, 2), (1, 1)),
        (torch.bfloat16, "relu6", (7, 5), (1, 2), (2, 1)),
    ],
)
@settings(max_examples=25, deadline=None)
@given(**SHAPES)
def test_any_shape_in_triton(impl, dtype, act, kernel, stride, dilation, **drawn):
    compare_any(impl, dtype, act, kernel, stride, dilation, **drawn)


def test_padding_is_zero_whatever_the_bias():
    """A window of nothing but padding gives act(bias)."""
    y = ops.depthwise_conv(
        torch.full((1, 4, 1, 1), 7.0),
        torch.ones(4, 1, 3, 3),
        torch.arange(4.0),
        padding=(5, 5, 5, 5),
        act="relu",
    )
    edge = y.clone()
    edge[:, :, 3:6, 3:6] = torch.arange(4.0)[:, None, None]
    assert torch.equal(edge, torch.arange(4.0)[None, :, None, None].expand(y.shape))
    assert torch.equal(y[0, :, 3:6, 3:6], (torch.arange(4.0) + 7)[:, None, None].expand(4, 3, 3))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.zeros(2, 5, 8, 8)}, ShapeError, r"weight .*accepted: \(5, 1, kh, kw\)"),
        ({"weight": torch.zeros(6, 2, 3, 3)}, ShapeError, "weight has shape"),
        ({"weight": torch.zeros(6, 1, 9, 9)}, ShapeError, r"8 x 8 pixels.*kernel \(9, 9\)"),
        ({"weight": torch.zeros(6, 1, 3, 3).double()}, DtypeError, "weight is torch.float64"),
        ({"bias": torch.zeros(1)}, ShapeError, "bias has shape"),
        ({"dilation": 4}, ShapeError, "dilation"),
        ({"dilation": 0}, ArgumentError, r"dilation is \(0, 0\)"),
        ({"stride": (2,)}, ArgumentError, "stride is"),
        ({"padding": (0, 0, -1, 0)}, ArgumentError, "padding is"),
        ({"act": ""}, ArgumentError, "act is ''"),
    ],
)
@pytest.mark.parametrize("sums", [False, True])
def test_errors(change, error, message, sums):
    arguments = {"x": torch.zeros(2, 6, 8, 8), "weight": torch.zeros(6, 1, 3, 3)} | change
    with pytest.raises(error, match=message):
        ops.depthwise_conv(**arguments, sums=sums)
