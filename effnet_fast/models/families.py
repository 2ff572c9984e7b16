"""The family by name: one block table each for B, Lite and V2, and every model's scaling.

Sources: Tan and Le 2019 (B), its authors' code (Lite, B8, L2), Tan and Le 2021 (V2).
"""

from __future__ import annotations

from dataclasses import dataclass

from .counting import count_parameters, multiply_adds, skeleton
from .efficientnet import Architecture, Stage

_B = (
    Stage("ds", 1, 3, 1, 1, 16, 0.25),
    Stage("ir", 2, 3, 2, 6, 24, 0.25),
    Stage("ir", 2, 5, 2, 6, 40, 0.25),
    Stage("ir", 3, 3, 2, 6, 80, 0.25),
    Stage("ir", 3, 5, 1, 6, 112, 0.25),
    Stage("ir", 4, 5, 2, 6, 192, 0.25),
    Stage("ir", 1, 3, 1, 6, 320, 0.25),
)
_LITE = tuple(Stage(s.kind, s.repeats, s.kernel, s.stride, s.expand, s.channels) for s in _B)
_V2_BASE = (
    Stage("cn", 1, 3, 1, 1, 16),
    Stage("er", 2, 3, 2, 4, 32),
    Stage("er", 2, 3, 2, 4, 48),
    Stage("ir", 3, 3, 2, 4, 96, 0.25),
    Stage("ir", 5, 3, 1, 6, 112, 0.25),
    Stage("ir", 8, 3, 2, 6, 192, 0.25),
)


def _v2(*rows: tuple[int, int]) -> tuple[Stage, ...]:
    """V2-S to XL share kinds, kernels and strides; they differ in (repeats, channels)."""
    kinds = (
        ("cn", 1, 1, 0.0),
        ("er", 2, 4, 0.0),
        ("er", 2, 4, 0.0),
        ("ir", 2, 4, 0.25),
        ("ir", 1, 6, 0.25),
        ("ir", 2, 6, 0.25),
        ("ir", 1, 6, 0.25),
    )
    return tuple(
        Stage(kind, repeats, 3, stride, expand, channels, se)
        for (kind, stride, expand, se), (repeats, channels) in zip(kinds, rows, strict=False)
    )


_V2_S = _v2((2, 24), (4, 48), (4, 64), (6, 128), (9, 160), (15, 256))
_V2_M = _v2((3, 24), (5, 48), (5, 80), (7, 160), (14, 176), (18, 304), (5, 512))
_V2_L = _v2((4, 32), (7, 64), (7, 96), (10, 192), (19, 224), (25, 384), (7, 640))
_V2_XL = _v2((4, 32), (8, 64), (8, 96), (16, 192), (24, 256), (32, 512), (8, 640))

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class ModelConfig:
    """One model of the family: what it is built from, and its published weights' images.

    Attributes
    ----------
    input_size : (channels, height, width), with the resolution that the scaling gives.
    dropout : the one that the model was trained with.
    padding : what the weights published under this name need: "symmetric" (torchvision's) or
        "same" (timm's ``tf_*``).
    symmetric_bn_eps : batch norm's eps of weights with symmetric padding; with SAME it is 1e-3.
    crop_pct, interpolation, mean, std : as those weights' data configuration has them, but for
        the resolution of B2, which torchvision evaluates at 288 pixels.
    """

    name: str
    architecture: Architecture
    input_size: tuple[int, int, int]
    dropout: float
    padding: str
    symmetric_bn_eps: float
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def bn_eps(self, padding: str) -> float:
        """Batch norm's eps of the weights that are published with this padding."""
        return 1e-3 if padding == "same" else self.symmetric_bn_eps

    @property
    def parameters(self) -> int:
        """Parameters, with 1000 classes."""
        return count_parameters(skeleton(self.name))

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of all convolutions and linear layers at ``input_size``, one image."""
        return multiply_adds(self.name, self.input_size[1:])


def _b(width: float, depth: float) -> Architecture:
    return Architecture(_B, width, depth)


def _lite(width: float, depth: float) -> Architecture:
    return Architecture(_LITE, width, depth, act="relu6", fixed_ends=True)


def _large(stages: tuple[Stage, ...], stem: int) -> Architecture:
    return Architecture(stages, stem=stem, round_up=False)


def _base(width: float, depth: float) -> Architecture:
    return Architecture(_V2_BASE, width, depth, round_up=False)


# name after "efficientnet", (width, depth) or table, resolution, dropout,
# padding, symmetric eps, crop share, interpolation, mean and std
_ROWS = (
    ("_b0", _b(1.0, 1.0), 224, 0.2, "symmetric", 1e-5, 224 / 256, "bicubic", _IMAGENET),
    ("_b1", _b(1.0, 1.1), 240, 0.2, "symmetric", 1e-5, 240 / 255, "bilinear", _IMAGENET),
    ("_b2", _b(1.1, 1.2), 260, 0.3, "symmetric", 1e-5, 1.0, "bicubic", _IMAGENET),
    ("_b3", _b(1.2, 1.4), 300, 0.3, "symmetric", 1e-5, 300 / 320, "bicubic", _IMAGENET),
    ("_b4", _b(1.4, 1.8), 380, 0.4, "symmetric", 1e-5, 380 / 384, "bicubic", _IMAGENET),
    ("_b5", _b(1.6, 2.2), 456, 0.4, "symmetric", 1e-3, 1.0, "bicubic", _IMAGENET),
    ("_b6", _b(1.8, 2.6), 528, 0.5, "symmetric", 1e-3, 1.0, "bicubic", _IMAGENET),
    ("_b7", _b(2.0, 3.1), 600, 0.5, "symmetric", 1e-3, 1.0, "bicubic", _IMAGENET),
    ("_b8", _b(2.2, 3.6), 672, 0.5, "same", 1e-5, 0.954, "bicubic", _HALF),
    ("_l2", _b(4.3, 5.3), 800, 0.5, "same", 1e-5, 0.96, "bicubic", _IMAGENET),
    ("_lite0", _lite(1.0, 1.0), 224, 0.2, "same", 1e-5, 0.875, "bicubic", _HALF),
    ("_lite1", _lite(1.0, 1.1), 240, 0.2, "same", 1e-5, 0.882, "bicubic", _HALF),
    ("_lite2", _lite(1.1, 1.2), 260, 0.3, "same", 1e-5, 0.890, "bicubic", _HALF),
    ("_lite3", _lite(1.2, 1.4), 300, 0.3, "same", 1e-5, 0.904, "bilinear", _HALF),
    ("_lite4", _lite(1.4, 1.8), 380, 0.3, "same", 1e-5, 0.920, "bilinear", _HALF),
    ("v2_s", _large(_V2_S, 24), 384, 0.2, "same", 1e-3, 1.0, "bicubic", _HALF),
    ("v2_m", _large(_V2_M, 24), 480, 0.3, "same", 1e-3, 1.0, "bicubic", _HALF),
    ("v2_l", _large(_V2_L, 32), 480, 0.4, "same", 1e-3, 1.0, "bicubic", _HALF),
    ("v2_xl", _large(_V2_XL, 32), 512, 0.4, "same", 1e-5, 1.0, "bicubic", _HALF),
    ("v2_b0", _base(1.0, 1.0), 224, 0.2, "same", 1e-5, 0.875, "bicubic", _IMAGENET),
    ("v2_b1", _base(1.0, 1.1), 240, 0.2, "same", 1e-5, 0.882, "bicubic", _IMAGENET),
    ("v2_b2", _base(1.1, 1.2), 260, 0.3, "same", 1e-5, 0.890, "bicubic", _IMAGENET),
    ("v2_b3", _base(1.2, 1.4), 300, 0.3, "same", 1e-5, 0.900, "bicubic", _HALF),
)

CONFIGS = {
    f"efficientnet{name}": ModelConfig(
        f"efficientnet{name}", architecture, (3, edge, edge), *training, *statistics
    )
    for name, architecture, edge, *training, statistics in _ROWS
}
