"""pointwise_conv: parity with float64 through gate, residual and pool; layouts; errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import ALL_RUNS, GPU_IMPLS, LAYOUTS, Random
from tolerances import ACTIVATIONS, add, assert_parity, conv, mean

from effnet_fast import ops
from effnet_fast.errors import ArgumentError, DeviceError, DtypeError, ShapeError

FUSIONS = ["plain", "gate", "residual", "gate+residual", "pool", "gate+pool"]


def compare(impl, dtype, x, cout, act="none", fusion="plain", layout="nhwc", bias=True):
    r = Random(dtype, seed=1)
    x = LAYOUTS[layout](x.to(dtype))
    n, c, h, w = x.shape
    weight, bias = r.weight(cout, c, 1, 1), r(cout) if bias else None
    gate = r(n, c) if "gate" in fusion else None
    residual = LAYOUTS[layout](r(n, cout, h, w)) if "residual" in fusion else None
    pool = "pool" in fusion
    y = ops.pointwise_conv(
        x, weight, bias, act=act, gate=gate, residual=residual, pool=pool, impl=impl
    )
    assert y.dtype == dtype
    expected = conv(x, weight, bias, act, gate=gate)
    if residual is not None:
        expected = add(expected, residual)
    if pool:
        expected = mean(expected)
        assert y.is_contiguous()
    else:
        assert y.is_contiguous(memory_format=torch.channels_last)
    assert_parity(y, expected)


@pytest.mark.parametrize("impl, dtype", ALL_RUNS)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(
    "shape, cout",
    [
        ((2, 16, 9, 9), 96),
        ((1, 40, 7, 5), 17),
        ((1, 320, 3, 3), 130),
        ((3, 1, 4, 3), 1),
        ((2, 7, 1, 1), 33),
    ],
)
def test_parity(impl, dtype, fusion, shape, cout):
    compare(impl, dtype, Random()(*shape), cout, "swish", fusion)


@pytest.mark.parametrize("impl, dtype", ALL_RUNS)
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("fusion", ["residual", "pool"])
def test_activations(impl, dtype, act, fusion):
    compare(impl, dtype, Random()(2, 9, 6, 5, scale=3), 20, act, fusion)


NATIVE = [
    ("cpu", torch.float32),
    ("cuda", torch.float32),
    ("cuda", torch.float16),
    ("triton", torch.float16),
]


@pytest.mark.parametrize("impl, dtype", NATIVE)
@pytest.mark.parametrize("channels", range(1, 18))
@pytest.mark.parametrize("cout", [1, 8, 17])
def test_few_channels(impl, dtype, channels, cout):
    compare(impl, dtype, Random()(1, channels, 5, 3), cout, "none", "gate+residual")


@pytest.mark.parametrize("impl, dtype", NATIVE)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_layouts(impl, dtype, layout, fusion, bias):
    compare(impl, dtype, Random()(2, 13, 6, 7), 24, "swish", fusion, layout, bias)


SHAPES = {
    "n": st.integers(0, 3),
    "c": st.integers(1, 70),
    "h": st.integers(1, 9),
    "w": st.integers(1, 9),
    "cout": st.integers(1, 70),
    "layout": st.sampled_from(sorted(LAYOUTS)),
}


@settings(max_examples=40, deadline=None)
@given(fusion=st.sampled_from(FUSIONS), **SHAPES)
def test_any_shape(n, c, h, w, cout, fusion, layout):
    compare("cpu", torch.float32, Random()(n, c, h, w), cout, "swish", fusion, layout)


# Each line is compiled some times, for tiles and alignments, in seconds.
@pytest.mark.parametrize("impl", GPU_IMPLS)
@pytest.mark.parametrize(
    "dtype, act, fusion",
    [
        (torch.float32, "gelu", "gate+pool"),
        (torch.float16, "swish", "gate+residual"),
        (torch.bfloat16, "relu6", "plain"),
    ],
)
@settings(max_examples=20, deadline=None)
@given(**SHAPES)
def test_any_shape_on_a_gpu(impl, dtype, act, fusion, n, c, h, w, cout, layout):
    compare(impl, dtype, Random()(n, c, h, w), cout, act, fusion, layout)


@pytest.mark.parametrize(
    "impl, dtype",
    [(impl, dtype) for impl in GPU_IMPLS for dtype in (torch.float16, torch.bfloat16)],
)
def test_gates_are_exact(impl, dtype):
    """Where products cancel, a gated input that was rounded would show: x g - (x g) is 0."""
    r = Random(dtype)
    x, gate = r(1, 64, 3, 3), r(1, 64).abs()
    weight = torch.zeros(16, 64, 1, 1, dtype=dtype)
    weight[:, ::2] = r(16, 32, 1, 1)
    weight[:, 1::2] = -weight[:, ::2] * 0.5
    x[:, 1::2], gate[:, 1::2] = 2 * x[:, ::2], gate[:, ::2]
    y = ops.pointwise_conv(LAYOUTS["nhwc"](x), weight, gate=gate, impl=impl)
    assert_parity(y, conv(x, weight, None, "none", gate=gate))


def test_gates_of_one_are_no_gates():
    r = Random()
    x, weight = r(2, 12, 5, 5), r.weight(9, 12, 1, 1)
    gated = ops.pointwise_conv(x, weight, gate=torch.ones(2, 12))
    assert torch.equal(gated, ops.pointwise_conv(x, weight))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.zeros(6, 4)}, ShapeError, "x has shape"),
        ({"weight": torch.zeros(8, 6, 3, 3)}, ShapeError, r"weight .*accepted: \(O, 6, 1, 1\)"),
        ({"weight": torch.zeros(0, 6, 1, 1)}, ShapeError, "weight has shape"),
        ({"gate": torch.zeros(2, 8)}, ShapeError, r"gate .*accepted: \(2, 6\)"),
        ({"gate": torch.zeros(2, 6).double()}, DtypeError, "gate is torch.float64"),
        ({"gate": torch.zeros(2, 6, device="meta")}, DeviceError, "gate is on meta"),
        ({"residual": torch.zeros(2, 8, 4, 4)}, ShapeError, r"residual .*accepted: \(2, 8, 4, 5\)"),
        (
            {"residual": torch.zeros(2, 8, 4, 5), "pool": True},
            ArgumentError,
            "residual is a tensor and pool is True",
        ),
        ({"act": "tanh"}, ArgumentError, "act is 'tanh'"),
    ],
)
def test_errors(change, error, message):
    arguments = {"x": torch.zeros(2, 6, 4, 5), "weight": torch.zeros(8, 6, 1, 1)} | change
    with pytest.raises(error, match=message):
        ops.pointwise_conv(**arguments)
