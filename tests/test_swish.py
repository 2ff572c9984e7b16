"""swish: every activation against its float64 definition, any strides, special values, errors."""

from __future__ import annotations

import gc
import itertools
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import ALL_RUNS, GPU_IMPLS, IMPLS, LAYOUTS, Random
from tolerances import ACTIVATIONS, UNIT, Exact, activation, assert_parity, exact

from effnet_fast import ops
from effnet_fast.errors import ArgumentError, DtypeError
from effnet_fast.gpu import Device
from effnet_fast.gpu.device import Kernel
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act
from effnet_fast.ops import gpu_step


def expected(x: torch.Tensor, act: str) -> Exact:
    """K = 0 and the only term is x itself."""
    return activation(Exact(exact(x).value, 4 * UNIT * x.double().abs()), act)


@pytest.mark.parametrize("impl, dtype", ALL_RUNS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_parity(impl, dtype, act):
    near, far = torch.linspace(-20, 20, 4001), torch.linspace(-300, 300, 601)
    tiny = torch.tensor([0.0, -0.0, 1e-7, -1e-7, 1e-38, -1e-38, 3.0, -3.0, 6.0])
    x = torch.cat([near, far, tiny]).to(dtype)
    y = ops.swish(x, act, impl=impl)
    assert y.dtype == dtype
    assert_parity(y, expected(x, act))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_nan_stays_nan(impl, act):
    x = torch.zeros(21)
    x[::5] = torch.nan
    assert torch.equal(ops.swish(x, act, impl=impl).isnan(), x.isnan())


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(impl, layout):
    x = LAYOUTS[layout](Random()(2, 7, 5, 6))
    y = ops.swish(x, impl=impl)
    assert_parity(y, expected(x, "swish"))
    assert y.stride() == torch.empty_like(x).stride()
    if layout in ("nchw", "nhwc", "transposed"):
        assert y.stride() == x.stride()


@pytest.mark.parametrize("impl", GPU_IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("in_place", [False, True])
def test_gpu_kernels_take_any_alignment(impl, dtype, in_place):
    """What lies before x and y is left alone; what lies behind is not theirs, and would be seen."""
    host_side = gpu_step.host_side(impl, "swish")
    with Device("ptx") as device:
        for n, offset in itertools.product((1, 7, 8, 255, 2049, 4099), (0, 1, 3, 8)):
            x = Random(dtype)(offset + n, scale=4)
            buffer = device.upload(x)
            other = buffer if in_place else device.upload(x)
            there, to = (
                DeviceTensor(b, b.address + offset * dtype.itemsize, dtype, (n,), (1,))
                for b in (buffer, other)
            )
            device.launch(host_side.launch(device, there, to, Act.SWISH))
            y = device.download(other, dtype)
            assert torch.equal(y[:offset], x[:offset])
            assert_parity(y[offset:], expected(x[offset:], "swish"))


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 9), max_size=5),
    act=st.sampled_from(sorted(ACTIVATIONS)),
)
def test_any_shape(impl, shape, act):
    x = Random()(*shape)
    y = ops.swish(x, act, impl=impl)
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


@pytest.mark.parametrize("impl", GPU_IMPLS)
def test_kernels_live_as_long_as_their_device(impl):
    """A captured graph may launch them at any time; and nothing is left of a device."""
    with ops.emulated() as device:
        ops.swish(torch.ones(64), impl=impl)
        first = list(device.kernels.values())
        gc.collect()
        ops.swish(torch.zeros(64), impl=impl)
        assert len(first) == 1 and list(device.kernels.values()) == first
        left = weakref.ref(device)
    del device, first
    gc.collect()
    assert left() is None


@pytest.mark.parametrize("impl", ["cuda"])
def test_launches_without_parameter_sizes(monkeypatch, impl):
    """Drivers before 12.4 do not tell them: arguments have to bring their own."""
    monkeypatch.setattr(Kernel, "parameters", None)
    x = torch.ones(1, 8, 4, 4)
    with ops.emulated():
        assert_parity(ops.swish(x, impl=impl), expected(x, "swish"))
        _, sums = ops.depthwise_conv(x, torch.ones(8, 1, 1, 1), sums=True, impl=impl)
        assert torch.equal(sums, torch.full((1, 8), 16.0))
