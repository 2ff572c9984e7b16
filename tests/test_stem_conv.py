"""stem_conv: parity with float64, any image layout, errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import ALL_RUNS, LAYOUTS, Random
from tolerances import ACTIVATIONS, assert_parity, conv

from effnet_fast import ops
from effnet_fast.errors import ArgumentError, DtypeError, ShapeError
from effnet_fast.network import Window


def compare(impl, dtype, x, cout, kernel, stride, padding, act, bias=True):
    r = Random(dtype, seed=1)
    x = x.to(dtype)
    weight = r.weight(cout, x.shape[1], *kernel)
    bias = r(cout) if bias else None
    y = ops.stem_conv(x, weight, bias, stride=stride, padding=padding, act=act, impl=impl)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_parity(y, conv(x, weight, bias, act, Window(kernel, stride, (1, 1), padding)))


@pytest.mark.parametrize("impl, dtype", ALL_RUNS)
@pytest.mark.parametrize(
    "shape, cout, kernel, stride, padding",
    [
        ((2, 3, 32, 32), 32, (3, 3), (2, 2), (0, 0, 1, 1)),
        ((1, 3, 33, 31), 40, (3, 3), (2, 2), (1, 1, 1, 1)),
        ((3, 1, 7, 9), 1, (3, 3), (1, 1), (1, 1, 1, 1)),
        ((1, 4, 11, 13), 17, (7, 7), (2, 2), (3, 3, 3, 3)),
        ((1, 3, 6, 5), 24, (2, 4), (1, 3), (0, 2, 3, 1)),
        ((2, 3, 1, 1), 5, (3, 3), (2, 2), (1, 1, 1, 1)),
        ((2, 5, 1, 1), 9, (1, 1), (1, 1), (0, 0, 0, 0)),
        ((1, 3, 4, 4), 8, (1, 1), (2, 2), (0, 0, 0, 0)),
        # a window that reaches past the map on both sides at once
        ((1, 3, 2, 2), 8, (5, 5), (1, 1), (4, 4, 4, 4)),
    ],
)
def test_parity(impl, dtype, shape, cout, kernel, stride, padding):
    compare(impl, dtype, Random()(*shape), cout, kernel, stride, padding, "swish")


@pytest.mark.parametrize("impl, dtype", ALL_RUNS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(impl, dtype, act):
    x = Random()(2, 3, 9, 10, scale=3)
    compare(impl, dtype, x, 12, (3, 3), (2, 2), (1, 1, 1, 1), act)


@pytest.mark.parametrize("impl, dtype", [("cpu", torch.float32), ("triton", torch.float16)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
def test_layouts(impl, dtype, layout, bias):
    x = LAYOUTS[layout](Random()(2, 3, 11, 14).to(dtype))
    compare(impl, dtype, x, 20, (3, 3), (2, 2), (0, 0, 1, 1), "swish", bias)


SHAPES = {
    "n": st.integers(0, 3),
    "c": st.integers(1, 5),
    "h": st.integers(1, 12),
    "w": st.integers(1, 12),
    "cout": st.integers(1, 35),
    "padding": st.tuples(*[st.integers(0, 3)] * 4),
    "layout": st.sampled_from(sorted(LAYOUTS)),
}


def compare_any(impl, dtype, kernel, stride, n, c, h, w, cout, padding, layout):
    top, left, bottom, right = padding
    h, w = max(h, kernel[0] - top - bottom), max(w, kernel[1] - left - right)
    x = LAYOUTS[layout](Random()(n, c, h, w).to(dtype))
    compare(impl, dtype, x, cout, kernel, stride, padding, "swish")


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    **SHAPES,
)
def test_any_shape(kernel, stride, **drawn):
    compare_any("cpu", torch.float32, kernel, stride, **drawn)


# Each line is compiled some times, for tiles and alignments, in seconds.
@pytest.mark.parametrize("impl", ["triton"])
@pytest.mark.parametrize(
    "dtype, kernel, stride",
    [(torch.float32, (3, 3), (2, 2)), (torch.bfloat16, (2, 5), (1, 3))],
)
@settings(max_examples=20, deadline=None)
@given(**SHAPES)
def test_any_shape_in_triton(impl, dtype, kernel, stride, **drawn):
    compare_any(impl, dtype, kernel, stride, **drawn)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.zeros(3, 8, 8)}, ShapeError, r"x has shape \(3, 8, 8\); accepted: \(N, C, H"),
        ({"x": torch.zeros(1, 4, 8, 8)}, ShapeError, r"weight .*accepted: \(O, 4, kh, kw\)"),
        ({"x": torch.zeros(1, 3, 8, 0)}, ShapeError, "x has shape"),
        ({"x": torch.zeros(1, 3, 2, 8)}, ShapeError, "2 x 8 pixels"),
        ({"x": torch.zeros(1, 3, 8, 8, dtype=torch.int32)}, DtypeError, "x is torch.int32"),
        ({"x": torch.zeros(1, 3, 8, 8).half()}, DtypeError, "weight is torch.float32"),
        ({"weight": torch.zeros(4, 3, 3)}, ShapeError, "weight has shape"),
        ({"bias": torch.zeros(5)}, ShapeError, r"bias has shape \(5,\); accepted: \(4,\)"),
        ({"stride": 0}, ArgumentError, r"stride is \(0, 0\)"),
        ({"stride": (1, 2, 3)}, ArgumentError, "stride is .*2 integers"),
        ({"padding": (1, 1)}, ArgumentError, "padding is .*4 integers"),
        ({"padding": -1}, ArgumentError, "padding is"),
        ({"act": "silu"}, ArgumentError, "act is 'silu'; accepted: 'none', 'swish'"),
    ],
)
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_errors(change, error, message, impl):
    arguments = {"x": torch.zeros(1, 3, 8, 8), "weight": torch.zeros(4, 3, 3, 3)} | change
    with pytest.raises(error, match=message):
        ops.stem_conv(**arguments, impl=impl)
