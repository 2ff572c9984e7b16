"""The resize of photos to a model's crop: the kernel beside torch's 8-bit one and Pillow's.

python benchmarks/resize.py [--size 224] [--resize 256]

Medians of one thread, in turns, of noise of several sizes.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from PIL import Image

from effnet_fast.classify import Preprocess
from effnet_fast.gpu.counts import table

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
        times = [[] for _ in ways]
        for _ in range(options.rounds):
            for way, seconds in zip(ways, times, strict=True):
                start = time.perf_counter()
                way()
                seconds.append(time.perf_counter() - start)
        medians = (f"{1e3 * statistics.median(seconds):.2f}" for seconds in times)
        lines.append((str(width), str(height), *medians))
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
