"""Small networks for the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from effnet_fast.bench.coverage import calibrated

__all__ = [
    "MBConv",
    "SameConv2d",
    "SqueezeExcite",
    "Tiny",
    "calibrated",
    "conv_norm_act",
    "images",
    "tiny",
]


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's SAME does, from the run-time size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads = []
        for size, k, s in zip(
            x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            total = max((-(-size // s) - 1) * s + k - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


def conv_norm_act(
    cin: int, cout: int, k: int = 1, s: int = 1, groups: int = 1, act=nn.SiLU, same=False
):
    kind = SameConv2d if same else nn.Conv2d
    conv = kind(cin, cout, k, s, 0 if same else k // 2, groups=groups, bias=False)
    layers = [conv, nn.BatchNorm2d(cout)]
    return nn.Sequential(*layers, act()) if act else nn.Sequential(*layers)


class SqueezeExcite(nn.Module):
    def __init__(self, c: int, squeezed: int):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(c, squeezed, 1), nn.Conv2d(squeezed, c, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))


class MBConv(nn.Module):
    def __init__(self, cin: int, cout: int, k: int, s: int, expand: int = 4, same: bool = False):
        super().__init__()
        mid = cin * expand
        self.expand = conv_norm_act(cin, mid)
        self.depthwise = conv_norm_act(mid, mid, k, s, groups=mid, same=same)
        self.se = SqueezeExcite(mid, max(1, cin // 4))
        self.project = conv_norm_act(mid, cout, act=None)
        self.skip = cin == cout and s == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return y + x if self.skip else y


class Unexpanded(nn.Module):
    """A stem and a first block without expansion, whose residual reads the stem, too, if wanted."""

    def __init__(self, is_read_twice: bool = False):
        super().__init__()
        self.stem = conv_norm_act(3, 8, 3, 2, same=True)
        self.depthwise = conv_norm_act(8, 8, 5, groups=8)
        self.se, self.project = SqueezeExcite(8, 2), conv_norm_act(8, 8, act=None)
        self.is_read_twice = is_read_twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.project(self.se(self.depthwise(x)))
        return x + y if self.is_read_twice else y


class Tiny(nn.Module):
    """An EfficientNet in small: stem, fused block, two MBConv (one with a residual), head,
    classifier."""

    def __init__(self, same: bool = False, channels: int = 3, classes: int = 10):
        super().__init__()
        self.stem = conv_norm_act(channels, 8, 3, 2, same=same)
        self.fused = nn.Sequential(
            conv_norm_act(8, 16, 3, 2, same=same), conv_norm_act(16, 12, act=None)
        )
        self.blocks = nn.Sequential(
            MBConv(12, 20, 5, 2, same=same), MBConv(20, 20, 3, 1, same=same)
        )
        self.head = conv_norm_act(20, 32)
        self.classifier = nn.Linear(32, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(self.blocks(self.fused(self.stem(x))))
        return self.classifier(x.mean((2, 3)))


def tiny(seed: int = 0, **options) -> Tiny:
    return calibrated(Tiny(**options), seed)


def images(n: int, h: int, w: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, channels, h, w, generator=torch.Generator().manual_seed(seed))


class Scaled(nn.Module):
    """A tensor that is neither a parameter nor a buffer, and those that forward makes and moves."""

    def __init__(self, device: str | torch.device = "cpu"):
        super().__init__()
        self.body = tiny().to(device)
        self.scale = torch.full((10,), 2.0, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x).to(self.scale.device, torch.float64).to(self.scale)
        return y * self.scale + torch.ones(1, device=x.device)
