"""classifier: parity with float64, any leading sizes and strides, errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import ALL_RUNS, Random
from tolerances import assert_parity, linear

from effnet_fast import ops
from effnet_fast.errors import DeviceError, DtypeError, ShapeError


def compare(impl, dtype, x, classes, bias=True):
    r = Random(dtype, seed=1)
    x = x.to(dtype)
    weight, bias = r.weight(classes, x.shape[-1]), r(classes) if bias else None
    y = ops.classifier(x, weight, bias, impl=impl)
    assert y.dtype == dtype
    assert y.shape == (*x.shape[:-1], classes)
    assert y.is_contiguous()
    rows = y.numel() // classes
    assert_parity(y.view(rows, classes), linear(x.reshape(rows, x.shape[-1]), weight, bias))


@pytest.mark.parametrize("impl, dtype", ALL_RUNS)
@pytest.mark.parametrize(
    "shape, classes",
    [((1, 1280), 1000), ((17, 64), 33), ((2, 3, 5), 7), ((0, 8), 4), ((9,), 1), ((6, 1), 19)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_parity(impl, dtype, shape, classes, bias):
    compare(impl, dtype, Random()(*shape), classes, bias)


@pytest.mark.parametrize("impl", ["cpu", "reference", "triton"])
def test_strides(impl):
    columns = Random()(20, 6).t()
    every_other = Random()(6, 40)[:, ::2]
    expanded = Random()(1, 20).expand(6, 20)
    for x in (columns, every_other, expanded):
        compare(impl, torch.float32, x, 11)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 20), c=st.integers(1, 100), classes=st.integers(1, 100))
def test_any_shape(n, c, classes):
    compare("cpu", torch.float32, Random()(n, c), classes)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.tensor(1.0)}, ShapeError, r"x has shape \(\); accepted: \(..., I\)"),
        ({"x": torch.zeros(2, 0)}, ShapeError, "x has shape"),
        ({"x": torch.zeros(2, 6).long()}, DtypeError, "x is torch.int64"),
        ({"weight": torch.zeros(5, 7)}, ShapeError, r"weight .*accepted: \(O, 6\)"),
        ({"weight": torch.zeros(5, 6, 1, 1)}, ShapeError, "weight has shape"),
        ({"weight": torch.zeros(5, 6, device="meta")}, DeviceError, "weight is on meta"),
        ({"bias": torch.zeros(6)}, ShapeError, r"bias .*accepted: \(5,\)"),
    ],
)
def test_errors(change, error, message):
    with pytest.raises(error, match=message):
        ops.classifier(**{"x": torch.zeros(2, 6), "weight": torch.zeros(5, 6)} | change)
