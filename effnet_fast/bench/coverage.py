"""Coverage: optimise every model of a list, compare it with the stock one, and tabulate what was
fused.

python -m effnet_fast.bench.coverage --output docs/coverage.md
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..errors import EffnetFastError
from ..optimize import optimize
from ..report import Report

# Families beside EfficientNet that are made of the same layers.
TIMM_FAMILIES = (
    "*efficientnet*",
    "mobilenetv2_*",
    "mobilenetv3_*",
    "mnasnet_*",
    "semnasnet_*",
    "mixnet_*",
    "tinynet_*",
    "fbnet*",
    "lcnet_*",
)
TORCHVISION = (*(f"efficientnet_b{i}" for i in range(8)), *(f"efficientnet_v2_{s}" for s in "sml"))
EFFICIENTNET_PYTORCH = tuple(f"efficientnet-b{i}" for i in range(8))


@dataclass(frozen=True)
class Covered:
    """One model's outcome; ``report`` is None when ``error`` says why there is none."""

    source: str
    name: str
    report: Report | None
    error: str = ""


_CALIBRATED = 8 * 128 * 128  # pixels of a batch that batch norms see


def calibrated(model: nn.Module, seed: int = 0, size: tuple[int, int] = (128, 128)) -> nn.Module:
    """The model in eval mode, batch norms with random affine parameters and statistics that fit
    what they see of images of ``size``.

    So activations have a natural scale: with fresh statistics a deep network's signal dies out, and
    its errors with it. Images of 128 pixels leave 4 x 4 pixels to the last batch norms; from the 2
    x 2 of 64 their statistics are so rough that a deep network's signal explodes at any other size
    (V2-S: stock error 6e-2 instead of 5e-6). So does B7 at 600 with those of 128: 0.7.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    images = max(1, _CALIBRATED // math.prod(size))
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    with torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over the batches
            if norm.affine:
                norm.weight.uniform_(0.6, 1.4, generator=generator)
                norm.bias.normal_(0.0, 0.3, generator=generator)
        model.eval()
        for norm in norms:
            norm.train()
        for _ in range(2):
            model(torch.randn(images, channels, *size, generator=generator))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model.eval()


def models() -> dict[tuple[str, str], Callable[[], nn.Module]]:
    """(source, name) to a function that builds the model with fresh weights, for every source that
    is installed.
    """
    found: dict[tuple[str, str], Callable[[], nn.Module]] = {}
    try:
        import timm
    except ImportError:
        pass
    else:
        names = dict.fromkeys(name for family in TIMM_FAMILIES for name in timm.list_models(family))
        for name in names:
            found["timm", name] = lambda name=name: timm.create_model(name)
    try:
        import torchvision
    except ImportError:
        pass
    else:
        for name in TORCHVISION:
            found["torchvision", name] = lambda name=name: torchvision.models.get_model(name)
    try:
        from efficientnet_pytorch import EfficientNet
    except ImportError:
        pass
    else:
        for name in EFFICIENTNET_PYTORCH:
            found["efficientnet_pytorch", name] = lambda name=name: EfficientNet.from_name(name)
    try:
        from transformers import EfficientNetConfig, EfficientNetForImageClassification
    except ImportError:
        pass
    else:
        b0 = {
            "width_coefficient": 1.0,
            "depth_coefficient": 1.0,
            "hidden_dim": 1280,
            "image_size": 224,
        }
        for name, options in (("efficientnet-b0", b0), ("efficientnet-b7", {})):
            found["transformers", name] = lambda options=options: (
                EfficientNetForImageClassification(EfficientNetConfig(**options))
            )
    return found


def build(source: str, name: str, size: tuple[int, int] = (128, 128)) -> nn.Module:
    """A model of the list, the same random weights each time, calibrated for images of ``size``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return calibrated(models()[source, name](), size=size)


def cover(source: str, name: str) -> Covered:
    """Build, optimise and verify one model; an `EffnetFastError` is an outcome too."""
    logging.getLogger("effnet_fast").setLevel(logging.ERROR)
    try:
        return Covered(source, name, optimize(build(source, name)).report)
    except EffnetFastError as error:
        return Covered(source, name, None, f"{type(error).__name__}: {error}")


def _cover_key(key: tuple[str, str]) -> Covered:
    return cover(*key)


def table(rows: Iterable[Covered]) -> str:
    """A Markdown table, one line per model."""
    lines = [
        "| source | model | convolution multiply-adds fused | error / stock error | not fused |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row.report is None:
            lines.append(f"| {row.source} | {row.name} | - | - | {row.error} |")
            continue
        (parity, *_) = row.report.parity
        reasons = "; ".join(row.report.fallbacks)
        lines.append(
            f"| {row.source} | {row.name} | {100 * row.report.fused_share:.4g} % | "
            f"{parity.error:.1e} / {parity.stock_error:.1e} | {reasons} |"
        )
    return "\n".join(lines)


def page(rows: list[Covered]) -> str:
    """The whole Markdown page."""
    whole = sum(row.report is not None and row.report.fused_share == 1.0 for row in rows)
    failed = sum(row.report is None for row in rows)
    partly = len(rows) - whole - failed
    return (
        "# Coverage\n\n"
        "Made by `python -m effnet_fast.bench.coverage --output docs/coverage.md`.\n"
        "Every model with random weights and calibrated batch norms, optimised and verified\n"
        "against float64 (relative L2 error of the outputs).\n\n"
        f"{len(rows)} models: {whole} with every convolution in fused operators, {partly} in "
        f"part, {failed} not at all.\n\n{table(rows)}\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status is 1 when a model could not be optimised at all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, help="write a Markdown page here instead of the terminal"
    )
    parser.add_argument(
        "--source", help="only this source: timm, torchvision, efficientnet_pytorch, transformers"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes, of one thread each if several"
    )
    options = parser.parse_args(arguments)
    chosen = [key for key in models() if options.source in (None, key[0])]
    rows = []
    threads = 1 if options.jobs > 1 else torch.get_num_threads()
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.jobs, torch.set_num_threads, (threads,)) as pool:
        for row in pool.imap(_cover_key, chosen):
            rows.append(row)
            outcome = row.error or f"{100 * row.report.fused_share:.4g} %"
            done = f"[{len(rows)}/{len(chosen)}]"
            print(f"{done} {row.source} {row.name}: {outcome}", file=sys.stderr, flush=True)
    if options.output:
        options.output.write_text(page(rows))
    else:
        print(page(rows))
    return int(any(row.report is None for row in rows))


if __name__ == "__main__":
    sys.exit(main())
