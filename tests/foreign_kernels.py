"""Kernels that nobody here wrote, compiled from their packages, each with inputs and reference."""

from __future__ import annotations

import ast
import ctypes
import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from effnet_fast.errors import BackendError
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.nvcc import compile_cuda, find_nvcc
from effnet_fast.gpu.triton_compile import compile_triton

HERE = Path(__file__).parent / "foreign"
PACKAGES = {
    "fla-core": "0.6.0",
    "flag-gems": "5.0.2",
    "liger-kernel": "0.8.5",
    "nvidia-cutlass": "4.2.0.0",
}
TRITON_HEADER = """\
import triton
import triton.language as tl
from triton.language.extra.libdevice import rsqrt
from triton.language.random import uint_to_uniform_float
"""


@dataclass(frozen=True)
class Foreign:
    """A kernel: its PTX, and runs on a device that raise AssertionError where they are wrong."""

    name: str
    ptx: Callable[[int], str]  # of a capability
    check_problem: Callable[..., None]  # of a device, a PTX text and a problem
    problems: list[tuple]

    def check(self, device: Device, ptx: str) -> None:
        """Every problem, the one that is most likely to find a mistake first."""
        for problem in self.problems:
            self.check_problem(device, ptx, *problem)


# ---- compiling ----------------------------------------------------------------------------------


@cache
def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="foreign_kernels_"))


def installed(package: str, file: str) -> Path:
    """A file of an installed package; skips the test where the package is missing."""
    try:
        path = Path(metadata.distribution(package).locate_file(file))
    except metadata.PackageNotFoundError:
        version = PACKAGES.get(package)
        pytest.skip(f"{package} is not installed: pip install --no-deps {package}=={version}")
    return path


def triton_kernel(package: str, file: str, names: tuple[str, ...]):
    """The last of `names` from a package's source, without importing the package.

    The packages look for a GPU when they are imported. The jitted functions alone need none: they
    are cut out of the file, with nothing but `@triton.jit` on them.
    """
    source = installed(package, file).read_text()
    functions = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.decorator_list = [ast.parse("triton.jit", mode="eval").body]
            functions.setdefault(node.name, ast.unparse(node))
    text = "\n\n".join([TRITON_HEADER, *(functions[name] for name in names)])
    module_name = f"foreign_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    path = scratch() / f"{module_name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return getattr(module, names[-1])


def triton_ptx(fn, signature: dict[str, str], constants: dict, capability: int, **options) -> str:
    passed = {n: signature[n] for n in fn.arg_names if n not in constants}
    return compile_triton(fn, passed, constants, capability, **options).ptx


def nvcc() -> Path:
    try:
        return find_nvcc()
    except BackendError as error:
        pytest.skip(str(error))


# ---- running ------------------------------------------------------------------------------------


def one_kernel(device: Device, ptx: str, part: str = ""):
    module = device.load(ptx)
    (name,) = (name for name in module.kernels if part in name)
    return module.kernel(name)


def expect_close(actual: np.ndarray, expected: np.ndarray, relative: float) -> None:
    """Largest error relative to the largest value: NaN fails."""
    scale = np.abs(expected).max() or 1.0
    error = np.abs(actual.astype(np.float64) - expected).max() / scale
    assert error <= relative, f"error {error:.3g}, allowed {relative:.3g}"


def run_triton(device, ptx, grid, arguments, regions, warps=4, shared=8192):
    # The two scratch pointers that Triton appends.
    arguments = (*arguments, 0, 0)
    kernel = one_kernel(device, ptx)
    device.launch(Launch(kernel, grid, (32 * warps,), shared, arguments, regions))
    device.synchronize()


# ---- Triton -------------------------------------------------------------------------------------


def vector_add_ptx(capability: int) -> str:
    fn = triton_kernel("torch", "torch/testing/_internal/triton_utils.py", ("add_kernel",))
    signature = dict.fromkeys(("in_ptr0", "in_ptr1", "out_ptr"), "*fp32") | {"n_elements": "i32"}
    pointers = ("in_ptr0", "in_ptr1", "out_ptr")
    return triton_ptx(fn, signature, {"BLOCK_SIZE": 512}, capability, divisible=pointers)


def check_vector_add(device: Device, ptx: str, n: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, n), dtype=np.float32)
    dx, dy, out = device.upload(x), device.upload(y), device.empty(x.nbytes)
    regions = (dx.region("x", "r"), dy.region("y", "r"), out.region("out", "w"))
    run_triton(device, ptx, (-(-n // 512),), (dx, dy, out, n), regions)
    np.testing.assert_array_equal(device.download(out, np.float32), x + y)


def softmax_ptx(capability: int) -> str:
    names = ("_softmax_single_block_forward_kernel",)
    fn = triton_kernel("liger-kernel", "liger_kernel/ops/softmax.py", names)
    signature = {n: "*fp32" if n.endswith("_ptr") else "i32" for n in fn.arg_names}
    return triton_ptx(fn, signature, {"BLOCK_SIZE": 1024}, capability)


def check_softmax(device: Device, ptx: str, rows: int, columns: int) -> None:
    x = np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32)
    dx, out = device.upload(x), device.empty(x.nbytes)
    regions = (dx.region("x", "r"), out.region("out", "w"))
    run_triton(device, ptx, (rows,), (out, columns, dx, columns, columns), regions)
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    # ex2.approx and div.full: 2 ulp each
    expect_close(device.download(out, np.float32, x.shape), e / e.sum(1, keepdims=True), 1e-6)


def layer_norm_ptx(capability: int) -> str:
    fn = triton_kernel(
        "liger-kernel", "liger_kernel/ops/layer_norm.py", ("_layer_norm_forward_kernel",)
    )
    signature = {n: "*fp32" if n.endswith("_ptr") else "i32" for n in fn.arg_names}
    signature["eps"] = "fp32"
    return triton_ptx(fn, signature, {"BLOCK_SIZE": 1024}, capability)


def check_layer_norm(device: Device, ptx: str, rows: int, columns: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, columns), dtype=np.float32)
    weight, bias = rng.standard_normal((2, columns), dtype=np.float32)
    dx, dw, db = device.upload(x), device.upload(weight), device.upload(bias)
    out, mean, rstd = device.empty(x.nbytes), device.empty(4 * rows), device.empty(4 * rows)
    inputs = [b.region(n, "r") for b, n in ((dx, "x"), (dw, "weight"), (db, "bias"))]
    outputs = [b.region(n, "w") for b, n in ((out, "out"), (mean, "mean"), (rstd, "rstd"))]
    arguments = (out, columns, dx, columns, dw, 1, db, 1, mean, 1, rstd, 1, columns, 1e-5)
    run_triton(device, ptx, (rows,), arguments, (*inputs, *outputs))
    wide = x.astype(np.float64)
    centered = wide - wide.mean(1, keepdims=True)
    scale = 1 / np.sqrt(wide.var(1) + 1e-5)
    expect_close(device.download(mean, np.float32), wide.mean(1), 1e-5)
    expect_close(device.download(rstd, np.float32), scale, 1e-6)
    expected = centered * scale[:, None] * weight + bias
    expect_close(device.download(out, np.float32, x.shape), expected, 1e-6)


def matmul_ptx(capability: int) -> str:
    names = ("leaky_relu", "matmul_kernel")
    fn = triton_kernel("fla-core", "fla/ops/utils/matmul.py", names)
    signature = dict.fromkeys(fn.arg_names, "i32")
    signature |= dict.fromkeys(("a", "b", "c", "input"), "*fp16")
    signature |= dict.fromkeys(("alpha", "beta"), "*fp32")
    constants = {"BM": 64, "BK": 32, "BN": 64, "G": 4, "ACTIVATION": "leaky_relu", "X_DIM": 1}
    constants |= {"HAS_INPUT": True, "HAS_ALPHA": False, "HAS_BETA": False, "ALLOW_TF32": False}
    constants |= {"stride_ak": 1, "stride_bn": 1, "stride_cn": 1}
    aligned = ("a", "b", "c", "input", "stride_am", "stride_bk", "stride_cm")
    return triton_ptx(fn, signature, constants, capability, divisible=aligned, num_stages=3)


def check_matmul(device: Device, ptx: str, m: int, n: int, k: int) -> None:
    pitch, a_pitch = -(-n // 16) * 16, k // 16 * 16 + 16  # rows start at multiples of 16 bytes
    rng = np.random.default_rng(0)
    # What lies behind a row of A is NaN: it must not be multiplied, not even by 0.
    padded = np.full((m, a_pitch), np.nan, np.float16)
    padded[:, :k] = rng.standard_normal((m, k))
    a = padded[:, :k]
    b = rng.standard_normal((k, pitch)).astype(np.float16)
    bias = rng.standard_normal(n).astype(np.float16)
    da, db, di = device.upload(padded), device.upload(b), device.upload(bias)
    out = device.upload(np.zeros((m, pitch), np.float16))
    inputs = [x.region(name, "r") for x, name in ((da, "a"), (db, "b"), (di, "bias"))]
    strides = (m * a_pitch, a_pitch, pitch, m * pitch, pitch)
    arguments = (da, db, out, di, 0, 0, m, n, k, *strides)
    regions = (*inputs, out.region("c", "w"))
    grid = (1, -(-m // 64), -(-n // 64))
    run_triton(device, ptx, grid, arguments, regions, shared=49152)
    product = a.astype(np.float64) @ b[:, :n].astype(np.float64)
    expected = np.where(product >= 0, product, 0.01 * product) + bias.astype(np.float64)
    actual = device.download(out, np.float16, (m, pitch))
    expect_close(actual[:, :n], expected, 2**-11)  # half an ulp of float16
    assert not actual[:, n:].any(), "the padding was written"


def dropout_ptx(capability: int) -> str:
    fn = triton_kernel("flag-gems", "flag_gems/ops/dropout.py", ("dropout_forward_kernel",))
    signature = {"X": "*fp32", "Y": "*fp32", "dropout_mask": "*i1", "N": "i32", "p": "fp32"}
    signature |= {"philox_seed": "i64", "philox_offset": "i64"}
    return triton_ptx(fn, signature, {"BLOCK": 512}, capability)


def philox(seed: int, c0: np.ndarray, c1: int) -> list[np.ndarray]:
    """Philox 4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011)."""
    low = np.uint64(0xFFFFFFFF)
    zero = np.zeros_like(c0, np.uint64)
    c = [c0.astype(np.uint64), zero + np.uint64(c1), zero, zero]
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            p1 >> np.uint64(32) ^ c[1] ^ np.uint64(k0), p1 & low,
            p0 >> np.uint64(32) ^ c[3] ^ np.uint64(k1), p0 & low,
        ]  # fmt: skip
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [x.astype(np.uint32) for x in c]


def check_dropout(device: Device, ptx: str, n: int) -> None:
    p, seed, block = 0.3, 0x123456789ABCDEF, 512
    blocks = -(-n // (4 * block))
    x = np.random.default_rng(0).standard_normal(n, dtype=np.float32)
    dx, out, mask = device.upload(x), device.empty(x.nbytes), device.empty(n)
    regions = (dx.region("x", "r"), out.region("out", "w"), mask.region("mask", "w"))
    arguments = (dx, out, mask, n, p, seed, 7)
    run_triton(device, ptx, (blocks,), arguments, regions)
    signed = [r.view(np.int32) for r in philox(seed, 7 + np.arange(blocks * block), 0)]
    uniform = [np.where(r < 0, -r - 1, r).astype(np.float32) * np.float32(4.6566127342e-10)
               for r in signed]  # fmt: skip
    keep = np.stack([u.reshape(blocks, block) > np.float32(p) for u in uniform], 1).reshape(-1)[:n]
    np.testing.assert_array_equal(device.download(mask).astype(bool), keep)
    expect_close(device.download(out, np.float32), keep * (x / (1 - np.float64(p))), 1e-6)


# ---- CUB ----------------------------------------------------------------------------------------


def cub_ptx(kernel: str) -> Callable[[int], str]:
    def ptx(capability: int) -> str:
        nvcc()
        kernels = compile_cuda(HERE / "cub_blocks.cu", capability, names=[kernel])
        return cut_kernel(kernels[kernel].ptx, kernel)

    return ptx


def cut_kernel(ptx: str, part: str) -> str:
    """The module with one of its kernels only."""
    head, *entries = re.split(r"^(?:\.(?:visible|weak) )?\.entry ", ptx, flags=re.MULTILINE)
    (entry,) = (e for e in entries if part in e.partition("(")[0])
    return head + ".visible .entry " + entry[: re.search(r"ret;\s*}", entry).end()]


CUB_TILE = 512


def check_cub(dtype, reference: Callable[[np.ndarray], np.ndarray]):
    def check(device: Device, ptx: str, n: int) -> None:
        x = np.random.default_rng(0).integers(0, 2**31, n).astype(dtype)
        tiles = [reference(x[i : i + CUB_TILE]) for i in range(0, n, CUB_TILE)]
        expected = np.concatenate(tiles)
        dx, out = device.upload(x), device.empty(expected.nbytes)
        regions = (dx.region("in", "r"), out.region("out", "w"))
        kernel = one_kernel(device, ptx)
        device.launch(Launch(kernel, (len(tiles),), (128,), 0, (dx, out, n), regions))
        device.synchronize()
        np.testing.assert_array_equal(device.download(out, dtype), expected)

    return check


def check_histogram(device: Device, ptx: str, n: int) -> None:
    tiles = n // CUB_TILE
    x = np.random.default_rng(0).integers(0, 256, tiles * CUB_TILE).astype(np.uint8)
    dx, out = device.upload(x), device.upload(np.zeros(256, np.uint32))
    regions = (dx.region("in", "r"), out.region("out", "rw"))
    kernel = one_kernel(device, ptx)
    # The last block finds no whole tile.
    device.launch(Launch(kernel, (tiles + 1,), (128,), 0, (dx, out, n), regions))
    device.synchronize()
    expected = np.bincount(x, minlength=256).astype(np.uint32)
    np.testing.assert_array_equal(device.download(out, np.uint32), expected)


# ---- CUTLASS ------------------------------------------------------------------------------------


@cache
def cutlass_build(capability: int = 80) -> tuple[str, ctypes.CDLL]:
    """The kernels' PTX, and the host library that packs their parameters."""
    include = installed("nvidia-cutlass", "cutlass_library/source/include")
    folder = scratch() / f"cutlass_{capability}"
    folder.mkdir(exist_ok=True)
    library = folder / "cutlass_gemms.so"
    command = [nvcc(), "-std=c++17", "-shared", "-lineinfo", "--expt-relaxed-constexpr"]
    command += [f"-arch=compute_{capability}", f"-code=compute_{capability}", f"-I{include}"]
    command += ["-Xcompiler", "-fPIC", "--keep", "--keep-dir", folder, "-o", library]
    subprocess.run([*command, HERE / "cutlass_gemms.cu"], check=True, capture_output=True)
    return (folder / "cutlass_gemms.ptx").read_text(), ctypes.CDLL(str(library))


def cutlass_ptx(part: str) -> Callable[[int], str]:
    """Of sm_80 for every device: they are kernels for it, and compiling them takes a while."""
    return lambda capability: cut_kernel(cutlass_build()[0], part)


def check_cutlass(function: str, dtype, b_columns: bool, bound: float):
    def check(device: Device, ptx: str, m: int, n: int, k: int, beta: float, where: str) -> None:
        alpha = 2.0
        rng = np.random.default_rng(0)
        a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
        c = rng.standard_normal((m, n)).astype(dtype)
        if beta == 0:
            c[:] = np.nan  # must not be read
        da, db = device.upload(a), device.upload(b.T if b_columns else b)
        dc = device.upload(c)
        packed, launch = ctypes.create_string_buffer(4096), (ctypes.c_int * 5)()
        pack = getattr(cutlass_build()[1], function)
        pack.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int] * 3
        pack.argtypes += [ctypes.c_void_p, ctypes.c_int] * 3 + [ctypes.c_float] * 2
        pack.argtypes += [ctypes.c_void_p] * 2 + [ctypes.c_int]
        matrices = (da.address, k, db.address, k if b_columns else n, dc.address, n)
        # The factors as values, behind pointers, or behind arrays of pointers.
        factors = device.upload(np.array([alpha, beta], np.float32))
        pointers = [factors.address, factors.address + 4]
        null = where == "null array"  # CUTLASS then takes both factors for 0
        arrays = device.upload(np.array([0, 0] if null else pointers, np.uint64))
        level = ("value", "pointer", "array", "null array").index(where)
        if level >= 2:
            pointers = [arrays.address, arrays.address + 8]
        size = pack(packed, launch, m, n, k, *matrices, alpha, beta, *pointers, level)
        regions = [da.region("a", "r"), db.region("b", "r"), dc.region("c", "rw")]
        regions += [factors.region("factors", "r"), arrays.region("arrays", "r")]
        *grid, threads, shared = launch
        grid[0] += 1  # a swizzle may ask for blocks beyond the last tile: they leave at once
        arguments = (packed.raw[:size],)
        kernel = one_kernel(device, ptx)
        device.launch(Launch(kernel, tuple(grid), (threads,), shared, arguments, tuple(regions)))
        device.synchronize()
        product = a.astype(np.float64) @ b.astype(np.float64)
        expected = alpha * product + (beta * c.astype(np.float64) if beta else 0)
        if null:
            expected = np.zeros_like(product)
        expect_close(device.download(dc, dtype, (m, n)), expected, bound)

    return check


# ---- all of them --------------------------------------------------------------------------------

ROWS = [(3, 901), (2, 40), (2, 1024)]  # ragged, mostly masked, full
TILES = [(1300,), (100,), (1024,)]
GEMMS = [(*shape, 0.5, "value") for shape in ((136, 72, 104), (8, 8, 8), (64, 128, 96))]
GEMMS += [(136, 72, 104, 0.0, "value"), (136, 72, 104, 0.5, "pointer"), (72, 136, 40, 0.5, "array")]
GEMMS += [(72, 136, 40, 0.5, "null array")]
SIMT_GEMMS = [(*shape, 0.5, "value") for shape in ((70, 65, 19), (3, 2, 1), (64, 128, 24))]
SIMT_GEMMS += [(70, 65, 19, 0.0, "value"), (70, 65, 19, 0.5, "pointer"), (65, 70, 9, 0.5, "array")]
SIMT_GEMMS += [(65, 70, 9, 0.5, "null array"), (64, 64, 0, 0.5, "value")]
# The last column in every register of a thread: loads of the bias whose values nobody uses.
COLUMNS = [(8, n, 16) for n in (1, 2, 17, 18, 33, 34, 49, 50)]

KERNELS = [
    Foreign("triton_vector_add", vector_add_ptx, check_vector_add, [(1300,), (100,), (1536,)]),
    Foreign("triton_softmax", softmax_ptx, check_softmax, ROWS),
    Foreign("triton_layer_norm", layer_norm_ptx, check_layer_norm, ROWS),
    Foreign(
        "triton_matmul",
        matmul_ptx,
        check_matmul,
        [(100, 72, 104), (8, 8, 5), (8, 8, 1), (64, 128, 96), *COLUMNS],
    ),
    Foreign("triton_dropout", dropout_ptx, check_dropout, [(3000,), (100,), (4096,)]),
    Foreign(
        "cub_block_reduce",
        cub_ptx("block_reduce"),
        check_cub(np.int32, lambda x: x.sum(dtype=np.int32, keepdims=True)),
        TILES,
    ),
    Foreign(
        "cub_block_scan",
        cub_ptx("block_scan"),
        check_cub(np.int32, lambda x: np.cumsum(x, dtype=np.int32) - x),
        TILES,
    ),
    Foreign("cub_block_sort", cub_ptx("block_sort"), check_cub(np.uint32, np.sort), TILES),
    Foreign("cub_block_histogram", cub_ptx("block_histogram"), check_histogram, [(1300,)]),
    Foreign(
        "cutlass_simt_gemm",
        cutlass_ptx("MmaPipelined"),
        check_cutlass("simt_parameters", np.float32, False, 1e-6),
        SIMT_GEMMS,
    ),
    Foreign(
        "cutlass_tensor_op_gemm",
        cutlass_ptx("MmaMultistage"),
        check_cutlass("tensor_op_parameters", np.float16, True, 2**-11),
        GEMMS,
    ),
]
