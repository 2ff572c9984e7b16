"""expand_depthwise: parity with float64, the same bits as its two halves, layouts, errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import GPU_IMPLS, LAYOUTS, MOST_RUNS, Random
from tolerances import ACTIVATIONS, assert_parity, conv, rounded, sums

from effnet_fast import ops
from effnet_fast.errors import ArgumentError, DtypeError, ShapeError
from effnet_fast.network import Window


def compare(impl, dtype, x, mid, window, act="swish", layout="nhwc", bias=True):
    r = Random(dtype, seed=1)
    x = LAYOUTS[layout](x.to(dtype))
    expand_weight, weight = r.weight(mid, x.shape[1], 1, 1), r.weight(mid, 1, *window.kernel)
    expand_bias, bias = (r(mid), r(mid)) if bias else (None, None)
    options = {
        "stride": window.stride,
        "padding": window.padding,
        "dilation": window.dilation,
        "act": act,
        "impl": impl,
    }
    arguments = (x, expand_weight, expand_bias, weight, bias)
    y, total = ops.expand_depthwise(*arguments, expand_act=act, sums=True, **options)
    assert y.dtype == dtype
    assert total.dtype == torch.float32
    assert y.is_contiguous(memory_format=torch.channels_last)
    expanded = conv(x, expand_weight, expand_bias, act)
    if impl in GPU_IMPLS:  # the wide map is in x's type, in memory or in a ring of rows
        expanded = rounded(expanded, dtype)
    expected = conv(expanded, weight, bias, act, window)
    assert_parity(y, expected)
    assert_parity(total, sums(expected))
    alone = ops.expand_depthwise(*arguments, expand_act=act, **options)
    if impl == "triton":  # another kernel without sums, whose functions are off by other amounts
        assert_parity(alone, expected)
    else:
        assert torch.equal(y, alone)
    if impl == "cpu":
        # The contract of the kernels: fusing changes no bit.
        wide = ops.pointwise_conv(x, expand_weight, expand_bias, act=act, impl=impl)
        apart, apart_sums = ops.depthwise_conv(wide, weight, bias, sums=True, **options)
        assert torch.equal(y, apart)
        assert torch.equal(total, apart_sums)


@pytest.mark.parametrize("impl, dtype", MOST_RUNS)
@pytest.mark.parametrize(
    "shape, mid, window",
    [
        ((2, 16, 14, 14), 96, Window((3, 3), (2, 2), (1, 1), (0, 0, 1, 1))),
        ((1, 24, 11, 9), 144, Window((5, 5), (1, 1), (1, 1), (2, 2, 2, 2))),
        ((1, 7, 8, 15), 45, Window((3, 3), (1, 1), (2, 2), (2, 2, 2, 2))),
        ((2, 5, 9, 6), 17, Window((7, 7), (2, 1), (1, 1), (3, 3, 3, 3))),
        ((1, 12, 1, 1), 72, Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))),
        ((1, 8, 6, 6), 48, Window((1, 1), (2, 2))),
        ((3, 1, 2, 5), 1, Window((2, 4), (1, 1), (1, 1), (3, 0, 0, 1))),
        ((1, 8, 6, 30), 16, Window((5, 5), (1, 1), (1, 1), (2, 3, 2, 1))),
    ],
)
def test_parity(impl, dtype, shape, mid, window):
    compare(impl, dtype, Random()(*shape), mid, window)


@pytest.mark.parametrize("impl, dtype", MOST_RUNS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(impl, dtype, act):
    window = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    compare(impl, dtype, Random()(2, 6, 7, 8, scale=3), 36, window, act)


@pytest.mark.parametrize("mid", range(1, 18))
def test_few_channels(mid):
    window = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    compare("cpu", torch.float32, Random()(1, 3, 6, 5), mid, window)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
def test_layouts(layout, bias):
    window = Window((5, 5), (2, 2), (1, 1), (1, 1, 2, 2))
    compare("cpu", torch.float32, Random()(2, 9, 10, 11), 54, window, "swish", layout, bias)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 3),
    c=st.integers(1, 20),
    mid=st.integers(1, 100),
    h=st.integers(1, 12),
    w=st.integers(1, 12),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
)
def test_any_shape(n, c, mid, h, w, kernel, stride, dilation, padding):
    top, left, bottom, right = padding
    h = max(h, dilation[0] * (kernel[0] - 1) + 1 - top - bottom)
    w = max(w, dilation[1] * (kernel[1] - 1) + 1 - left - right)
    window = Window(kernel, stride, dilation, padding)
    compare("cpu", torch.float32, Random()(n, c, h, w), mid, window)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_padding_is_zero_and_not_the_activated_bias(impl):
    """With a map of zeros the expanded map is act(bias) = 1 inside, and must still be 0 outside."""
    y = ops.expand_depthwise(
        torch.zeros(1, 2, 4, 4),
        torch.zeros(8, 2, 1, 1),
        torch.ones(8),
        torch.ones(8, 1, 3, 3),
        expand_act="relu",
        padding=1,
        impl=impl,
    )
    taps = torch.tensor([2.0, 3, 3, 2])
    assert torch.equal(y, (taps[:, None] * taps).expand(1, 8, 4, 4))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.zeros(2, 5, 8, 8)}, ShapeError, r"expand_weight .*accepted: \(M, 5, 1, 1\)"),
        ({"expand_weight": torch.zeros(6, 3)}, ShapeError, "expand_weight has shape"),
        ({"expand_bias": torch.zeros(3)}, ShapeError, r"expand_bias .*accepted: \(6,\)"),
        ({"weight": torch.zeros(3, 1, 3, 3)}, ShapeError, r"weight .*accepted: \(6, 1, kh, kw\)"),
        ({"weight": torch.zeros(6, 1, 3, 3).double()}, DtypeError, "weight is torch.float64"),
        ({"bias": torch.zeros(3)}, ShapeError, "bias has shape"),
        ({"dilation": 5}, ShapeError, "8 x 8 pixels"),
        ({"stride": 0}, ArgumentError, "stride is"),
        ({"expand_act": "x"}, ArgumentError, "expand_act is 'x'"),
        ({"act": "x"}, ArgumentError, "act is 'x'"),
    ],
)
@pytest.mark.parametrize("sums", [False, True])
def test_errors(change, error, message, sums):
    arguments = {
        "x": torch.zeros(2, 3, 8, 8),
        "expand_weight": torch.zeros(6, 3, 1, 1),
        "expand_bias": None,
        "weight": torch.zeros(6, 1, 3, 3),
    } | change
    with pytest.raises(error, match=message):
        ops.expand_depthwise(**arguments, sums=sums)
