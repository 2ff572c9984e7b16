"""What the operators' tests share: tensors, memory layouts, implementations, opcheck's samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from effnet_fast import optimize
from effnet_fast.ops.checks import wide

# Every implementation with the types it takes, as parameters.
RUNS = [
    pytest.param(impl, dtype, id=f"{impl}-{str(dtype).removeprefix('torch.')}")
    for impl, dtype in (
        ("cpu", torch.float32),
        ("reference", torch.float32),
        ("reference", torch.float16),
        ("reference", torch.bfloat16),
    )
]


# The same of operators with GPU kernels; those run on the PTX machine (conftest.py).
GPU_IMPLS = ("cuda", "triton")
CUDA_RUNS, TRITON_RUNS = (
    [
        pytest.param(impl, dtype, id=f"{impl}-{str(dtype).removeprefix('torch.')}")
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ]
    for impl in GPU_IMPLS
)
# Triton compiles for each architecture: what it emits for sm_80 and for sm_120 differs.
SM_120 = (pytest.mark.full, pytest.mark.capability(120))
SM_120_RUNS = [
    pytest.param(*run.values, id=f"{run.id}-sm_120", marks=SM_120) for run in TRITON_RUNS
]
ALL_RUNS = [*RUNS, *CUDA_RUNS, *TRITON_RUNS, *SM_120_RUNS]
# Of operators whose Triton kernels take seconds to compile: of those float16 alone in `make test`.
MOST_RUNS = [
    *RUNS,
    *CUDA_RUNS,
    *(
        run
        if torch.float16 in run.values
        else pytest.param(*run.values, id=run.id, marks=pytest.mark.full)
        for run in TRITON_RUNS
    ),
    *SM_120_RUNS,
]
IMPLS = ("cpu", "reference", *GPU_IMPLS)


class Random:
    """Reproducible tensors of one type."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0):
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        """Normal with a standard deviation of ``scale``."""
        return (scale * torch.randn(shape, generator=self.generator)).to(self.dtype)

    def weight(self, *shape: int) -> torch.Tensor:
        """Normal, scaled so that a layer keeps the variance of its input."""
        return self(*shape, scale=torch.Size(shape[1:]).numel() ** -0.5)


def _in_bigger(x: torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
    """``x`` as a slice of a map of NaN, at odd offsets: one number from outside spoils a sum."""
    n, c, h, w = x.shape
    bigger = torch.full((n + 1, c + 4, h + 3, w + 2), torch.nan, dtype=x.dtype)
    view = bigger.contiguous(memory_format=memory_format)[1:, 3 : 3 + c, 1 : 1 + h, 1 : 1 + w]
    return view.copy_(x)


# The same numbers in another order in memory.
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nchw": lambda x: x.contiguous(),
    "nhwc": lambda x: x.contiguous(memory_format=torch.channels_last),
    "nhwc_slice": lambda x: _in_bigger(x, torch.channels_last),
    "nchw_slice": lambda x: _in_bigger(x, torch.contiguous_format),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda x: x[:, :1, :1, :1].expand(x.shape),
}


def as_tuple(result: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The outputs of an operator as a tuple."""
    return result if isinstance(result, tuple) else (result,)


def _stem(r: Random) -> list[tuple[Any, ...]]:
    weight, bias = r.weight(6, 3, 3, 3), r(6)
    return [
        (r(2, 3, 9, 8), weight, bias, [2, 2], [0, 0, 1, 1], "swish"),
        (LAYOUTS["nhwc_slice"](r(3, 3, 5, 7)), weight, None, [1, 2], [1, 1, 1, 1], "none"),
        (r(0, 3, 5, 7), weight, bias, [1, 1], [0, 0, 0, 0], "relu"),
    ]


def _pointwise(r: Random) -> list[tuple[Any, ...]]:
    x, weight = LAYOUTS["nhwc"](r(2, 5, 3, 4)), r.weight(7, 5, 1, 1)
    return [
        (x, weight, r(7), "swish"),
        (x, weight, None, "none", r(2, 5), r(2, 7, 3, 4)),
        (r(1, 5, 1, 1), weight, r(7), "gelu", None, r(1, 7, 1, 1)),
    ]


def _pointwise_pool(r: Random) -> list[tuple[Any, ...]]:
    weight = r.weight(7, 5, 1, 1)
    return [
        (r(2, 5, 3, 4), weight, r(7), "swish", r(2, 5)),
        (LAYOUTS["nhwc_slice"](r(2, 5, 3, 4)), weight, None, "none"),
    ]


def _depthwise(r: Random) -> list[tuple[Any, ...]]:
    return [
        (r(2, 5, 6, 7), r.weight(5, 1, 3, 3), r(5), [2, 2], [0, 1, 1, 1], [1, 1], "swish"),
        (r(1, 9, 4, 4), r.weight(9, 1, 2, 3), None, [1, 1], [2, 2, 2, 2], [2, 1], "none"),
    ]


def _squeeze_excite(r: Random) -> list[tuple[Any, ...]]:
    sums, w1, w2 = r(2, 5).to(wide(r.dtype)), r.weight(2, 5), r.weight(5, 2)
    ones = (..., None, None)
    return [
        (sums, 9, w1, r(2), w2, r(5), "swish", "sigmoid"),
        (sums, 1, w1[ones], None, w2[ones], None, "relu", "hard_sigmoid"),
    ]


def _expand_depthwise(r: Random) -> list[tuple[Any, ...]]:
    expand = (r.weight(9, 3, 1, 1), r(9), "swish")
    window = ([2, 1], [1, 1, 1, 1], [1, 1])
    return [
        (r(2, 3, 5, 6), *expand, r.weight(9, 1, 3, 3), r(9), *window, "swish"),
        (r(2, 3, 5, 6), *expand, r.weight(9, 1, 5, 5), None, *window, "relu6"),
    ]


def _stem_depthwise(r: Random) -> list[tuple[Any, ...]]:
    stem, window = r.weight(6, 3, 3, 3), ([1, 2], [1, 1, 1, 1], [1, 1])
    same = ([2, 2], [0, 0, 1, 1])
    return [
        (r(2, 3, 9, 8), stem, r(6), *same, "swish", r.weight(6, 1, 3, 3), r(6), *window, "swish"),
        (
            LAYOUTS["nhwc_slice"](r(2, 3, 7, 5)), stem, None, *same, "none",
            r.weight(6, 1, 2, 3), None, *window, "relu6",
        ),
    ]  # fmt: skip


def _fused_mbconv(r: Random) -> list[tuple[Any, ...]]:
    x, window = r(2, 4, 5, 6), ([1, 1], [1, 1, 1, 1], [1, 1])
    conv = (r.weight(8, 4, 3, 3), r(8), *window, "swish")
    project = (r.weight(4, 8, 1, 1), r(4), "none")
    return [
        (x, *conv),
        (x, *conv, *project),
        (x, *conv, *project, r(2, 4, 5, 6)),
        (x, *conv, None, None, "none", LAYOUTS["nhwc"](r(2, 8, 5, 6))),
    ]


def _classifier(r: Random) -> list[tuple[Any, ...]]:
    weight = r.weight(7, 5)
    return [(r(2, 5), weight, r(7)), (r(2, 3, 5), weight, None), (r(5, 4).t(), weight, r(7))]


def _swish(r: Random) -> list[tuple[Any, ...]]:
    return [
        (r(2, 5), "gelu"),
        (LAYOUTS["nhwc"](r(2, 5, 3, 4)),),
        (LAYOUTS["nchw_slice"](r(2, 5, 3, 4)), "hard_swish"),
    ]


def _run_network(r: Random) -> list[tuple[Any, ...]]:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
        torch.nn.SiLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=8),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    ).eval()
    fast = optimize(model, example_input=torch.zeros(2, 3, 16, 16))
    (part,) = fast.parts()
    _ALIVE.append(fast)  # a handle is good while its model lives
    return [(r(2, 3, 16, 16), part._handle)]


_ALIVE: list[torch.nn.Module] = []

# By the name of each registered operator, argument tuples for opcheck, made from a source of random
# tensors. An operator that is registered elsewhere enters its own here.
SAMPLES: dict[str, Callable[[Random], list[tuple[Any, ...]]]] = {
    "classifier": _classifier,
    "depthwise_conv": _depthwise,
    "depthwise_conv_sums": _depthwise,
    "expand_depthwise": _expand_depthwise,
    "expand_depthwise_sums": _expand_depthwise,
    "fused_mbconv": _fused_mbconv,
    "pointwise_conv": _pointwise,
    "pointwise_conv_pool": _pointwise_pool,
    "run_network": _run_network,
    "squeeze_excite": _squeeze_excite,
    "stem_conv": _stem,
    "stem_depthwise": _stem_depthwise,
    "stem_depthwise_sums": _stem_depthwise,
    "swish": _swish,
}
