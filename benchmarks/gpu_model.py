"""The model of what GPU kernels take, beside what a GPU took.

    python benchmarks/gpu_model.py [RESULTS] [--model efficientnet_b0] [--batch 64]

RESULTS is of benchmarks/gpu.py, with operators. For each way to do a layer: how many layers have
it, and their measured over their modelled time. And what a network would take by the model's
choices, and by the fastest that were measured. The GPU is not needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from effnet_fast import optimize
from effnet_fast.bench.gpu import MODELS
from effnet_fast.bench.gpu_layers import Layer, layers, named_options
from effnet_fast.bench.gpu_models import stock_model
from effnet_fast.errors import ArgumentError, EffnetFastError
from effnet_fast.gpu.targets import Target

RESULTS = Path(__file__).with_name("results") / "h200_operators.json"


def measured(row: Mapping[str, Any], name: str) -> float | None:
    """The median seconds of an option in a row of results; None where there are none."""
    times = row.get("outcomes", {}).get(f"effnet_fast: {name}", {}).get("times")
    return times and times["median"]


def compared(rows: Mapping[str, Any], key: str, found: list[Layer]) -> list[str]:
    """The table, of the layers that the results have."""
    ratios: dict[str, list[float]] = defaultdict(list)
    chosen = fastest = repeats = 0.0
    for layer in found:
        row = rows.get(f"{key} {layer.name}")
        if row is None:
            continue
        pairs = [
            (seconds, option.seconds, name)
            for name, option in named_options(layer.choice.options)
            if (seconds := measured(row, name)) is not None
        ]
        for seconds, modelled, name in pairs:
            ratios[name].append(seconds / modelled)
        if pairs:
            repeats += layer.repeats
            chosen += layer.repeats * min(pairs, key=lambda pair: pair[1])[0]
            fastest += layer.repeats * min(pairs)[0]
    if not ratios:
        raise ArgumentError(f"the results have no layer of {key!r}")
    width = max(map(len, ratios))
    lines = [f"{'measured / modelled':{width}}  layers  least  median  most"]
    for name, values in sorted(ratios.items(), key=lambda item: statistics.median(item[1])):
        of = min(values), statistics.median(values), max(values)
        lines.append(f"{name:{width}}  {len(values):6}  {of[0]:5.2f}  {of[1]:6.2f}  {of[2]:4.2f}")
    return [
        *lines,
        "",
        f"{repeats:.0f} layers: {1e6 * chosen:,.0f} us by the model's choices, "
        f"{1e6 * fastest:,.0f} us by the fastest",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--model", default="efficientnet_b0", choices=MODELS)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    try:
        if options.batch < 1:
            raise ArgumentError(f"--batch is {options.batch}; accepted: 1 or more")
        try:
            results = json.loads(options.results.read_text())
            rows, head = results["rows"], results["head"]
            dtype, device = getattr(torch, head["dtype"]), head["device"]
            target = dataclasses.replace(
                Target.named(f"sm_{device['capability']}"),
                name=device["name"],
                multiprocessors=device["multiprocessors"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArgumentError(f"{options.results}: no file of results: {error!r}") from error
        model = stock_model(options.model)
        (part,) = optimize(model, dtype=dtype, backend="ptx", verify=False).parts()
        part.home.target = target
        engine = part.engine((MODELS[options.model],) * 2)
        key = f"layer {options.model} batch {options.batch}"
        print("\n".join(compared(rows, key, layers(engine, options.batch))))
    except EffnetFastError as error:
        print(f"benchmarks/gpu_model.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
