"""EfficientNet from block tables and compound scaling, with parameters named as in timm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Stage:
    """One row of a block table, before scaling.

    ``kind`` is "ds" (depthwise separable), "ir" (MBConv, an inverted residual), "er" (fused MBConv)
    or "cn" (a plain convolution); ``se`` the squeeze-excitation width as a share of the block's
    input.
    """

    kind: str
    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int
    se: float = 0.0


@dataclass(frozen=True)
class Architecture:
    """A family's block table with one model's scaling.

    Attributes
    ----------
    width, depth : the factors of channels and repeats.
    fixed_ends : stem, head and the first and last stage's repeats are not scaled (Lite).
    round_up : rounding may not lose more than 10 % of the channels (all but V2).
    """

    stages: tuple[Stage, ...]
    width: float = 1.0
    depth: float = 1.0
    stem: int = 32
    head: int = 1280
    act: str = "swish"
    fixed_ends: bool = False
    round_up: bool = True

    def channels(self, base: int) -> int:
        """Scaled channels, a multiple of 8: Tan and Le 2019, section 4, as published in code."""
        scaled = base * self.width
        rounded = max(8, int(scaled + 4) // 8 * 8)
        return rounded + 8 if self.round_up and rounded < 0.9 * scaled else rounded

    def repeats(self, index: int) -> int:
        """Scaled repeats of a stage."""
        base = self.stages[index].repeats
        ends = (0, len(self.stages) - 1)
        return base if self.fixed_ends and index in ends else math.ceil(base * self.depth)

    def end(self, base: int) -> int:
        """Channels of stem or head."""
        return base if self.fixed_ends else self.channels(base)


@dataclass(frozen=True)
class Style:
    """What the same architecture differs in between sources.

    ``same`` is TensorFlow's padding, from the run-time size; otherwise k // 2 on every side.
    """

    same: bool
    bn_eps: float


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, from the run-time size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads: list[int] = []
        for size, k, s in zip(
            x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            total = max((-(-size // s) - 1) * s + k - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


def _conv(style: Style, cin: int, cout: int, k: int, s: int = 1, groups: int = 1) -> nn.Conv2d:
    if style.same and s > 1:  # at stride 1 SAME is symmetric
        return Conv2dSame(cin, cout, k, s, groups=groups, bias=False)
    return nn.Conv2d(cin, cout, k, s, k // 2, groups=groups, bias=False)


class SqueezeExcite(nn.Module):
    """x * sigmoid(expand(swish(reduce(mean(x)))))."""

    def __init__(self, channels: int, squeezed: int, act: Callable[[], nn.Module]):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = act()
        self.conv_expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.conv_expand(self.act(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class Block(nn.Module):
    """One block of any kind: its layers in order, and a residual where shapes allow."""

    def __init__(self, stage: Stage, cin: int, cout: int, stride: int, style: Style, act: Callable):
        super().__init__()
        mid, k = cin * stage.expand, stage.kernel
        se = max(1, int(cin * stage.se)) if stage.se else 0

        def norm(c: int) -> nn.BatchNorm2d:
            return nn.BatchNorm2d(c, eps=style.bn_eps)

        if stage.kind == "cn":
            self.conv, self.bn1, self.act1 = _conv(style, cin, cout, k, stride), norm(cout), act()
        elif stage.kind == "er":
            self.conv_exp, self.bn1, self.act1 = _conv(style, cin, mid, k, stride), norm(mid), act()
            self.conv_pwl, self.bn2 = _conv(style, mid, cout, 1), norm(cout)
        elif stage.kind == "ds":
            self.conv_dw = _conv(style, cin, cin, k, stride, groups=cin)
            self.bn1, self.act1 = norm(cin), act()
            if se:
                self.se = SqueezeExcite(cin, se, act)
            self.conv_pw, self.bn2 = _conv(style, cin, cout, 1), norm(cout)
        else:
            self.conv_pw, self.bn1, self.act1 = _conv(style, cin, mid, 1), norm(mid), act()
            self.conv_dw = _conv(style, mid, mid, k, stride, groups=mid)
            self.bn2, self.act2 = norm(mid), act()
            if se:
                self.se = SqueezeExcite(mid, se, act)
            self.conv_pwl, self.bn3 = _conv(style, mid, cout, 1), norm(cout)
        self.skip = stride == 1 and cin == cout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for layer in self.children():
            y = layer(y)
        return x + y if self.skip else y


class EfficientNet(nn.Module):
    """Stem, stages of blocks, head, pool, classifier.

    ``forward`` takes (N, in_chans, H, W) float images and returns (N, num_classes) logits.
    """

    def __init__(
        self, architecture: Architecture, style: Style, num_classes: int = 1000, in_chans: int = 3
    ):
        super().__init__()
        a = architecture
        act = {"swish": nn.SiLU, "relu6": nn.ReLU6}[a.act]
        c = a.end(a.stem)
        self.conv_stem = _conv(style, in_chans, c, 3, 2)
        self.bn1, self.act1 = nn.BatchNorm2d(c, eps=style.bn_eps), act()
        stages = []
        for index, stage in enumerate(a.stages):
            blocks = []
            for repeat in range(a.repeats(index)):
                cout = a.channels(stage.channels)
                blocks.append(Block(stage, c, cout, 1 if repeat else stage.stride, style, act))
                c = cout
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        head = a.end(a.head)
        self.conv_head = _conv(style, c, head, 1)
        self.bn2, self.act2 = nn.BatchNorm2d(head, eps=style.bn_eps), act()
        self.classifier = nn.Linear(head, num_classes)
        if not self.conv_stem.weight.is_meta:
            self._initialise()

    def _initialise(self) -> None:
        """Fan-out normal convolutions, as the paper's code does, so that training can start."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight.numel() // module.in_channels * module.groups
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.uniform_(self.classifier.weight, -0.03, 0.03)
        nn.init.zeros_(self.classifier.bias)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The last map, (N, head, H / 32, W / 32)."""
        x = self.blocks(self.act1(self.bn1(self.conv_stem(x))))
        return self.act2(self.bn2(self.conv_head(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.forward_features(x).mean((2, 3)))
