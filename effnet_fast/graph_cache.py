"""Graphs of models that were captured before, by what the models are made of.

Two exports take most of the time that `optimize` takes (3 of 5 s for B0). A graph of the cache is a
guess: `optimize` verifies it against the model like one that it has just captured, and captures
anew where it does not hold. Only graphs that were verified are kept.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import logging
import os
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import cache
from .capture import modules_with_hooks
from .errors import EffnetFastError
from .graph import Graph
from .serialize import graph_from_plain, graph_to_plain

_log = logging.getLogger(__name__)

_PLAIN = (
    type(None), bool, int, float, complex, str, bytes,
    torch.dtype, torch.device, torch.memory_format, torch.layout,
)  # fmt: skip
# What every module has, of which nothing reaches a graph; capture refuses forward hooks.
_OWN = frozenset(nn.Module().__dict__)


class _UnknownError(Exception):
    """Something whose meaning can't be told from its value."""


def is_on() -> bool:
    """Unless ``EFFNET_FAST_GRAPH_CACHE=0``."""
    return os.environ.get("EFFNET_FAST_GRAPH_CACHE", "1") != "0"


def key_of(
    model: nn.Module, size: tuple[int, int] | None, channels: int, dtype: torch.dtype
) -> str | None:
    """Of all that a capture depends on, the weights' values left out.

    That is each module's class and the code of its methods, its attributes, its tensors' shapes and
    types, what is shared, and versions. None for a model with attributes whose value does not say
    what they do: one like that is captured each time.
    """
    if modules_with_hooks(model):
        return None  # capture says what is wrong with them
    try:
        parts = _described(model)
    except _UnknownError as error:
        _log.info("capture: %s is captured each time: %s", type(model).__name__, error)
        return None
    versions = [sys.version, torch.__version__, *_own_code()]
    return cache.digest("graph", versions, size, channels, str(dtype), parts)


def read(key: str) -> Graph | None:
    """The graph of a key, if it is there."""
    entry = cache.read(key)
    if entry is None:
        return None
    try:
        return graph_from_plain(entry["graph"], {})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        _log.warning("capture: the graph %s of the cache can't be read: %s", key, error)
        return None


def write(key: str, graph: Graph) -> None:
    """Keep a graph; one with tensors of its own, or another object, is not kept."""
    if graph.constants:
        return
    try:
        plain = graph_to_plain(graph)
        json.dumps(plain)
    except (EffnetFastError, NotImplementedError, TypeError, ValueError) as error:
        _log.info("capture: the graph is not kept: %s", error)
        return
    cache.write(key, {"graph": plain})


def _described(model: nn.Module) -> list[Any]:
    seen: dict[int, str] = {}  # modules and tensors by identity: what is shared is named once

    def tensor(name: str, value: torch.Tensor | None) -> Any:
        if value is None:
            return None
        first = seen.setdefault(id(value), name)
        return [first, list(value.shape), str(value.dtype), str(value.device), str(value.layout)]

    found = []
    for name, module in model.named_modules(remove_duplicate=False):
        first = seen.setdefault(id(module), name)
        if first != name:
            found.append([name, first])
            continue
        attributes = {
            key: _plain(value) for key, value in module.__dict__.items() if key not in _OWN
        }
        tensors = {
            key: tensor(f"{name}.{key}", value)
            for key, value in (*module._parameters.items(), *module._buffers.items())
        }
        found.append([name, _class(type(module)), attributes, tensors, module.training])
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return [_name(type(value)), value.name]
    if isinstance(value, _PLAIN):
        return [type(value).__name__, str(value)]
    if isinstance(value, list | tuple):
        return [_name(type(value)), [_plain(item) for item in value]]
    if isinstance(value, dict):
        return [_name(type(value)), [[_plain(k), _plain(v)] for k, v in value.items()]]
    if isinstance(value, set | frozenset):
        return [_name(type(value)), sorted(json.dumps(_plain(item)) for item in value)]
    if isinstance(value, type):
        return _name(value)
    if isinstance(value, functools.partial):
        return ["partial", _plain(value.func), _plain(value.args), _plain(value.keywords)]
    if isinstance(value, types.BuiltinFunctionType) and not isinstance(
        getattr(value, "__self__", None), nn.Module | torch.Tensor
    ):
        return _name(value)
    if isinstance(value, types.FunctionType) and not value.__closure__:
        return [_name(value), _code(value.__code__), _plain(value.__defaults__)]
    if getattr(type(value), "__dataclass_fields__", None) is not None:
        return [_name(type(value)), _plain(vars(value) if hasattr(value, "__dict__") else None)]
    raise _UnknownError(f"it has a {_name(type(value))} for an attribute")


def _name(thing: Any) -> str:
    name = f"{thing.__module__}.{thing.__qualname__}"
    if "<locals>" in name and isinstance(thing, type):
        raise _UnknownError(f"{name} may depend on what was around it")
    return name


@functools.lru_cache(maxsize=1024)
def _class(kind: type) -> str:
    """A digest of a class: the code of its methods, and those of the classes above it."""
    parts: list[Any] = []
    for base in kind.__mro__:
        top = base.__module__.partition(".")[0]
        if top in ("torch", "builtins"):
            parts.append(_name(base))  # whose version is in the key
            continue
        version = getattr(sys.modules.get(top), "__version__", "")
        methods = {
            name: _code(value.__code__)
            for name, value in vars(base).items()
            if isinstance(value, types.FunctionType)
        }
        parts.append([_name(base), str(version), methods])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _code(code: types.CodeType) -> list[Any]:
    constants = [
        _code(item) if isinstance(item, types.CodeType) else repr(item) for item in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), constants]


@functools.cache
def _own_code() -> list[str]:
    """Digests of what captures and writes graphs: a version is worked on."""
    files = [Path(__file__).with_name(f"{name}.py") for name in ("capture", "graph", "serialize")]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
