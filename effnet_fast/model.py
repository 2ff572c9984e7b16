"""The optimised model: an nn.Module around a network's plans, and its promises."""

from __future__ import annotations

import inspect
import itertools
import logging
import operator
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .engine import reference
from .engine.cpu import JOINS, CpuEngine, as_rank
from .engine.cpu_weights import PackedWeights
from .errors import (
    ArgumentError,
    BackendError,
    DeviceError,
    DtypeError,
    InferenceOnlyError,
    ShapeError,
    StaleWeightsError,
)
from .graph import Graph, Ref
from .network import Network, Node
from .ops.extension import extension
from .ops.registry import LIBRARY
from .plan import Plan, make_plan
from .recognise import recognise
from .report import Report
from .verify import Block

if TYPE_CHECKING:  # the GPU engine needs the compiled part, which a model can be without
    from .engine.gpu import GpuEngine, Home

    Engine = CpuEngine | GpuEngine

_log = logging.getLogger(__name__)

_PLANS_KEPT = 16  # image sizes per model; a plan is some 100 KB, its weights are shared
_LINE = 64  # bytes of a line of a cache
_CHECKSUM_SAMPLES = 64  # elements of an inference tensor that its checksum reads


class WatchedTensors:
    """The tensors that a network was made from, to notice when one changes.

    Sees replaced parameters, replaced storage and in-place writes (by version counter). Inference
    tensors have no version counter: a few sampled elements stand in. A write through ``.data`` or
    numpy that keeps the storage can't be seen.
    """

    def __init__(self, module: nn.Module, names: tuple[str, ...]):
        self._slots = []
        for name in names:
            owner, _, key = name.rpartition(".")
            owner = module.get_submodule(owner)
            for table in (owner._parameters, owner._buffers, owner.__dict__):
                if isinstance(table.get(key), torch.Tensor):
                    self._slots.append((name, table, key))
                    break
        self._tables = [table for _, table, _ in self._slots]
        self._keys = [key for _, _, key in self._slots]
        self._tensors = [table[key] for _, table, key in self._slots]
        inference = [tensor.is_inference() for tensor in self._tensors]
        self._counted = [
            t for t, unversioned in zip(self._tensors, inference, strict=True) if not unversioned
        ]
        self._sampled = [
            t for t, unversioned in zip(self._tensors, inference, strict=True) if unversioned
        ]
        self._state = self._read()
        self._lines = self._addresses()

    def _addresses(self) -> torch.Tensor | None:
        """Of the lines of memory that a look at the tensors reads first, as far as they are known.

        A network that has run left none of them in a cache, and one miss after another is what
        `check` takes: 0.5 ms of B0's 11, and 0.35 where these were asked for at once.
        """
        try:
            extension()
        except BackendError:
            return None
        objects = [(id(o), 48) for o in (*self._tables, *self._keys, *self._tensors)]
        for tensor in self._tensors:
            objects.append((getattr(tensor, "_cdata", 0), 192))  # of a c10::TensorImpl
            objects.append((getattr(tensor.untyped_storage(), "_cdata", 0), 64))
        starts = {
            line
            for address, size in objects
            for line in range(address & -_LINE, address + size, _LINE)
        }
        return torch.tensor(sorted(starts), dtype=torch.int64)

    def _read(self) -> tuple[Any, ...]:
        return (
            [id(tensor) for tensor in map(operator.getitem, self._tables, self._keys)],
            list(map(torch.Tensor.data_ptr, self._tensors)),
            [tensor._version for tensor in self._counted],
            [_checksum(tensor) for tensor in self._sampled],
        )

    def check(self) -> None:
        """Raise `StaleWeightsError` when a tensor is not what it was."""
        if self._lines is not None:
            extension().prefetch(self._lines.data_ptr(), self._lines.numel())
        try:
            if self._read() == self._state:
                return
        except KeyError:
            pass
        raise StaleWeightsError(
            f"{self._changed()} changed since the model was optimised; call refresh() to take "
            f"the new weights"
        )

    def _changed(self) -> str:
        ids, pointers, versions, sums = self._state
        counted = {id(t): v for t, v in zip(self._counted, versions, strict=True)}
        sampled = {id(t): s for t, s in zip(self._sampled, sums, strict=True)}
        for (name, table, key), old, pointer in zip(self._slots, ids, pointers, strict=True):
            now = table.get(key)
            if now is None or id(now) != old or now.data_ptr() != pointer:
                return name
            if id(now) in counted and now._version != counted[id(now)]:
                return name
            if id(now) in sampled and _checksum(now) != sampled[id(now)]:
                return name
        return "a weight"


def _checksum(tensor: torch.Tensor) -> tuple[float, ...]:
    flat = tensor.detach().flatten()
    return tuple(flat[:: max(1, flat.numel() // _CHECKSUM_SAMPLES)][:_CHECKSUM_SAMPLES].tolist())


class Fused(nn.Module):
    """One captured module, run by fused operators: a whole model, or a part of one.

    ``backend`` is "cpu", "gpu", "ptx" or "reference", ``languages`` the kernels' of a GPU, all that
    are there by default. Its tensors stay the source's; `refresh` reads them again.
    """

    def __init__(
        self,
        source: nn.Module,
        graph: Graph,
        backend: str,
        dtype: torch.dtype,
        languages: tuple[str, ...] = (),
    ):
        super().__init__()
        # Not registered as a child: the source's parameters are the owner's to list, under their
        # own names.
        self.__dict__["source"] = source
        self.graph = graph
        self.backend = backend
        self.dtype = dtype
        self.languages = languages
        self.eval()
        self._lock = threading.Lock()
        self._handle = next(_HANDLES)
        _FUSED[self._handle] = self
        self.refresh()

    def refresh(self) -> None:
        """Read the source's weights again and plan anew."""
        if hasattr(self.source, "check_file"):  # a loaded model's
            self.source.check_file()
        tensors = self.tensors()
        self.packed = PackedWeights()
        self.network = self._recognised(self.packed.take if self.backend == "cpu" else None)
        self._watch = WatchedTensors(self.source, tuple(self.graph.tensors.values()))
        self._plans: OrderedDict[tuple[int, int], tuple[Plan, Engine | None]] = OrderedDict()
        first = next((t for t in tensors.values()), None)
        self.device = torch.device("cpu") if first is None else first.device
        if self.backend in ("gpu", "ptx"):
            self.home = gpu_home(self.backend, self.device, self.languages)

    def _recognised(self, take: Callable[[Node], Node] | None = None) -> Network:
        with torch.no_grad(), torch.inference_mode(False):
            return recognise(self.graph, self.tensors(), self.dtype, take or (lambda node: node))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The source's tensors by name, those that the graph reads."""
        found = dict(self.graph.constants)
        for name in self.graph.tensors.values():
            if name not in found:
                owner, _, key = name.rpartition(".")
                found[name] = getattr(self.source.get_submodule(owner), key)
        return found

    # ---- running ---------------------------------------------------------------------------------

    def forward(self, x: torch.Tensor) -> Any:
        self._check(x)
        if torch.compiler.is_compiling():
            flat = self._traced(x)
        else:
            self._watch.check()
            flat = self.run(x)
        if self.graph.output_spec.is_leaf():
            return flat[0]
        return pytree.tree_unflatten(flat, self.graph.output_spec)

    def run(self, x: torch.Tensor) -> list[Any]:
        """The flat outputs for an image batch that was checked."""
        plan, engine = self._planned(tuple(x.shape[-2:]))
        with torch.no_grad():
            if engine is None:
                values = reference.run(plan, x, "reference")
            elif self.backend != "cpu":
                values = engine.run(x.detach())
            else:
                values = engine.run(x.detach(), torch.get_num_threads())
        return self._outputs(values)

    def _traced(self, x: torch.Tensor) -> list[Any]:
        # The flag and not is_exporting(), which torch.compile has made True before PyTorch 2.14.
        if torch.compiler._is_exporting_flag:
            # Operators with their weights: a graph that stands for itself and can be saved.
            plan = self._plan_of(self._recognised(), tuple(x.shape[-2:]))
            impl = "reference" if self.backend in ("reference", "ptx") else "auto"
            return self._outputs(reference.run(plan, x, impl))
        tensors = iter(torch.ops.effnet_fast.run_network(x, self._handle))
        return [next(tensors) if isinstance(item, Ref) else item for item in self.graph.outputs]

    def _outputs(self, values: Mapping[str, Any]) -> list[Any]:
        aliases, ranks = self.network.aliases, self.network.ranks
        return [
            as_rank(values[aliases.get(item.name, item.name)], ranks.get(item.name))
            if isinstance(item, Ref)
            else item
            for item in self.graph.outputs
        ]

    def _check(self, x: Any) -> None:
        if not isinstance(x, torch.Tensor):
            raise ArgumentError(
                f"the image batch is a {type(x).__name__}; accepted: a torch.Tensor"
            )
        channels = self.graph.channels
        if x.dim() != 4:
            raise ShapeError(
                f"the image batch has shape {tuple(x.shape)}; accepted: 4 axes, (N, {channels}, "
                f"H, W)"
            )
        if x.shape[1] != channels:
            raise ShapeError(f"the image batch has {x.shape[1]} channels; accepted: {channels}")
        if x.dtype != self.dtype:
            raise DtypeError(f"the image batch is {x.dtype}; accepted: {self.dtype}")
        if x.device != self.device:
            raise DeviceError(f"the image batch is on {x.device}; accepted: {self.device}")
        if x.requires_grad and torch.is_grad_enabled():
            raise InferenceOnlyError(
                "the image batch requires a gradient; this model is for inference only: detach "
                "it, or call under "
                "torch.no_grad()"
            )

    def plan(self, size: tuple[int, int]) -> Plan:
        """The plan for images of ``size`` (H, W), made now if there is none yet."""
        return self._planned(size)[0]

    def engine(self, size: tuple[int, int]) -> Engine | None:
        """What runs images of ``size`` (H, W); None is plain PyTorch."""
        return self._planned(size)[1]

    def _planned(self, size: tuple[int, int]) -> tuple[Plan, Engine | None]:
        with self._lock:
            entry = self._plans.get(size)
            if entry is None:
                plan = self._plan(size)
                entry = plan, self._made(plan)
                self._plans[size] = entry
                if len(self._plans) > _PLANS_KEPT:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(size)
            return entry

    def _plan(self, size: tuple[int, int]) -> Plan:
        from .engine import cpu_measure  # which knows the package's version

        plan = self._plan_of(self.network, size)
        if self.backend != "cpu" or not cpu_measure.is_on():
            return plan
        apart = cpu_measure.apart(plan, self.packed)
        return self._plan_of(self.network, size, apart) if apart else plan

    def _plan_of(
        self, network: Network, size: tuple[int, int], apart: Collection[str] = frozenset()
    ) -> Plan:
        return make_plan(network, size, apart, joins=JOINS if self.backend == "cpu" else ())

    def _made(self, plan: Plan) -> Engine | None:
        if self.backend == "cpu":
            return CpuEngine(plan, self.packed)
        if self.backend == "reference":
            return None
        from .engine.gpu import GpuEngine

        return GpuEngine(plan, self.home, self.dtype)

    @property
    def weight_bytes(self) -> int:
        """What the packed weights take."""
        return (self.packed if self.backend in ("cpu", "reference") else self.home.weights).bytes

    def plans(self) -> list[Plan]:
        """The plans made so far, the least recently used first."""
        with self._lock:
            return [plan for plan, _ in self._plans.values()]

    def profile(self, x: torch.Tensor) -> list[tuple[Any, float]]:
        """The native steps with their seconds for one batch; CPU backend only."""
        self._check(x)
        _, engine = self._planned(tuple(x.shape[-2:]))
        if self.backend != "cpu":
            raise ArgumentError(f"backend is {self.backend!r}; accepted by profile: 'cpu'")
        return engine.profile(x, torch.get_num_threads())

    def blocks(self, x: torch.Tensor) -> list[Block]:
        """What each block of the network leaves, for an image batch; GPU backends only.

        The error is against the same network in float64, on the CPU.
        """
        self._check(x)
        size = tuple(x.shape[-2:])
        plan, engine = self._planned(size)
        ends = [step for step in plan.steps if step.operator in ("pointwise_conv", "fused_mbconv")]
        names = [step.nodes[-1].name for step in ends]
        with torch.no_grad():
            found = engine.traced(names).run(x.detach())
            wide = recognise(self.graph, self.tensors(), torch.float64)
            exact = reference.run(make_plan(wide, size), x.double())
            return [Block.of(name, plan.sizes[name], found[name], exact[name]) for name in names]

    # ---- copies ----------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        self._watch.check()  # a copy would take the changed weights without a word
        kept = ("source", "graph", "backend", "dtype", "languages")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def gpu_home(backend: str, device: torch.device, languages: tuple[str, ...] = ()) -> Home:
    """The GPU that a device of torch's is, or the PTX machine.

    Raises
    ------
    BackendError
        There is no usable driver or device, or no kernels.
    """
    extension()  # or the reason why it is not there
    from .engine.gpu import Home
    from .gpu.device import Device

    index = device.index or 0
    there = Device("ptx") if backend == "ptx" else Device("cuda", index)
    return Home.on(there, device, languages)


_HANDLES = itertools.count()
_FUSED: weakref.WeakValueDictionary[int, Fused] = weakref.WeakValueDictionary()


def _run_network(x: torch.Tensor, handle: int) -> list[torch.Tensor]:
    fused = _FUSED[handle]
    fused._watch.check()
    return [out for out in fused.run(x) if isinstance(out, torch.Tensor)]


def _run_network_fake(x: torch.Tensor, handle: int) -> list[torch.Tensor]:
    fused = _FUSED[handle]
    network = fused.network
    # Sizes are all that is needed, and nothing can be measured on tensors without memory.
    plan = fused._plan_of(network, tuple(int(edge) for edge in x.shape[-2:]))
    outputs = []
    for item in fused.graph.outputs:
        if isinstance(item, Ref):
            c, h, w = plan.sizes[network.aliases.get(item.name, item.name)]
            rank = network.ranks[item.name]
            y = x.new_empty((x.shape[0], h, w, c)).permute(0, 3, 1, 2) if h * w > 1 else None
            outputs.append(x.new_empty((x.shape[0], c, 1, 1)[:rank]) if y is None else y)
    return outputs


LIBRARY.define("run_network(Tensor x, int handle) -> Tensor[]", tags=torch.Tag.pt2_compliant_tag)
LIBRARY.impl("run_network", _run_network, "CompositeExplicitAutograd")
torch.library.register_fake("effnet_fast::run_network", _run_network_fake, lib=LIBRARY)


class OptimizedModel(nn.Module):
    """What `optimize` returns: the original's answers and signature, from fused kernels.

    Attributes
    ----------
    original : the user's model, untouched; its weights are the ones that `refresh` reads.
    report : what was fused, what not and why, and the measured error.
    """

    def __init__(self, original: nn.Module, body: nn.Module, argument: str, report: Report):
        super().__init__()
        # The original is no child: state_dict() has its keys without a prefix, and .to() can't move
        # it.
        self.__dict__["original"] = original
        self.__dict__["_body"] = body
        self._argument = argument
        self.report = report
        super().train(False)

    def forward(self, x: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """The original's answer for an image batch, given as the original takes it.

        The first argument has a name here so that ``torch.export``'s ``dynamic_shapes=({0:
        batch},)`` fits.
        """
        body = self._body
        if isinstance(body, Fused) and x is not None and not args and not kwargs:
            return body.forward(x)
        if x is not None:
            args = (x, *args)
        return body(self._image(args, kwargs)) if isinstance(body, Fused) else body(*args, **kwargs)

    def _image(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The image batch of a call; its other arguments must be as they were captured."""
        try:
            bound = inspect.signature(self.original.forward).bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(f"{type(self.original).__name__}: {error}") from None
        given = dict(bound.arguments)
        for parameter in bound.signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                given.update(given.pop(parameter.name, {}))
        if self._argument not in given:
            raise ArgumentError(
                f"{self._argument} is missing; accepted: an image batch (N, C, H, W)"
            )
        for name, value in given.items():
            parameter = bound.signature.parameters.get(name)
            default = (
                None
                if parameter is None or parameter.default is parameter.empty
                else parameter.default
            )
            if name != self._argument and value is not default and value != default:
                raise ArgumentError(
                    f"{name} is {value!r}; accepted: {default!r}, the value that the model was "
                    f"captured with"
                )
        return given[self._argument]

    def parts(self) -> list[Fused]:
        """The captured parts: the whole model, or several with stock modules between them."""
        if isinstance(self._body, Fused):
            return [self._body]
        return [module for module in self._body.modules() if isinstance(module, Fused)]

    def refresh(self) -> None:
        """Read the original's weights again, after a change; sizes are planned anew."""
        for part in self.parts():
            part.refresh()

    def plan(self, size: tuple[int, int]) -> Plan:
        """The plan for images of ``size`` (H, W); of the first part when there are several."""
        return self.parts()[0].plan(size)

    def save(self, path: str | Path) -> None:
        """Write the model to a file that `effnet_fast.load` reads, without the classes that made
        it.

        Raises
        ------
        CaptureError : stock modules stand between the fused parts; pickle the model instead.
        """
        from .serialize import save

        save(self, path)

    # ---- what an nn.Module is asked --------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The original's, with its keys."""
        return self.original.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load into the original, then `refresh`."""
        result = self.original.load_state_dict(*args, **kwargs)
        self.refresh()
        return result

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The original's, for those who ask for a dtype, a device or a count.

        named_parameters() stays empty: torch.export looks up in this module what that names.
        """
        return self.original.parameters(recurse)

    def train(self, mode: bool = True) -> OptimizedModel:
        """Inference only: ``train(False)`` and ``eval()`` do nothing, ``train()`` is refused."""
        if mode:
            raise InferenceOnlyError(
                "train() on an optimised model; accepted: eval(). Train the original and call "
                "refresh()"
            )
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> OptimizedModel:
        raise InferenceOnlyError(
            "an optimised model can't be moved or converted (to, cuda, half, ...); convert the "
            "original and optimise it"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {
            "original": self.original,
            "body": self._body,
            "argument": self._argument,
            "report": self.report,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["original"], state["body"], state["argument"], state["report"])

    def extra_repr(self) -> str:
        return str(self.report)
