"""One operator call on the CPU: a program of one step, over the tensors of the call.

The very path that a whole network takes (``csrc/include/effnet_fast/program.h``).
"""

from __future__ import annotations

from typing import Any

import torch

from effnet_fast.network import Window
from effnet_fast.ops.checks import ACTS
from effnet_fast.ops.extension import extension
from effnet_fast.ops.packing import CACHE, pack_conv, pack_depthwise, pack_transposed


def nhwc(x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int, int]]:
    """``x`` (N, C, H, W) where the kernels can read it, with its strides.

    Used in place where channels are adjacent, in a slice of a bigger map too; copied otherwise.
    """
    _, c, h, w = x.shape
    batch, channel, row, pixel = x.stride()
    # The stride of a size of 1 means nothing: torch may report anything there.
    pixel = pixel if w > 1 else c
    row = row if h > 1 else w * pixel
    if (c == 1 or channel == 1) and pixel >= c:
        return x, (batch, 1, row, pixel)
    copy = torch.empty_like(x, memory_format=torch.channels_last).copy_(x)
    return copy, copy.stride()


class Step:
    """The operands and weights of one call; append one step to ``program``, then ``run``."""

    def __init__(self) -> None:
        self.native = extension()
        self.program = self.native.Program(0)
        self._tensors: list[tuple[int, ...]] = []
        self._alive: list[torch.Tensor] = []

    def image(self, x: torch.Tensor) -> Any:
        """An operand of any strides, for ``stem_conv``."""
        return self._operand(x, x.shape, x.stride())

    def map(self, x: torch.Tensor | None) -> Any:
        """An operand (N, C, H, W), input or channels-last output."""
        if x is None:
            return self.native.Operand.none()
        x, strides = nhwc(x)
        return self._operand(x, x.shape, strides)

    def vector(self, x: torch.Tensor | None) -> Any:
        """An operand (N, C), input or contiguous output."""
        if x is None:
            return self.native.Operand.none()
        x = x.contiguous()
        n, c = x.shape
        return self._operand(x, (n, c, 1, 1), (c, 1, c, c))

    def conv(
        self, weight: torch.Tensor, bias: torch.Tensor | None, act: str, pack: Any = pack_conv
    ) -> Any:
        """Constants of a dense convolution, weight (O, I, kh, kw) or (O, I)."""
        cout, cin = weight.shape[:2]
        packed = self._keep(CACHE.get(weight, pack))
        return self.native.Conv(cin, cout, packed, self._bias(bias), int(ACTS[act]))

    def depthwise(
        self, weight: torch.Tensor, bias: torch.Tensor | None, window: Window, act: str
    ) -> Any:
        """Constants of a depthwise convolution, weight (C, 1, kh, kw)."""
        packed = self._keep(CACHE.get(weight, pack_depthwise))
        return self.native.DepthwiseConv(
            weight.shape[0], self.window(window), packed, self._bias(bias), int(ACTS[act])
        )

    def squeeze_excite(
        self,
        w1: torch.Tensor,
        b1: torch.Tensor | None,
        w2: torch.Tensor,
        b2: torch.Tensor | None,
        act: str,
        gate_act: str,
    ) -> Any:
        """Constants of both layers, weights (R, C) and (C, R), a trailing 1 x 1 allowed."""
        squeezed, c = w1.shape[:2]
        return self.native.SqueezeExcite(
            c,
            squeezed,
            self._keep(w1.contiguous()),
            self._bias(b1),
            self._keep(CACHE.get(w2, pack_transposed)),
            self._bias(b2),
            int(ACTS[act]),
            int(ACTS[gate_act]),
        )

    def window(self, window: Window) -> Any:
        """``window`` as the kernels take it."""
        return self.native.Window(*window.kernel, *window.stride, *window.dilation, *window.padding)

    def run(self, batch: int) -> None:
        """Run the step over ``batch`` images, on as many threads as torch uses."""
        self.program.run(self._tensors, batch, torch.get_num_threads())

    def _operand(self, x: torch.Tensor, shape: tuple, strides: tuple) -> Any:
        self._tensors.append((self._keep(x), *shape, *strides))
        return self.native.Operand.tensor(len(self._tensors) - 1, *shape[1:])

    def _bias(self, bias: torch.Tensor | None) -> int:
        return 0 if bias is None else self._keep(bias.contiguous())

    def _keep(self, tensor: torch.Tensor) -> int:
        self._alive.append(tensor)
        return tensor.data_ptr()
