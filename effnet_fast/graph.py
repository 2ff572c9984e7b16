"""The captured graph as data: ATen calls over named values, and their interpreter."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from .network import Window


@dataclass(frozen=True)
class Ref:
    """A value of the graph, by name: the input, a tensor of the model, or a call's result."""

    name: str


@dataclass(frozen=True)
class Call:
    """One functional ATen call: ``name = target(*args, **kwargs)``, with `Ref` wherever a value is
    read.

    ``shape`` is the result's shape at the captured size, None in it where it follows the batch, and
    None itself for results that are no tensor.
    """

    name: str
    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int | None, ...] | None = None

    @property
    def op(self) -> str:
        """The operator without its overload: ``aten.add.Tensor`` is ``aten.add``."""
        return self.target.rsplit(".", 1)[0] if self.target.count(".") > 1 else self.target

    def reads(self) -> Iterator[str]:
        """Names of the values that this call reads, in order, repeated where read twice."""
        yield from refs((self.args, tuple(self.kwargs.values())))


@dataclass(frozen=True)
class Graph:
    """A model's forward pass for any batch.

    Attributes
    ----------
    input : the image's value name.
    calls : in an order in which every value is defined before it is read.
    outputs : value names or plain constants, flat; ``output_spec`` is the pytree that they are the
        leaves of.
    tensors : value name of each parameter, buffer and constant that is read, to its name in the
        model.
    constants : the tensors among them that are no parameter or buffer, by that name.
    sizes : the image sizes (H, W) that it was captured at. One size only: the graph holds for that
        size alone.
    channels : the image's channels.
    """

    input: str
    calls: tuple[Call, ...]
    outputs: tuple[Any, ...]
    output_spec: Any
    tensors: Mapping[str, str]
    constants: Mapping[str, torch.Tensor]
    sizes: tuple[tuple[int, int], ...]
    channels: int

    @property
    def locked(self) -> tuple[int, int] | None:
        """The only image size that this graph is right for, or None when any will do."""
        return self.sizes[0] if len(self.sizes) == 1 else None


def refs(tree: Any) -> Iterator[str]:
    """Names of the values that an argument tree reads."""
    if isinstance(tree, Ref):
        yield tree.name
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from refs(item)


def substitute(tree: Any, value: Callable[[str], Any]) -> Any:
    """The argument tree with every `Ref` replaced by ``value(name)``."""
    if isinstance(tree, Ref):
        return value(tree.name)
    if isinstance(tree, list | tuple):
        return type(tree)(substitute(item, value) for item in tree)
    return tree


def same_pad(
    x: torch.Tensor, kernel: list[int], stride: list[int], dilation: list[int], value: float = 0.0
) -> torch.Tensor:
    """Pad (..., H, W) so that a window of ``kernel`` covers it as TensorFlow's SAME does."""
    window = Window(tuple(kernel), tuple(stride), tuple(dilation), None)
    top, left, bottom, right = window.pads(*x.shape[-2:])
    return F.pad(x, (left, right, top, bottom), value=value)


# Calls that are not ATen operators. A graph read from a file can name these and ATen's, nothing
# else.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "effnet_fast.same_pad": same_pad,
    **{
        f"operator.{name}": getattr(operator, name)
        for name in ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow")
    },
}
_REFUSED = {"from_file", "set_", "set"}  # ATen operators that touch files or foreign storage


def function(target: str) -> Callable[..., Any]:
    """The callable of a target. `KeyError` when it is not one that a graph may name."""
    if target in _FUNCTIONS:
        return _FUNCTIONS[target]
    namespace, _, rest = target.partition(".")
    name, _, overload = rest.partition(".")
    if namespace != "aten" or name in _REFUSED:
        raise KeyError(target)
    return getattr(getattr(torch.ops.aten, name), overload or "default")


def is_random(target: str) -> bool:
    """Whether a call of the target draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(function(target), "tags", ())


def target_name(callee: Any) -> str | None:
    """The target of a callable as a graph names it, or None where it may not."""
    if isinstance(callee, torch._ops.OpOverload):
        name = str(callee)
    else:
        name = f"operator.{getattr(callee, '__name__', '?')}"
    try:
        function(name)
    except (KeyError, AttributeError):
        return None
    return name


def run_calls(calls: tuple[Call, ...], values: dict[str, Any], device: torch.device) -> None:
    """Run the calls in plain PyTorch, reading from and adding to ``values``, which are there."""
    for call in calls:
        values[call.name] = _run(call, values.__getitem__, device)


def _run(call: Call, read: Callable[[str], Any], device: torch.device) -> Any:
    def moved(arg: Any) -> Any:  # not to where the model was when it was captured
        return device if isinstance(arg, torch.device) else arg

    args = map(moved, substitute(call.args, read))
    kwargs = {key: moved(substitute(arg, read)) for key, arg in call.kwargs.items()}
    return function(call.target)(*args, **kwargs)


def run_graph(graph: Graph, x: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> list[Any]:
    """The graph's flat outputs for an image batch, each tensor of the model cast to the image's
    dtype when floating.

    With a float64 ``x`` this is the exact reference that verification compares with.
    """
    values: dict[str, Any] = {graph.input: x}

    def read(name: str) -> Any:
        if name not in graph.tensors:
            return values[name]
        value = tensors[graph.tensors[name]]
        return value.to(x.dtype) if value.is_floating_point() else value

    last_use: dict[str, int] = {}
    for index, call in enumerate(graph.calls):
        last_use.update(dict.fromkeys(call.reads(), index))
    kept = set(refs(graph.outputs)) | set(graph.tensors)
    for index, call in enumerate(graph.calls):
        values[call.name] = _run(call, read, x.device)
        for name in set(call.reads()):
            if last_use[name] == index and name not in kept:
                del values[name]
    return [read(item.name) if isinstance(item, Ref) else item for item in graph.outputs]
