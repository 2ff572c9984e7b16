"""The one call: capture, recognise, plan, verify, report."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from . import graph_cache
from .capture import capture, device_of, image_argument, image_channels, native_size
from .errors import (
    ArgumentError,
    BackendError,
    CaptureError,
    DeviceError,
    DtypeError,
    FallbackError,
    ModelError,
    ParityError,
    ShapeError,
    WeightsError,
)
from .graph import Graph, run_graph
from .memory import trim, watched
from .model import Fused, OptimizedModel, gpu_home
from .ops.extension import extension
from .partial import Parts, capture_parts
from .report import Report, count_operators, fused_share
from .verify import CAPTURE_FACTOR, FLOORS, Block, Parity, Tally, check_capture

_log = logging.getLogger(__name__)

BACKENDS = ("auto", "cpu", "gpu", "ptx", "reference")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Neither a capture size nor square: on the way down to stride 32 its maps are odd and even in each
# axis.
_VERIFY_SIZE = (97, 131)


def optimize(
    model: nn.Module,
    *,
    example_input: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: str = "auto",
    verify: bool = True,
    strict: bool = False,
) -> OptimizedModel:
    """An EfficientNet, from any source, that gives the same answers much faster.

    Parameters
    ----------
    model : nn.Module
        In eval mode; it stays untouched. Its forward takes an image batch (N, C, H, W) as its first
        argument.
    example_input : Tensor, optional
        An image batch of the kind that the model will see: verified in addition, and its size is
        used where the model works at one size only.
    dtype : torch.dtype, optional
        To compute in; by default the model's. The CPU engine computes in
        float32, the GPU engine in float32, float16 and bfloat16.
    device : optional
        By default the model's.
    backend : str
        "auto": the fastest that this machine and dtype have, any fallback reported; "cpu";
        "gpu": a model on a CUDA device; "ptx": the GPU engine on the PTX machine, which executes
        the same kernels on the CPU, for testing; "reference": plain PyTorch.
    verify : bool
        Compare with the original on random images before returning.
    strict : bool
        Raise instead of leaving any part of the model to PyTorch.

    Returns
    -------
    OptimizedModel
        Same signature, same output type; ``report`` says what was done.

    Raises
    ------
    ModelError, WeightsError : no CNN, in train mode, NaN or infinite weights.
    DtypeError, DeviceError, BackendError, ArgumentError : what was asked for can't be had here.
    CaptureError : no part of the model can be captured.
    FallbackError : with ``strict``, when a part is not fused.
    ParityError : the numbers differ by more than the bounds in `effnet_fast.verify` allow.
    """
    with watched() as peak:
        optimized = _optimized(model, example_input, dtype, device, backend, verify, strict)
        trim()
    optimized.report = replace(optimized.report, peak_bytes=peak.bytes)
    return optimized


def _optimized(
    model: nn.Module,
    example_input: torch.Tensor | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    backend: str,
    verify: bool,
    strict: bool,
) -> OptimizedModel:
    _check_model(model)
    dtype, engine, notes = _choose(model, dtype, device, backend)
    channels = image_channels(model)
    _check_example(example_input, channels, dtype)
    if example_input is not None:
        example_input = example_input.detach().to(device_of(model))
    make = partial(_made, model, example_input, dtype, engine, notes, verify, strict)
    # A graph of the cache is one only if it is verified, as one must be to get there.
    key = None
    if verify and graph_cache.is_on():
        size = None if example_input is None else tuple(example_input.shape[-2:])
        key = graph_cache.key_of(model, size, channels, _dtype_of(model))
    known = None if key is None else graph_cache.read(key)
    if known is not None:
        try:
            return make(known)
        except Exception as error:
            # A graph of another model may lead to anything; this model's own errors come again.
            _log.info("%s is captured anew: %s", type(model).__name__, error)
    optimized = make(None)
    if key is not None and isinstance(optimized._body, Fused):
        graph_cache.write(key, optimized._body.graph)
    return optimized


def _made(
    model: nn.Module,
    example_input: torch.Tensor | None,
    dtype: torch.dtype,
    engine: str,
    notes: tuple[str, ...],
    verify: bool,
    strict: bool,
    known: Graph | None,
) -> OptimizedModel:
    """What `optimize` returns, from a graph that is known or from one that is captured now."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    channels = image_channels(model)
    size = None if example_input is None else tuple(example_input.shape[-2:])

    def fuse(source: nn.Module, graph: Graph) -> Fused:
        return Fused(source, graph, engine, dtype)

    parts: Parts | None = None
    model_dtype = _dtype_of(model)
    try:
        with timed("capture"):
            graph = known or capture(model, size=size, channels=channels, dtype=model_dtype)
        with timed("recognise"):
            body: nn.Module = fuse(model, graph)
    except CaptureError as error:
        with timed("capture"):
            parts = capture_parts(model, error, fuse, example=example_input, dtype=model_dtype)
        body = parts.body
        notes += parts.left
    optimized = OptimizedModel(model, body, image_argument(model), _NO_REPORT)
    fused = optimized.parts()
    notes += tuple(reason for part in fused for reason in part.network.reasons())
    notes = tuple(dict.fromkeys(notes))
    for note in notes:
        _log.warning("%s: not fused: %s", type(model).__name__, note)
    if strict and notes:
        raise FallbackError(
            f"{type(model).__name__}: not everything is fused, and strict=True: " + "; ".join(notes)
        )
    plans = []
    if parts is None:
        with timed("plan"):
            plans = [body.plan(body.graph.locked or size or native_size(model))]
    parity: list[Parity] = []
    blocks: list[Block] = []
    if verify:
        with timed("verify"):
            parity = list(_verified(optimized, model, example_input, dtype, channels))
            if parts is None and _is_half_on_gpu(body):
                generator = torch.Generator().manual_seed(0)
                x = torch.randn(1, channels, *_verify_size(graph), generator=generator)
                blocks = body.blocks(x.to(body.device, dtype))
                for block in blocks:
                    if block.overflows:
                        _log.warning("%s: %s", type(model).__name__, block.overflow(dtype))
    optimized.report = Report(
        model=type(model).__name__,
        backend=engine,
        instruction_set=_hardware(engine, fused),
        dtype=str(dtype).removeprefix("torch."),
        fused_share=fused_share(
            (part.network for part in fused), parts.unfused_macs if parts else 0
        ),
        operators=count_operators(plans or [p for part in fused for p in part.plans()]),
        fallbacks=notes,
        locked=body.graph.locked if parts is None else None,
        parts=parts.captured if parts else (),
        parity=tuple(parity),
        blocks=tuple(blocks),
        weight_bytes=sum(part.weight_bytes for part in fused),
        seconds=seconds,
    )
    return optimized


def _hardware(engine: str, parts: list[Fused]) -> str:
    if engine == "cpu":
        return extension().isa()
    return "" if engine == "reference" else str(parts[0].home)


_NO_REPORT = Report("", "", "", "", 0.0, {}, (), None)


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; accepted: a torch.nn.Module")
    if isinstance(model, OptimizedModel):
        raise ArgumentError(
            "model is optimised already; accepted: the original, which is model.original"
        )
    image_channels(model)
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        raise ModelError(
            f"model: {len(training)} modules are in train mode ({training[0]} first); accepted: "
            "eval mode, model.eval()"
        )
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            if tensor.is_meta:
                raise WeightsError(f"{kind} {name} is on the meta device and has no values")
            # A sum is finite only if every element is, and needs no tensor of flags; a sum that
            # overflows is looked at.
            if tensor.is_floating_point() and not (
                torch.isfinite(tensor.detach().sum()) or torch.isfinite(tensor).all()
            ):
                raise WeightsError(f"{kind} {name} holds NaN or infinity; accepted: finite weights")


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _choose(
    model: nn.Module, dtype: torch.dtype | None, device: Any, backend: str
) -> tuple[torch.dtype, str, tuple[str, ...]]:
    """The dtype and engine, with a note for each fallback."""
    if backend not in BACKENDS:
        raise ArgumentError(f"backend is {backend!r}; accepted: {', '.join(map(repr, BACKENDS))}")
    home = device_of(model)
    device = home if device is None else torch.device(device)
    if device.type != home.type:
        raise DeviceError(
            f"device is {device} and the model is on {home}; accepted: the model's device"
        )
    dtype = _dtype_of(model) if dtype is None else dtype
    if dtype not in _DTYPES:
        raise DtypeError(f"dtype is {dtype}; accepted: {', '.join(map(str, _DTYPES))}")
    if backend == "reference":
        return dtype, "reference", ()
    if backend in ("gpu", "ptx"):
        _check_gpu(backend, device, dtype)
        return dtype, backend, ()
    if device.type == "cuda" and backend == "auto":
        try:
            _check_gpu("gpu", device, dtype)
        except (BackendError, DtypeError) as error:
            return dtype, "reference", (f"everything runs in plain PyTorch: {error}",)
        return dtype, "gpu", ()
    reason = None
    if device.type != "cpu":
        reason = f"the model is on {device}, and there is no engine for that"
        if backend == "cpu":
            raise DeviceError(f"{reason}; accepted by backend='cpu': a model on the cpu")
    elif dtype != torch.float32:
        reason = f"the CPU engine computes in float32, not {dtype}"
        if backend == "cpu":
            raise DtypeError(f"{reason}; pass dtype=torch.float32, or backend='reference'")
    else:
        extension()  # BackendError when it is not built
        return dtype, "cpu", ()
    return dtype, "reference", (f"everything runs in plain PyTorch: {reason}",)


def _check_gpu(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise a typed error where the GPU engine cannot run."""
    if dtype == torch.float64:
        raise DtypeError(
            f"dtype is {dtype}; accepted by the GPU engine: torch.float32, torch.float16, "
            "torch.bfloat16"
        )
    if backend == "gpu" and torch.version.cuda is None:
        raise BackendError(
            f"backend is 'gpu', and this PyTorch ({torch.__version__}) is built without CUDA"
        )
    gpu_home(backend, device if device.type == "cuda" else torch.device("cpu"))
    wanted = "cuda" if backend == "gpu" else "cpu"
    if device.type != wanted:
        raise DeviceError(
            f"the model is on {device}; accepted by backend={backend!r}: a model on {wanted}"
        )


def _check_example(example: Any, channels: int, dtype: torch.dtype) -> None:
    if example is None:
        return
    if not isinstance(example, torch.Tensor):
        raise ArgumentError(
            f"example_input is a {type(example).__name__}; accepted: a torch.Tensor"
        )
    if example.dim() != 4 or example.shape[1] != channels:
        raise ShapeError(
            f"example_input has shape {tuple(example.shape)}; accepted: (N, {channels}, H, W)"
        )
    if example.dtype != dtype:
        raise DtypeError(f"example_input is {example.dtype}; accepted: {dtype}")


# Batches of random images to look at before an error is called one: see verify.Tally.
_MOST_BATCHES = 12


def _verify_size(graph: Graph) -> tuple[int, int]:
    if graph.locked:
        return graph.locked
    return tuple(edge + graph.sizes[0][0] - 64 for edge in _VERIFY_SIZE)


def _is_half_on_gpu(part: Fused) -> bool:
    return part.backend in ("gpu", "ptx") and part.dtype in (torch.float16, torch.bfloat16)


def _verified(
    optimized: OptimizedModel,
    model: nn.Module,
    example: torch.Tensor | None,
    dtype: torch.dtype,
    channels: int,
) -> Iterator[Parity]:
    """Compare on random images of a size that was not captured, and on the example."""
    body = optimized._body
    whole = body.graph if isinstance(body, Fused) else None
    size = native_size(model) if whole is None else _verify_size(whole)
    device = device_of(model)
    generator = torch.Generator().manual_seed(0)
    # Without a graph of the whole, a float64 copy of the model is the exact one.
    double = None if whole else copy.deepcopy(model).double()

    def overflows(x: torch.Tensor) -> str:
        """The blocks that do: mostly the reason why a half-precision model differs."""
        if whole is None or not _is_half_on_gpu(body):
            return ""
        found = [block.overflow(dtype) for block in body.blocks(x) if block.overflows]
        return "".join(f"; {reason}" for reason in found)

    def settle(shape: torch.Size, first: torch.Tensor | None = None) -> Parity:
        tally = Tally(dtype)
        for index in range(_MOST_BATCHES):
            x = first
            if x is None or index:
                x = torch.randn(shape, generator=generator).to(device, dtype)
            with torch.no_grad():
                fast = pytree.tree_leaves(optimized(x))
                if whole is None:
                    stock, exact = pytree.tree_leaves(model(x)), double(x.double())
                else:
                    exact = run_graph(whole, x.double(), body.tensors())
                    stock = (
                        pytree.tree_leaves(model(x))
                        if dtype == _dtype_of(model)
                        else run_graph(whole, x, body.tensors())
                    )
            parity = tally.add(fast, stock, pytree.tree_leaves(exact), tuple(shape))
            if whole is not None and not parity.stock_error <= CAPTURE_FACTOR * FLOORS[dtype]:
                try:
                    with torch.no_grad():
                        check_capture(stock, run_graph(whole, x, body.tensors()), parity)
                except ParityError as error:
                    raise ParityError(f"{error}{overflows(x)}") from error
            if parity.holds:
                return parity
        raise ParityError(f"the optimised model differs from the original: {parity}{overflows(x)}")

    yield settle(torch.Size((2, channels, *size)))
    if example is not None and len(example):
        yield settle(example.shape, example)
