"""The catalogue of GPU kernels: each compiles, runs and is right; and `effnet-fast kernels`."""

from __future__ import annotations

import json
import re

import pytest
import torch
from tolerances import UNIT, Exact, activation, assert_parity, exact

from effnet_fast.cli import main
from effnet_fast.errors import ArgumentError, BackendError, CompileError
from effnet_fast.gpu import Device, Launch, Region, catalogue
from effnet_fast.gpu.catalogue import CATALOGUE, CatalogueEntry, run_example, select, survey
from effnet_fast.gpu.compiled import CompiledKernel
from effnet_fast.gpu.resources import CAPABILITIES
from effnet_fast.gpu.triton_compile import compile_triton, launch_arguments

pytest.importorskip("triton")  # comes with torch where there are GPUs

IDS = [f"{e.name}-{e.language}" for e in CATALOGUE]


def compiled(entry, capability):
    """Skips the test where the compiler is missing."""
    try:
        return entry.compile(capability)
    except BackendError as error:
        pytest.skip(str(error))


# ---- every kernel --------------------------------------------------------------------------------


def test_every_kernel_is_there_in_both_languages():
    assert [(e.name, e.language) for e in CATALOGUE] == [
        (f"swish_{dtype}", language)
        for dtype in ("float32", "float16", "bfloat16")
        for language in ("cuda", "triton")
    ]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("entry", CATALOGUE, ids=IDS)
def test_compiles_without_spills(entry: CatalogueEntry, capability: int):
    kernel = compiled(entry, capability)
    assert (kernel.language, kernel.capability) == (entry.language, capability)
    assert kernel.resources.spill_stores == kernel.resources.spill_loads == 0
    assert kernel.resources.stack == 0
    assert kernel.occupancy(kernel.entry.max_threads).fraction >= 0.5


@pytest.mark.parametrize("capability", [80, 86, 89])
@pytest.mark.parametrize("entry", CATALOGUE, ids=IDS)
def test_examples_run(entry: CatalogueEntry, capability: int):
    kernel = compiled(entry, capability)
    counts = run_example(entry, kernel)
    assert counts.kernel == kernel.name
    assert counts.tensors
    for tensor in counts.tensors:
        assert tensor.all.used_share == 1.0
        assert tensor.l2_ratio == 1.0


def test_a_newer_architecture_is_not_run():
    (entry,) = select("swish_float32", ["triton"])
    with pytest.raises(BackendError, match=r"not run: newer than the PTX machine's sm_89"):
        run_example(entry, entry.compile(90))


# ---- swish ---------------------------------------------------------------------------------------

THREADS = 256


def swish_on(device, entry, kernel, x, offset=0, in_place=False):
    """swish(x), with x and y at `offset` elements behind 16-byte boundaries."""
    size, n = x.element_size(), x.numel()
    padded = torch.full((n + offset,), float("nan"), dtype=x.dtype)
    padded[offset:] = x
    dx = device.upload(padded)
    dy = dx if in_place else device.upload(torch.zeros_like(padded))
    shift = offset * size
    regions = [Region("x", dx.address + shift, n * size, True, in_place)]
    if not in_place:
        regions.append(Region("y", dy.address + shift, n * size, False, True))
    arguments = (dx.address + shift, dy.address + shift, n)
    threads = kernel.entry.max_threads
    grid = max(1, -(-n // (threads * (16 // size))))
    if entry.language == "triton":
        names = ("x_ptr", "y_ptr", "n")
        arguments = launch_arguments(kernel, dict(zip(names, arguments, strict=True)))
    launch = Launch(kernel.load(device), (grid,), (threads,), 0, arguments, tuple(regions))
    device.launch(launch)
    y = device.download(dy, x.dtype, (n + offset,))
    untouched = y[:offset]
    assert untouched.isnan().all() if in_place else not untouched.any()
    return y[offset:]


def expected(x: torch.Tensor) -> Exact:
    """K = 0 and the only term is x itself."""
    return activation(Exact(exact(x).value, 4 * UNIT * x.double().abs()), "swish")


def values(dtype, n):
    near = torch.linspace(-20, 20, n // 2)
    return torch.cat([near, torch.linspace(-300, 300, n - n // 2)]).to(dtype)


DTYPES = {"swish_float32": torch.float32, "swish_float16": torch.float16,
          "swish_bfloat16": torch.bfloat16}  # fmt: skip


def for_any_length(entry, kernel, dtype):
    """Triton's kernel of the catalogue is for lengths and addresses that are multiples of 16."""
    if entry.language == "cuda":
        return kernel
    from effnet_fast.triton.swish import swish_kernel

    pointer = "*" + catalogue.DTYPES[dtype]
    signature = {"x_ptr": pointer, "y_ptr": pointer, "n": "i64"}
    return compile_triton(swish_kernel, signature, {"BLOCK": 2048 // dtype.itemsize}, 80)


@pytest.mark.parametrize("entry", CATALOGUE, ids=IDS)
def test_swish_is_right(entry):
    dtype, kernel = DTYPES[entry.name], compiled(entry, 80)
    x = values(dtype, 8000)
    with Device("ptx") as device:
        assert_parity(swish_on(device, entry, kernel, x), expected(x))
        assert_parity(swish_on(device, entry, kernel, x, in_place=True), expected(x))
        kernel = for_any_length(entry, kernel, dtype)
        for n in (0, 1, 2, 3, 7, 8, 9, 255, 1023, 1025, 4099):
            for offset in (0, 1, 4, 5) if n in (7, 4099) else (0,):
                x = values(dtype, n)
                assert_parity(swish_on(device, entry, kernel, x, offset), expected(x))
        tiny = torch.tensor([0.0, -0.0, 1e-7, -1e-7, 1e-38, -1e-38, 3.0, -3.0]).to(dtype)
        assert_parity(swish_on(device, entry, kernel, tiny), expected(tiny))
        special = torch.tensor([float("nan"), float("inf"), -torch.finfo(dtype).max]).to(dtype)
        y = swish_on(device, entry, kernel, special)
        assert y[0].isnan() and y[1] == float("inf") and y[2] == 0


@pytest.mark.parametrize("entry", select(languages=["cuda"]), ids=lambda e: e.name)
def test_any_grid_does(entry):
    kernel = compiled(entry, 80)
    x = values(DTYPES[entry.name], 3001)
    with Device("ptx") as device:
        dx = device.upload(x)
        for grid in (1, 2, 100):
            dy = device.empty(dx.bytes)
            arguments, regions = (dx, dy, x.numel()), (dx.region("x", "r"), dy.region("y", "w"))
            device.launch(Launch(kernel.load(device), (grid,), (THREADS,), 0, arguments, regions))
            y = device.download(dy, x.dtype, x.shape)
            assert_parity(y, expected(x))


@pytest.mark.parametrize("entry", CATALOGUE, ids=IDS)
def test_swish_makes_16_byte_accesses(entry):
    kernel = compiled(entry, 80)
    for access in ("ld", "st"):
        assert re.search(rf"\b{access}\.global\.(v4\.\w?32|v2\.\w?64)", kernel.ptx)


# ---- the survey and the command ------------------------------------------------------------------


def broken(error):
    def compile_(capability):
        raise error

    return CatalogueEntry("broken", "cuda", compile_, None)


def test_a_row_says_what_is_missing():
    (row,) = survey([broken(BackendError("there is no nvcc"))], [80])
    assert (row.kernel, row.counts, row.note, row.failed) == (None, None, "there is no nvcc", False)
    (row,) = survey([broken(CompileError("line 3"))], [80])
    assert (row.note, row.failed) == ("line 3", True)
    (entry,) = select("swish_float32", ["triton"])
    (row,) = survey([entry], [90])
    assert row.kernel and row.note.startswith("not run") and not row.failed


OVERRUN = """\
.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 y) {
  .reg .b64 a;
  ld.param.u64 a, [y];
  cvta.to.global.u64 a, a;
  st.global.u32 [a+4], 1;
  ret;
}"""


def test_a_faulty_kernel_is_a_row_and_the_next_ones_go_on(capsys, monkeypatch):
    (good,) = select("swish_float32", ["triton"])

    def example(device, kernel):
        y = device.empty(4)
        return Launch(kernel.load(device), (1,), (1,), 0, (y,), (y.region("y"),))

    def compile_(capability):
        return CompiledKernel("k", "cuda", 80, OVERRUN, resources=good.compile(80).resources)

    bad = CatalogueEntry("swish_bad", "cuda", compile_, example)
    first, second = survey([bad, good], [80])
    assert "out of bounds" in first.note and first.failed and first.counts is None
    assert first.occupancy is not None
    assert second.counts.kernel == "swish_kernel" and not second.failed
    monkeypatch.setattr(catalogue, "CATALOGUE", (bad, good))
    assert main(["kernels", "--arch", "sm_80"]) == 1
    assert "out of bounds" in capsys.readouterr().out


def test_command(capsys):
    assert (
        main(["kernels", "swish_float*", "--arch", "sm_80", "sm_90", "--language", "triton"]) == 0
    )
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "kernel", "language", "arch", "registers", "spills", "shared", "threads", "occupancy",
        "limited", "by", "warp", "instr.", "lanes", "used", "L2", "bytes", "DRAM", "bytes", "note",
    ]  # fmt: skip
    assert [row.split()[:3] for row in rows] == [
        [f"swish_{dtype}", "triton", arch]
        for dtype in ("float32", "float16")
        for arch in ("sm_80", "sm_90")
    ]
    assert "602,112     602,112" in rows[0]
    assert rows[1].endswith("not run: newer than the PTX machine's sm_89")
    assert {row.index("triton") for row in rows} == {head.index("language")}


def test_command_without_counts(capsys):
    command = ["kernels", "swish_float16", "--language", "triton", "--arch", "sm_80", "--no-counts"]
    assert main(command) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[-2:] == ["limited", "by"]
    assert row.split()[3:8] == [row.split()[3], "0", "0", "128", "100"]


def test_command_as_json(capsys):
    command = ["kernels", "swish_float32", "--language", "triton", "--json"]
    assert main([*command, "--arch", "sm_89", "--arch", "sm_100"]) == 0
    run, compiled_only = json.loads(capsys.readouterr().out)
    assert (run["name"], run["language"], run["arch"]) == ("swish_float32", "triton", "sm_89")
    assert run["registers"] > 0 and run["spill_stores"] == 0 and run["threads"] == 128
    assert run["occupancy"]["fraction"] == 1.0 and "warps" in run["occupancy"]["limiters"]
    assert [t["name"] for t in run["counts"]["tensors"]] == ["x", "y"]
    assert (run["note"], run["failed"]) == ("", False)
    assert compiled_only["counts"] is None and compiled_only["note"].startswith("not run")


def test_command_without_a_toolkit(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(catalogue, "compile_cuda", no_nvcc)
    assert main(["kernels", "swish_float32", "--arch", "sm_80"]) == 0
    _, cuda, triton = capsys.readouterr().out.splitlines()
    assert cuda.split()[1] == "cuda" and cuda.endswith("there is no nvcc")
    assert triton.split()[1] == "triton" and "602,112" in triton
    # Installed without csrc.
    monkeypatch.setattr(catalogue, "__file__", str(tmp_path / "effnet_fast/gpu/catalogue.py"))
    assert main(["kernels", "swish_float32", "--arch", "sm_80", "--language", "cuda"]) == 0
    assert "csrc/cuda/swish.cu is not there: CUDA kernels are compiled from a source checkout" in (
        capsys.readouterr().out
    )


def no_nvcc(*_, **__):
    raise BackendError("there is no nvcc")


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["nothing"], "pattern is 'nothing', which no kernel's name matches; accepted: one of "),
        (["--arch", "sm_75"], "--arch is 'sm_75'; accepted: sm_80, sm_86, sm_89, sm_90, sm_100, "),
        (["--arch", "80"], "--arch is '80'"),
    ],
)
def test_wrong_usage(capsys, arguments, says):
    assert main(["kernels", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_select_by_language():
    assert {e.language for e in select("*", ["cuda"])} == {"cuda"}
    with pytest.raises(ArgumentError, match="pattern is 'relu'"):
        select("relu")
