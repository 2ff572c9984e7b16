"""A network's weights as the CPU's kernels read them, in large pages."""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
from typing import Any

import torch

from ..network import Act, DenseConv, DepthwiseConv, Node, Segment, SqueezeExcite, Window
from ..ops.extension import extension
from ..ops.packing import (
    ALIGNMENT,
    Pack,
    pack_conv,
    pack_depthwise,
    pack_plain,
    pack_transposed,
    pack_winograd,
    takes_winograd,
)

# Of 2 MB, where the system gives them: the 21 MB of B0 are 5,000 small pages, more than a TLB
# knows, and its steps take 3 % longer.
_HUGE = 2 << 20
_CHUNK = 32 << 20  # mapped at a time; what is not written takes no memory


class PackedWeights:
    """What the kernels multiply with and add, packed once for all image sizes.

    Parameters
    ----------
    winograd : whether 3 x 3 convolutions that can be are made by Winograd's algorithm.
    """

    def __init__(self, winograd: bool = True) -> None:
        self.bytes = 0
        self._winograd = winograd
        self._packed: dict[tuple[str, str], torch.Tensor] = {}
        self._chunk = torch.empty(0)  # the rest of the last mapping

    def take(self, node: Node) -> Node:
        """The node with tensors on the meta device: their values are packed here, and only here."""
        if isinstance(node, Segment):
            return node
        packs = self._packs(node)
        changes = {}
        for field in dataclasses.fields(node):
            tensor = getattr(node, field.name)
            if isinstance(tensor, torch.Tensor):
                packed = packs.get(field.name, pack_plain)(tensor, self._room)
                self._packed[node.name, field.name] = packed
                self.bytes += packed.nbytes
                changes[field.name] = torch.empty_like(tensor, device="meta")
        return dataclasses.replace(node, **changes)

    def _packs(self, node: Node) -> dict[str, Pack]:
        """By field, those that are not plain."""
        if isinstance(node, SqueezeExcite):
            return {"w2": pack_transposed}
        if isinstance(node, DepthwiseConv):
            return {"weight": pack_depthwise}
        return {"weight": pack_winograd if self.is_winograd(node) else pack_conv}

    def is_winograd(self, node: Node) -> bool:
        """Whether a node's weight is packed for Winograd's algorithm."""
        return (
            self._winograd
            and isinstance(node, DenseConv)
            and takes_winograd(node.weight, node.window)
        )

    def _room(self, floats: int) -> torch.Tensor:
        """As :func:`effnet_fast.ops.packing.aligned`, after what was packed before."""
        lines = -(-4 * floats // ALIGNMENT) * ALIGNMENT // 4
        if self._chunk.numel() < lines:
            self._chunk = _mapped(max(_CHUNK, 4 * lines))
        packed, self._chunk = self._chunk[:floats], self._chunk[lines:]
        return packed

    # ---- a step's constants, as the bindings take them -------------------------------------------

    def conv(self, node: Any) -> Any:
        cout, cin = node.weight.shape[:2]
        act = getattr(node, "act", Act.NONE)
        weight, bias = self._address(node, "weight"), self._address(node, "bias")
        return extension().Conv(cin, cout, weight, bias, int(act))

    def depthwise(self, node: Any, window: Window) -> Any:
        weight, bias = self._address(node, "weight"), self._address(node, "bias")
        c = node.weight.shape[0]
        return extension().DepthwiseConv(c, self.window(window), weight, bias, int(node.act))

    def squeeze_excite(self, node: Any) -> Any:
        squeezed, c = node.w1.shape
        addresses = (self._address(node, name) for name in ("w1", "b1", "w2", "b2"))
        return extension().SqueezeExcite(
            c, squeezed, *addresses, int(node.act), int(node.gate_act)
        )  # fmt: skip

    def window(self, window: Window) -> Any:
        return extension().Window(
            *window.kernel, *window.stride, *window.dilation, *window.pads(0, 0)
        )

    def _address(self, node: Node, field: str) -> int:
        """0 where the node has none."""
        packed = self._packed.get((node.name, field))
        return 0 if packed is None else packed.data_ptr()


def _mapped(size: int) -> torch.Tensor:
    """``size`` bytes of zeros as float32, from a boundary of huge pages on."""
    room = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # of a system that is built without
            room.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(room, dtype=torch.float32)
    start = -whole.data_ptr() % _HUGE // 4
    return whole[start : start + size // 4]
