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
_OF_EVERY_CLASS = frozenset(type("_", (), {"__slots__": (), "__annotations__": {}}).__dict__) | {
    "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__", "__parameters__",
}  # fmt: skip


class _UnknownError(Exception):
    """Something whose meaning can't be told from its value."""


def is_on() -> bool:
    """Unless ``EFFNET_FAST_GRAPH_CACHE=0``."""
    return os.environ.get("EFFNET_FAST_GRAPH_CACHE", "1") != "0"


def key_of(
    model: nn.Module, size: tuple[int, int] | None, channels: int, dtype: torch.dtype
) -> str | None:
    """Of all that a capture depends on, the weights' values left out.

    That is each module's class with the code of its methods, the numbers and functions that its
    forward reads, its attributes, its tensors' shapes and types, what is shared, and versions.
    None for a model with attributes whose value does not say what they do: it is captured each
    time.
    """
    if modules_with_hooks(model):
        return None  # capture says what is wrong with them
    versions = [sys.version, torch.__version__, *_own_code()]
    try:
        parts = _Description().of(model)
        return cache.digest("graph", versions, size, channels, str(dtype), parts)
    except (
        Exception
    ) as error:  # a placeholder that raises whatever is asked of it, a list in itself
        _log.info("capture: %s is captured each time: %s", type(model).__name__, error)
        return None


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


class _Description:
    """What a model is made of, in values that JSON has.

    Functions and classes are described where they are met first, and named after that.
    """

    def __init__(self) -> None:
        self._met: set[Any] = set()

    def of(self, model: nn.Module) -> list[Any]:
        """Of each module its class, attributes and tensors."""
        seen: dict[int, str] = {}  # modules and tensors by identity: what is shared is named once

        def tensor(name: str, value: torch.Tensor | None) -> Any:
            if value is None:
                return None
            first = seen.setdefault(id(value), name)
            return [
                first,
                list(value.shape),
                str(value.dtype),
                str(value.device),
                str(value.layout),
            ]

        found = []
        for name, module in model.named_modules(remove_duplicate=False):
            first = seen.setdefault(id(module), name)
            if first != name:
                found.append([name, first])
                continue
            attributes = {
                key: self._value(value) for key, value in module.__dict__.items() if key not in _OWN
            }
            tensors = {
                key: tensor(f"{name}.{key}", value)
                for key, value in (*module._parameters.items(), *module._buffers.items())
            }
            found.append([name, self._class(type(module)), attributes, tensors, module.training])
        return found

    def _value(self, value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return [_name(type(value)), value.name]
        if isinstance(value, _PLAIN):
            return [type(value).__name__, str(value)]
        if isinstance(value, list | tuple):
            return [_name(type(value)), [self._value(item) for item in value]]
        if isinstance(value, dict):
            return [
                _name(type(value)),
                [[self._value(k), self._value(v)] for k, v in value.items()],
            ]
        if isinstance(value, set | frozenset):
            return [_name(type(value)), sorted(json.dumps(self._value(item)) for item in value)]
        if isinstance(value, type):
            return _name(value)
        if isinstance(value, functools.partial):
            return ["partial", *map(self._value, (value.func, value.args, value.keywords))]
        if isinstance(value, types.BuiltinFunctionType) and not isinstance(
            getattr(value, "__self__", None), nn.Module | torch.Tensor
        ):
            return _name(value)
        if isinstance(value, types.FunctionType) and not value.__closure__:
            return self._function(value)
        if getattr(type(value), "__dataclass_fields__", None) is not None:
            fields = vars(value) if hasattr(value, "__dict__") else None
            return [_name(type(value)), self._value(fields)]
        raise _UnknownError(f"it has a {_name(type(value))} for an attribute")

    def _class(self, kind: type) -> list[Any]:
        """Its methods and attributes, those of the classes above it, and what its forward reads."""
        if kind in self._met:
            return [_name(kind)]
        self._met.add(kind)
        parts: list[Any] = []
        for base in kind.__mro__:
            if _is_versioned(base):
                parts.append(_name(base))
                continue
            top = base.__module__.partition(".")[0]
            version = getattr(sys.modules.get(top), "__version__", "")
            held = {
                name: self._held(value)
                for name, value in vars(base).items()
                if name not in _OF_EVERY_CLASS
            }
            parts.append([_name(base), str(version), held])
        return [parts, self._read(kind)]

    def _held(self, value: Any) -> Any:
        """Of a class: a method's code, or a value."""
        function = _function_of(value)
        return self._known(value) if function is None else _code(function.__code__)

    def _read(self, kind: type) -> list[Any]:
        """What the methods read that forward leads to: not all, for one that loads weights, say,
        reads what is another in each process.
        """
        found, names, todo = [], {"forward"}, ["forward"]
        while todo:
            function = _function_of(getattr(kind, todo.pop(), None))
            if function is None or _is_versioned(function):
                continue
            found.append(self._function(function))
            new = {n for n in _names(function.__code__) if hasattr(kind, n)} - names
            names |= new
            todo += sorted(new)
        return found

    def _function(self, function: types.FunctionType) -> list[Any]:
        """Its code, and what that reads of its module: numbers, and other functions."""
        name = f"{function.__module__}.{function.__qualname__}"
        if function in self._met or _is_versioned(function):
            return [name]
        self._met.add(function)
        scope = function.__globals__
        used = {key: self._known(scope[key]) for key in _names(function.__code__) if key in scope}
        defaults = self._known(function.__defaults__), self._known(function.__kwdefaults__)
        return [name, _code(function.__code__), defaults, used]

    def _known(self, value: Any) -> Any:
        """Of what code reads beside a model's attributes, as far as its value says what it is; for
        the rest there is the verification.
        """
        met = set(self._met)
        try:
            return self._value(value)
        except Exception:  # whatever it is, it may do anything when it is looked at
            self._met = met
            return None


def _function_of(value: Any) -> types.FunctionType | None:
    """That of a method of any kind, or of a property."""
    if isinstance(value, staticmethod | classmethod | types.MethodType):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    return value if isinstance(value, types.FunctionType) else None


def _is_versioned(thing: Any) -> bool:
    """Whether it comes with Python or PyTorch, whose versions are in the key."""
    return (thing.__module__ or "").partition(".")[0] in ("torch", "builtins")


def _name(thing: Any) -> str:
    name = f"{thing.__module__}.{thing.__qualname__}"
    if "<locals>" in name and isinstance(thing, type):
        raise _UnknownError(f"{name} may depend on what was around it")
    return name


def _names(code: types.CodeType) -> list[str]:
    """Those that a function reads outside of itself, and those within it do."""
    inner = (item for item in code.co_consts if isinstance(item, types.CodeType))
    return sorted({*code.co_names, *(name for item in inner for name in _names(item))})


def _code(code: types.CodeType) -> list[Any]:
    constants = [
        _code(item)
        if isinstance(item, types.CodeType)
        else sorted(map(repr, item))  # whose own order is another in each process
        if isinstance(item, frozenset)
        else repr(item)
        for item in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), constants]


@functools.cache
def _own_code() -> list[str]:
    """Digests of what captures and writes graphs: a version is worked on."""
    files = [Path(__file__).with_name(f"{name}.py") for name in ("capture", "graph", "serialize")]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
