"""Classify image files: sources, decoding, the pipeline and what it writes."""

from __future__ import annotations

from .decode import decode
from .labels import imagenet_labels, labels_for, read_labels
from .pipeline import Result, classify
from .preprocess import Preprocess
from .sinks import open_sink
from .sources import Image, find_images
from .zoo import Loaded, load_model

__all__ = [
    "Image",
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
