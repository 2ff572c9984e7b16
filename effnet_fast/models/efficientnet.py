"""EfficientNet from block tables and compound scaling, with parameters named as in timm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Stage:
    """One row of a block table, before scaling.

    ``kind`` is "ds" (depthwise separable), "ir" (MBConv, an inverted residual), "er" (fused
    MBConv) or "cn" (a plain convolution); ``se`` the squeeze-excitation width as a share of the
    block's input.
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
    bn_momentum: float = 0.01  # the paper's 0.99, in PyTorch's sense

    def conv(self, cin: int, cout: int, k: int, s: int = 1, groups: int = 1) -> nn.Conv2d:
        """A convolution without bias."""
        if self.same and s > 1:  # at stride 1 SAME is symmetric
            return Conv2dSame(cin, cout, k, s, groups=groups, bias=False)
        return nn.Conv2d(cin, cout, k, s, k // 2, groups=groups, bias=False)

    def norm(self, channels: int) -> nn.BatchNorm2d:
        """A batch norm."""
        return nn.BatchNorm2d(channels, self.bn_eps, self.bn_momentum)


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


class SqueezeExcite(nn.Module):
    """x * sigmoid(expand(swish(reduce(mean(x)))))."""

    def __init__(self, channels: int, squeezed: int, act: type[nn.Module]):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = act()
        self.conv_expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.conv_expand(self.act(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class Block(nn.Module):
    """One block of any kind: its layers in order, and a residual where shapes allow.

    With a residual, training drops the layers of a whole image with probability ``drop``
    (stochastic depth); in eval mode nothing is dropped.
    """

    def __init__(
        self,
        stage: Stage,
        cin: int,
        cout: int,
        stride: int,
        style: Style,
        act: type[nn.Module],
        drop: float = 0.0,
    ):
        super().__init__()
        conv, norm = style.conv, style.norm
        mid, k = cin * stage.expand, stage.kernel
        se = max(1, int(cin * stage.se)) if stage.se else 0

        if stage.kind == "cn":
            self.conv, self.bn1, self.act1 = conv(cin, cout, k, stride), norm(cout), act()
        elif stage.kind == "er":
            self.conv_exp, self.bn1, self.act1 = conv(cin, mid, k, stride), norm(mid), act()
            self.conv_pwl, self.bn2 = conv(mid, cout, 1), norm(cout)
        elif stage.kind == "ds":
            self.conv_dw = conv(cin, cin, k, stride, groups=cin)
            self.bn1, self.act1 = norm(cin), act()
            if se:
                self.se = SqueezeExcite(cin, se, act)
            self.conv_pw, self.bn2 = conv(cin, cout, 1), norm(cout)
        else:
            self.conv_pw, self.bn1, self.act1 = conv(cin, mid, 1), norm(mid), act()
            self.conv_dw = conv(mid, mid, k, stride, groups=mid)
            self.bn2, self.act2 = norm(mid), act()
            if se:
                self.se = SqueezeExcite(mid, se, act)
            self.conv_pwl, self.bn3 = conv(mid, cout, 1), norm(cout)
        self.stride = stride
        self.skip = stride == 1 and cin == cout
        self.drop = drop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for layer in self.children():
            y = layer(y)
        if not self.skip:
            return y
        if self.training and self.drop:
            kept = torch.rand(len(y), 1, 1, 1, device=y.device) >= self.drop
            y = y * kept / (1.0 - self.drop)
        return x + y


class EfficientNet(nn.Module):
    """Stem, stages of blocks, head, pool, classifier.

    ``forward`` takes (N, in_chans, H, W) float images and returns (N, num_classes) logits.

    Parameters
    ----------
    dropout : before the classifier, while training.
    drop_path : stochastic depth while training: the last block's, from 0 at the first one.
    """

    def __init__(
        self,
        architecture: Architecture,
        style: Style,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        a = architecture
        act = {"swish": nn.SiLU, "relu6": nn.ReLU6}[a.act]
        c, head = a.end(a.stem), a.end(a.head)
        self.conv_stem, self.bn1, self.act1 = style.conv(in_chans, c, 3, 2), style.norm(c), act()
        repeats = [a.repeats(index) for index in range(len(a.stages))]
        drops = iter(drop_path * block / sum(repeats) for block in range(sum(repeats)))
        self.blocks = nn.Sequential()
        for stage, count in zip(a.stages, repeats, strict=True):
            cout = a.channels(stage.channels)
            first = Block(stage, c, cout, stage.stride, style, act, next(drops))
            rest = (Block(stage, cout, cout, 1, style, act, next(drops)) for _ in range(1, count))
            self.blocks.append(nn.Sequential(first, *rest))
            c = cout
        self.conv_head, self.bn2, self.act2 = style.conv(c, head, 1), style.norm(head), act()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head, num_classes)
        if not self.classifier.weight.is_meta:
            self._initialise()

    def _initialise(self) -> None:
        """Weights that training can start from, as the paper's code draws them."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight.numel() // module.in_channels  # k * k for depthwise
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        bound = 1.0 / math.sqrt(self.classifier.out_features)
        nn.init.uniform_(self.classifier.weight, -bound, bound)
        nn.init.zeros_(self.classifier.bias)

    def pyramid(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The last map of each resolution before the head: five, at strides 2, 4, 8, 16 and 32."""
        maps: list[torch.Tensor] = []
        x = self.act1(self.bn1(self.conv_stem(x)))
        for stage in self.blocks:
            if stage[0].stride == 2:
                maps.append(x)
            x = stage(x)
        return [*maps, x]

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The last map, (N, head, ceil(H / 32), ceil(W / 32))."""
        x = self.blocks(self.act1(self.bn1(self.conv_stem(x))))
        return self.act2(self.bn2(self.conv_head(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.forward_features(x).mean((2, 3))))
