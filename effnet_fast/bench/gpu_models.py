"""Whole models on a GPU, beside what else one would run them with."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..gpu.device import Device
from ..model import gpu_home
from ..optimize import optimize
from ..verify import FLOORS, relative_error
from .coverage import build
from .harness import Budget, Clock, Run, compare, cuda_events, outcome_rows

CONTENDERS = (
    "effnet_fast", "eager", "channels_last", "compile", "compile max-autotune", "tensorrt",
)  # fmt: skip
# One draw of rounding errors is 0.5 to 2 times another: two draws differ by 4 at most.
ERROR_RATIO = 4
SECONDS = 1.0  # to take samples for, of all contenders of a row

# Of inputs taken in turns: 16 places are what the engine keeps launches for.
_MOST_INPUTS = 8


@dataclass(frozen=True)
class Place:
    """Where it runs: a GPU, or the PTX machine with PyTorch on the CPU beside it.

    Attributes
    ----------
    there : the driver's device.
    clock : None where time says nothing of a GPU.
    """

    backend: str
    there: Device
    device: torch.device
    dtype: torch.dtype
    clock: Clock | None

    @classmethod
    def named(cls, backend: str, dtype: torch.dtype) -> Place:
        """As --backend says.

        Raises
        ------
        BackendError
            There is none.
        """
        there = gpu_home(backend, torch.device("cpu")).device  # or the reason why not
        if backend == "ptx":
            return cls(backend, there, torch.device("cpu"), dtype, None)
        return cls(backend, there, torch.device("cuda", 0), dtype, cuda_events)

    def describe(self) -> dict[str, Any]:
        """What is measured on."""
        there = self.there
        return {
            "name": there.name,
            "capability": there.capability,
            "multiprocessors": there.attributes["multiprocessor_count"],
            "clock_kHz": there.attributes["clock_rate"],
            "l2_bytes": there.attributes["l2_cache_size"],
            "memory_bytes": there.memory[1],
            "driver": there.driver_version,
        }

    def copies(self, bytes: int) -> int:
        """Of inputs to take in turns, so that the L2 cache does not hold them all."""
        if self.backend == "ptx":
            return 2
        l2 = self.there.attributes["l2_cache_size"]
        return max(2, min(_MOST_INPUTS, math.ceil(2 * l2 / bytes)))

    def empty_cache(self) -> None:
        """Give memory back that the last contenders had."""
        torch._dynamo.reset()
        if self.backend == "gpu":
            torch.cuda.empty_cache()


def model_contenders(
    stock: nn.Module, inputs: Sequence[torch.Tensor], place: Place
) -> dict[str, Callable[[], Run]]:
    """By name; each takes the inputs in turns, beginning with the first."""

    def over(net: Callable[[torch.Tensor], Any], images: Sequence[torch.Tensor]) -> Run:
        turn = itertools.cycle(images)

        def run() -> torch.Tensor:
            with torch.inference_mode():
                return net(next(turn))

        return run

    def ours() -> Run:
        model = copy.deepcopy(stock).to(place.device)
        fast = optimize(model, dtype=place.dtype, backend=place.backend, verify=False)
        return over(fast, inputs)

    def eager(
        layout: torch.memory_format, wrap: Callable[[nn.Module], Any] = lambda net: net
    ) -> Run:
        net = copy.deepcopy(stock).to(place.device, place.dtype).to(memory_format=layout)
        return over(wrap(net), [x.contiguous(memory_format=layout) for x in inputs])

    def compiled(**options: Any) -> Run:
        torch._dynamo.reset()
        return eager(torch.channels_last, lambda net: torch.compile(net, dynamic=False, **options))

    def tensorrt() -> Run:
        import torch_tensorrt

        def wrap(net: nn.Module) -> Any:
            return torch_tensorrt.compile(
                net, ir="dynamo", arg_inputs=[inputs[0]], enabled_precisions={place.dtype}
            )

        return eager(torch.contiguous_format, wrap)

    makers = (
        ours,
        functools.partial(eager, torch.contiguous_format),
        functools.partial(eager, torch.channels_last),
        compiled,
        functools.partial(compiled, mode="max-autotune"),
        tensorrt,
    )
    return dict(zip(CONTENDERS, makers, strict=True))


@functools.lru_cache(maxsize=1)
def stock_model(name: str) -> nn.Module:
    """In float32 on the CPU, the same every time."""
    return build("timm", name)


def model_row(
    name: str,
    size: int,
    batch: int,
    place: Place,
    wanted: Sequence[str],
    budget: Budget,
    setups: Mapping[str, float],
) -> dict[str, Any]:
    """A whole model at one batch: what each contender takes for it."""
    stock = stock_model(name)
    generator = torch.Generator().manual_seed(0)
    count = place.copies(batch * 3 * size * size * place.dtype.itemsize)
    inputs = [
        torch.randn(batch, 3, size, size, generator=generator).to(place.device, place.dtype)
        for _ in range(count)
    ]
    ends = sorted({0, batch - 1})  # of the batch: the last image lies past 2^31 elements, if any
    first = inputs[0][ends]
    with torch.no_grad():
        exact = copy.deepcopy(stock).to(place.device).double()(first.double())
        half = copy.deepcopy(stock).to(place.device, place.dtype)(first)
    bound = max(ERROR_RATIO * relative_error(half, exact), FLOORS[place.dtype])
    del half
    contenders = model_contenders(stock, inputs, place)
    outcomes = compare(
        {name: contenders[name] for name in wanted},
        lambda y: relative_error(y[ends], exact),
        bound, place.clock, SECONDS, budget, setups,
    )  # fmt: skip
    place.empty_cache()
    return {
        "model": name, "size": size, "batch": batch, "inputs": count, "bound": bound,
        "outcomes": outcome_rows(outcomes),
    }  # fmt: skip
