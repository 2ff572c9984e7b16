"""A network's layers on a GPU: the ways to do each, beside PyTorch's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..engine.gpu import GpuEngine, Home
from ..engine.gpu_tasks import Choice, Option, Spec, Weights
from ..gpu.tensor import DeviceTensor
from ..verify import FLOORS, relative_error
from .gpu_models import ERROR_RATIO, SECONDS, Place
from .harness import Budget, Run, compare, outcome_rows
from .stock import stock_steps, widened


@dataclass(frozen=True, eq=False)
class Layer:
    """Steps of a network that are done together: one of those that are alike.

    Attributes
    ----------
    specs : of all values that they, and ways to do them, read and make.
    repeats : how many are like it.
    """

    engine: GpuEngine
    choice: Choice
    specs: Mapping[str, Spec]
    repeats: int

    @property
    def name(self) -> str:
        step = self.choice.steps[-1]
        first, last = self.choice.steps[0].nodes[0], step.nodes[-1]
        sizes = self.engine.plan.sizes
        into, out = (
            "x".join(map(str, sizes[self.engine.plan.network.aliases.get(name, name)]))
            for name in (getattr(first, "x", None) or first.of, last.name)
        )
        operators = " + ".join(step.operator for step in self.choice.steps)
        window = next((s.window for s in reversed(self.choice.steps) if s.window), None)
        cut = f" k{window.kernel[0]} s{window.stride[0]}" if window is not None else ""
        return f"{operators}{cut} {into} -> {out}{_extras(last)}"


def _extras(node: Any) -> str:
    found = [name for name in ("gate", "residual", "sums", "pool") if getattr(node, name, None)]
    return f" ({', '.join(found)})" if found and not hasattr(node, "w1") else ""


def layers(engine: GpuEngine, batch: int) -> list[Layer]:
    """Those of a network that differ."""
    found: dict[str, list[Layer]] = {}
    for choices, specs in engine.lowered(batch):
        for choice in choices:
            layer = Layer(engine, choice, specs, 1)
            found.setdefault(layer.name, []).append(layer)
    return [Layer(engine, same[0].choice, same[0].specs, len(same)) for same in found.values()]


class LayerBench:
    """A layer's operands, and its contenders.

    Operands lie where the last run left them, as in a network.
    """

    def __init__(self, layer: Layer, batch: int, place: Place):
        self.layer, self.batch, self.place = layer, batch, place
        self.home: Home = layer.engine.home
        self.steps = layer.choice.steps
        inner = {name for step in self.steps for name in step.makes()}
        aliases = layer.engine.plan.network.aliases
        self.reads = {
            name: aliases.get(name, name)
            for step in self.steps
            for name in step.reads()
            if name not in inner
        }
        self.inputs = {
            name: self.home.random(layer.specs[name], batch) for name in set(self.reads.values())
        }

    def contenders(self) -> dict[str, Callable[[], Run]]:
        """Ways of the package, and PyTorch's."""
        ours = {
            f"effnet_fast: {name}": functools.partial(self.option, option)
            for name, option in named_options(self.layer.choice.options)
        }
        return ours | {
            "eager": functools.partial(self.stock, torch.contiguous_format),
            "channels_last": functools.partial(self.stock, torch.channels_last),
            "compile": functools.partial(self.compiled),
            "compile max-autotune": functools.partial(
                self.compiled, mode="max-autotune-no-cudagraphs"
            ),
        }

    def option(self, option: Option) -> Run:
        home, specs = self.home, {**self.layer.specs, **option.specs}
        names = {name for task in option.tasks for name in (*task.reads, *task.writes)}
        values = {
            name: self.inputs.get(name) or home.random(specs[name], self.batch) for name in names
        }
        with home.lock:
            weights = Weights(home.keep)
            launches = [task.make(home.device, values, weights) for task in option.tasks]
        graph = home.device.capture(launches)

        def run() -> Any:
            graph.launch(home.stream())
            return values, weights  # which live as long as the graph is launched

        return run

    def stock(self, layout: torch.memory_format, wrap: Callable[[Any], Any] = lambda f: f) -> Run:
        function = wrap(stock_steps(self.steps))
        values = self.values(layout)

        def run() -> tuple[torch.Tensor, ...]:
            with torch.inference_mode():
                return function(values)

        return run if self.home.emulated else _replayed(run)

    def compiled(self, **options: Any) -> Run:
        torch._dynamo.reset()
        return self.stock(torch.channels_last, lambda f: torch.compile(f, dynamic=False, **options))

    def values(self, layout: torch.memory_format) -> dict[str, torch.Tensor]:
        """The inputs as PyTorch takes them: totals in the place of sums."""
        found = {}
        for name, at in self.reads.items():
            x = self.home.fetch(self.inputs[at])
            if x.dim() == 4:
                x = x.contiguous(memory_format=layout)
            elif x.dim() == 3:
                x = x.sum(1)
            found[name] = x
        return found

    @functools.cached_property
    def exact(self) -> tuple[torch.Tensor, ...]:
        """What the steps make, in float64."""
        values = {n: x.double() for n, x in self.values(torch.contiguous_format).items()}
        return stock_steps([widened(step) for step in self.steps])(values)

    def error(self, result: Any) -> float:
        """The largest of the outputs', of an option or of PyTorch."""
        if isinstance(result[0], dict):
            values, _ = result
            self.home.device.synchronize()
            result = [self._fetched(values, name) for name in self.steps[-1].makes()]
        pairs = zip(result, self.exact, strict=True)
        return max(relative_error(y.reshape(e.shape), e) for y, e in pairs)

    def _fetched(self, values: Mapping[str, DeviceTensor], name: str) -> torch.Tensor:
        y = self.home.fetch(values[name])
        return y.double().sum(1) if y.dim() == 3 else y


def named_options(options: Sequence[Option]) -> Iterator[tuple[str, Option]]:
    """Options under names of their own."""
    seen: dict[str, int] = {}
    for option in options:
        languages = dict.fromkeys(task.language for task in option.tasks)
        name = f"{option.name.partition(' (')[0]} ({', '.join(languages)})"
        seen[name] = seen.get(name, 0) + 1
        yield name + (f" #{seen[name]}" if seen[name] > 1 else ""), option


def _replayed(run: Run) -> Run:
    """From a graph, as ours are: else the host's overhead is what is timed."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def layer_row(
    layer: Layer, batch: int, place: Place, wanted: Sequence[str], budget: Budget
) -> dict:
    """What each contender takes for a layer."""
    bench = LayerBench(layer, batch, place)
    contenders = {
        name: make for name, make in bench.contenders().items() if name.partition(":")[0] in wanted
    }
    outcomes = compare(
        contenders, bench.error, _layer_bound(bench), place.clock, SECONDS / 4, budget
    )
    place.empty_cache()
    chosen = layer.choice.options[0]
    return {
        "layer": layer.name, "batch": batch, "repeats": layer.repeats,
        "planned_bytes": sum(task.bytes for task in chosen.tasks),
        "modelled_seconds": chosen.seconds,
        "outcomes": outcome_rows(outcomes),
    }  # fmt: skip


def _layer_bound(bench: LayerBench) -> float:
    with torch.no_grad():
        run = stock_steps(bench.steps)
        stock = bench.error(run(bench.values(torch.contiguous_format)))
    return max(ERROR_RATIO * stock, FLOORS[bench.place.dtype])
