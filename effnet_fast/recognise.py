"""From a captured graph to a Network: pattern matching over ATen, batch norm folded in float64,
nothing guessed.

Each pass below turns calls into bigger items and leaves what it does not understand alone; what is
left at the end becomes segments that run in plain PyTorch. Whether a value is a vector (one pixel)
is known from how it is made, a global pool, and never from its size, which may be 1 x 1 by chance
at the captured size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from .graph import Call, Graph, Ref, is_random, refs, run_calls
from .network import (
    Act,
    Activation,
    Classifier,
    DenseConv,
    DepthwiseConv,
    Layer,
    Network,
    Node,
    PointwiseConv,
    Segment,
    SqueezeExcite,
    StemConv,
    Window,
    reads,
)


def recognise(
    graph: Graph,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype = torch.float32,
    take: Callable[[Node], Node] = lambda node: node,
) -> Network:
    """The network that a graph is.

    Parameters
    ----------
    graph : from `capture`.
    tensors : the model's parameters, buffers and constants by their names in the model.
    dtype : of the folded weights; folding itself is in float64 and rounds once.
    take : given each node as it is made, returns the one to keep: where weights go elsewhere, those
        of one layer at a time are in memory twice.
    """
    return _Recogniser(graph, tensors, dtype, take).network()


@dataclass
class _Conv:
    """A convolution or linear layer, with what its kernel takes over."""

    name: str  # of the value it makes, the last call's
    call: str  # of the convolution itself
    x: str
    kind: str  # stem, pointwise, depthwise, dense, linear
    weight: torch.Tensor  # as the model has it: float64 of all at once would be twice the model
    bias: torch.Tensor | None  # float64
    window: Window
    scale: torch.Tensor | None = None  # float64, of each channel that it makes: batch norm's
    act: Act = Act.NONE
    gate: str | None = None
    residual: str | None = None
    pool: bool = False
    sums: str | None = None


@dataclass
class _Gate:
    """A squeeze-excite gate: from the sums of the map ``of``."""

    name: str
    of: str
    reduce: _Conv
    expand: _Conv


@dataclass
class _Pool:
    """A global average pool."""

    name: str
    x: str
    call: Call


@dataclass
class _Act:
    name: str
    x: str
    act: Act


_Item = Call | _Conv | _Gate | _Pool | _Act


class _Recogniser:
    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
        take: Callable[[Node], Node],
    ):
        self.graph = graph
        self.dtype = dtype
        self.take = take
        self.model_name = dict(graph.tensors)
        self.constant: dict[str, Any] = {
            name: tensors[full] for name, full in graph.tensors.items()
        }
        self.shape = {call.name: call.shape for call in graph.calls}
        self.alias: dict[str, str] = {}  # a flattened vector to the vector
        self.pool_limit: int | None = None
        self.refusals: dict[str, str] = {}  # a convolution's call to why it was not taken
        # Value name to the item that makes it, in order of definition.
        self.items: dict[str, _Item] = {}

    def network(self) -> Network:
        self._fold_constants()
        self._take_layers()
        self._take_gates()
        self._take_residuals()
        self._take_head_pools()
        return Network(
            input=self.graph.input,
            channels=self.graph.channels,
            nodes=self._segmented(self._emitted()),
            outputs=self.graph.outputs,
            aliases={name: self._resolve(name) for name in self.alias},
            output_spec=self.graph.output_spec,
            ranks=self._ranks(),
            layers=tuple(self._layers()),
            locked=self.graph.locked,
            pool_limit=self.pool_limit,
            dtype=self.dtype,
        )

    # ---- the graph around a value ----------------------------------------------------------------

    def _resolve(self, name: str) -> str:
        while name in self.alias:
            name = self.alias[name]
        return name

    def _users(self) -> dict[str, list[_Item | None]]:
        """Items that read each value, once per read; None stands for the network's output."""
        users: dict[str, list[_Item | None]] = {}
        for item in self.items.values():
            for name in _item_reads(item):
                users.setdefault(self._resolve(name), []).append(item)
        for name in refs(self.graph.outputs):
            users.setdefault(self._resolve(name), []).append(None)
        return users

    def _is_vector(self, name: str) -> bool:
        """Whether the value has one pixel at every image size, by the way it is made."""
        item = self.items.get(self._resolve(name))
        if isinstance(item, _Pool | _Gate):
            return True
        if isinstance(item, _Conv):
            return (
                item.pool
                or item.kind == "linear"
                or (item.kind == "pointwise" and self._is_vector(item.x))
            )
        return isinstance(item, _Act) and self._is_vector(item.x)

    # ---- passes ----------------------------------------------------------------------------------

    def _fold_constants(self) -> None:
        """Evaluate, in float64, what depends on parameters alone, such as standardised weights."""
        for call in self.graph.calls:
            names = list(call.reads())
            known = names and all(name in self.constant for name in names)
            if not known or is_random(call.target):
                self.items[call.name] = call
                continue
            values = {name: _exact(self.constant[name]) for name in names}
            run_calls((call,), values, next(iter(values.values())).device)
            self.constant[call.name] = values[call.name]
            self.model_name[call.name] = next(
                (self.model_name[n] for n in names if n in self.model_name), call.name
            )

    def _take_layers(self) -> None:
        """Convolutions, linear layers, pools, activations; in order, so that inputs are known."""
        users = self._users()
        for call in list(self.items.values()):
            if self.items.get(call.name) is not call:
                continue  # taken over by a layer before it
            if (conv := self._convolution(call, users) or self._linear(call)) is not None:
                self._take(conv, users)
            elif _is_global_pool(call) or (limit := _pool_limit(call)):
                if not _is_global_pool(call):
                    self.pool_limit = min(limit, self.pool_limit or limit)
                self.items[call.name] = _Pool(call.name, call.args[0].name, call)
            elif self._reshapes_vector(call):
                self.alias[call.name] = call.args[0].name
                del self.items[call.name]
            elif (act := _act(call)) is not None:
                self.items[call.name] = _Act(call.name, call.args[0].name, act)
            elif (x := self._gated_by_itself(call, users)) is not None:
                del self.items[next(arg.name for arg in call.args if arg.name != x)]
                self.items[call.name] = _Act(call.name, x, Act.SWISH)

    def _take(self, conv: _Conv, users: Mapping[str, list]) -> None:
        """Join a layer with the batch norm and activation that alone read it.

        The place is that of the last of their calls: there, all that it reads is defined.
        """
        taken = [conv.name]
        reader = _only(users, conv.name)
        if (
            conv.kind != "linear"
            and isinstance(reader, Call)
            and self._fold_batch_norm(conv, reader)
        ):
            taken.append(reader.name)
        if found := _activation_of(taken[-1], users):
            conv.act, names = found
            taken += names
        conv.name = taken[-1]
        for name in taken[:-1]:
            del self.items[name]
        self.items[conv.name] = conv

    def _convolution(self, call: Call, users: Mapping[str, list]) -> _Conv | None:
        if call.op != "aten.conv2d":
            if "conv" in call.op:
                self.refusals[call.name] = f"{call.op} is not a 2-d convolution"
            return None
        x, weight, bias, stride, padding, dilation, groups = _arguments(
            call, (None, None, None, (1, 1), (0, 0), (1, 1), 1)
        )
        name = weight.name if isinstance(weight, Ref) else ""
        if name not in self.constant or (bias is not None and bias.name not in self.constant):
            self.refusals[call.name] = "the convolution's weight is computed from the input"
            return None
        kernel = self.constant[weight.name]
        cout, per_group, kh, kw = kernel.shape
        cin = per_group * groups
        depthwise = groups == cin and cout == cin and groups > 1
        if groups != 1 and not depthwise:
            self.refusals[call.name] = (
                f"grouped convolution ({groups} groups of {per_group} to {cout // groups} channels)"
            )
            return None
        stride, dilation = _pair(stride), _pair(dilation)
        if isinstance(padding, str):
            pads = tuple(
                d * (k - 1) if padding == "same" else 0
                for k, d in zip((kh, kw), dilation, strict=True)
            )
            pads = (pads[0] // 2, pads[1] // 2, pads[0] - pads[0] // 2, pads[1] - pads[1] // 2)
        else:
            pads = _pair(padding) * 2
        window = Window((kh, kw), stride, dilation, pads)
        source = x.name
        if merged := self._padded(source, window, users):
            source, window = merged
        if depthwise:
            kind = "depthwise"
        elif window == Window((1, 1)) or (kh, kw, *stride, window.padding) == (1, 1, 1, 1, None):
            kind = "pointwise"
        elif self._resolve(source) == self.graph.input and dilation == (1, 1):
            kind = "stem"
        else:
            kind = "dense"
        return _Conv(
            call.name,
            call.name,
            source,
            kind,
            kernel,
            None if bias is None else _exact(self.constant[bias.name]),
            window,
        )

    def _padded(
        self, name: str, window: Window, users: Mapping[str, list]
    ) -> tuple[str, Window] | None:
        """What lies before a zero padding that this window alone reads; the window with it."""
        pad = self.items.get(name)
        if not isinstance(pad, Call) or len(users.get(name, ())) != 1 or window.padding is None:
            return None
        if pad.target == "effnet_fast.same_pad":
            x, kernel, stride, dilation, value = pad.args
            if value != 0.0 or window.padding != (0, 0, 0, 0):
                return None
            if (kernel, stride, dilation) != (window.kernel, window.stride, window.dilation):
                return None
            window = Window(kernel, stride, dilation, None)
        elif pad.op in ("aten.pad", "aten.constant_pad_nd"):
            x, pads, *rest = pad.args
            mode, value = (
                (rest + ["constant", None][len(rest) :])[:2]
                if pad.op == "aten.pad"
                else ("constant", *rest)
            )
            if mode != "constant" or value not in (None, 0, 0.0) or len(pads) != 4 or min(pads) < 0:
                return None
            left, right, top, bottom = pads
            pads = zip(window.padding, (top, left, bottom, right), strict=True)
            window = replace(window, padding=tuple(own + more for own, more in pads))
        else:
            return None
        del self.items[name]
        return x.name, window

    def _fold_batch_norm(self, conv: _Conv, call: Call) -> bool:
        if call.op != "aten.batch_norm" or call.args[0] != Ref(conv.name):
            return False
        _, weight, bias, mean, var, training, _, eps = call.args[:8]
        names = [arg.name for arg in (weight, bias, mean, var) if arg is not None]
        if (
            training
            or mean is None
            or var is None
            or not all(name in self.constant for name in names)
        ):
            return False
        scale = torch.rsqrt(_exact(self.constant[var.name]) + eps)
        if weight is not None:
            scale = scale * _exact(self.constant[weight.name])
        shift = -_exact(self.constant[mean.name]) * scale
        if bias is not None:
            shift = shift + _exact(self.constant[bias.name])
        conv.scale = scale
        conv.bias = shift if conv.bias is None else conv.bias * scale + shift
        return True

    def _linear(self, call: Call) -> _Conv | None:
        if call.op != "aten.linear":
            return None
        x, weight, bias = _arguments(call, (None, None, None))
        if not self._is_vector(x.name):  # on (N, L, C) it would be another operation
            return None
        if weight.name not in self.constant or (
            bias is not None and bias.name not in self.constant
        ):
            return None
        return _Conv(
            call.name,
            call.name,
            x.name,
            "linear",
            self.constant[weight.name],
            None if bias is None else _exact(self.constant[bias.name]),
            Window((1, 1)),
        )

    def _gated_by_itself(self, call: Call, users: Mapping[str, list]) -> str | None:
        """X when the call is x * sigmoid(x) and nothing else reads the sigmoid."""
        if call.op != "aten.mul" or not all(isinstance(arg, Ref) for arg in call.args):
            return None
        for x, other in (call.args, call.args[::-1]):
            item = self.items.get(other.name)
            sigmoid = isinstance(item, _Act) and item.act is Act.SIGMOID
            if sigmoid and item.x == x.name and len(users.get(other.name, ())) == 1:
                return x.name
        return None

    def _reshapes_vector(self, call: Call) -> bool:
        """Whether the call turns a vector's (N, C, 1, 1) into (N, C) or back."""
        shape = call.shape
        return (
            call.op in _RESHAPES
            and isinstance(call.args[0], Ref)
            and self._is_vector(call.args[0].name)
            and shape is not None
            and shape[0] is None
            and shape[2:] in ((), (1, 1))
        )

    def _take_gates(self) -> None:
        """Gates of x * gate(pool(x)), between one depthwise and one pointwise convolution."""
        for call in list(self.items.values()):
            if not isinstance(call, Call) or call.op != "aten.mul" or len(call.args) != 2:
                continue
            users = self._users()
            for x, gate in (call.args, call.args[::-1]):
                if (
                    isinstance(x, Ref)
                    and isinstance(gate, Ref)
                    and self._take_gate(call, x.name, gate.name, users)
                ):
                    break

    def _take_gate(self, call: Call, x: str, gate: str, users: Mapping[str, list]) -> bool:
        expand = self.items.get(self._resolve(gate))
        if not isinstance(expand, _Conv) or expand.kind not in ("pointwise", "linear"):
            return False
        reduce = self.items.get(self._resolve(expand.x))
        if not isinstance(reduce, _Conv) or reduce.kind not in ("pointwise", "linear"):
            return False
        pool = self.items.get(self._resolve(reduce.x))
        source = self.items.get(self._resolve(x))
        if not isinstance(pool, _Pool) or self._resolve(pool.x) != self._resolve(x):
            return False
        if any(conv.gate or conv.residual or conv.pool for conv in (expand, reduce)):
            return False
        if any(_only(users, name) is None for name in (expand.name, reduce.name, pool.name)):
            return False
        reader = _only(users, call.name)
        reader_takes = (
            isinstance(reader, _Conv)
            and reader.kind == "pointwise"
            and reader.gate is None
            and self._resolve(reader.x) == call.name
        )
        if not isinstance(source, _Conv) or source.kind != "depthwise" or not reader_takes:
            self.refusals[call.name] = (
                "squeeze-excitation that is not between a depthwise and a pointwise convolution"
            )
            return False
        source.sums = source.sums or f"{source.name}.sums"
        for name in (pool.name, reduce.name, call.name):
            del self.items[name]
        self.items[expand.name] = _Gate(expand.name, source.name, reduce, expand)
        reader.x, reader.gate = x, expand.name
        return True

    def _take_residuals(self) -> None:
        """Conv + x into the convolution's epilogue, in the place of the addition."""
        for call in list(self.items.values()):
            if (
                not isinstance(call, Call)
                or call.op != "aten.add"
                or len(call.args) != 2
                or call.kwargs
            ):
                continue
            if not all(isinstance(arg, Ref) for arg in call.args):
                continue
            users = self._users()
            order = {name: index for index, name in enumerate(self.items)}
            both = sorted(
                (self._resolve(arg.name) for arg in call.args), key=lambda n: -order.get(n, -1)
            )
            if len(set(both)) != 2 or self.shape.get(call.args[0].name, 0) != self.shape.get(
                call.args[1].name, 1
            ):
                continue
            for name, other in (both, both[::-1]):
                conv = self.items.get(name)
                if (
                    isinstance(conv, _Conv)
                    and conv.kind in ("pointwise", "dense")
                    and not (conv.residual or conv.pool or self._is_vector(name))
                    and len(users[name]) == 1
                ):
                    del self.items[name]
                    conv.name, conv.residual = call.name, other
                    self.items[call.name] = conv
                    break

    def _take_head_pools(self) -> None:
        users = self._users()
        for pool in list(self.items.values()):
            if not isinstance(pool, _Pool):
                continue
            name = self._resolve(pool.x)
            conv = self.items.get(name)
            if (
                isinstance(conv, _Conv)
                and conv.kind == "pointwise"
                and len(users[name]) == 1
                and not (conv.residual or conv.pool or self._is_vector(name))
            ):
                del self.items[name]
                conv.name, conv.pool = pool.name, True
                self.items[pool.name] = conv

    # ---- nodes -----------------------------------------------------------------------------------

    def _emitted(self) -> list[Node | Call]:
        emitted: list[Node | Call] = []
        for item in self.items.values():
            if isinstance(item, _Pool):
                emitted.append(item.call)
            elif isinstance(item, Call):
                emitted.append(item)
            else:
                emitted += map(self.take, self._nodes(item))
        return self._alive(emitted)

    def _rounded(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.to(self.dtype).contiguous()

    def _weight(self, conv: _Conv) -> torch.Tensor:
        """With its batch norm, folded in float64 and rounded once."""
        weight = _exact(conv.weight)
        if conv.scale is not None:
            weight = weight * conv.scale.view(-1, *[1] * (weight.dim() - 1))
        return self._rounded(weight)

    def _alive(self, emitted: list[Node | Call]) -> list[Node | Call]:
        """Without calls that nothing reads any more, such as a flatten's batch size."""
        needed = {self._resolve(name) for name in refs(self.graph.outputs)}
        kept = []
        for entry in reversed(emitted):
            if isinstance(entry, Call) and entry.name not in needed:
                continue
            names = entry.reads() if isinstance(entry, Call) else reads(entry)
            needed.update(self._resolve(name) for name in names)
            kept.append(entry)
        return kept[::-1]

    def _nodes(self, item: _Gate | _Act | _Conv) -> list[Node]:
        if isinstance(item, _Gate):
            sums, reduce, expand = f"{item.of}.sums", item.reduce, item.expand
            w1, w2 = (self._weight(layer).flatten(1) for layer in (reduce, expand))
            b1, b2 = self._rounded(reduce.bias), self._rounded(expand.bias)
            acts = reduce.act, expand.act
            return [SqueezeExcite(item.name, sums, item.of, w1, b1, w2, b2, *acts)]
        if isinstance(item, _Act):
            return [Activation(item.name, self._resolve(item.x), item.act)]
        return self._layer_nodes(item)

    def _layer_nodes(self, conv: _Conv) -> list[Node]:
        x, weight, bias = self._resolve(conv.x), self._weight(conv), self._rounded(conv.bias)
        residual = conv.residual and self._resolve(conv.residual)
        if conv.kind == "linear":
            if conv.act is Act.NONE:
                return [Classifier(conv.name, x, weight, bias)]
            inner = f"{conv.name}.linear"
            return [Classifier(inner, x, weight, bias), Activation(conv.name, inner, conv.act)]
        if conv.kind == "pointwise":
            return [
                PointwiseConv(conv.name, x, weight, bias, conv.act, conv.gate, residual, conv.pool)
            ]
        if conv.kind == "depthwise":
            return [DepthwiseConv(conv.name, x, weight, bias, conv.window, conv.act, conv.sums)]
        if conv.kind == "stem" and not residual:
            return [StemConv(conv.name, x, weight, bias, conv.window, conv.act)]
        return [DenseConv(conv.name, x, weight, bias, conv.window, conv.act, residual)]

    def _segmented(self, emitted: list[Node | Call]) -> tuple[Node, ...]:
        """Runs of neighbouring calls become segments."""
        read_by: dict[str, set[int]] = {}
        for index, entry in enumerate(emitted):
            for name in entry.reads() if isinstance(entry, Call) else reads(entry):
                read_by.setdefault(self._resolve(name), set()).add(index)
        for name in refs(self.graph.outputs):
            read_by.setdefault(self._resolve(name), set()).add(len(emitted))
        nodes: list[Node] = []
        start = 0
        while start < len(emitted):
            if not isinstance(emitted[start], Call):
                nodes.append(emitted[start])
                start += 1
                continue
            stop = start
            while stop < len(emitted) and isinstance(emitted[stop], Call):
                stop += 1
            nodes.append(self._segment(emitted[start:stop], range(start, stop), read_by))
            start = stop
        return tuple(nodes)

    def _segment(
        self, calls: list[Call], indices: range, read_by: Mapping[str, set[int]]
    ) -> Segment:
        made = {call.name for call in calls}
        names = list(dict.fromkeys(name for call in calls for name in call.reads()))
        tensors = {name: self._segment_tensor(name) for name in names if name in self.constant}
        # Calls read a flattened vector under its own name: the alias is one more input, with a rank
        # of its own.
        inputs = tuple(name for name in names if name not in made and name not in tensors)
        outputs = tuple(
            call.name for call in calls if any(i not in indices for i in read_by.get(call.name, ()))
        )
        reasons = tuple(
            dict.fromkeys(self._reason(call) for call in calls if call.op not in _SILENT)
        )
        return Segment(calls[-1].name, tuple(calls), inputs, outputs, tensors, reasons)

    def _segment_tensor(self, name: str) -> torch.Tensor:
        value = self.constant[name].detach()
        return value.to(self.dtype) if value.is_floating_point() else value

    def _reason(self, call: Call) -> str:
        if call.name in self.refusals:
            return self.refusals[call.name]
        if call.op == "aten.batch_norm":
            return "batch norm that does not follow a convolution of its own"
        if _is_global_pool(call):
            return "global pool of a map that no pointwise convolution makes for it alone"
        return f"{call.op} has no fused kernel"

    def _ranks(self) -> dict[str, int]:
        ranks = {call.name: len(call.shape) for call in self.graph.calls if call.shape is not None}
        ranks[self.graph.input] = 4
        return ranks

    def _layers(self) -> Iterable[Layer]:
        fused = {
            conv.call
            for item in self.items.values()
            for conv in ((item.reduce, item.expand) if isinstance(item, _Gate) else (item,))
            if isinstance(conv, _Conv)
        }
        for call in self.graph.calls:
            if "conv" not in call.op and call.op != "aten.linear":
                continue
            if (
                call.name in self.constant
                or call.shape is None
                or not isinstance(call.args[1], Ref)
            ):
                continue
            name = call.args[1].name
            layer = self.model_name.get(name, name)
            # A weight computed from the input counts without its sizes that follow the batch.
            weight = self.constant.get(name)
            shape = self.shape.get(name) if weight is None else weight.shape
            pixels = math.prod(edge or 1 for edge in call.shape[2:]) if "conv" in call.op else 1
            macs = math.prod(edge or 1 for edge in shape or ()) * pixels
            yield Layer(layer, macs, "conv" in call.op, call.name in fused)


# ---- small patterns ------------------------------------------------------------------------------

_RESHAPES = frozenset(
    f"aten.{name}" for name in ("flatten", "view", "reshape", "squeeze", "unsqueeze", "contiguous")
)
_SILENT = frozenset(
    {"aten.sym_size", "operator.getitem", "operator.mul", "operator.add", "operator.floordiv"}
)


def _item_reads(item: _Item) -> list[str]:
    if isinstance(item, Call):
        return list(item.reads())
    if isinstance(item, _Gate):
        return [item.of]
    names = [item.x, getattr(item, "gate", None), getattr(item, "residual", None)]
    return [name for name in names if name is not None]


def _only(users: Mapping[str, list], name: str) -> _Item | None:
    """The only reader of a value; None when there are several, or when it is an output."""
    readers = users.get(name, [])
    return readers[0] if len(readers) == 1 else None


def _exact(tensor: Any) -> Any:
    if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
        return tensor.detach().double()
    return tensor


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else tuple(value)


def _arguments(call: Call, defaults: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*call.args, *defaults[len(call.args) :])


_SIMPLE_ACTS = {
    "aten.silu": Act.SWISH,
    "aten.relu": Act.RELU,
    "aten.relu6": Act.RELU6,
    "aten.hardswish": Act.HARD_SWISH,
    "aten.hardsigmoid": Act.HARD_SIGMOID,
    "aten.sigmoid": Act.SIGMOID,
}


def _act(call: Call) -> Act | None:
    """The activation that a single call is."""
    if call.op in _SIMPLE_ACTS:
        return _SIMPLE_ACTS[call.op]
    if call.op == "aten.gelu":
        approximate = call.kwargs.get("approximate", "none")
        return Act.GELU_TANH if approximate == "tanh" else Act.GELU
    if call.op in ("aten.hardtanh", "aten.clamp", "aten.clamp_min"):
        low, high = (*call.args[1:], None, None)[:2]
        low, high = call.kwargs.get("min", low), call.kwargs.get("max", high)
        if call.op == "aten.hardtanh":
            low, high = (-1 if low is None else low), (1 if high is None else high)
        return {(0, 6): Act.RELU6, (0, None): Act.RELU}.get((low, high))
    return None


def _activation_of(name: str, users: Mapping[str, list]) -> tuple[Act, list[str]] | None:
    """The activation that alone reads a value, and its calls: one, or the two of x * sigmoid(x)."""
    readers = users.get(name, [])
    if len(readers) == 1 and isinstance(readers[0], Call) and (act := _act(readers[0])) is not None:
        return act, [readers[0].name]
    if len(readers) == 2 and all(isinstance(reader, Call) for reader in readers):
        for sigmoid, product in (readers, readers[::-1]):
            if (
                sigmoid.op == "aten.sigmoid"
                and product.op == "aten.mul"
                and set(product.args) == {Ref(name), Ref(sigmoid.name)}
                and len(users.get(sigmoid.name, [])) == 1
            ):
                return Act.SWISH, [sigmoid.name, product.name]
    return None


def _is_global_pool(call: Call) -> bool:
    if call.op == "aten.mean":
        dims = call.args[1] if len(call.args) > 1 else None
        return (
            call.target == "aten.mean.dim"
            and dims is not None
            and sorted(d % 4 for d in dims) == [2, 3]
            and call.shape is not None
            and "dtype" not in call.kwargs
            and len(call.args) < 4
        )
    if call.op == "aten.adaptive_avg_pool2d":
        return _pair(call.args[1]) == (1, 1) and len(call.shape or ()) == 4
    return False


def _pool_limit(call: Call) -> int | None:
    """The largest map edge for which an average pool with ceil_mode is a global one."""
    if call.op != "aten.avg_pool2d":
        return None
    _, kernel, stride, padding, ceil_mode, _, divisor = _arguments(
        call, (None, None, (), (0, 0), False, True, None)
    )
    whole = (
        _pair(stride or kernel) == _pair(kernel)
        and _pair(padding) == (0, 0)
        and ceil_mode
        and divisor is None
    )
    # 64: at stride 32 the map of a 2048-pixel image. Smaller windows are poolings meant to keep a
    # map.
    return (
        min(_pair(kernel))
        if whole and min(_pair(kernel)) >= 64 and (call.shape or ())[2:] == (1, 1)
        else None
    )
