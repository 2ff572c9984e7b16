"""Classify image files: sources, decoding, the pipeline and what it writes."""

from __future__ import annotations

from .decode import decode
from .journal import Journal
from .labels import imagenet_labels, labels_for, read_labels
from .load import MODES
from .pipeline import Classifier, classify
from .preprocess import Preprocess
from .results import Result
from .sinks import open_sink
from .sources import Columns, Image, find_images
from .zoo import Loaded, load_model

__all__ = [
    "MODES",
    "Classifier",
    "Columns",
    "Image",
    "Journal",
    "Loaded",
    "Preprocess",
    "Result",
    "classify",
    "decode",
    "find_images",
    "imagenet_labels",
    "labels_for",
    "load_model",
    "open_sink",
    "read_labels",
]
