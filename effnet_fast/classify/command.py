"""`effnet-fast classify`: options to a model, images to a table or a file, errors to a status."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext

import torch

from ..errors import ArgumentError
from .labels import read_labels
from .pipeline import DEFAULT_TOPK, Result, classify
from .sinks import open_sink
from .sources import find_images
from .zoo import Loaded, load_model


def run(options: argparse.Namespace) -> int:
    """The exit status: 0, or 1 when an image has no answer."""
    _check(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    sink = nullcontext()
    if options.results_file is not None:
        topk = DEFAULT_TOPK if options.topk is None else options.topk
        sink = open_sink(options.results_file, options.results_format, topk=topk)
    done = failed = 0
    with sink as file:
        loaded = load_model(
            options.model,
            checkpoint=options.checkpoint,
            pretrained=options.pretrained,
            num_classes=options.num_classes,
        )
        preprocess = loaded.preprocess.changed(
            img_size=options.img_size,
            crop_pct=options.crop_pct,
            crop_mode=options.crop_mode,
            interpolation=options.interpolation,
            mean=options.mean,
            std=options.std,
        )
        labels = None if options.class_map is None else read_labels(options.class_map)
        model, engine = _engine(loaded, options)
        print(
            f"{loaded.name}: {engine}, {torch.get_num_threads()} threads; input {preprocess}",
            file=sys.stderr,
        )
        start = time.perf_counter()
        for result in classify(
            find_images(options.paths),
            model,
            preprocess,
            labels=labels,
            topk=options.topk,
            batch_size=options.batch_size,
            workers=options.workers,
            apply_exif=options.apply_exif,
        ):
            done += 1
            failed += bool(result.error)
            if file is None:
                print(table(result))
            else:
                file.write(result)
        seconds = time.perf_counter() - start
    summary = f"{done - failed} of {done} classified in {seconds:.1f} s"
    if failed:
        summary += f"; {failed} failed, see the error of each"
    if options.results_file is not None:
        summary += f"; results in {options.results_file}"
    print(summary, file=sys.stderr)
    return 1 if failed else 0


def _check(options: argparse.Namespace) -> None:
    """What can be refused before any work."""
    for name in ("topk", "batch_size", "workers", "threads", "num_classes", "img_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ArgumentError(f"--{name.replace('_', '-')} is {value}; accepted: 1 and up")
    if options.results_format is not None and options.results_file is None:
        raise ArgumentError("--results-format needs --results-file, the file to write")
    if options.no_optimize and options.backend is not None:
        raise ArgumentError("--no-optimize runs the stock model, which has no --backend")


def _engine(loaded: Loaded, options: argparse.Namespace) -> tuple[torch.nn.Module, str]:
    if options.no_optimize:
        return loaded.model, "stock PyTorch"
    from ..optimize import optimize

    model = optimize(loaded.model, backend=options.backend or "auto")
    report = model.report
    return model, (
        f"{report.backend} backend, {100 * report.fused_share:.4g} % of multiply-adds fused"
    )


def table(result: Result) -> str:
    """A result for the terminal."""
    lines = [printable(result.filename) + (f"  ({result.note})" if result.note else "")]
    if result.error:
        lines.append(f"    error: {printable(result.error)}")
    width = max(map(len, result.labels), default=0)
    for index, label, prob in zip(result.indices, result.labels, result.probs, strict=True):
        lines.append(f"    {prob:8.4%}  {label:<{width}}  {index}")
    return "\n".join(lines)


def printable(text: str) -> str:
    """Control characters escaped: a file's name must not steer the terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
