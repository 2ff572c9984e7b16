"""The baselines of the paper's scaling study: MobileNetV1, MobileNetV2 and ResNet-50, scalable.

Tan and Le 2019, table 3. Each takes a width and a depth factor; resolution is the image's. The
paper does not say how it rounds: here channels go to the nearest multiple of 8 and repeats up, as
in EfficientNet's own scaling. Scaling one dimension gives the table's multiply-adds (with
ResNet-50's lines for depth and width exchanged: four times the blocks cost 14.6 G, twice the
channels 16.1 G); compound scaling, whose factors the table states for MobileNetV1 alone,
gives 2.47, 1.38 and 15.9 G where it prints 2.3, 1.3 and 16.7.
"""

from __future__ import annotations

import math

import torch
from torch import nn


def _layer(
    cin: int,
    cout: int,
    k: int = 1,
    s: int = 1,
    groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    layers = [nn.Conv2d(cin, cout, k, s, k // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)]
    return nn.Sequential(*layers, act()) if act else nn.Sequential(*layers)


def _scaled(channels: int, width: float) -> int:
    return max(8, int(channels * width + 4) // 8 * 8)


class _Residual(nn.Module):
    """x + body(x), with the shortcut and last activation that the network has."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, act: nn.Module):
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut, act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.shortcut(x) + self.body(x))


class _Classifier(nn.Sequential):
    def __init__(self, channels: int, classes: int):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def mobilenet_v1(width: float = 1.0, depth: float = 1.0, num_classes: int = 1000) -> nn.Sequential:
    """MobileNetV1 (Howard et al. 2017); depth scales the layers of each resolution."""
    c = _scaled(32, width)
    layers: list[nn.Module] = [_layer(3, c, 3, 2)]
    for channels, repeats, stride in (
        (64, 1, 1),
        (128, 2, 2),
        (256, 2, 2),
        (512, 6, 2),
        (1024, 2, 2),
    ):
        for repeat in range(math.ceil(repeats * depth)):
            cout = _scaled(channels, width)
            s = 1 if repeat else stride
            layers += [_layer(c, c, 3, s, groups=c), _layer(c, cout)]
            c = cout
    return nn.Sequential(*layers, _Classifier(c, num_classes)).eval()


def mobilenet_v2(width: float = 1.0, depth: float = 1.0, num_classes: int = 1000) -> nn.Sequential:
    """MobileNetV2 (Sandler et al. 2018): inverted residuals; depth scales each stage's repeats."""
    c = _scaled(32, width)
    layers: list[nn.Module] = [_layer(3, c, 3, 2, act=nn.ReLU6)]
    for expand, channels, repeats, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for repeat in range(math.ceil(repeats * depth)):
            cout, mid, s = _scaled(channels, width), c * expand, 1 if repeat else stride
            body = [_layer(c, mid, act=nn.ReLU6)] if expand > 1 else []
            body += [_layer(mid, mid, 3, s, groups=mid, act=nn.ReLU6), _layer(mid, cout, act=None)]
            block = nn.Sequential(*body)
            same = s == 1 and c == cout
            layers.append(_Residual(block, nn.Identity(), nn.Identity()) if same else block)
            c = cout
    head = max(1280, _scaled(1280, width))
    layers.append(_layer(c, head, act=nn.ReLU6))
    return nn.Sequential(*layers, _Classifier(head, num_classes)).eval()


def resnet50(width: float = 1.0, depth: float = 1.0, num_classes: int = 1000) -> nn.Sequential:
    """ResNet-50 (He et al. 2016), stride in the 3x3; depth scales each stage's repeats."""
    c = _scaled(64, width)
    layers: list[nn.Module] = [_layer(3, c, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for channels, repeats, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for repeat in range(math.ceil(repeats * depth)):
            mid, s = _scaled(channels, width), 1 if repeat else stride
            cout = 4 * mid
            body = nn.Sequential(
                _layer(c, mid), _layer(mid, mid, 3, s), _layer(mid, cout, act=None)
            )
            shortcut = nn.Identity() if repeat else _layer(c, cout, 1, s, act=None)
            layers.append(_Residual(body, shortcut, nn.ReLU()))
            c = cout
    return nn.Sequential(*layers, _Classifier(c, num_classes)).eval()
