"""Partial capture: the largest submodules that can be exported are replaced."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .capture import capture, copy_structure, device_of, image_channels, native_size
from .errors import CaptureError
from .model import Fused

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """A copy of the module tree, sharing the original's tensors, in which parts are `Fused`
    modules.

    ``captured`` are their names, ``left`` the convolutions outside of them with the reason.
    """

    body: nn.Module
    captured: tuple[str, ...]
    left: tuple[str, ...]
    unfused_macs: int


@dataclass(frozen=True)
class _Seen:
    """How a module was called during one forward pass of the whole model."""

    shapes: frozenset[tuple[int, ...]]
    macs: int


def capture_parts(
    model: nn.Module,
    reason: CaptureError,
    make: Callable[[nn.Module, Any], Fused],
    *,
    example: torch.Tensor | None,
    dtype: torch.dtype,
) -> Parts:
    """Capture the parts of a model that can't be captured whole.

    Parameters
    ----------
    reason : why the whole could not be captured; raised when no part can be either.
    make : from a module and its graph to a `Fused` module.
    example : an image batch that the model takes; zeros of its native size by default.
    """
    body = copy_structure(model)
    if example is None:
        example = torch.zeros(
            2, image_channels(model), *native_size(model), dtype=dtype, device=device_of(model)
        )
    seen = _observe(body, example, reason)
    captured: list[str] = []
    why: dict[str, str] = {"": str(reason)}

    def visit(module: nn.Module, source: nn.Module, path: str) -> None:
        for name, child in list(module.named_children()):
            full = f"{path}.{name}" if path else name
            origin = source._modules[name]
            if full not in seen or not any(isinstance(m, nn.Conv2d) for m in origin.modules()):
                continue
            shapes = seen[full].shapes
            shape = next(iter(shapes))
            try:
                if len({s[1] for s in shapes}) != 1:
                    raise CaptureError("it is called with maps of different channels")
                graph = capture(origin, size=shape[-2:], channels=shape[1], dtype=dtype)
                part = make(origin, graph)
            except CaptureError as error:
                why[full] = str(error)
                visit(child, origin, full)
                continue
            if part.network.fused_share() == 0.0:
                why[full] = "; ".join(part.network.reasons())
                continue
            module._modules[name] = part
            captured.append(full)

    visit(body, model, "")
    if not captured:
        raise reason
    left, unfused = [], 0
    for name, module in body.named_modules():
        if isinstance(module, nn.Conv2d) and not any(
            name.startswith(f"{part}.") for part in captured
        ):
            unfused += seen[name].macs if name in seen else 0
            holder = max((path for path in why if name.startswith(path)), key=len)
            left.append(f"{name}: {why[holder]}")
    _log.warning("captured in parts (%s): %s", reason, ", ".join(captured))
    return Parts(body, tuple(captured), tuple(left) or (str(reason),), unfused)


def _observe(body: nn.Module, example: torch.Tensor, reason: CaptureError) -> dict[str, _Seen]:
    """Run the model once and note, for each module called with one map alone, the map's shapes."""
    shapes: dict[str, set[tuple[int, ...]]] = {}
    macs: dict[str, int] = {}
    odd: set[str] = set()
    handles = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            maps = [a for a in args if isinstance(a, torch.Tensor)]
            if len(args) != 1 or kwargs or not maps or maps[0].dim() != 4:
                odd.add(name)
                return
            shapes.setdefault(name, set()).add(tuple(maps[0].shape))
            if isinstance(module, nn.Conv2d):
                macs[name] = (
                    macs.get(name, 0) + module.weight.numel() * output.shape[-1] * output.shape[-2]
                )

        return hook

    for name, module in body.named_modules():
        if name:
            handles.append(module.register_forward_hook(watch(name), with_kwargs=True))
    try:
        with torch.no_grad():
            body(example)
    except Exception as error:
        raise CaptureError(
            f"{reason}; and the model does not run on {tuple(example.shape)} images "
            f"({type(error).__name__}: {error}): "
            "pass example_input"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: _Seen(frozenset(found), macs.get(name, 0))
        for name, found in shapes.items()
        if name not in odd
    }
