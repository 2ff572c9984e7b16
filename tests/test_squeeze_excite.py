"""squeeze_excite: parity with float64, weight layouts, errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import ALL_RUNS, GPU_IMPLS, Random
from tolerances import ACTIVATIONS, assert_parity, divided, linear

from effnet_fast import ops
from effnet_fast.errors import ArgumentError, DtypeError, ShapeError


def compare(impl, dtype, n, c, squeezed, act="swish", gate_act="sigmoid", bias=True, pixels=49):
    r = Random(dtype, seed=1)
    sums = pixels * Random()(n, c)
    w1, w2 = r.weight(squeezed, c), r.weight(c, squeezed)
    b1, b2 = (r(squeezed), r(c)) if bias else (None, None)
    gate = ops.squeeze_excite(sums, pixels, w1, b1, w2, b2, act=act, gate_act=gate_act, impl=impl)
    assert gate.dtype == dtype
    middle = linear(divided(sums, pixels), w1, b1, act)
    assert_parity(gate, linear(middle, w2, b2, gate_act))


@pytest.mark.parametrize("impl, dtype", ALL_RUNS)
@pytest.mark.parametrize("c, squeezed", [(32, 8), (96, 4), (17, 1), (1, 3), (1152, 48)])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_parity(impl, dtype, n, c, squeezed):
    compare(impl, dtype, n, c, squeezed)


@pytest.mark.parametrize("impl, dtype", ALL_RUNS)
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("gate_act", ["sigmoid", "hard_sigmoid", "none"])
def test_activations(impl, dtype, act, gate_act):
    compare(impl, dtype, 3, 20, 6, act, gate_act)


@pytest.mark.parametrize("impl", ["cpu", *GPU_IMPLS])
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 3),
    c=st.integers(1, 80),
    squeezed=st.integers(1, 40),
    bias=st.booleans(),
    pixels=st.integers(1, 1000),
)
def test_any_shape(impl, n, c, squeezed, bias, pixels):
    dtype = torch.float32 if impl == "cpu" else torch.float16
    compare(impl, dtype, n, c, squeezed, bias=bias, pixels=pixels)


def test_convolution_weights_and_strides_change_nothing():
    r = Random()
    sums, w1, b1, w2, b2 = r(4, 12), r(5, 12), r(5), r(12, 5), r(12)
    expected = ops.squeeze_excite(sums, 9, w1, b1, w2, b2)
    strided = torch.empty(12, 4).copy_(sums.t()).t()
    ones = (..., None, None)
    convolutions = ops.squeeze_excite(strided, 9, w1[ones], b1, w2[ones], b2)
    assert torch.equal(convolutions, expected)


def test_follows_depthwise_conv():
    r = Random()
    y, sums = ops.depthwise_conv(r(2, 8, 5, 5), r(8, 1, 3, 3), padding=1, sums=True)
    w1, w2 = r.weight(3, 8), r.weight(8, 3)
    gate = ops.squeeze_excite(sums, 25, w1, None, w2, None)
    exact_gate = linear(linear(y.double().mean((2, 3)), w1, None, "swish"), w2, None, "sigmoid")
    torch.testing.assert_close(gate.double(), exact_gate.value, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"sums": torch.zeros(2, 7)}, ShapeError, r"sums .*accepted: \(2, 6\)"),
        ({"sums": torch.zeros(6)}, ShapeError, "sums has shape"),
        ({"sums": torch.zeros(2, 6).half()}, DtypeError, "sums is torch.float16; .*float32"),
        ({"pixels": 0}, ArgumentError, "pixels is 0"),
        ({"w1": torch.zeros(3, 6, 2)}, ShapeError, "w1 has shape"),
        ({"w1": torch.zeros(3, 6).int()}, DtypeError, "w1 is torch.int32"),
        ({"w2": torch.zeros(3, 6)}, ShapeError, r"w2 .*accepted: \(6, 3\)"),
        ({"w2": torch.zeros(6, 3, 3, 3)}, ShapeError, r"w2 .*accepted: \(6, 3, 1, 1\)"),
        ({"b1": torch.zeros(6)}, ShapeError, "b1 has shape"),
        ({"b2": torch.zeros(3)}, ShapeError, "b2 has shape"),
        ({"act": "SiLU"}, ArgumentError, "act is 'SiLU'"),
        ({"gate_act": "softmax"}, ArgumentError, "gate_act is 'softmax'"),
    ],
)
def test_errors(change, error, message):
    arguments = {
        "sums": torch.zeros(2, 6),
        "pixels": 4,
        "w1": torch.zeros(3, 6),
        "b1": None,
        "w2": torch.zeros(6, 3),
        "b2": None,
    } | change
    with pytest.raises(error, match=message):
        ops.squeeze_excite(**arguments)
