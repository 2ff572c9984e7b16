"""From a Network and an image size to steps: one operator each, every size resolved, buffers in one
arena.

A plan does not depend on the batch: an engine runs the steps image by image, or makes a batch of
every buffer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from .arena import lifetimes, place
from .errors import ShapeError
from .graph import Ref, refs, run_calls
from .network import (
    Activation,
    Classifier,
    DenseConv,
    DepthwiseConv,
    Network,
    Node,
    PointwiseConv,
    Segment,
    SqueezeExcite,
    StemConv,
    Window,
    makes,
    reads,
)

_ALIGN = 16  # floats: arena buffers start at cache lines

Size = tuple[int, int, int]  # channels, height, width; a vector is (C, 1, 1)


@dataclass(frozen=True, eq=False)
class Step:
    """One operator call: a node, or two that one operator does in a pass.

    ``window`` has its padding resolved for this plan's size; it is None for operators without one.
    Of stem_depthwise it is the depthwise convolution's, and ``stem`` that of the one before.
    """

    operator: str
    nodes: tuple[Node, ...]
    window: Window | None = None
    pixels: int = 0  # squeeze_excite: of the map that was summed
    stem: Window | None = None

    def reads(self) -> tuple[str, ...]:
        inner = {name for node in self.nodes[:-1] for name in makes(node)}
        return tuple(name for node in self.nodes for name in reads(node) if name not in inner)

    def makes(self) -> tuple[str, ...]:
        return makes(self.nodes[-1])


@dataclass(frozen=True, eq=False)
class Stage:
    """Steps that one native program runs, or a single step that torch runs.

    ``tensors`` are the values that it reads from and leaves for others, inputs first; what else its
    steps make lives in the arena at ``offsets`` (in floats).
    """

    native: bool
    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    internal: tuple[str, ...] = ()  # tensors between its own steps: what a batched classifier reads
    offsets: Mapping[str, int] | None = None
    arena: int = 0


@dataclass(frozen=True, eq=False)
class Plan:
    """How a network runs on images of one size."""

    network: Network
    size: tuple[int, int]
    stages: tuple[Stage, ...]
    sizes: Mapping[str, Size]

    @property
    def steps(self) -> Iterator[Step]:
        return (step for stage in self.stages for step in stage.steps)

    @property
    def arena_bytes(self) -> int:
        """What one image's buffers take, float32."""
        return 4 * max((stage.arena for stage in self.stages), default=0)


def make_plan(
    network: Network,
    size: tuple[int, int],
    apart: Collection[str] = frozenset(),
    given: Mapping[str, Size] | None = None,
    joins: Collection[str] = frozenset(),
) -> Plan:
    """Plan a network for images of ``size`` (H, W).

    Parameters
    ----------
    network : Network
    size : (H, W)
    apart : names of values that are made by a step of their own, even where the operator that reads
        them could make them in its own pass.
    given : sizes of values that the network reads besides its input: of a part of one.
    joins : operators of two nodes that the engine has besides those that every one has:
        "stem_depthwise".

    Raises
    ------
    ShapeError : the size is not the one that the network is locked to, or some layer's window does
        not fit its map.
    """
    if network.locked is not None and tuple(size) != tuple(network.locked):
        h, w = network.locked
        raise ShapeError(
            f"image size is {size[0]}x{size[1]}; accepted: {h}x{w} alone, since numbers in this "
            f"model follow the "
            "image size in a way that only holds there"
        )
    sizes, windows = _sizes(network, size, given or {})
    steps = _steps(network, sizes, windows, apart, joins)
    return Plan(network, tuple(size), tuple(_stages(network, steps, sizes)), sizes)


def alone(plan: Plan, step: Step, apart: Collection[str] = frozenset()) -> Plan:
    """A plan of one step of another, by itself: what it reads are the inputs of its only stage."""
    network, nodes = plan.network, step.nodes
    resolve = network.aliases.get
    x = resolve(nodes[0].x, nodes[0].x)
    own = replace(
        network, input=x, channels=plan.sizes[x][0], nodes=nodes,
        outputs=tuple(Ref(name) for name in step.makes()), locked=None,
    )  # fmt: skip
    return make_plan(own, plan.sizes[x][1:], apart, plan.sizes, (step.operator,))


# ---- sizes ---------------------------------------------------------------------------------------


def _sizes(
    network: Network, size: tuple[int, int], given: Mapping[str, Size]
) -> tuple[dict[str, Size], dict[str, Window]]:
    """The size of every value, and of every windowed node the window with its padding resolved."""
    sizes: dict[str, Size] = {**given, network.input: (network.channels, *size)}
    windows: dict[str, Window] = {}
    foreign: dict[
        str, Any
    ] = {}  # what segments make, on the meta device: of any rank, or plain numbers
    for node in network.nodes:
        if isinstance(node, Segment):
            _run_on_meta(network, node, sizes, foreign)
            sizes.update(
                (name, (*foreign[name].shape[1:], 1, 1)[:3])
                for name in node.outputs
                if isinstance(foreign[name], torch.Tensor) and foreign[name].dim() in (2, 4)
            )
            continue
        if isinstance(node, SqueezeExcite):
            sizes[node.name] = (node.w2.shape[0], 1, 1)
            continue
        c, h, w = sizes[network.aliases.get(node.x, node.x)]
        if isinstance(node, StemConv | DepthwiseConv | DenseConv):
            window = replace(node.window, padding=node.window.pads(h, w))
            out_h, out_w = window.output_size(h, w)
            if out_h < 1 or out_w < 1:
                raise ShapeError(
                    f"image size {size[0]}x{size[1]} is too small: the {c}x{h}x{w} map before "
                    f"{node.name} is smaller "
                    f"than its {window.kernel[0]}x{window.kernel[1]} window"
                )
            windows[node.name] = window
            h, w = out_h, out_w
        if isinstance(node, PointwiseConv) and node.pool:
            limit = network.pool_limit
            if limit is not None and max(h, w) > limit:
                raise ShapeError(
                    f"image size {size[0]}x{size[1]} is too large: the model pools its last map "
                    f"in windows of "
                    f"{limit} pixels, and it has {h}x{w}"
                )
            h = w = 1
        if not isinstance(node, Activation):
            c = node.weight.shape[0]
        sizes[node.name] = (c, h, w)
        if isinstance(node, DepthwiseConv) and node.sums:
            sizes[node.sums] = (c, 1, 1)
    return sizes, windows


def _run_on_meta(
    network: Network, node: Segment, sizes: Mapping[str, Size], foreign: dict[str, Any]
) -> None:
    """Run a segment on meta tensors of batch 1, to learn the sizes of what it makes."""
    values = {name: tensor.to("meta") for name, tensor in node.tensors.items()}
    for name in node.inputs:
        if name in foreign:
            values[name] = foreign[name]
            continue
        shape = (1, *sizes[network.aliases.get(name, name)])[: network.ranks[name]]
        values[name] = torch.empty(shape, device="meta", dtype=network.dtype)
    try:
        run_calls(node.calls, values, torch.device("meta"))
    except RuntimeError as error:
        raise ShapeError(
            f"the image size does not fit a part that PyTorch runs ({'; '.join(node.reasons)}): "
            f"{error}"
        ) from error
    foreign.update((name, values[name]) for name in node.outputs)


# ---- steps ---------------------------------------------------------------------------------------


def _steps(
    network: Network,
    sizes: Mapping[str, Size],
    windows: Mapping[str, Window],
    apart: Collection[str],
    joins: Collection[str],
) -> list[Step]:
    readers = _readers(network)
    steps: list[Step] = []
    held: dict[str, Node] = {}  # nodes that the step that alone reads them does in its own pass
    for node in network.nodes:
        first = held.pop(getattr(node, "x", ""), None)
        nodes = (node,) if first is None else (first, node)
        window = next((windows[n.name] for n in reversed(nodes) if n.name in windows), None)
        if node.name not in apart and _joins_reader(node, readers, joins):
            held[node.name] = node
        elif isinstance(first, StemConv):
            steps.append(Step("stem_depthwise", nodes, window, stem=windows[first.name]))
        elif isinstance(node, DepthwiseConv):
            steps.append(
                Step("depthwise_conv" if first is None else "expand_depthwise", nodes, window)
            )
        elif isinstance(node, PointwiseConv):
            steps.append(Step("pointwise_conv" if first is None else "fused_mbconv", nodes, window))
        elif isinstance(node, SqueezeExcite):
            _, h, w = sizes[node.of]
            steps.append(Step("squeeze_excite", nodes, pixels=h * w))
        else:
            steps.append(Step(_OPERATORS[type(node)], nodes, window))
    return steps


_OPERATORS = {
    StemConv: "stem_conv",
    DenseConv: "fused_mbconv",
    Classifier: "classifier",
    Activation: "swish",
    Segment: "aten",
}


def _readers(network: Network) -> dict[str, list[Node | None]]:
    """Nodes that read each value; None stands for the network's output."""
    readers: dict[str, list[Node | None]] = {}
    for node in network.nodes:
        for name in reads(node):
            readers.setdefault(network.aliases.get(name, name), []).append(node)
    for name in refs(network.outputs):
        readers.setdefault(network.aliases.get(name, name), []).append(None)
    return readers


def _joins_reader(
    node: Node, readers: Mapping[str, list[Node | None]], joins: Collection[str]
) -> bool:
    """Whether a node's map never needs to exist: its only reader does the node in its own pass."""
    if not isinstance(node, StemConv | PointwiseConv | DenseConv):
        return False
    reader = readers.get(node.name, ())
    if len(reader) != 1 or getattr(reader[0], "x", None) != node.name:
        return False
    if isinstance(node, StemConv):
        return isinstance(reader[0], DepthwiseConv) and "stem_depthwise" in joins
    if node.residual is not None:
        return False
    if isinstance(node, PointwiseConv):
        return isinstance(reader[0], DepthwiseConv) and node.gate is None and not node.pool
    return isinstance(reader[0], PointwiseConv) and reader[0].gate is None and not reader[0].pool


# ---- stages --------------------------------------------------------------------------------------


def _stages(network: Network, steps: list[Step], sizes: Mapping[str, Size]) -> Iterator[Stage]:
    """Cut the steps into native runs, and single steps for torch.

    A classifier works on the whole batch at once, so only classifiers follow it in its run.
    """
    runs: list[list[Step]] = []
    for step in steps:
        native = step.operator not in _TORCH
        last = runs[-1][-1] if runs else None
        joins = (
            native
            and last is not None
            and last.operator not in _TORCH
            and (last.operator != "classifier" or step.operator == "classifier")
        )
        if joins:
            runs[-1].append(step)
        else:
            runs.append([step])
    resolve = network.aliases.get
    needed = {resolve(name, name) for name in refs(network.outputs)}
    read_in: dict[str, set[int]] = {}
    for index, run in enumerate(runs):
        for step in run:
            for name in step.reads():
                read_in.setdefault(resolve(name, name), set()).add(index)
    for index, run in enumerate(runs):
        made = [name for step in run for name in step.makes()]
        names = [resolve(name, name) for step in run for name in step.reads()]
        inputs = tuple(dict.fromkeys(name for name in names if name not in made))
        outputs = tuple(n for n in made if n in needed or read_in.get(n, set()) - {index})
        if run[0].operator in _TORCH:
            yield Stage(False, tuple(run), inputs, outputs)
            continue
        batched = {
            name
            for step in run
            if step.operator == "classifier"
            for name in (*step.reads(), *step.makes())
        }
        batched = {resolve(name, name) for name in batched}
        internal = tuple(n for n in made if n in batched and n not in outputs)
        offsets, arena = _arena(run, {*inputs, *outputs, *internal}, sizes)
        yield Stage(True, tuple(run), inputs, outputs, internal, offsets, arena)


_TORCH = frozenset({"aten", "swish"})  # what torch runs, on whole tensors


def _arena(
    steps: list[Step], outside: set[str], sizes: Mapping[str, Size]
) -> tuple[dict[str, int], int]:
    """Offsets for the values of one native run, in floats."""
    lives = lifetimes([step.makes() for step in steps], [step.reads() for step in steps])
    lives = {name: life for name, life in lives.items() if name not in outside}
    spans = {name: -(-math.prod(sizes[name]) // _ALIGN) * _ALIGN for name in lives}
    return place(spans, lives)
