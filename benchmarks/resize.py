"""The resize of photos to a model's crop, beside torch's 8-bit one and Pillow's; and what is made
of the crops' bytes, beside PyTorch's passes.

python benchmarks/resize.py [--size 224] [--resize 256]

Medians of one thread, in turns, of noise of several sizes.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from effnet_fast.classify import Preprocess
from effnet_fast.classify.feed import HostFeed
from effnet_fast.gpu.counts import table

BATCH = 16  # as `effnet-fast classify` has
SIZES = ((640, 480), (1320, 990), (2000, 1500), (4000, 3000))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--size", type=int, default=224, help="of the crop (default: 224)")
    parser.add_argument("--resize", type=int, default=256, help="before it (default: 256)")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    preprocess = Preprocess((options.size,) * 2, (options.resize,) * 2)
    lines = [("width", "height", "ours ms", "torch", "Pillow")]
    for width, height in SIZES:
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        planes, image = torch.from_numpy(noise).permute(2, 0, 1)[None], Image.fromarray(noise)
        to = preprocess.resized(width, height)
        ways = (
            lambda x=noise: preprocess.crop_pixels(x),
            lambda x=planes, to=to: torch.nn.functional.interpolate(
                x, to[::-1], mode="bicubic", antialias=True
            ),
            lambda x=image, to=to: x.resize(to, Image.Resampling.BICUBIC),
        )
        medians = (f"{ms:.2f}" for ms in milliseconds(ways, options.rounds))
        lines.append((str(width), str(height), *medians))
    print("\n".join(table(lines)))
    noise = np.random.default_rng(0)
    crops = [noise.integers(0, 256, (*preprocess.size, 3), np.uint8) for _ in range(BATCH)]
    feed = HostFeed(lambda x: x, preprocess)
    ways = (
        lambda: feed(crops),
        lambda: preprocess.normalise(torch.from_numpy(np.stack(crops))),
    )
    ours, passes = (ms / BATCH for ms in milliseconds(ways, options.rounds))
    print(f"normalised, of {BATCH}: ours {ours:.3f} ms an image, torch {passes:.3f}")


def milliseconds(ways: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Medians, in turns."""
    times = [[] for _ in ways]
    for _ in range(rounds):
        for way, seconds in zip(ways, times, strict=True):
            start = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - start)
    return [1e3 * statistics.median(seconds) for seconds in times]


if __name__ == "__main__":
    main()
