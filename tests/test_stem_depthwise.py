"""stem_depthwise: parity with float64, the same bits as its two halves, image layouts, errors."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import GPU_IMPLS, LAYOUTS, MOST_RUNS, Random
from tolerances import ACTIVATIONS, assert_parity, conv, rounded, sums

from effnet_fast import ops
from effnet_fast.errors import ArgumentError, DtypeError, ShapeError
from effnet_fast.network import Window
from effnet_fast.ops.extension import extension

STEM = Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))
SAME = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))


def compare(impl, dtype, x, mid, stem, window, act="swish", layout="nchw", bias=True):
    r = Random(dtype, seed=1)
    x = LAYOUTS[layout](x.to(dtype))
    stem_weight, weight = r.weight(mid, x.shape[1], *stem.kernel), r.weight(mid, 1, *window.kernel)
    stem_bias, bias = (r(mid), r(mid)) if bias else (None, None)
    first = {"stride": stem.stride, "padding": stem.padding, "act": act, "impl": impl}
    second = {
        "stride": window.stride,
        "padding": window.padding,
        "dilation": window.dilation,
        "act": act,
        "impl": impl,
    }
    options = second | {
        "stem_stride": stem.stride, "stem_padding": stem.padding, "stem_act": act
    }  # fmt: skip
    arguments = (x, stem_weight, stem_bias, weight, bias)
    y, total = ops.stem_depthwise(*arguments, sums=True, **options)
    assert y.dtype == dtype
    assert total.dtype == torch.float32
    assert y.is_contiguous(memory_format=torch.channels_last)
    between = conv(x, stem_weight, stem_bias, act, stem)
    if impl in GPU_IMPLS:  # the map between is in memory, in x's type
        between = rounded(between, dtype)
    expected = conv(between, weight, bias, act, window)
    assert_parity(y, expected)
    assert_parity(total, sums(expected))
    alone = ops.stem_depthwise(*arguments, **options)
    if impl == "triton":  # another kernel without sums, whose functions are off by other amounts
        assert_parity(alone, expected)
    else:
        assert torch.equal(y, alone)
    if impl == "cpu":
        # The contract of the kernels: fusing changes no bit.
        wide = ops.stem_conv(x, stem_weight, stem_bias, **first)
        apart, apart_sums = ops.depthwise_conv(wide, weight, bias, sums=True, **second)
        assert torch.equal(y, apart)
        assert torch.equal(total, apart_sums)


@pytest.mark.parametrize("impl, dtype", MOST_RUNS)
@pytest.mark.parametrize(
    "shape, mid, stem, window",
    [
        ((2, 3, 32, 32), 32, Window((3, 3), (2, 2), (1, 1), (0, 0, 1, 1)), SAME),
        ((1, 3, 33, 31), 40, STEM, SAME),
        ((1, 4, 17, 19), 17, STEM, Window((3, 3), (2, 2), (1, 1), (0, 0, 1, 1))),
        ((1, 3, 22, 24), 8, STEM, Window((5, 3), (2, 1), (1, 2), (2, 2, 2, 2))),
        ((1, 1, 9, 6), 1, Window((2, 5), (1, 3), (1, 1), (0, 2, 1, 2)), Window((2, 2))),
        ((2, 3, 1, 1), 5, STEM, SAME),
        ((1, 3, 9, 9), 24, Window((7, 7), (2, 2), (1, 1), (3, 3, 3, 3)), Window((1, 1), (3, 3))),
    ],
)
def test_parity(impl, dtype, shape, mid, stem, window):
    compare(impl, dtype, Random()(*shape), mid, stem, window)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(act):
    compare("cpu", torch.float32, Random()(2, 3, 13, 10, scale=3), 20, STEM, SAME, act)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
def test_layouts(layout, bias):
    x = Random()(2, 3, 15, 14)
    compare("cpu", torch.float32, x, 24, STEM, SAME, "swish", layout, bias)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(threads):
    """Bands of rows, and a ring that is too large for all channels at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for shape, mid in (((1, 3, 30, 700), 72), ((1, 3, 5, 40), 32), ((5, 3, 16, 16), 16)):
            compare("cpu", torch.float32, Random()(*shape), mid, STEM, SAME)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("isa", extension().available_isas())
def test_every_instruction_set_fuses_without_changing_a_bit(isa):
    code = (
        "import torch\n"
        "from effnet_fast import ops\n"
        "from effnet_fast.ops.extension import extension\n"
        f"assert extension().isa() == {isa!r}\n"
        "x, stem = torch.randn(2, 3, 37, 41), torch.randn(40, 3, 3, 3)\n"
        "weight, bias = torch.randn(40, 1, 3, 3), torch.randn(40)\n"
        "first = {'stem_stride': 2, 'stem_padding': 1, 'stem_act': 'swish'}\n"
        "second = {'padding': 1, 'act': 'swish', 'sums': True}\n"
        "y, total = ops.stem_depthwise(x, stem, bias, weight, bias, **first, **second)\n"
        "mid = ops.stem_conv(x, stem, bias, stride=2, padding=1, act='swish')\n"
        "apart = ops.depthwise_conv(mid, weight, bias, **second)\n"
        "assert torch.equal(y, apart[0]) and torch.equal(total, apart[1])\n"
    )
    environment = os.environ | {"EFFNET_FAST_ISA": isa}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


WINDOWS = st.builds(
    Window,
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
)


def large_enough(window, output, size=(1, 1)):
    """``size``, or larger: what leaves ``output`` pixels at least."""
    return tuple(
        max(s, (out - 1) * window.stride[i] + window.dilation[i] * (window.kernel[i] - 1) + 1
            - window.padding[i] - window.padding[i + 2])
        for i, (out, s) in enumerate(zip(output, size, strict=True))
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 3),
    c=st.integers(1, 5),
    mid=st.integers(1, 70),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    stem=WINDOWS,
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    window=WINDOWS,
    layout=st.sampled_from(sorted(LAYOUTS)),
)
def test_any_shape(n, c, mid, size, stem, dilation, window, layout):
    window = replace(window, dilation=dilation)
    size = large_enough(stem, large_enough(window, (1, 1)), size)
    compare("cpu", torch.float32, Random()(n, c, *size), mid, stem, window, layout=layout)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_padding_is_zero_and_not_the_activated_bias(impl):
    """Of zeros the stem makes act(bias) = 1 on its map, which must still be 0 outside."""
    y = ops.stem_depthwise(
        torch.zeros(1, 2, 4, 4),
        torch.zeros(8, 2, 1, 1),
        torch.ones(8),
        torch.ones(8, 1, 3, 3),
        stem_act="relu",
        padding=1,
        impl=impl,
    )
    taps = torch.tensor([2.0, 3, 3, 2])
    assert torch.equal(y, (taps[:, None] * taps).expand(1, 8, 4, 4))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.zeros(2, 5, 8, 8)}, ShapeError, r"stem_weight .*accepted: \(M, 5, kh, kw\)"),
        ({"stem_weight": torch.zeros(6, 3)}, ShapeError, "stem_weight has shape"),
        ({"stem_bias": torch.zeros(3)}, ShapeError, r"stem_bias .*accepted: \(6,\)"),
        ({"weight": torch.zeros(3, 1, 3, 3)}, ShapeError, r"weight .*accepted: \(6, 1, kh, kw\)"),
        ({"weight": torch.zeros(6, 1, 3, 3).double()}, DtypeError, "weight is torch.float64"),
        ({"bias": torch.zeros(3)}, ShapeError, "bias has shape"),
        ({"x": torch.zeros(2, 3, 2, 8)}, ShapeError, "^x has a map of 2 x 8 pixels"),
        ({"dilation": 5}, ShapeError, "the stem has a map of 6 x 6 pixels"),
        ({"stem_stride": 0}, ArgumentError, "stem_stride is"),
        ({"stem_padding": (1, 1)}, ArgumentError, "stem_padding is"),
        ({"stride": 0}, ArgumentError, "^stride is"),
        ({"stem_act": "x"}, ArgumentError, "stem_act is 'x'"),
        ({"act": "x"}, ArgumentError, "^act is 'x'"),
    ],
)
@pytest.mark.parametrize("sums", [False, True])
def test_errors(change, error, message, sums):
    arguments = {
        "x": torch.zeros(2, 3, 8, 8),
        "stem_weight": torch.zeros(6, 3, 3, 3),
        "stem_bias": None,
        "weight": torch.zeros(6, 1, 3, 3),
    } | change
    with pytest.raises(error, match=message):
        ops.stem_depthwise(**arguments, sums=sums)
