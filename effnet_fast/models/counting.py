"""Parameters and multiply-adds of a model."""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn


@functools.cache
def skeleton(name: str) -> nn.Module:
    """A model of the family on the meta device, with 1000 classes."""
    from . import create_model

    return create_model(name, device="meta")


def count_parameters(model: nn.Module) -> int:
    """Elements of all parameters; batch norm's running statistics are none."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module | str, size: int | tuple[int, int]) -> int:
    """Multiply-adds of all convolutions and linear layers for one image of ``size`` (H, W).

    ``model`` is any CNN, or a name of the family. Counted on a copy on the meta device: nothing is
    computed, and the model stays as it is.
    """
    if isinstance(model, str):
        model = skeleton(model)
    h, w = (size, size) if isinstance(size, int) else size
    memo = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    twin = copy.deepcopy(model, memo).eval()
    total = 0

    def count(module: nn.Module, _: tuple, output: torch.Tensor) -> None:
        nonlocal total
        positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        total += module.weight.numel() * positions

    layers = [m for m in twin.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(count)
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):  # changes no shape, and is half the time
            module.forward = nn.Identity().forward
    weight = layers[0].weight
    with torch.no_grad():
        twin(torch.zeros(1, weight.shape[1], h, w, device="meta", dtype=weight.dtype))
    return total
