"""What the depthwise GPU kernels ask of a GPU, counted on the PTX machine, beside a baseline.

    python benchmarks/gpu_counts.py [--model efficientnet_b0] [--json FILE]

Every depthwise layer of a model in float16, with its swish and its channels' sums: the CUDA kernel,
the Triton kernel, and PyTorch's algorithm (depthwise_baseline.cu: three passes, NCHW). One image,
cut as at batch 8 for the 132 multiprocessors of an H100.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from layers import Depthwise, layers

from effnet_fast.cuda.depthwise_conv import tiling
from effnet_fast.gpu import fat_binary
from effnet_fast.gpu.compiled import CompiledKernel
from effnet_fast.gpu.counts import Counts, table
from effnet_fast.gpu.device import Device, Launch
from effnet_fast.gpu.nvcc import compile_cuda
from effnet_fast.gpu.tensor import DeviceTensor
from effnet_fast.network import Act
from effnet_fast.ops.gpu_step import host_side

DTYPE = torch.float16
BATCH, MULTIPROCESSORS = 8, 132
BASELINE = Path(__file__).with_name("depthwise_baseline.cu")
THREADS = 256
SECTOR = 32  # bytes


@dataclass(frozen=True)
class Operands:
    """Of a layer: one image, seeded, and what belongs to it."""

    x: torch.Tensor  # channels last
    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def of(cls, layer: Depthwise, channels: int | None = None) -> Operands:
        """Of a layer, or of one with other channels."""
        c, k = channels or layer.channels, layer.kernel
        generator = torch.Generator().manual_seed(0)
        x, weight, bias = (
            torch.randn(shape, generator=generator)
            for shape in ((1, c, layer.size, layer.size), (c, 1, k, k), (c,))
        )
        x = x.to(DTYPE).contiguous(memory_format=torch.channels_last)
        return cls(x, (weight / k).to(DTYPE), bias.to(DTYPE))


@dataclass(frozen=True)
class Run:
    """What an implementation took for a layer.

    Attributes
    ----------
    counts : of each launch.
    blocks : of all launches, at the whole batch.
    products : the share of the warp instructions of the inner loop that are multiply-adds; of the
        CUDA kernels.
    y, sums : what it computed: (1, C, H, W), and (C) the sums or the means.
    """

    counts: tuple[Counts, ...]
    blocks: int
    y: torch.Tensor
    sums: torch.Tensor
    products: float | None = None

    def bytes_per_output(self, level: str) -> float:
        """Of all launches: "l2" or "dram"."""
        total = sum(getattr(c.traffic, f"{level}_bytes") for c in self.counts)
        return total / self.y.numel()

    @property
    def instructions_per_output(self) -> float:
        """Of warps, times their 32 lanes."""
        return 32 * sum(c.warp_instructions for c in self.counts) / self.y.numel()

    @property
    def special_per_output(self) -> float:
        """Of threads, on the special-function unit."""
        special = sum(c.classes["special"].thread for c in self.counts)
        return special / self.y.numel()


def run(device: Device, language: str, layer: Depthwise, channels: int | None = None) -> Run:
    """A kernel of the package: ``"cuda"``, cut as in the batch, or ``"triton"``."""
    host, window, operands = (
        host_side(language, "depthwise_conv"),
        layer.window,
        Operands.of(layer, channels),
    )
    _, c, h, w = operands.x.shape
    out_h, out_w = window.output_size(h, w)
    there = DeviceTensor.upload(device, operands.x)
    options = {}
    if language == "cuda":
        # Pixels that do not begin with sectors: as the host side has it for such maps.
        whole = c * DTYPE.itemsize % SECTOR != 0
        options["cut"] = tiling(BATCH, c, h, w, window, DTYPE.itemsize, MULTIPROCESSORS, whole)
        tiles = options["cut"].tiles
    else:
        tiles = host.tiles(device, there, window)
    constants = DeviceTensor.upload(device, host.pack(operands.weight, operands.bias))
    y = _empty(device, (1, c, out_h, out_w), DTYPE, torch.channels_last)
    sums = _empty(device, (1, tiles, c), torch.float32)
    launch = host.launch(device, there, constants, y, window, Act.SWISH, sums, **options)
    kernel = None
    if language == "cuda":
        k, stride, cut = layer.kernel, layer.stride, options["cut"]
        name = f"depthwise_conv_k{k}s{stride}_{cut.rows}x{cut.columns}_float16"
        # By itself, so that the counts' lines are those of its own text.
        kernel = fat_binary.compiled("depthwise_conv", name, device.capability)
        launch = dataclasses.replace(launch, kernel=kernel.load(device))
    (counts,) = _launch(device, [launch])
    return Run(
        (counts,),
        BATCH * math.prod(launch.grid),
        _download(device, y),
        _download(device, sums).sum(1)[0],
        kernel and share_of_products(kernel, counts),
    )


def run_baseline(device: Device, layer: Depthwise) -> Run:
    """Depthwise, swish and mean, one after another."""
    kernels = compile_cuda(BASELINE, 80)
    operands, window = Operands.of(layer), layer.window
    _, c, h, w = operands.x.shape
    out_h, out_w = window.output_size(h, w)
    outputs, pixels = c * out_h * out_w, out_h * out_w
    x, weight, bias = (
        DeviceTensor.upload(device, t.contiguous())
        for t in (operands.x, operands.weight, operands.bias)
    )
    before, y = (_empty(device, (1, c, out_h, out_w), DTYPE) for _ in range(2))
    means = _empty(device, (c,), torch.float32)

    def launch(name: str, blocks: int, threads: int, arguments: Sequence, written: int) -> Launch:
        tensors = [a for a in arguments if isinstance(a, DeviceTensor)]
        return Launch(
            kernels[name].load(device),
            grid=(blocks,),
            block=(threads,),
            arguments=tuple(arguments),
            regions=tuple(
                t.region(str(i), "w" if i == written else "r") for i, t in enumerate(tensors)
            ),
        )

    top, left, _, _ = window.padding
    launches = [
        launch(
            f"depthwise_k{layer.kernel}s{layer.stride}", -(-outputs // THREADS), THREADS,
            (x, weight, bias, before, outputs, c, h, w, out_h, out_w, top, left), 3,
        ),
        launch("swish", -(-outputs // (4 * THREADS)), THREADS, (before, y, outputs), 1),
        launch("mean", c, 128, (y, means, pixels), 1),
    ]  # fmt: skip
    counts = _launch(device, launches)
    blocks = BATCH * sum(math.prod(launch.grid) for launch in launches)
    return Run(counts, blocks, _download(device, y), _download(device, means))


def share_of_products(kernel: CompiledKernel, counts: Counts) -> float:
    """Multiply-adds, of all warp instructions of the inner loop.

    The inner loop is the basic block with the most of them. Where it is unrolled altogether, from
    its first load from shared memory to its last multiply-add: before that are addresses. Moves
    between registers are not counted: in PTX they take a pair of halves apart, or give a value
    another name; in machine code operands do both.
    """
    label, block = max(
        _basic_blocks(kernel), key=lambda block: _warps(block[1], counts, _is_product)
    )
    is_loop = block[-1][1] == f"bra {label}"
    if not is_loop:
        first = next(i for i, (_, code) in enumerate(block) if code.startswith("ld.shared"))
        last = max(i for i, (_, code) in enumerate(block) if _is_product(code))
        block = block[first : last + 1]
    products = _warps(block, counts, _is_product)
    return products / _warps(block, counts, lambda code: not code.startswith("mov."))


def _is_product(code: str) -> bool:
    return code.startswith("fma.rn.f32")


def _warps(block: Sequence[tuple[int, str]], counts: Counts, wanted) -> int:
    return sum(
        counts.lines[line].warp for line, code in block if line in counts.lines and wanted(code)
    )


def _basic_blocks(kernel: CompiledKernel) -> list[tuple[str, list[tuple[int, str]]]]:
    """Of a kernel in PTX: label, and (line, opcode) of the instructions; of branches the target."""
    lines = kernel.ptx.splitlines()
    begin = next(i for i, text in enumerate(lines) if f".entry {kernel.name}(" in text)
    end = next(i for i in range(begin, len(lines)) if lines[i].startswith("}"))
    blocks: list[tuple[str, list[tuple[int, str]]]] = [("", [])]
    for i in range(begin, end):
        label = re.match(r"(\$\w+):", lines[i])
        if label:
            blocks.append((label[1], []))
        code = re.match(r"\s*\{?\s*(?:@!?%p\d+\s+)?([a-z]\w*(?:[.:]+\w+)*(?:\s+\$\w+)?)", lines[i])
        if code:
            opcode = re.sub(r"^bra(\.uni)?\s+", "bra ", code[1])
            blocks[-1][1].append((i + 1, opcode))
            if opcode.startswith(("bra ", "ret")):
                blocks.append(("", []))
    return [block for block in blocks if block[1]]


def _empty(
    device: Device,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> DeviceTensor:
    like = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
    return DeviceTensor.empty(device, shape, like.stride(), dtype)


def _launch(device: Device, launches: Sequence[Launch]) -> tuple[Counts, ...]:
    device.take_counts()
    for launch in launches:
        device.launch(launch)
    device.synchronize()
    return tuple(Counts.parse(counts) for counts in device.take_counts())


def _download(device: Device, tensor: DeviceTensor) -> torch.Tensor:
    to = torch.empty_strided(tensor.shape, tensor.strides, dtype=tensor.dtype)
    tensor.download(device, to)
    return to


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    head = (
        "layer", "kernel", "instructions", "L2 sectors", "DRAM sectors", "special", "products",
        "x used", "x L2 / size", "y used", "wavefronts", "blocks",
    )  # fmt: skip
    rows, records = [], []
    with Device("ptx", threads=2) as device:
        for layer in layers(options.model).depthwise:
            runs = {language: run(device, language, layer) for language in ("cuda", "triton")}
            runs["baseline"] = run_baseline(device, layer)
            for name, r in runs.items():
                record = {
                    "layer": str(layer),
                    "kernel": name,
                    "instructions_per_output": r.instructions_per_output,
                    "l2_sectors_per_output": r.bytes_per_output("l2") / SECTOR,
                    "dram_sectors_per_output": r.bytes_per_output("dram") / SECTOR,
                    "special_per_output": r.special_per_output,
                    "products_of_inner_loop": r.products,
                    "blocks": r.blocks,
                }
                if name != "baseline":
                    (counts,) = r.counts
                    x, y = counts.tensor("x"), counts.tensor("y")
                    record |= {
                        "x_used": x.read.used_share,
                        "x_l2_of_size": x.read.l2_bytes / x.bytes,
                        "y_used": y.write.used_share,
                        "wavefronts": counts.shared.conflict_ratio,
                    }
                records.append(record)
                rows.append(_row(record))
    print("\n".join(table([head, *rows], left=[0, 1])))
    if options.json is not None:
        options.json.write_text(json.dumps(records, indent=1) + "\n")


def _row(record: dict) -> tuple[str, ...]:
    def percent(name: str) -> str:
        return f"{100 * record[name]:.0f} %" if record.get(name) is not None else ""

    def number(name: str, digits: int = 2) -> str:
        return f"{record[name]:.{digits}f}" if name in record else ""

    return (
        record["layer"],
        record["kernel"],
        number("instructions_per_output", 1),
        number("l2_sectors_per_output", 3),
        number("dram_sectors_per_output", 3),
        number("special_per_output", 1),
        percent("products_of_inner_loop"),
        percent("x_used"),
        number("x_l2_of_size"),
        percent("y_used"),
        number("wavefronts"),
        f"{record['blocks']:,}",
    )


if __name__ == "__main__":
    main()
