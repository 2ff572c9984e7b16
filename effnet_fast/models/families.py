"""The family by name: one block table each for B, Lite and V2, and every model's scaling.

Sources: Tan and Le 2019 (B), its authors' code (Lite, B8, L2), Tan and Le 2021 (V2).
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """One model of the family: what it is built from, and the images that its weights are for.

    ``input_size`` is (channels, height, width). ``padding`` is the one that published weights of
    this name need: "symmetric" or "same".
    """

    name: str
    architecture: Architecture
    input_size: tuple[int, int, int]
    crop_pct: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    padding: str = "symmetric"
    interpolation: str = "bicubic"

    def bn_eps(self, padding: str) -> float:
        """Batch norm's eps: 1e-3 in TensorFlow's weights, and in torchvision's B5-B7 and V2."""
        small = self.architecture.width < 1.6 and self.architecture.stages == _B
        return 1e-5 if padding == "symmetric" and small else 1e-3

    @property
    def parameters(self) -> int:
        """Trainable parameters, with 1000 classes."""
        from . import count_parameters, create_model

        return count_parameters(create_model(self.name, device="meta"))

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of all convolutions and linear layers at ``input_size``, one image."""
        from . import create_model, multiply_adds

        return multiply_adds(create_model(self.name, device="meta"), self.input_size[1:])


def _configs() -> list[ModelConfig]:
    configs = []

    def add(name: str, architecture: Architecture, edge: int, crop: float, stats=_IMAGENET, **more):
        configs.append(ModelConfig(name, architecture, (3, edge, edge), crop, *stats, **more))

    for index, (width, depth, edge, crop) in enumerate(
        (
            (1.0, 1.0, 224, 0.875),
            (1.0, 1.1, 240, 0.882),
            (1.1, 1.2, 260, 0.890),
            (1.2, 1.4, 300, 0.904),
            (1.4, 1.8, 380, 0.922),
            (1.6, 2.2, 456, 0.934),
            (1.8, 2.6, 528, 0.942),
            (2.0, 3.1, 600, 0.949),
            (2.2, 3.6, 672, 0.954),
        )
    ):
        add(f"efficientnet_b{index}", Architecture(_B, width, depth), edge, crop)
    add("efficientnet_l2", Architecture(_B, 4.3, 5.3), 800, 0.961)
    for index, (width, depth, edge, crop) in enumerate(
        (
            (1.0, 1.0, 224, 0.875),
            (1.0, 1.1, 240, 0.882),
            (1.1, 1.2, 260, 0.890),
            (1.2, 1.4, 300, 0.904),
            (1.4, 1.8, 380, 0.920),
        )
    ):
        lite = Architecture(_LITE, width, depth, act="relu6", fixed_ends=True)
        # Lite3 and 4 were published with bilinear resizing, unlike all others.
        resize = "bilinear" if index >= 3 else "bicubic"
        add(
            f"efficientnet_lite{index}",
            lite,
            edge,
            crop,
            _HALF,
            padding="same",
            interpolation=resize,
        )
    for size, stages, stem, edge in (
        ("s", _V2_S, 24, 384),
        ("m", _V2_M, 24, 480),
        ("l", _V2_L, 32, 480),
        ("xl", _V2_XL, 32, 512),
    ):
        architecture = Architecture(stages, stem=stem, round_up=False)
        add(f"efficientnetv2_{size}", architecture, edge, 1.0, _HALF, padding="same")
    for index, (width, depth, edge, crop) in enumerate(
        (
            (1.0, 1.0, 224, 0.875),
            (1.0, 1.1, 240, 0.882),
            (1.1, 1.2, 260, 0.890),
            (1.2, 1.4, 300, 0.904),
        )
    ):
        base = Architecture(_V2_BASE, width, depth, round_up=False)
        add(f"efficientnetv2_b{index}", base, edge, crop, padding="same")
    return configs


CONFIGS = {config.name: config for config in _configs()}
