"""The command `effnet-fast`: subcommands that import what they need when they run."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import warnings
from typing import Any

from .errors import ArgumentError, EffnetFastError

_EPILOG = """\
exit status: 0 all well; 1 some images have no answer, their reasons are in the results;
2 wrong usage, or the run could not be completed"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; the exit status."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a label never fails an ASCII terminal
    try:
        status = options.run(options)
        sys.stdout.flush()
        return status
    except EffnetFastError as error:
        return _fail(str(error), 2)
    except BrokenPipeError:  # `effnet-fast ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt as interrupt:
        return _fail(": ".join(["interrupted", *map(str, interrupt.args)]), 130)


def entry() -> int:
    """`main`, for a process that ends with it."""
    # What was imported stays. A collection looks at all of it, the interpreter's last one, too:
    # 0.1 s and 0.4 s.
    gc.freeze()
    status = main()
    if "triton" in sys.modules:
        gc.unfreeze()  # 3.9 prints what the last collection did not find, in 30 lines
    else:
        gc.freeze()
    return status


def _fail(message: str, status: int) -> int:
    print(f"effnet-fast: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="effnet-fast",
        description="EfficientNet inference close to the limit of the hardware it runs on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"effnet-fast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_classify(commands)
    _add_verify(commands)
    info = commands.add_parser("info", help="what is built, what runs here, and why not the rest")
    info.add_argument("--json", action="store_true", help="as a JSON object")
    info.set_defaults(run=_info)
    models = commands.add_parser("models", help="the model family, with sizes and costs")
    models.add_argument("pattern", nargs="?", default="*", help="of names, as in 'efficientnet_b*'")
    models.set_defaults(run=_models)
    _add_kernels(commands)
    _add_plan(commands)
    _add_bench(commands)
    return parser


def _add_classify(commands: Any) -> None:
    from .classify.options import add_classify

    parser = commands.add_parser(
        "classify",
        help="label images with an optimised model",
        description="Label image files. In a folder, files with an image's ending are taken, "
        "recursively and sorted; a file named on its own is always tried, and one that is named "
        "twice is done once. An image that cannot be classified is a row with its reason. A run "
        "with --results-file that ends early, however it ends, is gone on with by the same "
        "command.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_classify(parser)
    parser.set_defaults(run=_classify)


def _add_verify(commands: Any) -> None:
    from .classify.options import add_verify

    parser = commands.add_parser(
        "verify",
        help="an optimised model beside the stock one, on images of your own",
        description="Take images through the stock and the optimised model, and through each mode "
        "of decoding, and print how far the answers agree, and how many are right.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_verify(parser)
    parser.set_defaults(run=_verify)


def _add_kernels(commands: Any) -> None:
    parser = commands.add_parser(
        "kernels",
        help="the GPU kernels: registers, shared memory, occupancy, traffic",
        description="Compile the GPU kernels for each architecture, and run an example of each on "
        "the PTX machine, which counts. No GPU is needed.",
        epilog="exit status: 0 all well; 1 a kernel does not compile or run, its row says why; "
        "2 wrong usage",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="of names, as in 'swish_*'")
    parser.add_argument(
        "--arch", nargs="+", action="extend", metavar="ARCH", help="as in sm_80 (default: all)"
    )
    parser.add_argument("--language", choices=("cuda", "triton"), help="default: both")
    parser.add_argument(
        "--counts", action=argparse.BooleanOptionalAction, default=True,
        help="run the examples (default)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="as a JSON array, with all counts")
    parser.set_defaults(run=_kernels)


def _add_plan(commands: Any) -> None:
    parser = commands.add_parser(
        "plan",
        help="what the GPU engine would launch for a model, and what that costs",
        description="Plan a model for a GPU that need not be there: which kernel does each step, "
        "how it is cut, the bytes that it moves and the time that it is modelled to take. Some "
        "images are run on the PTX machine, which counts. Nothing of it is measured on a GPU.",
    )
    parser.add_argument("model", metavar="MODEL", help="effnet_fast:NAME, timm:NAME, ...")
    parser.add_argument("--backend", choices=("gpu",), default="gpu")
    parser.add_argument("--arch", default="sm_90", help="as in sm_80 (default: sm_90)")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float16",
        help="default: float16",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=64, help="default: 64")
    parser.add_argument("--size", type=int, help="of the images (default: the model's own)")
    parser.add_argument("--language", choices=("cuda", "triton"), help="default: both")
    parser.add_argument(
        "--counts", action=argparse.BooleanOptionalAction, default=True,
        help="run images on the PTX machine (default)",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=int, metavar="N",
        help="how many of the batch are counted (default: as many as a block does; more are "
        "closer to what a batch has)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="as a JSON object, with totals")
    parser.set_defaults(run=_plan)


def _add_bench(commands: Any) -> None:
    from .bench.cpu import add_arguments, run

    parser = commands.add_parser(
        "bench",
        help="a model on this CPU beside other runtimes",
        description="Time a model, with random calibrated weights, on this CPU: ours and the "
        "runtimes that are installed, each in its own process, in turns, outputs compared first.",
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


def _plan(options: argparse.Namespace) -> int:
    import json

    import torch

    from .classify.zoo import untrained_model
    from .ops.extension import extension

    extension()  # or the reason why it is not there
    from .engine.gpu_report import report

    torch.manual_seed(0)
    size = None if options.size is None else (options.size, options.size)
    planned = report(
        untrained_model(options.model),
        options.model,
        arch=options.arch,
        dtype=getattr(torch, options.dtype),
        batch=options.batch,
        size=size,
        languages=(options.language,) if options.language else (),
        count=options.counts,
        images=options.images,
    )
    print(json.dumps(planned.to_dict(), indent=2) if options.json else planned)
    return 0


def _classify(options: argparse.Namespace) -> int:
    from PIL import Image

    from .classify.command import run

    # Only images over Pillow's error limit are refused; a warning per big photo says nothing.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    return run(options)


def _verify(options: argparse.Namespace) -> int:
    from PIL import Image

    from .classify.verify import run

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    return run(options)


def _info(options: argparse.Namespace) -> int:
    import json

    from .info import collect, describe

    found = collect()
    print(json.dumps(found, indent=2) if options.json else describe(found))
    return 0


def _models(options: argparse.Namespace) -> int:
    from fnmatch import fnmatchcase

    from . import models

    names = [name for name in models.list_models() if fnmatchcase(name, options.pattern)]
    if not names:
        raise ArgumentError(
            f"pattern is {options.pattern!r}, which no model's name matches; accepted: one like "
            f"{models.list_models()[0]!r} or 'efficientnet_b*'"
        )
    rows = [("name", "input", "parameters", "multiply-adds")]
    for name in names:
        config = models.model_config(name)
        size = "x".join(map(str, config.input_size[1:]))
        model = models.create_model(name, device="meta")
        macs = models.multiply_adds(model, config.input_size[1:])
        rows.append((name, size, f"{models.count_parameters(model):,}", f"{macs / 1e9:.2f} G"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *rest in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        print(f"{name:<{widths[0]}}", *cells, sep="  ")
    return 0


def _kernels(options: argparse.Namespace) -> int:
    import json

    from .ops.extension import extension

    extension()  # which says how to build it, where it is missing
    from .gpu import catalogue

    languages = (options.language,) if options.language else catalogue.LANGUAGES
    entries = catalogue.select(options.pattern, languages)
    accepted = {f"sm_{c}": c for c in catalogue.CAPABILITIES}
    for arch in options.arch or ():
        if arch not in accepted:
            raise ArgumentError(f"--arch is {arch!r}; accepted: {', '.join(accepted)}")
    wanted = [accepted[arch] for arch in options.arch or accepted]
    rows = list(catalogue.survey(entries, wanted, options.counts))
    if options.json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
    else:
        print(catalogue.describe(rows))
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(entry())
