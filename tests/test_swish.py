"""swish: every activation against its float64 definition, any strides, special values, errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import LAYOUTS, RUNS, Random
from tolerances import ACTIVATIONS, UNIT, Exact, activation, assert_parity, exact

from effnet_fast import ops
from effnet_fast.errors import ArgumentError, DtypeError


def expected(x: torch.Tensor, act: str) -> Exact:
    """K = 0 and the only term is x itself."""
    return activation(Exact(exact(x).value, 4 * UNIT * x.double().abs()), act)


@pytest.mark.parametrize("impl, dtype", RUNS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_parity(impl, dtype, act):
    near, far = torch.linspace(-20, 20, 4001), torch.linspace(-300, 300, 601)
    tiny = torch.tensor([0.0, -0.0, 1e-7, -1e-7, 1e-38, -1e-38, 3.0, -3.0, 6.0])
    x = torch.cat([near, far, tiny]).to(dtype)
    y = ops.swish(x, act, impl=impl)
    assert y.dtype == dtype
    assert_parity(y, expected(x, act))


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_nan_stays_nan(impl, act):
    x = torch.zeros(21)
    x[::5] = torch.nan
    assert torch.equal(ops.swish(x, act, impl=impl).isnan(), x.isnan())


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(impl, layout):
    x = LAYOUTS[layout](Random()(2, 7, 5, 6))
    y = ops.swish(x, impl=impl)
    assert_parity(y, expected(x, "swish"))
    assert y.stride() == torch.empty_like(x).stride()
    if layout in ("nchw", "nhwc", "transposed"):
        assert y.stride() == x.stride()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 9), max_size=5),
    act=st.sampled_from(sorted(ACTIVATIONS)),
)
def test_any_shape(shape, act):
    x = Random()(*shape)
    y = ops.swish(x, act)
    assert y.shape == x.shape
    assert_parity(y, expected(x, act))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.zeros(3).int()}, DtypeError, "x is torch.int32; accepted: torch.float16"),
        ({"x": torch.zeros(3, dtype=torch.complex64)}, DtypeError, "x is torch.complex64"),
        ({"act": "mish"}, ArgumentError, "act is 'mish'; accepted: 'none', 'swish', 'relu'"),
    ],
)
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_errors(change, error, message, impl):
    with pytest.raises(error, match=message):
        ops.swish(**{"x": torch.zeros(3)} | change, impl=impl)
