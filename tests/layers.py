"""The layers of models, as an image of the model's size passes them."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from effnet_fast.models import create_model, model_config
from effnet_fast.models.efficientnet import Conv2dSame, SqueezeExcite
from effnet_fast.network import Window

# Those of the GPU kernels' promises: every kernel size, stride, padding and map that they have.
MODELS = ("efficientnet_b0", "efficientnet_b4", "efficientnetv2_s", "efficientnet_lite0")


class Depthwise(NamedTuple):
    channels: int
    size: int  # of the input, high and wide
    kernel: int
    stride: int
    padding: tuple[int, int, int, int]  # top, left, bottom, right

    def __str__(self) -> str:
        top, _, bottom, _ = self.padding
        return f"{self.channels}x{self.size}-k{self.kernel}s{self.stride}p{top}{bottom}"

    @property
    def window(self) -> Window:
        return Window((self.kernel,) * 2, (self.stride,) * 2, (1, 1), self.padding)


class Squeeze(NamedTuple):
    channels: int
    squeezed: int
    pixels: int

    def __str__(self) -> str:
        return f"{self.channels}-{self.squeezed}"


class Pointwise(NamedTuple):
    cin: int
    cout: int
    size: int  # high and wide

    def __str__(self) -> str:
        return f"{self.cin}-{self.cout}x{self.size}"


class Activation(NamedTuple):
    channels: int
    size: int

    def __str__(self) -> str:
        return f"{self.channels}x{self.size}"


class Layers(NamedTuple):
    depthwise: tuple[Depthwise, ...]
    squeeze: tuple[Squeeze, ...]
    activations: tuple[Activation, ...]
    pointwise: tuple[Pointwise, ...]


@functools.cache
def layers(name: str) -> Layers:
    """Of a model of the family, each once."""
    model = create_model(name, device="meta")
    depthwise, squeeze, activations, pointwise = {}, {}, {}, {}

    def see(module, inputs, output):
        if inputs[0].dim() != 4:
            return
        c, h, w = inputs[0].shape[1:]
        assert h == w
        if isinstance(module, torch.nn.Conv2d) and module.groups == c > 1:
            k, s = module.kernel_size[0], module.stride[0]
            if isinstance(module, Conv2dSame):
                padding = Window((k, k), (s, s), (1, 1), None).pads(h, w)
            else:
                padding = (module.padding[0],) * 4
            depthwise[Depthwise(c, h, k, s, padding)] = None
        elif isinstance(module, torch.nn.Conv2d) and module.kernel_size == (1, 1) and h > 1:
            pointwise[Pointwise(c, module.out_channels, h)] = None
        elif isinstance(module, SqueezeExcite):
            squeeze[Squeeze(c, module.conv_reduce.out_channels, h * w)] = None
        elif isinstance(module, (torch.nn.SiLU, torch.nn.ReLU6)) and h > 1:
            activations[Activation(c, h)] = None

    for module in model.modules():
        module.register_forward_hook(see)
    _, size, _ = model_config(name).input_size
    model(torch.empty(1, 3, size, size, device="meta"))
    return Layers(tuple(depthwise), tuple(squeeze), tuple(activations), tuple(pointwise))
