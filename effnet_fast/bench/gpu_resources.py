"""docs/gpu_kernels.md: what every GPU kernel takes of a multiprocessor, on every architecture."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from effnet_fast.gpu.catalogue import CATALOGUE, CatalogueEntry
from effnet_fast.gpu.device import Device
from effnet_fast.gpu.resources import CAPABILITIES

COMMAND = "python -m effnet_fast.bench.gpu_resources --output docs/gpu_kernels.md"
HEAD = f"""# What the GPU kernels take

Made by `{COMMAND}`; no GPU is needed.

Registers and spills are ptxas's: of CUDA kernels from the build, of Triton's from the compiler
that runs at plan time. Threads and shared memory are of an example: a layer of EfficientNet-B0 (of
MixNet-S where B0 has no such kernel) at batch 8, cut for the 132 multiprocessors of an H100.
Columns of architectures: registers of a thread, and the warps that the example's registers, threads
and shared memory allow, of all that a multiprocessor can hold.

"""


def rows(entries: Sequence[CatalogueEntry], device: Device) -> Iterator[list[str]]:
    """A row for each kernel."""
    for entry in entries:
        kernels = [entry.compile(capability) for capability in CAPABILITIES]
        launch = entry.example(device, kernels[0])
        threads = math.prod(launch.block)
        used = [kernel.resources for kernel in kernels]
        spills = sum(r.spill_stores + r.spill_loads for r in used)
        occupancy = [kernel.occupancy(threads, launch.shared) for kernel in kernels]
        yield [
            f"`{entry.name}`",
            entry.language,
            str(threads),
            f"{launch.shared + used[0].static_shared:,}",
            str(spills),
            *(
                f"{r.registers}: {100 * o.fraction:.0f} %"
                for r, o in zip(used, occupancy, strict=True)
            ),
        ]


def page(device: Device) -> str:
    """The whole page."""
    head = ["kernel", "language", "threads", "shared, bytes", "spills"]
    head += [f"sm_{capability}" for capability in CAPABILITIES]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *rows(CATALOGUE, device)]
    return HEAD + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="the page; printed by default")
    options = parser.parse_args()
    with Device("ptx") as device:
        text = page(device)
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
