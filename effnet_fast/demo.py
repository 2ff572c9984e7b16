"""Trained EfficientNet-Lite0 on three photos: its answers, checked against the stock model's, then
both models timed side by side.

    python -m effnet_fast.demo
    python -m effnet_fast.demo --backend ptx
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from importlib import resources

import torch
from torch import nn

import effnet_fast
from effnet_fast.classify import Image, Result, classify, load_model

# The photos that scikit-image ships in its package, with the ImageNet classes that are right.
PHOTOS = {
    "chelsea.png": ("tabby", "tiger cat", "Egyptian cat"),
    "coffee.png": ("espresso",),
    "rocket.jpg": ("missile",),
}
TOLERANCE = 1e-5  # of each of the 1,000 probabilities, against the stock model's
# In float16: roundings of 5e-4 to logits of some 10 change a probability by no more.
HALF_TOLERANCE = 1e-2
CLASSES = 1000


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 1 when an answer is wrong or differs from the stock model's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing, per batch size")
    parser.add_argument(
        "--backend", choices=("auto", "ptx"), default="auto",
        help="ptx: the GPU engine on the PTX machine, in float16; nothing is timed",
    )  # fmt: skip
    options = parser.parse_args(arguments)

    loaded = load_model("effnet_fast:efficientnet_lite0", pretrained=True)
    emulated = options.backend == "ptx"
    if emulated:
        fast = effnet_fast.optimize(loaded.model, backend="ptx", dtype=torch.float16)
        print(f"{fast.report}\n")
        fast, tolerance = InHalf(fast), HALF_TOLERANCE
    else:
        fast, tolerance = effnet_fast.optimize(loaded.model), TOLERANCE
        print(f"{fast.report}\n")

    images = photos()
    answers, stock_answers = (
        list(classify(images, model, loaded.preprocess, topk=CLASSES))
        for model in (fast, loaded.model)
    )
    wrong = 0
    for answer, stock_answer in zip(answers, stock_answers, strict=True):
        print(answer.filename)
        for label, probability in zip(answer.labels[:3], answer.probs[:3], strict=True):
            print(f"    {probability:8.4%}  {label}")
        faults = wrong_with(answer, stock_answer, tolerance)
        for fault in faults:
            print(f"    WRONG: {fault}")
        if not faults:
            difference = largest_difference(answer, stock_answer)
            print(f"    largest difference from the stock model's: {difference:.1e}")
        wrong += len(faults)

    if emulated:
        return 1 if wrong else 0
    size = loaded.preprocess.size
    print(
        f"\nimages/s at {size[0]}x{size[1]}, float32, {torch.get_num_threads()} threads; "
        "runs interleaved, median (lowest - highest)"
    )
    for batch in (1, 16):
        stock, ours = interleaved_rates((loaded.model, fast), batch, size, options.seconds)
        print(
            f"    batch {batch:2}: stock {_spread(stock)}, optimised {_spread(ours)}, "
            f"{statistics.median(ours) / statistics.median(stock):.2f} times as fast"
        )
    return 1 if wrong else 0


def photos() -> list[Image]:
    """The photos on disk, keyed by their names."""
    folder = resources.files("skimage.data")
    return [Image(name, folder / name) for name in PHOTOS]


class InHalf(nn.Module):
    """A model that takes float16, for images in float32."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x.half()).float()


def wrong_with(answer: Result, stock_answer: Result, tolerance: float = TOLERANCE) -> list[str]:
    """What is wrong with an answer, in words; empty when it names the photo and is the stock
    model's.
    """
    if answer.error or stock_answer.error:
        return [answer.error or stock_answer.error]
    faults = []
    accepted = PHOTOS[answer.filename]
    if answer.labels[0] not in accepted:
        faults.append(f"{answer.labels[0]}; accepted: {' or '.join(accepted)}")
    difference = largest_difference(answer, stock_answer)
    if difference > tolerance:
        faults.append(f"{difference:.1e} from the stock model; accepted: {tolerance:.0e}")
    return faults


def largest_difference(one: Result, other: Result) -> float:
    """The largest difference of a class's probability between two results that hold all classes."""
    others = dict(zip(other.indices, other.probs, strict=True))
    return max(
        abs(probability - others[index])
        for index, probability in zip(one.indices, one.probs, strict=True)
    )


def interleaved_rates(
    models: tuple[nn.Module, ...], batch: int, size: tuple[int, int], seconds: float
) -> tuple[list[float], ...]:
    """Images/s of each model, one figure per round; a round runs them in turn, so that a drift of
    the machine's speed hits all alike.
    """
    images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    rates: tuple[list[float], ...] = tuple([] for _ in models)
    with torch.inference_mode():
        for model in models:
            _seconds(model, images)  # the first call allocates
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(rates[0]) < 3:
            for model, measured in zip(models, rates, strict=True):
                measured.append(batch / _seconds(model, images))
    return rates


def _seconds(model: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> float:
    start = time.perf_counter()
    model(images)
    return time.perf_counter() - start


def _spread(rates: list[float]) -> str:
    return f"{statistics.median(rates):.1f} ({min(rates):.1f} - {max(rates):.1f})"


if __name__ == "__main__":
    sys.exit(main())
