"""The network as data: what recognise makes of a captured graph, and what a plan is made of.

Values are named; a node reads and writes values. A value is a map (N, C, H, W; channels last in
memory) or a vector (N, C). Nothing here depends on an input's size: SAME padding is resolved when a
plan is made for a size.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .graph import Call


class Act(enum.IntEnum):
    """Activations, in the order of csrc/include/effnet_fast/types.h."""

    NONE = 0
    SWISH = 1
    RELU = 2
    RELU6 = 3
    HARD_SWISH = 4
    HARD_SIGMOID = 5
    SIGMOID = 6
    GELU = 7
    GELU_TANH = 8

    @property
    def label(self) -> str:
        """The name that operators take: "none", "swish", "relu6", ..."""
        return self.name.lower()


@dataclass(frozen=True)
class Window:
    """A k x k window over a map; ``padding`` (top, left, bottom, right), or None for SAME."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] | None = (0, 0, 0, 0)

    def pads(self, h: int, w: int) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) for a map of h x w pixels.

        SAME (TensorFlow): total = max((ceil(x / s) - 1) s + (k - 1) d + 1 - x, 0), low = total //
        2.
        """
        if self.padding is not None:
            return self.padding
        low_high = []
        for size, k, s, d in zip((h, w), self.kernel, self.stride, self.dilation, strict=True):
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            low_high.append((total // 2, total - total // 2))
        (top, bottom), (left, right) = low_high
        return top, left, bottom, right

    def output_size(self, h: int, w: int) -> tuple[int, int]:
        """The output map's (h, w); not positive when the map is smaller than the window."""
        top, left, bottom, right = self.pads(h, w)
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        return (
            (h + top + bottom - dh * (kh - 1) - 1) // sh + 1,
            (w + left + right - dw * (kw - 1) - 1) // sw + 1,
        )


# ---- nodes ---------------------------------------------------------------------------------------
# ``name`` is the value that a node makes. Weights are in PyTorch's layouts, with batch norm folded
# in.


@dataclass(frozen=True, eq=False)
class StemConv:
    """act(conv(image) + bias): a dense k x k convolution that reads the image in any layout."""

    name: str
    x: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    window: Window
    act: Act


@dataclass(frozen=True, eq=False)
class PointwiseConv:
    """act(W (x * gate) + bias) [+ residual]; with ``pool`` the mean over pixels, a vector."""

    name: str
    x: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    act: Act
    gate: str | None = None
    residual: str | None = None
    pool: bool = False


@dataclass(frozen=True, eq=False)
class DepthwiseConv:
    """act(depthwise(x) + bias), and in ``sums`` its per-channel sums over the pixels."""

    name: str
    x: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    window: Window
    act: Act
    sums: str | None = None


@dataclass(frozen=True, eq=False)
class SqueezeExcite:
    """The gate, a vector: gate_act(W2 act(W1 sums / pixels + b1) + b2), pixels of map ``of``."""

    name: str
    sums: str
    of: str
    w1: torch.Tensor
    b1: torch.Tensor | None
    w2: torch.Tensor
    b2: torch.Tensor | None
    act: Act
    gate_act: Act


@dataclass(frozen=True, eq=False)
class DenseConv:
    """act(conv(x) + bias) [+ residual]: a dense k x k convolution inside the network."""

    name: str
    x: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    window: Window
    act: Act
    residual: str | None = None


@dataclass(frozen=True, eq=False)
class Classifier:
    """W x + bias on a vector."""

    name: str
    x: str
    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Activation:
    """An activation that no convolution could take into its epilogue."""

    name: str
    x: str
    act: Act


@dataclass(frozen=True, eq=False)
class Segment:
    """ATen calls that stay as they are, in plain PyTorch, with the reasons for it."""

    name: str
    calls: tuple[Call, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, torch.Tensor]
    reasons: tuple[str, ...]


Node = (
    StemConv
    | PointwiseConv
    | DepthwiseConv
    | SqueezeExcite
    | DenseConv
    | Classifier
    | Activation
    | Segment
)


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer of the model, for the account of what is fused."""

    name: str
    macs: int  # multiply-adds per image at the first captured size
    convolution: bool
    fused: bool


@dataclass(frozen=True, eq=False)
class Network:
    """A recognised model.

    Attributes
    ----------
    input : the image's value name.
    nodes : in an order in which every value is made before it is read.
    outputs : value names (as `graph.Ref`) or constants; ``output_spec`` is the pytree that they are
        the leaves of.
    aliases : names under which a vector is read besides its own, after a flatten or its reverse.
    ranks : rank of the tensor that the original has under each name; a vector may be (N, C) or (N,
        C, 1, 1) there.
    layers : every convolution and linear layer, in order.
    locked : the only image size that it is right for, or None.
    pool_limit : largest edge of the last map for which the model's average pool is a global one, or
        None.
    """

    input: str
    channels: int
    nodes: tuple[Node, ...]
    outputs: tuple[Any, ...]
    output_spec: Any
    aliases: Mapping[str, str]
    ranks: Mapping[str, int]
    layers: tuple[Layer, ...]
    locked: tuple[int, int] | None
    pool_limit: int | None
    dtype: torch.dtype

    def fused_share(self) -> float:
        """The share of convolution multiply-adds that fused operators do."""
        convolutions = [layer for layer in self.layers if layer.convolution]
        total = sum(layer.macs for layer in convolutions)
        return sum(layer.macs for layer in convolutions if layer.fused) / total if total else 0.0

    def reasons(self) -> list[str]:
        """What is not fused and why, one line each, without repeats."""
        lines = (
            reason for node in self.nodes if isinstance(node, Segment) for reason in node.reasons
        )
        return list(dict.fromkeys(lines))


def reads(node: Node) -> tuple[str, ...]:
    """The values that a node reads."""
    if isinstance(node, Segment):
        return node.inputs
    names = (getattr(node, field, None) for field in ("x", "sums", "gate", "residual"))
    if isinstance(node, DepthwiseConv):
        names = (node.x,)
    return tuple(name for name in names if name is not None)


def makes(node: Node) -> tuple[str, ...]:
    """The values that a node makes."""
    if isinstance(node, Segment):
        return node.outputs
    if isinstance(node, DepthwiseConv) and node.sums:
        return node.name, node.sums
    return (node.name,)
