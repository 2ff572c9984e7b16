"""`effnet-fast verify`: images of one's own through the stock and the optimised model, and through
the modes of decoding.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from ..errors import ArgumentError, ImageError
from ..gpu.counts import table
from ..optimize import optimize
from .command import changed_preprocess, check, images_of, printable
from .decode import HAS_TURBO
from .feed import HostFeed, device_for, dtype_for, feed_for
from .labels import labels_for, read_labels
from .load import MODES, Decoded, Loader
from .pipeline import default_workers
from .sources import Image
from .zoo import load_model

STOCK, FAST = "stock model, exact", "optimised"
SURE = 0.5  # the confidence from which on a changed answer is counted apart


@dataclass
class Tally:
    """Answers for the same images beside the stock model's on its own pixels."""

    images: int = 0
    same: int = 0
    sure: int = 0
    sure_same: int = 0
    labelled: int = 0
    right: int = 0
    logit: float = 0.0
    probability: float = 0.0
    _logits: float = 0.0
    _probabilities: float = 0.0

    def add(self, logits: torch.Tensor, stock: torch.Tensor, labels: Sequence[int | None]) -> None:
        """Logits (N, classes) of a batch, the stock model's, and the right classes where known."""
        probabilities, expected = logits.softmax(1), stock.softmax(1)
        same = logits.argmax(1) == stock.argmax(1)
        sure = expected.amax(1) > SURE
        # A number that is none is as far away as can be: max() would pass over it.
        difference = (logits - stock).abs().nan_to_num(nan=math.inf)
        change = (probabilities - expected).abs().nan_to_num(nan=math.inf).amax(1)
        self.images += len(logits)
        self.same += int(same.sum())
        self.sure += int(sure.sum())
        self.sure_same += int((sure & same).sum())
        self.logit = max(self.logit, float(difference.max()))
        self.probability = max(self.probability, float(change.max()))
        self._logits += float(difference.mean(1).sum())
        self._probabilities += float(change.sum())
        for best, label in zip(logits.argmax(1).tolist(), labels, strict=True):
            self.labelled += label is not None
            self.right += best == label

    @property
    def mean_logit(self) -> float:
        """Over images and classes."""
        return self._logits / self.images

    @property
    def mean_probability(self) -> float:
        """Over images, of each the class that changes most."""
        return self._probabilities / self.images

    def row(self, name: str) -> tuple[str, ...]:
        """Of the table."""
        accuracy = f"{self.right / self.labelled:.2%}" if self.labelled else ""
        if name == STOCK:
            return (name, *("",) * 6, accuracy)
        return (
            name, f"{self.same / self.images:.2%}", f"{self.sure_same} of {self.sure}",
            f"{self.logit:.1e}", f"{self.mean_logit:.1e}", f"{self.probability:.1e}",
            f"{self.mean_probability:.1e}", accuracy,
        )  # fmt: skip


HEAD = (
    "beside the stock model", "same top-1", f"of those above {SURE}", "largest logit difference",
    "mean", "largest probability change", "mean", "accuracy",
)  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """The exit status: 0, or 1 when an image has no answer."""
    check(options)
    loaded = load_model(
        options.model,
        checkpoint=options.checkpoint,
        pretrained=options.pretrained,
        num_classes=options.num_classes,
    )
    names = None if options.class_map is None else read_labels(options.class_map)
    label_of = _labels(options.labels, names)
    preprocess = changed_preprocess(loaded, options)
    backend = options.backend or "auto"
    fast = optimize(
        copy.deepcopy(loaded.model).to(device_for(backend)),
        dtype=dtype_for(options.dtype),
        backend=backend,
    )
    feeds = {
        STOCK: HostFeed(loaded.model, preprocess),
        FAST: feed_for(fast, preprocess, options.batch_size),
    }
    modes = [mode for mode in MODES if mode != "fast-decode" or HAS_TURBO]
    loaders = {mode: Loader(preprocess, mode, options.apply_exif) for mode in modes}
    tallies = {STOCK: Tally()} | {f"{FAST}, {mode}": Tally() for mode in ("exact", *modes)}
    failed = 0
    for images, decoded in _decoded(images_of(options), loaders, options):
        good = []
        for i, ways in enumerate(zip(*decoded.values(), strict=True)):
            bad = next((one for one in ways if one.pixels is None), None)
            if bad is None:
                good.append(i)
            else:
                failed += 1
                print(f"{printable(bad.key)}: {printable(bad.error)}", file=sys.stderr)
        if not good:
            continue

        def logits(who: str, mode: str, kept: list[int] = good, all_: dict = decoded):
            output = feeds[who]([all_[mode][i].pixels for i in kept])
            return getattr(output, "logits", output).float()

        stock = logits(STOCK, "exact")
        known = [label_of(images[i], stock.shape[1]) for i in good]
        tallies[STOCK].add(stock, stock, known)
        for mode in modes:
            tallies[f"{FAST}, {mode}"].add(logits(FAST, mode), stock, known)
    if not tallies[STOCK].images:
        raise ImageError("no image could be decoded; accepted: one at least")
    rows = [HEAD, *(tally.row(name) for name, tally in tallies.items())]
    wanted = [i for i in range(len(HEAD)) if any(row[i] for row in rows[1:])]
    print(f"{loaded.name}, {tallies[STOCK].images} images, input {preprocess}")
    print("\n".join(table([[row[i] for i in wanted] for row in rows])))
    if not HAS_TURBO:
        print(
            "fast-decode: not measured, simplejpeg is missing: pip install 'effnet-fast[classify]'"
        )
    if failed:
        print(f"{failed} images have no answer", file=sys.stderr)
    return 1 if failed else 0


def _decoded(
    images: Iterator[Image], loaders: dict[str, Loader], options: argparse.Namespace
) -> Iterator[tuple[list[Image], dict[str, list[Decoded]]]]:
    """Batches of images, decoded in every mode."""
    images = islice(images, options.limit)
    workers = options.workers or default_workers()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        threads = torch.get_num_threads()
        while batch := list(islice(images, options.batch_size)):
            found = {mode: list(pool.map(load, batch)) for mode, load in loaders.items()}
            torch.set_num_threads(options.threads or threads)
            yield batch, found


def _labels(given: str | None, names: Sequence[str] | None) -> Callable[[Image, int], int | None]:
    """From an image and the number of classes to the right class, as far as it is known."""
    if given is None:
        return lambda image, classes: None
    if given == "folders":
        return lambda image, classes: _class_of(Path(image.key).parent.name, classes, names)
    by_key = dict(_read(given))

    def from_file(image: Image, classes: int) -> int | None:
        label = by_key.get(image.key, by_key.get(Path(image.key).name))
        return None if label is None else _class_of(label, classes, names)

    return from_file


def _read(path: str) -> Iterable[tuple[str, str]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArgumentError(f"--labels {path}: {error}") from error
    if rows and rows[0][:2] == ["filename", "label"]:
        rows = rows[1:]
    for number, row in enumerate(rows):
        if len(row) < 2:
            raise ArgumentError(
                f"--labels {path}: row {number + 1} is {','.join(row)!r}; accepted: a file name "
                "or key, and a class's number or name"
            )
        yield row[0], row[1]


def _class_of(label: str, classes: int, names: Sequence[str] | None) -> int:
    """A class by its number or name; folders have _ for blanks.

    Raises
    ------
    ArgumentError
        There is none.
    """
    if label.isdecimal() and int(label) < classes:
        return int(label)
    names = labels_for(classes) if names is None else names
    plain = label.replace("_", " ").casefold()
    for index, name in enumerate(names):
        if name.casefold() == plain:
            return index
    raise ArgumentError(
        f"label {label!r} is no class of the model; accepted: numbers below {classes}, or names as "
        f"{names[0]!r}"
    )
