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
from effnet_fast.ops.packing import pack_winograd, takes_winograd
from effnet_fast.ops.step import Step
from effnet_fast.verify import relative_error

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


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 2),
    c=st.integers(16, 40),
    mid=st.integers(16, 70),
    cout=st.integers(1, 40),
    h=st.integers(1, 20),
    w=st.integers(1, 20),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    fusion=st.sampled_from(FUSIONS),
    layout=st.sampled_from(list(LAYOUTS)),
)
def test_any_shape_by_winograd(n, c, mid, cout, h, w, padding, fusion, layout):
    top, left, bottom, right = padding
    if h + top + bottom < 3 or w + left + right < 3:
        return
    window = Window((3, 3), padding=padding)
    weight = torch.empty(mid, c, 3, 3)
    assert takes_winograd(weight, window)
    compare(
        "cpu", torch.float32, Random()(n, c, h, w), mid, cout, window, fusion=fusion, layout=layout
    )


def test_winograds_error_is_about_that_of_the_sums():
    """Of 16 layers with 48 to 320 channels: at most twice the direct convolution's."""
    errors = []
    for channels in range(48, 321, 17):
        r = Random(seed=channels)
        x, weight = r(1, channels, 15, 15), r.weight(32, channels, 3, 3)
        exact = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
        by_winograd = ops.fused_mbconv(x, weight, None, padding=1)
        # The second column of zeros makes the kernel too wide for it.
        wide = torch.nn.functional.pad(weight, (0, 1))
        direct = ops.fused_mbconv(x, wide, None, padding=(1, 1, 1, 2))
        assert not takes_winograd(wide, Window((3, 4)))
        errors.append([relative_error(y, exact) for y in (by_winograd, direct)])
    mean = torch.tensor(errors).mean(0)
    assert mean[0] < 2 * mean[1] and mean[0] < 5e-7


@pytest.mark.parametrize(
    "window",
    [Window((3, 3), (2, 2)), Window((3, 3), dilation=(1, 2)), Window((3, 5)), Window((1, 1))],
)
def test_what_winograd_cannot_do_is_refused(window):
    weight = torch.empty(16, 16, *window.kernel)
    assert not takes_winograd(weight, window)
    step = Step()
    x = Random()(1, 16, 9, 9)
    packed = step.conv(torch.zeros(16, 16, 3, 3), None, "none", pack_winograd)
    y = torch.empty(1, 16, *window.output_size(9, 9)).contiguous(memory_format=torch.channels_last)
    none = step.map(None)
    with pytest.raises(ValueError, match="winograd; accepted: a window of 3 x 3, stride and dil"):
        step.program.fused_mbconv(
            packed, step.window(window), None, step.map(x), none, step.map(y), True
        )


def test_an_infinite_pixel_spoils_its_window_alone():
    x, weight = Random()(1, 16, 12, 12), Random().weight(16, 16, 3, 3)
    expected = ops.fused_mbconv(x, weight, None, padding=1)
    for row, column in ((5, 5), (6, 5), (0, 11)):
        broken = x.clone()
        broken[0, 3, row, column] = torch.inf
        spoilt = ~(ops.fused_mbconv(broken, weight, None, padding=1) == expected).all(1)[0]
        seen = torch.zeros(12, 12, dtype=torch.bool)
        seen[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
        assert torch.equal(spoilt, seen)


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
