"""The directives of PTX, and arguments packed for the kernels they declare."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effnet_fast.errors import ArgumentError, BackendError
from effnet_fast.gpu import Device
from effnet_fast.gpu.compiled import (
    Argument,
    CompiledKernel,
    encode_arguments,
    pack_arguments,
)
from effnet_fast.gpu.ptx_text import read_ptx

# ---- PTX text ------------------------------------------------------------------------------------

PTX = """
// Comments with .entry no( and { braces
.version 8.4
.target sm_80, debug /* .target sm_90 */
.address_size 64
.file 1 "http://a/{b.cu"
.extern .shared .align 16 .b8 dynamic[];
.shared .align 8 .b8 both[24];
.shared .b32 other;
.global .align 4 .b8 table[400];

.visible .entry first(
  .param .u64 .ptr .global .align 16 first_param_0,
  .param .u8 first_param_1,
  .param .align 16 .b8 first_param_2[12],
  .param .f32 first_param_3
)
.maxntid 64, 4, 1
.minnctapersm 2
{
  .reg .b32 %r<9>;
  .shared .align 16 .b8 tile[2][40];
  { .reg .b32 t; mov.u32 t, both; }
  mov.u32 %r1, dynamic;
  ret;
}
.weak .entry $second$() .reqntid 128 { ret; }
.visible .entry third { mov.b32 %r1, other_than_other; ret; }
"""


def test_read_ptx():
    ptx = read_ptx(PTX)
    assert (ptx.version, ptx.target) == ("8.4", "sm_80")
    assert list(ptx.entries) == ["first", "$second$", "third"]
    first, second, third = ptx.entries.values()
    layout = [(p.offset, p.bytes, p.align, p.type, p.pointer) for p in first.parameters]
    assert layout == [
        (0, 8, 8, "u64", True),
        (8, 1, 1, "u8", False),
        (16, 12, 16, "b8", False),
        (28, 4, 4, "f32", False),
    ]
    assert first.parameter_bytes == 32
    assert (first.max_threads, first.required_block, first.min_blocks) == (256, None, 2)
    assert (first.static_shared, first.dynamic_shared) == (32 + 80, True)
    assert (second.max_threads, second.required_block) == (128, (128, 1, 1))
    assert (second.static_shared, second.dynamic_shared, second.parameter_bytes) == (0, False, 0)
    assert (third.max_threads, third.static_shared, third.min_blocks) == (1024, 0, 0)


@pytest.mark.parametrize(
    "text, says",
    [
        ("int main() {}", "the text is not PTX"),
        (PTX[:700], "closing brace is missing"),
        (PTX.replace(".f32 first_param_3", ".texref first_param_3"), "which has no size"),
        (PTX.replace(".param .f32 first", ".param first"), "cannot be read: '.param first_param_3"),
    ],
)
def test_text_that_is_not_read(text, says):
    with pytest.raises(ArgumentError, match=re.escape(says)):
        read_ptx(text)


# ---- arguments -----------------------------------------------------------------------------------

C_TYPES = {
    "u8": ctypes.c_uint8, "u16": ctypes.c_uint16, "u32": ctypes.c_uint32, "u64": ctypes.c_uint64,
    "f32": ctypes.c_float, "f64": ctypes.c_double,
}  # fmt: skip
NUMPY_TYPES = {
    "u8": np.uint8, "u16": np.int16, "u32": np.int32, "u64": np.uint64, "f32": np.float32,
    "f64": np.float64,
}  # fmt: skip


def kernel_of(types, declaration=".param .{} p{}"):
    parameters = ", ".join(declaration.format(t, i) for i, t in enumerate(types))
    ptx = f".version 8.0 .target sm_80 .address_size 64 .visible .entry k({parameters}) {{ ret; }}"
    return CompiledKernel("k", "cuda", 80, ptx)


@st.composite
def typed_values(draw):
    """Types with a value of each: a Python number or a numpy one."""
    types = draw(st.lists(st.sampled_from(sorted(C_TYPES)), max_size=12))
    values = []
    for kind in types:
        if kind.startswith("f"):
            value = draw(st.floats(width=int(kind[1:])))
        else:
            bits = int(kind[1:])
            value = draw(st.integers(-(2 ** (bits - 1)), 2**bits - 1))
        if draw(st.booleans()) and (kind.startswith("f") or _fits(NUMPY_TYPES[kind], value)):
            value = NUMPY_TYPES[kind](value)
        values.append(value)
    return types, values


def _fits(dtype, value):
    return np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


@settings(deadline=None, max_examples=200)
@given(typed_values())
def test_arguments_are_packed_as_a_c_compiler_does(case):
    types, values = case
    struct = type("S", (ctypes.Structure,), {"_fields_": [
        (f"p{i}", C_TYPES[kind]) for i, kind in enumerate(types)
    ]})  # fmt: skip
    plain = (v.item() if isinstance(v, np.generic) else v for v in values)
    expected = bytes(struct(*plain))
    packed = pack_arguments(kernel_of(types), values)
    assert packed == expected[: len(packed)]
    assert not any(expected[len(packed) :])  # the struct's own padding
    assert b"".join(encode_arguments(kernel_of(types), values)) == b"".join(
        bytes(C_TYPES[t](v.item() if isinstance(v, np.generic) else v))
        for t, v in zip(types, values, strict=True)
    )


@settings(deadline=None, max_examples=100)
@given(typed_values(), st.integers(0, 12))
def test_a_value_more_or_less_is_refused(case, index):
    types, values = case
    kernel = kernel_of(types)
    with pytest.raises(ArgumentError, match=f"k takes {len(types)} arguments, {len(types) + 1} "):
        pack_arguments(kernel, [*values, 0])
    if values:
        del values[index % len(values)]
        with pytest.raises(ArgumentError, match="are given; accepted: p0 "):
            pack_arguments(kernel, values)


@pytest.mark.parametrize(
    "kind, value, says",
    [
        ("u32", 2**32, "argument 0 of k is 4294967296; accepted: an int from -2147483648 to 4294"),
        ("u32", -(2**31) - 1, "accepted: an int from -2147483648"),
        ("u32", 1.0, "argument 0 of k is 1.0; accepted: an int"),
        ("u32", np.float32(1), r"is np.float32\(1.0\); accepted: an int"),
        ("u32", np.int64(1), r"is np.int64\(1\); accepted: an int .* a numpy scalar of 4 bytes"),
        ("u32", b"12345", "has 5 bytes; accepted"),
        ("u32", ctypes.c_uint64(1), "has 8 bytes; accepted"),
        ("u32", "1", "is '1'; accepted"),
        ("u32", None, "is None; accepted"),
        ("u64", 2**64, "is 18446744073709551616; accepted"),
        ("u64", torch.zeros(2), "accepted: an int from"),
        ("f32", np.float64(1), r"is np.float64\(1.0\); accepted: a float, .* 4 bytes for f32"),
        ("f32", np.int32(1), "accepted: a float"),
        ("f32", 1e39, "is 1e[+]39; accepted: a float"),
        ("f32", 10**400, "accepted: a float"),
        ("f64", "x", "accepted: a float"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(kind, value, says):
    with pytest.raises(ArgumentError, match=says):
        pack_arguments(kernel_of([kind]), [value])


def test_structs_and_halves():
    kernel = kernel_of(["b8"], ".param .align 2 .b8 p1[2]")
    assert pack_arguments(kernel, [np.float16(1)]) == b"\x00\x3c"
    assert pack_arguments(kernel, [b"\x00\x3c"]) == b"\x00\x3c"
    for value in (1, 1.0, np.float32(1)):
        with pytest.raises(ArgumentError, match="accepted: bytes or a numpy scalar of 2 bytes"):
            pack_arguments(kernel, [value])

    class Pair(ctypes.Structure):
        _fields_ = (("a", ctypes.c_int), ("b", ctypes.c_double))

    kernel = kernel_of(["b8"], ".param .align 8 .b8 p1[16]")
    assert pack_arguments(kernel, [Pair(1, 2.0)]) == bytes(Pair(1, 2.0))


def test_numbers_of_all_kinds():
    kernel = kernel_of(["u8", "f32", "u32", "u64"])
    with Device("ptx") as device:
        buffer = device.empty(16)
        packed = pack_arguments(kernel, [True, 3, np.uint32(2**31), buffer])
        assert packed == b"\x01\0\0\0" + np.float32(3).tobytes() + b"\0\0\0\x80\0\0\0\0" + (
            buffer.address.to_bytes(8, "little")
        )


@settings(deadline=None, max_examples=300)
@given(st.floats(width=32))
def test_bfloat16_is_rounded_as_torch_does(value):
    ptx = kernel_of(["b8"], ".param .align 2 .b8 p1[2]").ptx
    kernel = CompiledKernel("k", "triton", 80, ptx, arguments=(Argument("v", "bf16"),))
    rounded = torch.tensor(value).bfloat16()
    if torch.isinf(rounded) and np.isfinite(value):
        with pytest.raises(ArgumentError, match=r"^v is .*; accepted: a float, "):
            pack_arguments(kernel, [value])
        return
    packed = pack_arguments(kernel, [value])
    if np.isnan(value):
        (bits,) = np.frombuffer(packed, np.int16)
        assert torch.tensor(bits).view(torch.bfloat16).isnan()
    else:
        assert packed == rounded.view(torch.int16).numpy().tobytes()


# ---- kernels that were not assembled -------------------------------------------------------------


def test_a_name_that_the_ptx_has_not_is_refused():
    with pytest.raises(ArgumentError, match="name is 'other'; the PTX has first, "):
        CompiledKernel("other", "cuda", 80, PTX)


def test_what_is_not_assembled_has_no_occupancy():
    kernel = CompiledKernel("first", "cuda", 80, PTX)
    assert kernel.static_shared == 112
    with pytest.raises(BackendError, match="first was not assembled"):
        kernel.occupancy(256)


class _OnGpu:
    """A tensor there: to write it out is to wait for the GPU. Who captures a graph may not."""

    address = 4096

    def __repr__(self):
        raise AssertionError("its values would be fetched")


def test_an_argument_that_is_accepted_is_not_written_out():
    assert encode_arguments(kernel_of(["u64"]), [_OnGpu()]) == ((4096).to_bytes(8, "little"),)
