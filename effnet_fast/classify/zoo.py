"""Models by name, with their weights and the preprocessing that they were made for."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from .. import models
from ..errors import ArgumentError, CheckpointError, EffnetFastError, ModelError
from .preprocess import Preprocess


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to classify.

    Attributes
    ----------
    name : with its source, as in "timm:efficientnet_b0".
    model : in eval mode, not optimised.
    preprocess : what its weights were made for.
    """

    name: str
    model: nn.Module
    preprocess: Preprocess


def load_model(
    name: str,
    *,
    checkpoint: str | None = None,
    pretrained: bool = False,
    num_classes: int | None = None,
) -> Loaded:
    """Build a model and fill it with weights.

    Parameters
    ----------
    name : "effnet_fast:NAME", "timm:NAME" or "torchvision:NAME"; a bare NAME is the first of these
        that has it, in this order. This package comes first, so that a name means the same
        whatever else is installed.
    checkpoint : a file with the weights, of this model in this package's, timm's or torchvision's
        format.
    pretrained : take the published weights instead.
    num_classes : of the checkpoint; by default the model's, which is 1000.

    Raises
    ------
    ModelError
        There is no such model, its library is missing, or it takes no 3-channel image.
    CheckpointError
        The weights are missing, damaged, or another model's; or cannot be had here.
    ArgumentError
        Both or neither of ``checkpoint`` and ``pretrained``.
    """
    if (checkpoint is None) != pretrained:
        raise ArgumentError(
            f"checkpoint is {checkpoint!r} and pretrained is {pretrained}; accepted: one of the "
            "two, for a model without its weights has no answers"
        )
    if num_classes is not None and pretrained:
        raise ArgumentError("num_classes is for a checkpoint; pretrained weights have their own")
    source, name = _resolve(name)
    build = _SOURCES[source].build
    try:
        model, preprocess = build(name, checkpoint, num_classes)
    except CheckpointError as error:
        raise CheckpointError(f"{source}:{name}: {_short(error)}") from error
    except EffnetFastError:
        raise
    except Exception as error:
        # Whatever a library raises on a file or network that fails: its message is the reason.
        what = f"checkpoint {checkpoint}" if checkpoint else "the published weights"
        raise CheckpointError(
            f"{source}:{name}: {what} cannot be loaded: {type(error).__name__}: {_short(error)}"
        ) from error
    return Loaded(f"{source}:{name}", model.eval(), preprocess)


def untrained_model(name: str) -> nn.Module:
    """A model with random weights, in eval mode, named as for :func:`load_model`.

    Raises
    ------
    ModelError
        There is no such model, or its library is missing.
    """
    source, bare = _resolve(name)
    return _SOURCES[source].untrained(bare).eval()


def _resolve(name: str) -> tuple[str, str]:
    source, colon, bare = name.partition(":")
    if colon and source in _SOURCES:
        if not _SOURCES[source].has(bare):
            _unknown(f"{source} has no model {bare!r}", bare, (source,))
        return source, bare
    for source, entry in _SOURCES.items():
        if importlib.util.find_spec(source) is not None and entry.has(name):
            return source, name
    _unknown(f"model is {name!r}, which none of {', '.join(_SOURCES)} has", name, tuple(_SOURCES))


def _unknown(message: str, name: str, sources: tuple[str, ...]) -> None:
    known = {
        other
        for source in sources
        if importlib.util.find_spec(source) is not None
        for other in _SOURCES[source].names()
    }
    close = difflib.get_close_matches(name, sorted(known), 3)
    raise ModelError(message + (f"; close: {', '.join(close)}" if close else ""))


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelError(f"{name}:... needs the package {name}: {error}") from error


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."


# ---- this package --------------------------------------------------------------------------------


def _build_own(
    name: str, checkpoint: str | None, num_classes: int | None
) -> tuple[nn.Module, Preprocess]:
    config = models.model_config(name)
    model = models.create_model(
        name,
        num_classes=1000 if num_classes is None else num_classes,
        checkpoint=checkpoint,
        pretrained=checkpoint is None,
    )
    if checkpoint is None and config.padding == "symmetric":  # the weights are torchvision's
        return model, _torchvision_preprocess(name.replace("efficientnetv2", "efficientnet_v2"))
    size = config.input_size[1:]
    plain = Preprocess(
        size, size, interpolation=config.interpolation, mean=config.mean, std=config.std
    )
    return model, plain.changed(crop_pct=config.crop_pct)


# ---- timm ----------------------------------------------------------------------------------------

_TIMM_HUBS = ("hf-hub:", "hf_hub:", "local-dir:")


def _timm_has(name: str) -> bool:
    return name.startswith(_TIMM_HUBS) or _library("timm").is_model(name)


def _timm_names() -> list[str]:
    return _library("timm").list_models()


def _build_timm(
    name: str, checkpoint: str | None, num_classes: int | None
) -> tuple[nn.Module, Preprocess]:
    timm = _library("timm")
    from timm.data import resolve_data_config

    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if checkpoint is None:
        model = timm.create_model(name, pretrained=True)
    else:
        model = timm.create_model(name, **options)
        models.load_checkpoint(model, checkpoint)
    config = resolve_data_config(model=model)
    channels, *size = config["input_size"]
    if channels != 3:
        raise ModelError(f"timm:{name} takes images of {channels} channels; accepted: 3")
    plain = Preprocess(
        tuple(size),
        tuple(size),
        config["crop_mode"],
        config["interpolation"],
        tuple(config["mean"]),
        tuple(config["std"]),
    )
    return model, plain.changed(crop_pct=config["crop_pct"])


# ---- torchvision ---------------------------------------------------------------------------------


def _torchvision_names() -> list[str]:
    zoo = _library("torchvision.models")
    return zoo.list_models(module=zoo)


def _torchvision_preprocess(name: str) -> Preprocess:
    preset = _library("torchvision.models").get_model_weights(name).DEFAULT.transforms()
    return Preprocess(
        (preset.crop_size[0], preset.crop_size[0]),
        (preset.resize_size[0], preset.resize_size[0]),
        "center",
        preset.interpolation.value,
        tuple(preset.mean),
        tuple(preset.std),
    )


def _build_torchvision(
    name: str, checkpoint: str | None, num_classes: int | None
) -> tuple[nn.Module, Preprocess]:
    zoo = _library("torchvision.models")
    preprocess = _torchvision_preprocess(name)
    if checkpoint is None:
        return zoo.get_model(name, weights="DEFAULT"), preprocess
    options = {} if num_classes is None else {"num_classes": num_classes}
    model = zoo.get_model(name, weights=None, **options)
    models.load_checkpoint(model, checkpoint)
    return model, preprocess


# ---- the table, in the order in which a bare name is looked up -----------------------------------


@dataclass(frozen=True)
class _Source:
    names: Callable[[], list[str]]
    has: Callable[[str], bool]
    build: Callable[[str, str | None, int | None], tuple[nn.Module, Preprocess]]
    untrained: Callable[[str], nn.Module]


_SOURCES = {
    "effnet_fast": _Source(
        models.list_models,
        lambda name: name in models.list_models(),
        _build_own,
        models.create_model,
    ),
    "timm": _Source(
        _timm_names, _timm_has, _build_timm, lambda name: _library("timm").create_model(name)
    ),
    "torchvision": _Source(
        _torchvision_names,
        lambda name: name in _torchvision_names(),
        _build_torchvision,
        lambda name: _library("torchvision.models").get_model(name, weights=None),
    ),
}
