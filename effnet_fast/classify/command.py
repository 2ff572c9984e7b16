"""`effnet-fast classify`: options to a model, images to a table or a file, errors to a status."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from ..errors import ArgumentError, BackendError
from .embeddings import with_embeddings
from .feed import Calls, device_for, dtype_for
from .journal import BlockJournal, Journal, fingerprint, is_folder, places
from .labels import read_labels
from .pipeline import Classifier, Run
from .progress import Progress, Summary
from .results import DEFAULT_TOPK, Result
from .sources import Columns, Image, find_images, listed
from .workers import Times
from .zoo import Loaded, load_model

if TYPE_CHECKING:  # Ray can be missing
    from .ray_engine import Pool, RayRun


def run(options: argparse.Namespace) -> int:
    """The exit status: 0, or 1 when an image has no answer."""
    check(options)
    _check_results(options)
    _check_engine(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    loaded, classifier, arguments = _prepared(options)
    journal = _journal(options, arguments)
    summary = Summary()
    if journal is not None:
        _go_on(journal, summary)
    try:
        status = _classify(options, loaded, classifier, journal, summary)
        if journal is not None and status is not None:
            journal.publish()
    except BaseException as error:
        if journal is None:
            raise
        journal.leave()
        if isinstance(error, KeyboardInterrupt) and journal.done:
            raise KeyboardInterrupt(journal.kept()) from None
        raise
    if status is None and journal is not None:
        journal.leave()
        if journal.done:
            print(journal.kept(), file=sys.stderr)
    return 1 if status is None else status


def _prepared(options: argparse.Namespace) -> tuple[Loaded, Classifier, dict[str, Any]]:
    """The model, what labels with it, and all that the results depend on."""
    loaded = load_model(
        options.model,
        checkpoint=options.checkpoint,
        pretrained=options.pretrained,
        num_classes=options.num_classes,
    )
    preprocess = changed_preprocess(loaded, options)
    labels = None if options.class_map is None else read_labels(options.class_map)
    classifier = Classifier(
        None, preprocess, labels=labels, topk=options.topk, batch_size=options.batch_size,
        workers=_workers(options), mode=options.mode, apply_exif=options.apply_exif,
        logits=options.logits, embeddings=options.embeddings, decoders=options.decoders,
        threads=options.threads,
    )  # fmt: skip
    relative = any(not os.path.isabs(path) for path in options.paths) or options.list is not None
    arguments = {
        "version": __version__,
        "sources": options.paths,
        "list": options.list,
        "folder": os.getcwd() if relative else None,
        "image column": options.image_column,
        "key column": options.key_column,
        "model": loaded.name,
        "weights": fingerprint(loaded.model),
        "optimized": not options.no_optimize,
        "backend": _backend(options),
        "dtype": options.dtype,
        "preprocessing": repr(preprocess),
        "mode": options.mode,
        "apply EXIF": options.apply_exif,
        "topk": options.topk,
        "class map": labels,
        "logits": options.logits,
        "embeddings": options.embeddings,
        "format": options.results_format,
    }
    return loaded, classifier, arguments


def changed_preprocess(loaded: Loaded, options: argparse.Namespace) -> Any:
    """The model's preprocessing with the options over it."""
    return loaded.preprocess.changed(
        img_size=options.img_size,
        crop_pct=options.crop_pct,
        crop_mode=options.crop_mode,
        interpolation=options.interpolation,
        mean=options.mean,
        std=options.std,
    )


def _journal(options: argparse.Namespace, arguments: dict[str, Any]) -> Journal | None:
    if options.results_file is None:
        return None
    wanted = {"logits": options.logits, "embedding": options.embeddings}
    by_block = options.engine == "ray" and is_folder(options.results_file, options.results_format)
    return (BlockJournal if by_block else Journal)(
        options.results_file, options.results_format, arguments,
        topk=DEFAULT_TOPK if options.topk is None else options.topk,
        vectors=[name for name in wanted if wanted[name]], restart=options.restart,
    )  # fmt: skip


def _go_on(journal: Journal, summary: Summary) -> None:
    if journal.done:
        print(f"going on after {journal.done} images that are done", file=sys.stderr)
        for result in journal.results():
            summary.add(result, is_new=False)


def _classify(
    options: argparse.Namespace,
    loaded: Loaded,
    classifier: Classifier,
    journal: Journal | None,
    summary: Summary,
) -> int | None:
    """The exit status, or None where `--fail-fast` stopped."""
    images = images_of(options)
    if journal is not None:
        images = (image for image in images if not journal.holds(image.key))
    before, start = summary.done, time.perf_counter()
    stopped = None
    with closing(_begin(options, classifier, images, journal)) as going:
        _start(going, loaded, classifier, options)
        counted = options.paths if options.list is None else None
        with closing(Progress(counted, before)) as progress:
            for result in going:
                if result.error and options.fail_fast:
                    stopped = result
                    break
                summary.add(result)
                progress.add(result, going.times)
                if journal is None:
                    print(table(result))
                else:
                    journal.add(result)
    seconds = time.perf_counter() - start
    if stopped is not None:
        what = f"{printable(stopped.filename)}: {printable(stopped.error)}"
        print(f"stopped at {what}", file=sys.stderr)
        return None
    _report(options, summary, going.times, summary.done - before, seconds)
    return 1 if summary.failed else 0


def _begin(
    options: argparse.Namespace,
    classifier: Classifier,
    images: Iterator[Image],
    journal: Journal | None,
) -> Run | RayRun:
    """Begin to ask for images."""
    if options.engine == "local":
        return classifier.run(images, _calls(options))
    return _ray_engine().RayRun(
        classifier, images, _pool(options),
        address=_address(options),
        backend=None if options.no_optimize else _backend(options),
        dtype=dtype_for(options.dtype),
        journal=journal if isinstance(journal, BlockJournal) else None,
    )  # fmt: skip


def _start(
    going: Run | RayRun, loaded: Loaded, classifier: Classifier, options: argparse.Namespace
) -> None:
    """Make the model, while images are decoded, and let it begin."""
    model = with_embeddings(loaded.model) if options.embeddings else loaded.model
    if options.engine == "local":
        model, engine = _engine(model, options)
    else:
        engine = str(going)
    print(
        f"{loaded.name}: {engine}; input {classifier.preprocess}; {options.mode} decoding",
        file=sys.stderr,
    )
    going.start(model)


def _backend(options: argparse.Namespace) -> str:
    """Of `effnet_fast.optimize`; of "auto" the one that it is: here, or where Ray's actors are."""
    backend = options.backend or "auto"
    if backend != "auto" or options.no_optimize:
        return backend
    if options.engine == "ray":
        return "gpu" if _pool(options).gpus else "cpu"
    return "gpu" if device_for(backend).type == "cuda" else "cpu"


def _calls(options: argparse.Namespace) -> Calls:
    if options.no_optimize:
        return Calls.ONE
    return {"cpu": Calls.ALL, "gpu": Calls.GPU}.get(_backend(options), Calls.ONE)


def _engine(model: torch.nn.Module, options: argparse.Namespace) -> tuple[torch.nn.Module, str]:
    if options.no_optimize:
        return model, f"stock PyTorch, {torch.get_num_threads()} threads"
    from ..optimize import optimize

    device = device_for(_backend(options))
    threads = torch.get_num_threads()
    # Images are decoded meanwhile, by a thread for each core: several threads to an operator would
    # wait for each other, 1.6 s in all instead of 0.4.
    torch.set_num_threads(1)
    try:
        backend = _backend(options)
        model = optimize(model.to(device), dtype=dtype_for(options.dtype), backend=backend)
    finally:
        torch.set_num_threads(threads)
    report = model.report
    on = f"{torch.get_num_threads()} threads"
    if device.type == "cuda":
        on = f"{options.dtype or 'float32'} on {torch.cuda.get_device_name(device)}"
        if (count := torch.cuda.device_count()) > 1:
            on += f", one of {count} GPUs (--engine ray --backend gpu: all)"
    fused = f"{100 * report.fused_share:.4g} % of multiply-adds fused"
    return model, f"{report.backend} backend, {fused}, {on}"


def _ray_engine() -> ModuleType:
    try:
        from . import ray_engine
    except ImportError as error:
        raise BackendError(
            f"--engine ray needs Ray Data ({error}): pip install 'effnet-fast[ray]'"
        ) from error
    return ray_engine


def _address(options: argparse.Namespace) -> str | None:
    return options.address or os.environ.get("RAY_ADDRESS") or None


def _pool(options: argparse.Namespace) -> Pool:
    gpus = options.gpus_per_actor
    if gpus is None:
        gpus = float(options.backend == "gpu")
    elif gpus == 0 and options.backend == "gpu":
        raise ArgumentError("--gpus-per-actor is 0; accepted by --backend gpu: above 0")
    cpus = 1.0 if options.cpus_per_actor is None else options.cpus_per_actor
    return _ray_engine().Pool.of(options.concurrency, cpus, gpus)


def _workers(options: argparse.Namespace) -> int | None:
    """Decoding threads of a process."""
    if options.workers is None and options.engine == "ray":
        return math.ceil(_pool(options).cpus)
    return options.workers


def images_of(options: argparse.Namespace) -> Iterator[Image]:
    """What the paths and the list lead to."""
    return find_images(_paths(options), Columns(options.image_column, options.key_column))


def _paths(options: argparse.Namespace) -> Iterator[str | Path]:
    yield from options.paths
    if options.list is not None:
        # Not sys.stdin: a thread that waits in it would keep Python from ending.
        piped = options.list == "-"
        with open(0 if piped else options.list, "rb", closefd=not piped) as lines:
            yield from listed(lines)


def _report(
    options: argparse.Namespace, summary: Summary, times: Times, images: int, seconds: float
) -> None:
    done, failed = summary.done, summary.failed
    text = f"{done - failed} of {done} classified in {seconds:.1f} s"
    if failed:
        text += f"; {failed} failed, see the error of each"
    if options.results_file is not None:
        text += f"; results in {options.results_file}"
    print(text, file=sys.stderr)
    if options.summary:
        print("\n".join(map(printable, summary.lines(times, images, seconds))))


def check(options: argparse.Namespace) -> None:
    """What can be refused before any work."""
    names: tuple[str, ...] = ("batch_size", "workers", "threads", "num_classes", "img_size")
    for name in ("topk", *names, "limit"):
        value = getattr(options, name, None)
        if value is not None and value < 1:
            raise ArgumentError(f"--{name.replace('_', '-')} is {value}; accepted: 1 and up")
    if not options.paths and options.list is None:
        raise ArgumentError("PATH is missing; accepted: a PATH or more, or --list")
    if options.list not in (None, "-"):
        _readable("--list", options.list)


def _readable(option: str, path: str) -> None:
    try:
        open(path, "rb").close()
    except OSError as error:
        raise ArgumentError(f"{option} {path}: {error.strerror.lower()}") from error


def _check_results(options: argparse.Namespace) -> None:
    if options.results_file is None:
        if options.results_format is not None:
            raise ArgumentError("--results-format needs --results-file, the file to write")
        if options.logits or options.embeddings:
            raise ArgumentError("--logits and --embeddings need --results-file, the file to write")
    else:
        places(options.results_file, options.results_format)
    if options.no_optimize and (options.backend is not None or options.dtype is not None):
        raise ArgumentError("--no-optimize runs the stock model, without --backend and --dtype")


def _check_engine(options: argparse.Namespace) -> None:
    if options.engine == "ray":
        _pool(options)
        address = _address(options)
        if address is not None:
            _ray_engine().check_address(address)
        return
    for name in ("address", "concurrency", "cpus_per_actor", "gpus_per_actor"):
        if getattr(options, name) is not None:
            raise ArgumentError(f"--{name.replace('_', '-')} is for --engine ray")


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
