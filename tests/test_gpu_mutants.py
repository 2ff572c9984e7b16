"""The package's own GPU kernels, broken mechanically: parity and the machine must notice."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import gpu_cases as cases
import pytest
import torch
from ptx_mutants import ORDERS, Mutant, mutants

from effnet_fast.cuda import expand_depthwise, pointwise_conv
from effnet_fast.errors import BackendError, GpuError, KernelFault
from effnet_fast.gpu import fat_binary
from effnet_fast.gpu.catalogue import select
from effnet_fast.gpu.nvcc import FLAGS, find_nvcc

ROOT = Path(__file__).parents[1]
MOST = 0.2  # of one kernel's mutants that survive; of all of them 5 % do

FLOAT, HALF = torch.float32, torch.float16
# In half precision one of each layout.
EXPAND = {
    HALF: [(3, 1, "row8"), (3, 1, "block16"), (3, 2, "row16"), (5, 1, "wide")],
    FLOAT: [(3, 1, "wide"), (3, 2, "wide"), (5, 1, "wide")],
}
MAX_INSTRUCTIONS = 2_000_000  # of a block's threads: the cases take less than a tenth


@dataclass(frozen=True)
class Target:
    """A kernel of the catalogue, the launches it is tested with, and whether in `make test`."""

    name: str
    language: str
    cases: Callable[[], Iterable[cases.Case]]
    quick: bool = False

    def __str__(self) -> str:
        return f"{self.name}-{self.language}"


def targets() -> Iterable[Target]:
    """In bfloat16 kernels are those of float16, but for their conversions."""
    for dtype, name in ((HALF, "float16"), (FLOAT, "float32")):
        quick = dtype == HALF
        for k, s, variant in ((3, 2, (1, 7)), (3, 1, (2, 7)), (5, 2, (1, 4)), (9, 1, (1, 7))):
            if dtype == FLOAT and k == 9:
                continue  # the cases' tiles do not fit shared memory
            yield Target(
                f"depthwise_conv_k{k}s{s}_{variant[0]}x{variant[1]}_{name}",
                "cuda",
                functools.partial(cases.tiled_cases, k, s, variant, dtype),
                quick and (k, s) == (3, 2),
            )
        any_cases = functools.partial(cases.any_cases, dtype)
        yield Target(f"depthwise_conv_any_{name}", "cuda", any_cases, quick)
        for k, s in ((3, 2), (5, 1), (7, 1)):
            triton_cases = functools.partial(cases.triton_cases, k, s, True, dtype)
            yield Target(
                f"depthwise_conv_k{k}s{s}_{name}", "triton", triton_cases, quick and k == 3
            )
        triton_cases = functools.partial(cases.triton_cases, 5, 1, False, dtype)
        yield Target(f"depthwise_conv_unaligned_{name}", "triton", triton_cases)
        for images in (1, 2, 4):
            # (images, tiles, channels, squeezed channels, offset); nvcc unrolls tiles and squeezed
            # channels by 4, channels of a lane by 2: with every rest.
            n = 2 * images + 1 if images > 1 else 1
            sizes = (
                (n, 7, 260, 7, 0), (n, 4, 260, 8, 0), (n, 5, 261, 9, 1), (n, 2, 29, 3, 1),
                (n, 1, 29, 2, 0),
            )  # fmt: skip
            squeeze_cases = functools.partial(cases.squeeze_cases, "cuda", dtype, images, sizes)
            yield Target(
                f"squeeze_excite_{images}_{name}", "cuda", squeeze_cases, quick and images == 2
            )
        sizes = ((2, 3, 272, 17, 0), (1, 1, 272, 31, 0))
        squeeze_cases = functools.partial(cases.squeeze_cases, "triton", dtype, 1, sizes)
        yield Target(f"squeeze_excite_32_{name}", "triton", squeeze_cases, quick)
        runs = (
            (40003, 0, "swish"), (301, 1, "swish"), (40000, 0, "gelu"), (4003, 0, "gelu"),
            (9001, 1, "gelu"), (301, 1, "none"), (301, 1, "sigmoid"), (301, 1, "gelu_tanh"),
            (301, 1, "relu"), (301, 1, "relu6"), (301, 1, "hard_swish"), (301, 1, "hard_sigmoid"),
        )  # fmt: skip
        swish_cases = functools.partial(cases.swish_cases, "cuda", dtype, runs)
        yield Target(f"swish_{name}", "cuda", swish_cases, quick)
        swish_cases = functools.partial(cases.swish_cases, "triton", dtype, ((1040, 0, "swish"),))
        yield Target(f"swish_{name}", "triton", swish_cases, quick)
        for variant in EXPAND[dtype]:
            k, s, layout = variant
            expand_cases = functools.partial(cases.expand_cases, *variant, 3, dtype)
            cut = expand_depthwise.Tiling(1, 1, 1, 3, layout)
            kernel = expand_depthwise.kernel_name(cut, k, s, dtype)
            yield Target(kernel, "cuda", expand_cases, quick and layout == "row8")
        if dtype == HALF:
            for gated in (False, True):
                cut = pointwise_conv.variants(dtype)[-1]
                kernel = f"pointwise_conv{'_gated' * gated}_{cut.m}x{cut.n}_{name}"
                pointwise_cases = functools.partial(
                    cases.pointwise_cases, "cuda", dtype, cut, gated
                )
                yield Target(kernel, "cuda", pointwise_cases, quick and gated)
            for kernel, its_cases in (
                ("pointwise_conv_excited_32x32", cases.excited_cases),
                ("stem_depthwise_k3s1", cases.stem_cases),
                ("stem_conv_128x64", cases.stem_conv_cases),
                ("fused_mbconv_project_128x64", cases.fused_mbconv_cases),
            ):
                yield Target(f"{kernel}_{name}", "cuda", functools.partial(its_cases, dtype))
    for language in ("cuda", "triton"):
        total_cases = functools.partial(cases.total_cases, language)
        yield Target("depthwise_conv_total", language, total_cases, True)


TARGETS = [
    pytest.param(target, id=str(target), marks=[] if target.quick else [pytest.mark.full])
    for target in targets()
]

BRANCH, PREDICATE, BARRIER, SIZE = (
    f"{what} removed" for what in ("bounds branch", "bounds predicate", "barrier", "source size")
)
OFFSET = "offset moved"
# Mutants that behave as the kernel does: (what the source line matches, kind, how many of a kernel,
# why). A branch around a loop is none of the source's: the compiler tests whether the loop is
# entered at all.
EQUIVALENT = [
    # depthwise_conv.cu
    (r"i < kRows \* quads", BRANCH, 1, "9 x 9: more constants than threads"),
    (r"i < s\.copies", BRANCH, 1, "more copies than threads"),
    (r"i < p\.staging\.plane_bytes", BRANCH, 2, "more zeros than threads"),
    (r"i < rows \* runs", BRANCH, 2, "9 x 9: more rows than warps"),
    (r"begin < length", BRANCH, 4, "a run has an element"),
    (r"i < warps", BRANCH, 2, "a plane has a warp"),
    (r"thread % chunk < t\.channels", BRANCH, 1, "sums that nobody reads"),
    (r"i < threads; i \+= chunk", BRANCH, 1, "a thread's number is less than their number"),
    (r"i < kAnyPixels", BRANCH, 1, "more pixels than warps"),
    (r"i < p\.kh", BRANCH, 1, "a window has a row"),
    (r"t < tiles", BRANCH, 1, "a map has a tile"),
    # expand_depthwise.cu
    (r"__syncwarp\(\)", BARRIER, 24, "there for the order in which the compiler loads"),
    (r"if \(threadIdx\.x == 0\) t = tile_of_block", BRANCH, 1, "all threads say the same"),
    (r"copy_async\(step_offset\(at, ", SIZE, 14, "of pixels that nobody stores"),
    (r"copy_async\(static_cast<uint32_t>", SIZE, 1, "of all 16 bytes"),
    (r"const Place place = places\[index\]", OFFSET, 2, "of what are inside all"),
    (r"t\.column_of_map", OFFSET, 4, "members of a tile that are 0 both"),
    (r"kHalf > 0 && \(columns <= 0", BRANCH, 6, "a half of which nothing is stored"),
    (r"if \(is_mine( && p\.sums|\))", BRANCH, 2, "the same sums, of other lanes"),
    (r"step\.end - made > step\.rows", BRANCH, 1, "no rows to clear"),
    (r"row = first; row < end", BRANCH, 1, "a row after the round's"),
    (r"unit < units; \+\+unit", BRANCH, 2, "there is one"),
    (
        r"for \(int (pair = thread|made = round|first = 0; first|image = t)",
        BRANCH,
        4,
        "there is one, or nothing to store",
    ),
    (r"i < \(1 \+ p\.half_images\) \* p\.image_bytes", BRANCH, 1, "more zeros than threads"),
    (r"else if \(image \+ images < end_image", BRANCH, 1, "no image to copy"),
    (r"if \(is_made && is_last\)", BRANCH, 1, "no rows to copy"),
    (r"if \(!is_last\)", BRANCH, 1, "of wide maps the last rows, which nobody reads"),
    (r"if \(p\.half_images == 0\)", BRANCH, 1, "all but row16 and row8, of which it holds"),
    (r"slide<", BRANCH, 1, "more to slide than threads"),
    # expand_depthwise_float.cu
    (r"if \(t\.has_padding\)", BRANCH, 1, "zeros that are overwritten"),
    (r"i < bytes; i \+= kThreads", BRANCH, 1, "more zeros than threads"),
    (r"first_row < t\.wide_rows", BRANCH, 1, "a tile has a row"),
    (r"row < end_row; \+\+row", BRANCH, 1, "zeros where the next row is made"),
    (r"produced < t\.end_row", BRANCH, 1, "no rows to copy"),
    (r"step < steps; \+\+step", BRANCH, 1, "a row has a step"),
    (r"c < kColumns; \+\+c, to", BRANCH, 2, "a thread has a column"),
    (r"lane < kPlane / kQuad", BRANCH, 1, "the same sums, of other lanes"),
    (r"i < kChannels \* units", BRANCH, 1, "more copies than threads"),
    # fused_mbconv.cu
    (r"r < kM; r \+= kThreads / kQuads", BRANCH, 1, "a thread has a row"),
    (r"< wait_for_copies\(\)", "wait removed", 1, "the first product has waited for them"),
    # gemm.cuh, epilogue.cuh and pointwise_conv.cu
    (r"if \(tile < tiles\)", BRANCH, 1, "there is a tile"),
    (r"tile < tiles; \+\+tile", BRANCH, 1, "there is a tile"),
    (r"image <= last; \+\+image", BRANCH, 1, "pixels have an image"),
    (r"r < kM; r \+= kRows", BRANCH, 3, "more rows than a thread has"),
    (r"v\.at\[i\] = i < count", BRANCH, 2, "of pixels, or times weights, that are not there"),
    (r"step < steps; step \+= kWarpsK", BRANCH, 1, "beyond the last step: zeros"),
    (r"j < kQuad; \+\+j", BRANCH, 1, "a thread has a channel"),
    # squeeze_excite.cu
    (r"i < kImages \* channels", BRANCH, 1, "zeros where nothing is yet"),
    (r"tile < p\.tiles", BRANCH, 1, "a map has a tile"),
    (r"row < p\.squeezed", BRANCH, 1, "there is a squeezed channel"),
    (r"if \(is_aligned\)", BRANCH, 1, "aligned weights are read one by one"),
    # Triton
    (r"for tile in tl\.range\(tiles\)", BRANCH, 1, "a map has a tile"),
    (r"for first in tl\.range\(0, channels", BRANCH, 2, "there is a channel"),
    (r"if has_b1:", PREDICATE, 2, "the next row's weights, for means of 0"),
    (r"tl\.load\(b1_ptr", PREDICATE, 2, "of 17 to 32 squeezed channels 16 are there"),
    (r"gate = tl\.sum", PREDICATE, 2, "the next row's weights, for gates that are not stored"),
    (r"return core\.reduce", BARRIER, 1, "there is another before the memory is used again"),
]


@functools.cache
def cuda_sources(stem: str) -> dict[str, str]:
    """The PTX of an operator's kernels, with their source lines, which fat binaries have not."""
    command = [find_nvcc(), "-arch=compute_80", "-ptx", *FLAGS, f"-I{ROOT}/csrc/include", "-o", "-"]
    source = ROOT / f"csrc/cuda/{stem}.cu"
    done = subprocess.run([*command, source], capture_output=True, text=True, check=True)
    files = "".join(line for line in done.stdout.splitlines(True) if line.startswith("\t.file"))
    return {name: text + files for name, text in fat_binary.split(done.stdout).items()}


def source_of(mutant: Mutant) -> str:
    """The source lines that the statement comes from, the innermost inlined function's first."""
    lines = mutant.ptx.splitlines()
    files = dict(re.findall(r'^\s*\.file\s+(\d+) "(.*)"', mutant.ptx, re.MULTILINE))
    for i in range(mutant.line - 2, -1, -1):
        if lines[i].lstrip().startswith(".loc"):
            places = re.findall(r"(?:\.loc|inlined_at)\s+(\d+) (\d+)", lines[i])
            return " < ".join(source_line(files[file], int(line)) for file, line in places)
    return ""


@functools.cache
def source_line(file: str, line: int) -> str:
    return Path(file).read_text().splitlines()[line - 1].strip()


def unexplained(alive: Iterable[Mutant]) -> Iterable[str]:
    left = [most for _, _, most, _ in EQUIVALENT]
    for mutant in alive:
        source = source_of(mutant)
        for i, (pattern, kind, _, _) in enumerate(EQUIVALENT):
            if kind == mutant.kind and re.search(pattern, source) and left[i] > 0:
                left[i] -= 1
                break
        else:
            yield f"{mutant.kind}: {mutant.before!r}: {source}"


def survivors(target: Target, ptx: str) -> tuple[int, list[Mutant]]:
    """How many mutants there are, and those that nothing notices."""
    alive = list(mutants(ptx))
    made = len(alive)
    launches = list(target.cases())
    for order in ORDERS:
        options = {"max_instructions": MAX_INSTRUCTIONS, **order}
        with cases.Bench(launches, **options) as bench:
            bench.run(ptx)  # which has no mistakes
            alive = [mutant for mutant in alive if not is_caught(bench, mutant)]
    return made, alive


def is_caught(bench: cases.Bench, mutant: Mutant) -> bool:
    try:
        bench.run(mutant.ptx)
    except (KernelFault, AssertionError):
        return True
    except GpuError as error:
        raise AssertionError(f"a mutant is no PTX: {mutant.after}: {error}") from error
    return False


def source_ptx(target: Target) -> str:
    (entry,) = select(target.name, [target.language])
    if target.language == "triton":
        return entry.compile(80).ptx
    stem = next(stem for stem in fat_binary.STEMS if target.name in fat_binary.kernels(stem))
    return cuda_sources(stem)[target.name]


@pytest.mark.parametrize("target", TARGETS)
def test_mutants_are_caught(target: Target):
    try:
        ptx = source_ptx(target)
    except BackendError as error:
        pytest.skip(str(error))
    made, alive = survivors(target, ptx)
    report = "\n".join(unexplained(alive))
    assert not report, f"{made} made, {len(alive)} survive\n{report}"
    assert len(alive) <= max(MOST * made, 2), f"{len(alive)} of {made} survive"
