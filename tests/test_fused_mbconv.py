"""fused_mbconv: parity with float64 with and without projection and residual, layouts, errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import GPU_IMPLS, LAYOUTS, MOST_RUNS, Random
from tolerances import ACTIVATIONS, add, assert_parity, conv, rounded

from effnet_fast import ops
from effnet_fast.errors import ArgumentError, DtypeError, ShapeError
from effnet_fast.network import Window

FUSIONS = ["plain", "project", "residual", "project+residual"]


def compare(
    impl, dtype, x, mid, cout, window, act="swish", fusion="project", layout="nhwc", bias=True
):
    """With a projection to ``cout`` channels, or without one and ``cout`` unused."""
    r = Random(dtype, seed=1)
    x = LAYOUTS[layout](x.to(dtype))
    weight, bias_ = r.weight(mid, x.shape[1], *window.kernel), r(mid) if bias else None
    expected = conv(x, weight, bias_, act, window)
    options = {}
    if "project" in fusion:
        options = {
            "project_weight": r.weight(cout, mid, 1, 1),
            "project_bias": r(cout) if bias else None,
            "project_act": "none" if act == "swish" else act,
        }
        if impl in GPU_IMPLS:  # the wide map is in x's type
            expected = rounded(expected, dtype)
        expected = conv(expected, *options.values())
    if "residual" in fusion:
        options["residual"] = LAYOUTS[layout](r(*expected.value.shape))
        expected = add(expected, options["residual"])
    y = ops.fused_mbconv(
        x,
        weight,
        bias_,
        stride=window.stride,
        padding=window.padding,
        dilation=window.dilation,
        act=act,
        **options,
        impl=impl,
    )
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_parity(y, expected)


@pytest.mark.parametrize("impl, dtype", MOST_RUNS)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(
    "shape, mid, cout, window",
    [
        ((2, 24, 10, 10), 48, 24, Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))),
        ((1, 32, 9, 7), 130, 17, Window((3, 3), (2, 2), (1, 1), (0, 0, 1, 1))),
        ((1, 3, 8, 6), 9, 5, Window((5, 3), (1, 2), (1, 2), (2, 2, 2, 2))),
        ((2, 7, 1, 1), 16, 1, Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))),
        ((1, 1, 5, 5), 1, 33, Window((1, 1))),
    ],
)
def test_parity(impl, dtype, fusion, shape, mid, cout, window):
    compare(impl, dtype, Random()(*shape), mid, cout, window, fusion=fusion)


@pytest.mark.parametrize("impl, dtype", MOST_RUNS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(impl, dtype, act):
    window = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    compare(impl, dtype, Random()(2, 6, 7, 8, scale=2), 20, 10, window, act, "project+residual")


@pytest.mark.parametrize("channels", range(1, 18))
def test_few_channels(channels):
    window = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    x = Random()(1, channels, 4, 5)
    compare("cpu", torch.float32, x, 18 - channels, channels, window, "swish", "project+residual")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_layouts(layout, fusion, bias):
    window = Window((3, 3), (2, 2), (1, 1), (0, 0, 1, 1))
    x = Random()(2, 11, 9, 8)
    compare("cpu", torch.float32, x, 40, 13, window, "swish", fusion, layout, bias)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 3),
    c=st.integers(1, 20),
    mid=st.integers(1, 70),
    cout=st.integers(1, 40),
    h=st.integers(1, 10),
    w=st.integers(1, 10),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    fusion=st.sampled_from(FUSIONS),
)
def test_any_shape(n, c, mid, cout, h, w, kernel, stride, dilation, padding, fusion):
    top, left, bottom, right = padding
    h = max(h, dilation[0] * (kernel[0] - 1) + 1 - top - bottom)
    w = max(w, dilation[1] * (kernel[1] - 1) + 1 - left - right)
    window = Window(kernel, stride, dilation, padding)
    compare("cpu", torch.float32, Random()(n, c, h, w), mid, cout, window, "swish", fusion)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.zeros(2, 5, 8, 8)}, ShapeError, r"weight .*accepted: \(O, 5, kh, kw\)"),
        ({"x": torch.zeros(2, 3, 1, 8)}, ShapeError, "1 x 8 pixels"),
        ({"weight": torch.zeros(6, 3, 3, 3).half()}, DtypeError, "weight is torch.float16"),
        ({"bias": torch.zeros(3)}, ShapeError, "bias has shape"),
        ({"padding": (1, 1, 1)}, ArgumentError, "padding is"),
        ({"project_weight": torch.zeros(4, 5, 1, 1)}, ShapeError, r"accepted: \(P, 6, 1, 1\)"),
        ({"project_bias": torch.zeros(4)}, ArgumentError, "project_bias is a tensor"),
        ({"project_act": "swish"}, ArgumentError, "project_act is 'swish'; accepted without"),
        ({"project_act": "swoosh"}, ArgumentError, "project_act is 'swoosh'"),
        ({"act": "x"}, ArgumentError, "act is 'x'"),
        ({"residual": torch.zeros(2, 6, 8, 8)}, ShapeError, r"accepted: \(2, 6, 6, 6\)"),
        (
            {
                "project_weight": torch.zeros(4, 6, 1, 1),
                "residual": torch.zeros(2, 6, 6, 6),
            },
            ShapeError,
            r"residual .*accepted: \(2, 4, 6, 6\)",
        ),
        (
            {"project_weight": torch.zeros(4, 6, 1, 1), "project_bias": torch.zeros(6)},
            ShapeError,
            "project_bias has shape",
        ),
    ],
)
def test_errors(change, error, message):
    arguments = {"x": torch.zeros(2, 3, 8, 8), "weight": torch.zeros(6, 3, 3, 3)} | change
    with pytest.raises(error, match=message):
        ops.fused_mbconv(**arguments)
