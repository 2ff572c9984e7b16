"""GPU kernels compiled without a GPU, by Triton and nvcc, and the cache of both."""

from __future__ import annotations

import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from effnet_fast import cache
from effnet_fast.errors import ArgumentError, BackendError, CompileError
from effnet_fast.gpu import Device, Launch, nvcc, triton_compile
from effnet_fast.gpu.compiled import encode_arguments, pack_arguments
from effnet_fast.gpu.nvcc import compile_cuda, find_nvcc
from effnet_fast.gpu.resources import MULTIPROCESSORS
from effnet_fast.gpu.triton_compile import compile_triton, launch_arguments

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    folder = tmp_path / "kernels"
    monkeypatch.setenv("EFFNET_FAST_CACHE", str(folder))
    return folder


@pytest.fixture
def toolkit():
    try:
        return find_nvcc()
    except BackendError as error:
        pytest.skip(str(error))


# ---- Triton --------------------------------------------------------------------------------------


@triton.jit
def scale(x, factor):
    return x * factor


@triton.jit
def scaled_copy(
    x_ptr, y_ptr, bias_ptr, factor, stride, n, BLOCK: tl.constexpr, SHIFT: tl.constexpr = 1
):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    y = scale(tl.load(x_ptr + offs * stride, mask=mask), factor) + SHIFT
    if bias_ptr is not None:
        y += tl.load(bias_ptr + offs, mask=mask)
    tl.store(y_ptr + offs, y, mask=mask)


@triton.jit
def every_scalar(y_ptr, a, b, c, d, e, f, g, h, i, n):
    total = a.to(tl.float32) + b.to(tl.float32) + c + d.to(tl.float32) + e + f
    tl.store(y_ptr, total + g + h + i + n)


SIGNATURE = {"x_ptr": "*fp32", "y_ptr": "*fp32", "factor": "fp32", "n": "i32"}
CONSTANTS = {"bias_ptr": None, "stride": 1, "BLOCK": 256}
ALIGNED = ("x_ptr", "y_ptr", "n")


def compile_scaled(capability=80, signature=SIGNATURE, constants=CONSTANTS, **options):
    options.setdefault("divisible", ALIGNED)
    return compile_triton(scaled_copy, signature, constants, capability, **options)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_triton_for_every_architecture(capability):
    kernel = compile_scaled(capability)
    assert (kernel.name, kernel.language, kernel.capability) == (
        "scaled_copy", "triton", capability,
    )  # fmt: skip
    assert kernel.module.target == f"sm_{capability}" + ("a" if capability >= 90 else "")
    assert kernel.cubin.startswith(b"\x7fELF")
    assert (kernel.threads, kernel.warps) == (128, 4)
    assert [p.bytes for p in kernel.parameters] == [8, 8, 4, 4, 8, 8]
    assert [p.pointer for p in kernel.parameters] == [True, True, False, False, True, True]
    assert 0 < kernel.resources.registers <= 64
    assert kernel.resources.spill_stores == kernel.resources.stack == 0
    assert kernel.occupancy().fraction == 1
    assert kernel.scratch.bytes == kernel.dynamic_shared == 0
    assert "test_gpu_compile.py" in kernel.ptx  # lines, for the faults of the PTX machine


def test_divisible_arguments_make_vector_accesses():
    assert "ld.global.v2" in compile_scaled().ptx
    assert "ld.global.v2" not in compile_scaled(divisible=()).ptx


@pytest.mark.parametrize("capability, index", [(80, 0), (89, 1), (120, 2)])
def test_a_triton_kernel_runs(capability, index):
    n = 1008
    x = np.random.default_rng(0).standard_normal(n, dtype=np.float32)
    with Device("ptx", index) as device:
        for options in ({}, {"num_warps": 8}):
            kernel = compile_scaled(capability, **options)
            dx, dy = device.upload(x), device.empty(x.nbytes)
            values = {"x_ptr": dx, "y_ptr": dy, "factor": 2, "n": n, "stride": 1, "bias_ptr": None}
            arguments = launch_arguments(kernel, values)
            loaded = kernel.load(device)
            assert loaded.registers == kernel.resources.registers
            assert loaded.parameters == [(p.offset, p.bytes) for p in kernel.parameters]
            regions = (dx.region("x", "r"), dy.region("y", "w"))
            grid, block = (4,), (kernel.threads,)
            device.launch(Launch(loaded, grid, block, 0, arguments, regions))
            np.testing.assert_array_equal(device.download(dy, np.float32), 2 * x + 1)


def test_launch_arguments():
    kernel = compile_scaled()
    values = {"x_ptr": 160, "y_ptr": 2**63, "factor": 0.5, "n": 32}
    arguments = launch_arguments(kernel, values)
    assert arguments == (
        (160).to_bytes(8, "little"), (2**63).to_bytes(8, "little"),
        np.float32(0.5).tobytes(), (32).to_bytes(4, "little"), bytes(8), bytes(8),
    )  # fmt: skip
    assert pack_arguments(kernel, arguments) == b"".join(arguments)
    everything = values | {"BLOCK": 256, "SHIFT": 1, "stride": 1, "bias_ptr": None}
    assert launch_arguments(kernel, everything) == arguments


@pytest.mark.parametrize(
    "change, says",
    [
        ({"n": None}, "n is None; accepted: an int from -2147483648 to 2147483647"),
        ({"n": 2**31}, "n is 2147483648; accepted"),
        ({"n": 30}, "n is 30; scaled_copy is compiled for multiples of 16"),
        ({"x_ptr": 4}, "x_ptr is 4; scaled_copy is compiled for multiples of 16"),
        ({"x_ptr": -16}, "x_ptr is -16; accepted: an address, a Buffer"),
        ({"x_ptr": 1.0}, "x_ptr is 1.0; accepted: an address"),
        ({"x_ptr": torch.zeros(4)}, "accepted: an address, a Buffer"),
        ({"stride": 2}, "stride is 2; scaled_copy is compiled for 1"),
        ({"bias_ptr": 16}, "bias_ptr is 16; scaled_copy is compiled for None"),
        ({"strides": 2}, "values has 'strides', which scaled_copy does not; accepted: BLOCK, "),
        ({"factor": "x"}, "factor is 'x'; accepted: a float"),
    ],
)
def test_launch_arguments_that_are_refused(change, says):
    values = {"x_ptr": 16, "y_ptr": 32, "factor": 1.0, "n": 16}
    with pytest.raises(ArgumentError, match=re.escape(says)):
        launch_arguments(compile_scaled(), values | change)


def test_a_missing_launch_argument_is_refused():
    with pytest.raises(ArgumentError, match="scaled_copy needs a value for 'factor'"):
        launch_arguments(compile_scaled(), {"x_ptr": 16, "y_ptr": 32, "n": 16})


def test_scalars_of_every_type():
    types = ("fp16", "bf16", "fp32", "fp64", "i1", "i8", "u16", "u32", "i64")
    names = every_scalar.arg_names
    signature = dict(zip(names, ("*fp32", *types, "i16"), strict=True))
    kernel = compile_triton(every_scalar, signature, {}, 80)
    given = (16, 1.5, -1.5, 0.1, 0.1, True, -1, 65535, 2**32 - 1, -(2**63), -2)
    # bfloat16 of torch: an implementation that is not ours
    bf16 = torch.tensor(-1.5).bfloat16().view(torch.int16).numpy().tobytes()
    expected = (
        (16).to_bytes(8, "little"), np.float16(1.5).tobytes(), bf16, np.float32(0.1).tobytes(),
        np.float64(0.1).tobytes(), b"\x01", b"\xff", b"\xff\xff", b"\xff" * 4,
        (2**63).to_bytes(8, "little"), b"\xfe\xff", bytes(8), bytes(8),
    )  # fmt: skip
    arguments = launch_arguments(kernel, dict(zip(names, given, strict=True)))
    assert arguments == expected
    for name, value in (("i", 2**63), ("e", 2), ("g", -1), ("h", -1), ("f", 128), ("a", 7e4)):
        values = dict(zip(names, given, strict=True)) | {name: value}
        with pytest.raises(ArgumentError, match=f"^{name} is "):
            launch_arguments(kernel, values)


def test_autotune_and_heuristics_are_looked_through():
    configs = [triton.Config({"BLOCK": 64}), triton.Config({"BLOCK": 128})]
    wrapped = triton.autotune(configs, key=["n"])(
        triton.heuristics({"SHIFT": lambda values: values["n"] % 2})(scaled_copy)
    )
    kernel = compile_triton(wrapped, SIGNATURE, CONSTANTS, 80, divisible=ALIGNED)
    assert kernel.ptx == compile_scaled().ptx


@pytest.mark.parametrize(
    "change, error, says",
    [
        ({"capability": 75}, ArgumentError, "capability is 75; accepted: 80, 86, 89, 90, 100, 120"),
        ({"num_warps": 3}, ArgumentError, "num_warps is 3; accepted: powers of two"),
        ({"num_warps": 0}, ArgumentError, "num_warps is 0"),
        (
            {"signature": SIGNATURE | {"z_ptr": "*fp32"}},
            ArgumentError,
            "signature has 'z_ptr', which scaled_copy does not; accepted: BLOCK, SHIFT, bias_ptr",
        ),
        ({"constants": CONSTANTS | {"WARPS": 2}}, ArgumentError, "constants has 'WARPS'"),
        ({"divisible": ("stride",)}, ArgumentError, "divisible has 'stride'"),
        ({"constants": {"bias_ptr": None, "BLOCK": 8}}, ArgumentError, "'stride' of scaled_copy"),
        ({"constants": {"stride": 1, "bias_ptr": None}}, ArgumentError, "is missing in constants"),
        ({"constants": CONSTANTS | {"n": 1}}, ArgumentError, "'n' is both in signature and in c"),
        ({"signature": SIGNATURE | {"n": "int"}}, ArgumentError, "signature['n'] is 'int'; acc"),
        ({"signature": SIGNATURE | {"x_ptr": "*float"}}, ArgumentError, "is '*float'; accepted: "),
        ({"signature": SIGNATURE | {"n": ("i32",)}}, ArgumentError, "signature['n'] is ('i32',)"),
        ({"num_ctas": 2}, TypeError, "no option 'num_ctas' for scaled_copy; accepted: num_warps"),
        ({"warps": 2}, TypeError, "no option 'warps'"),
    ],
)  # fmt: skip
def test_what_triton_is_asked_for_is_checked(change, error, says):
    with pytest.raises(error, match=re.escape(says)):
        compile_scaled(**change)


def test_a_function_that_is_not_jitted_is_refused():
    with pytest.raises(ArgumentError, match=r"accepted: a function under @triton.jit"):
        compile_triton(scaled_copy.fn, SIGNATURE, CONSTANTS, 80)


def test_an_interpreted_function_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    interpreted = triton.jit(scaled_copy.fn)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ArgumentError, match="TRITON_INTERPRET was set when it was defined"):
        compile_triton(interpreted, SIGNATURE, CONSTANTS, 80)


def test_an_overridden_architecture_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_OVERRIDE_ARCH", "sm90")
    with pytest.raises(BackendError, match="TRITON_OVERRIDE_ARCH is set, to sm90; scaled_copy is"):
        compile_scaled()


@triton.jit
def wrong(x_ptr, BLOCK: tl.constexpr):
    tl.static_assert(BLOCK >= 32, "BLOCK is too small")
    tl.store(x_ptr + tl.arange(0, BLOCK), undefined)  # noqa: F821


def test_a_triton_kernel_that_does_not_compile():
    for block, says in ((16, "BLOCK is too small"), (32, "undefined is not defined")):
        with pytest.raises(CompileError, match=rf"wrong does not compile for sm_80: (.|\n)*{says}"):
            compile_triton(wrong, {"x_ptr": "*fp32"}, {"BLOCK": block}, 80)
    with pytest.raises(CompileError, match=r"ptxas refuses scaled_copy for sm_80: .*--?no-such"):
        compile_scaled(ptx_options="--no-such")


def without_profile_scratch(entry):
    return entry | {"ptx": re.sub(r",\s*\.param [^,]*_param_5\s*\)", ")", entry["ptx"])}


def with_(old, new):
    def change(entry):
        assert old in entry["ptx"]
        return entry | {"ptx": entry["ptx"].replace(old, new)}

    return change


@pytest.mark.parametrize(
    "change, says",
    [
        (
            without_profile_scratch,
            "factor (fp32, 4 bytes), n (i32, 4 bytes), global scratch (*i8, 8 bytes), profile "
            "scratch (*i8, 8 bytes); the PTX has: scaled_copy_param_0 (u64, 8 bytes), "
            "scaled_copy_param_1 (u64, 8 bytes), scaled_copy_param_2 (f32, 4 bytes), "
            "scaled_copy_param_3 (u32, 4 bytes), scaled_copy_param_4 (u64, 8 bytes)",
        ),
        (with_(".param .u32", ".param .u64"), "scaled_copy_param_3 (u64, 8 bytes)"),
        (with_(".param .f32", ".param .u32"), "scaled_copy_param_2 (u32, 4 bytes)"),
        (
            with_(".u64 .ptr .global .align 1 scaled_copy_param_1", ".u64 scaled_copy_param_1"),
            "does not take what Triton is known to pass; expected: x_ptr (*fp32, 8 bytes)",
        ),
        (lambda entry: entry | {"warps": 8}, "for 8 warps; its PTX requires 128 threads"),
    ],
)
def test_another_launch_abi_is_refused(empty_cache, monkeypatch, change, says):
    compile_ = triton_compile._compile
    monkeypatch.setattr(triton_compile, "_compile", lambda *a: change(compile_(*a)))
    with pytest.raises(BackendError, match=re.escape(says)):
        compile_scaled()
    assert not empty_cache.exists()  # it is not kept either


def test_another_minor_version_of_triton_is_refused(monkeypatch):
    triton_compile.import_triton.cache_clear()
    monkeypatch.setattr(triton, "__version__", "3.10.0")
    with pytest.raises(BackendError, match=r"Triton 3.10.0 is installed; .*, 3.9 compile"):
        compile_scaled()
    monkeypatch.setattr(triton, "__version__", "3.80.0")
    with pytest.raises(BackendError, match=r"Triton 3.80.0 is installed"):
        compile_scaled()
    monkeypatch.setattr(triton, "__version__", "3.9.5+git1234")
    assert triton_compile.import_triton() is triton
    triton_compile.import_triton.cache_clear()


def test_no_triton_says_so(monkeypatch):
    triton_compile.import_triton.cache_clear()
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(BackendError, match=r"install it with: pip install 'triton>=3.6,<3.10'"):
        compile_scaled()
    triton_compile.import_triton.cache_clear()


@triton.jit
def tiles(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    descriptor = tl.make_tensor_descriptor(x_ptr, [n, n], [n, 1], [BLOCK, BLOCK])
    offs = tl.arange(0, BLOCK)
    x = descriptor.load([tl.program_id(0) * BLOCK, 0])
    tl.store(y_ptr + offs[:, None] * BLOCK + offs[None, :], x)


def test_global_scratch_is_lent_or_the_launch_refused():
    signature = {"x_ptr": "*fp16", "y_ptr": "*fp16", "n": "i32"}
    kernel = compile_triton(tiles, signature, {"BLOCK": 64}, 90, divisible=ALIGNED)
    assert (kernel.scratch.bytes, kernel.scratch.align) == (128, 128)
    assert kernel.dynamic_shared >= 64 * 64 * 2
    values = {"x_ptr": 0, "y_ptr": 0, "n": 64}
    with pytest.raises(ArgumentError, match="global_scratch is None; tiles needs 128 bytes for "):
        launch_arguments(kernel, values)
    with pytest.raises(ArgumentError, match="global_scratch is at 0x40; accepted: multiples of 12"):
        launch_arguments(kernel, values, global_scratch=64)
    arguments = launch_arguments(kernel, values, global_scratch=256)
    assert arguments[-2:] == ((256).to_bytes(8, "little"), bytes(8))


def test_triton_s_own_cache_is_left_alone(empty_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    compile_scaled()
    assert not (tmp_path / "triton").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["kernels"]


# ---- the cache -----------------------------------------------------------------------------------


@pytest.fixture
def compiled(monkeypatch):
    """The names of what is compiled, not taken from the cache."""
    names = []

    def count(module, argument):
        def counting(*arguments, compile_=module._compile):
            names.append(arguments[argument].name)
            return compile_(*arguments)

        monkeypatch.setattr(module, "_compile", counting)

    count(triton_compile, 0)
    count(nvcc, 1)
    return names


def test_a_kernel_is_compiled_once(empty_cache, compiled):
    first, again = compile_scaled(), compile_scaled()
    assert compiled == ["scaled_copy"]
    assert (first.ptx, first.cubin, first.resources) == (again.ptx, again.cubin, again.resources)
    assert len(list(empty_cache.iterdir())) == 1
    assert empty_cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "change",
    [
        {"capability": 89},
        {"num_warps": 8},
        {"num_stages": 2},
        {"maxnreg": 32},
        {"enable_fp_fusion": False},
        {"divisible": ()},
        {"signature": SIGNATURE | {"n": "i64"}},
        {"constants": CONSTANTS | {"BLOCK": 512}},
        {"constants": CONSTANTS | {"SHIFT": 1.0}},
        {"constants": CONSTANTS | {"SHIFT": True}},
    ],
    ids=str,
)
def test_whatever_changes_the_code_is_in_the_key(empty_cache, compiled, change):
    compile_scaled()
    compile_scaled(**change)
    assert len(compiled) == 2
    compile_scaled()
    compile_scaled(**change)
    assert len(compiled) == 2


MODULE = """
import triton
import triton.language as tl

CONSTANT = tl.constexpr({constant})

@triton.jit
def inner(x):
    return x {operator} 2.0

@triton.jit
def outer(x_ptr):
    tl.store(x_ptr, inner(tl.load(x_ptr)) + CONSTANT)
"""


def test_called_functions_and_globals_are_in_the_key(empty_cache, compiled, tmp_path):
    path = tmp_path / "kernels.py"
    scopes = []
    for i, values in enumerate(({}, {"operator": "*"}, {"constant": 2.0}, {})):
        # The file, the lines and the function itself are the same.
        path.write_text(MODULE.format(**{"operator": "+", "constant": 1.0} | values))
        os.utime(path, (i, i))  # linecache has to notice
        scopes.append({"__name__": "kernels"})
        exec(compile(path.read_text(), str(path), "exec"), scopes[-1])
        compile_triton(scopes[-1]["outer"], {"x_ptr": "*fp32"}, {}, 80)
    assert compiled == ["outer"] * 3
    scopes[-1]["CONSTANT"] = tl.constexpr(3.0)
    with pytest.raises(ArgumentError, match="the global variable CONSTANT that outer uses has ch"):
        compile_triton(scopes[-1]["outer"], {"x_ptr": "*fp32"}, {}, 80)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
        lambda data: data + b" ",
        lambda data: b"{}",
    ],
)
def test_a_damaged_entry_is_compiled_again(empty_cache, compiled, caplog, damage):
    good = compile_scaled()
    (path,) = empty_cache.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    again = compile_scaled()
    assert (again.ptx, again.cubin) == (good.ptx, good.cubin)
    assert len(compiled) == 2
    assert "is damaged" in caplog.text
    compile_scaled()
    assert len(compiled) == 2


def test_an_entry_under_another_key_is_not_trusted(empty_cache, compiled):
    compile_scaled()
    (path,) = empty_cache.iterdir()
    compile_scaled(num_warps=8)
    (other,) = set(empty_cache.iterdir()) - {path}
    other.write_bytes(path.read_bytes())
    assert compile_scaled(num_warps=8).warps == 8
    assert len(compiled) == 3


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog, compiled):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("EFFNET_FAST_CACHE", str(file / "kernels"))
    assert compile_scaled().threads == 128
    assert "cannot be written" in caplog.text
    compile_scaled()
    assert len(compiled) == 2


def test_a_write_that_fails_leaves_nothing(empty_cache, monkeypatch, caplog):
    def replace(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", replace)
    cache.write("key", {})
    assert "disk full" in caplog.text
    assert list(empty_cache.iterdir()) == []


def test_readers_see_whole_entries_while_others_write(empty_cache, caplog):
    entries = [{"data": str(i) * 200_000} for i in range(4)]

    def write(entry):
        for _ in range(20):
            cache.write("key", entry)

    cache.write("key", entries[0])
    with ThreadPoolExecutor(len(entries)) as pool:
        writers = [pool.submit(write, entry) for entry in entries]
        while not all(w.done() for w in writers):
            assert cache.read("key") in entries
    assert [p.name for p in empty_cache.iterdir()] == ["key.json"]
    assert not caplog.records


def test_the_cache_is_bounded(empty_cache):
    for i in range(10):
        cache.write(f"key{i}", {"data": "x" * 1000}, max_bytes=3500)
        os.utime(empty_cache / f"key{i}.json", (i, i))
        if i == 5:
            assert cache.read("key3") == {"data": "x" * 1000}  # now used last
            os.utime(empty_cache / "key3.json", (100, 100))
    kept = sorted(p.name for p in empty_cache.iterdir())
    assert kept == ["key3.json", "key8.json", "key9.json"]
    cache.write("big", {"data": "x" * 9000}, max_bytes=3500)
    assert [p.name for p in empty_cache.iterdir()] == ["big.json"]  # the newest stays


def test_unfinished_writes_are_removed_when_old(empty_cache):
    cache.write("a", {})
    for name, age in ((".writing-old", 0), (".writing-new", None)):
        (empty_cache / name).write_text("")
        if age is not None:
            os.utime(empty_cache / name, (age, age))
    cache.write("b", {})
    assert sorted(p.name for p in empty_cache.iterdir()) == [".writing-new", "a.json", "b.json"]


def test_the_cache_s_folder(monkeypatch):
    monkeypatch.delenv("EFFNET_FAST_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache.folder() == Path("/home/someone/.cache/effnet_fast/kernels")


# ---- nvcc ----------------------------------------------------------------------------------------

CUDA = """
#include "factor.h"
struct Pair { int a; double b; };
extern "C" __global__ void __launch_bounds__(64) pair(float* y, Pair p, short s, float f) {
  __shared__ float tile[64];
  tile[threadIdx.x] = y[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x] * kFactor + p.a + float(p.b) + s + f;
}
template <class T> __global__ void plain(T* y) { y[0] = T(WIDTH); }
template __global__ void plain<int>(int*);
"""


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "with a space"
    folder.mkdir()
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "factor.h").write_text("constexpr float kFactor = 2.0f;\n")
    path = folder / "pair.cu"
    path.write_text(CUDA)
    return path


def compile_pair(source, capability=80, options=("-DWIDTH=3",), names=None):
    include = source.parents[1] / "include"
    return compile_cuda(source, capability, [include], options, names)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_nvcc_for_every_architecture(toolkit, source, capability):
    kernels = compile_pair(source, capability)
    assert sorted(kernels) == ["_Z5plainIiEvPT_", "pair"]
    pair = kernels["pair"]
    assert (pair.name, pair.language, pair.capability) == ("pair", "cuda", capability)
    assert pair.module.target == f"sm_{capability}"
    assert pair.cubin.startswith(b"\x7fELF")
    layout = [(p.offset, p.bytes, p.type) for p in pair.parameters]
    assert layout == [(0, 8, "u64"), (8, 16, "b8"), (24, 2, "u16"), (28, 4, "f32")]
    assert (pair.threads, pair.entry.max_threads) == (None, 64)
    assert pair.static_shared == pair.entry.static_shared == pair.resources.static_shared == 256
    assert pair.resources.barriers == 1
    assert pair.dynamic_shared == 0
    assert ".loc" in pair.ptx and "pair.cu" in pair.ptx
    with pytest.raises(ArgumentError, match="threads is None; pair runs with more than one"):
        pair.occupancy()
    # Two warps: blocks are what runs out.
    assert pair.occupancy(64).blocks == MULTIPROCESSORS[capability].blocks


def test_a_cuda_kernel_runs(toolkit, source):
    kernel = compile_pair(source, names=["pair"])["pair"]
    y = np.arange(64, dtype=np.float32)
    with Device("ptx") as device:
        buffer = device.upload(y)
        pair = (1).to_bytes(8, "little") + np.float64(0.5).tobytes()
        arguments = encode_arguments(kernel, [buffer, pair, -3, 0.25])
        regions = (buffer.region("y"),)
        device.launch(Launch(kernel.load(device), (1,), (64,), 0, arguments, regions))
        np.testing.assert_array_equal(device.download(buffer, np.float32), 2 * y[::-1] - 1.25)


def test_cuda_files_are_compiled_once(toolkit, source, empty_cache, compiled):
    compile_pair(source)
    compile_pair(source, names=["pair"])
    assert compiled == ["pair.cu"]
    header = source.parents[1] / "include" / "factor.h"
    header.write_text(header.read_text().replace("2.0f", "3.0f"))
    changed = compile_pair(source)
    assert compiled == ["pair.cu"] * 2
    source.write_text(CUDA.replace("p.a +", "p.a -"))
    assert compile_pair(source)["pair"].ptx != changed["pair"].ptx
    compile_pair(source, options=("-DWIDTH=4",))
    compile_pair(source, 89)
    assert compiled == ["pair.cu"] * 5
    header.unlink()
    with pytest.raises(CompileError, match=r"factor.h"):
        compile_pair(source)


def test_what_nvcc_is_asked_for_is_checked(toolkit, source):
    with pytest.raises(ArgumentError, match=r"names has 'triple'; the sources have: _Z5.*, pair"):
        compile_pair(source, names=["triple"])
    with pytest.raises(ArgumentError, match="sources has two kernels pair"):
        other = source.with_name("other.cu")
        other.write_text(CUDA)
        include = [source.parents[1] / "include"]
        compile_cuda([source, other], 80, include, ["-DWIDTH=3"])
    with pytest.raises(ArgumentError, match=r"gone.cu: No such file"):
        compile_cuda(source.with_name("gone.cu"), 80)
    with pytest.raises(ArgumentError, match="capability is 70; accepted"):
        compile_cuda(source, 70)
    with pytest.raises(CompileError, match=r"nvcc does not compile .*WIDTH"):
        compile_pair(source, options=())


def test_options_reach_ptxas(toolkit, source):
    free = compile_pair(source)["pair"]
    capped = compile_pair(source, options=("-DWIDTH=3", "-maxrregcount=16"))["pair"]
    assert capped.resources.registers <= 16
    assert capped.cubin != free.cubin


def test_nvcc_is_looked_for(monkeypatch, tmp_path):
    fake = tmp_path / "bin" / "nvcc"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(fake.parent))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    if not Path("/usr/local/cuda/bin/nvcc").exists():
        with pytest.raises(BackendError, match=r"not found in \$CUDA_HOME \(not set\), the PATH, "):
            find_nvcc()
    fake.chmod(0o755)
    assert find_nvcc() == fake
    home = tmp_path / "home"
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert find_nvcc() == fake  # there is none in that home
    shutil.copytree(fake.parent, home / "bin")
    assert find_nvcc() == home / "bin" / "nvcc"


def test_no_nvcc_says_what_was_looked_for(monkeypatch):
    monkeypatch.setenv("CUDA_HOME", "/opt/nothing")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BackendError) as raised:
        find_nvcc()
    for place in ("$CUDA_HOME (/opt/nothing)", "the PATH", "/usr/local/cuda/bin/nvcc"):
        assert place in str(raised.value)


# ---- images --------------------------------------------------------------------------------------


class FakeDevice:
    def __init__(self, backend, capability):
        self.backend, self.capability, self.name = backend, capability, "a device"


def test_a_device_gets_the_image_that_it_runs():
    ampere, hopper = compile_scaled(80), compile_scaled(90)
    assert ampere.image(FakeDevice("ptx", 80)) == ampere.ptx
    assert ampere.image(FakeDevice("cuda", 80)) == ampere.cubin
    assert ampere.image(FakeDevice("cuda", 86)) == ampere.cubin  # of the same generation
    assert ampere.image(FakeDevice("cuda", 90)) == ampere.ptx
    assert hopper.image(FakeDevice("cuda", 90)) == hopper.cubin
    # sm_90a is for Hopper alone, and not for the machine.
    for device in (FakeDevice("cuda", 100), FakeDevice("cuda", 80), FakeDevice("ptx", 120)):
        with pytest.raises(BackendError, match="scaled_copy is compiled for sm_90a; a device is"):
            hopper.image(device)
