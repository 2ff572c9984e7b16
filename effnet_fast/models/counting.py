"""Parameters and multiply-adds of a model."""

from __future__ import annotations

import torch
from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, size: int | tuple[int, int]) -> int:
    """Multiply-adds of all convolutions and linear layers for one image of ``size`` (H, W).

    Runs the model once where its parameters are; on the meta device that costs next to nothing.
    """
    h, w = (size, size) if isinstance(size, int) else size
    total = 0

    def count(module: nn.Module, _: tuple, output: torch.Tensor) -> None:
        nonlocal total
        positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        total += module.weight.numel() * positions

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    weight = layers[0].weight
    channels = weight.shape[1]
    try:
        with torch.no_grad():
            model(torch.zeros(1, channels, h, w, device=weight.device, dtype=weight.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return total
