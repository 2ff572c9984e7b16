"""From a module to a graph: torch.export at two image sizes, made functional, merged into one that
holds for all.

Two sizes because one can't tell SAME padding from a constant one: both are baked into the exported
graph as numbers, and at an even size they look alike. The sizes differ in parity at every stride
(64, 32, 16, ... against 65, 33, 17, ...); numbers that agree are constants, paddings that follow
SAME's formula in both are SAME, and a graph whose other numbers differ holds for its own size only.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from .errors import CaptureError, ModelError
from .graph import Call, Graph, Ref, function, refs, target_name
from .network import Window

_log = logging.getLogger(__name__)

_CAPTURE_SIZE = (
    64  # every stride-2 map of it is even down to 2 x 2, every one of 65 is odd down to 3 x 3
)


def capture(
    model: nn.Module,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Graph:
    """Capture a module whose only required argument is an image batch (N, C, H, W).

    Parameters
    ----------
    model : in eval mode; it is not changed, and its parameters are not copied.
    size : (H, W) to lock the graph to when no pair of sizes works; by default the size the model
        says it is for.
    channels : the image's channels; by default those of the first convolution.

    Raises
    ------
    CaptureError : the forward pass can't be exported (Python control flow on data, hooks,
        data-dependent shapes, writes into views); the message carries torch.export's own.
    """
    hooked = modules_with_hooks(model)
    if hooked:
        raise CaptureError(
            f"forward hooks on {', '.join(hooked)} would run once, at capture, and never again"
        )
    channels = channels or image_channels(model)
    native = size or native_size(model)
    first_error = None
    base = max(64, native[0] // 64 * 64)
    for edge in dict.fromkeys((_CAPTURE_SIZE, base)):
        try:
            pair = [_export(model, channels, (edge + odd, edge + odd), dtype) for odd in (0, 1)]
            return _merge(*pair)
        except _SizeDependent as error:
            _log.info("capture: %s; locking the graph to %dx%d", error, *native)
            break
        except CaptureError as error:
            first_error = first_error or error
    try:
        return _single(_export(model, channels, native, dtype))
    except CaptureError as error:
        raise (first_error or error) from None


def modules_with_hooks(model: nn.Module) -> list[str]:
    """Names of the modules that carry forward hooks or forward pre-hooks."""
    return [
        name or "the model itself" for name, module in model.named_modules() if has_hooks(module)
    ]


def has_hooks(module: nn.Module) -> bool:
    """Whether the module itself carries a forward hook or forward pre-hook."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def image_channels(model: nn.Module) -> int:
    """Input channels of the first convolution, in the order of registration."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise ModelError(f"model: {type(model).__name__} has no Conv2d, so it is no image CNN")


def native_size(model: nn.Module) -> tuple[int, int]:
    """The (H, W) that the model's own configuration names, else 224 x 224."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    if isinstance(config, Mapping) and config.get("input_size"):
        return tuple(config["input_size"][-2:])
    for holder, name in (("config", "image_size"), ("_global_params", "image_size")):
        edge = getattr(getattr(model, holder, None), name, None)
        if isinstance(edge, int):
            return edge, edge
        if isinstance(edge, list | tuple) and len(edge) == 2:
            return tuple(edge)
    return 224, 224


# ---- one export, made functional -----------------------------------------------------------------


class _SizeDependent(CaptureError):
    """Numbers in the graph follow the image size in a way that is not understood."""


@dataclass(frozen=True)
class _Export:
    """One export, functional: the shapes and numbers in it hold for its own image size."""

    input: str
    calls: tuple[Call, ...]
    outputs: tuple[Any, ...]
    output_spec: Any
    tensors: Mapping[str, str]
    constants: Mapping[str, torch.Tensor]
    shapes: Mapping[str, tuple[int | None, ...]]
    size: tuple[int, int]
    channels: int


def copy_structure(model: nn.Module, device: torch.device | None = None) -> nn.Module:
    """A copy of the module tree that shares the tensors: tracing may set attributes on modules,
    never on the user's.

    Inference tensors can't be traced, so fresh ones of the same shape stand in for them, and for
    all that lie on another device than the one asked for. Tensors that are neither parameters nor
    buffers are copied with their values, for a graph may hold them.
    """
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        home = device or tensor.device
        if not tensor.is_inference() and tensor.device == home:
            memo[id(tensor)] = tensor
            continue
        twin = torch.empty_like(tensor, device=home)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(twin, requires_grad=False) if is_parameter else twin
    if device is not None:
        for module in model.modules():
            for value in vars(module).values():
                if isinstance(value, torch.Tensor) and value.device != device:
                    memo[id(value)] = value.detach().to(device)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise CaptureError(
            f"the model can't be deep-copied ({type(error).__name__}: {error})"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and log lines from torch.export: our own error carries what matters."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _export(model: nn.Module, channels: int, size: tuple[int, int], dtype: torch.dtype) -> _Export:
    """Traced on the CPU, wherever the model is: cuDNN's convolutions bound the batch and keep their
    layouts in the graph. Only a forward that names a device itself is traced on the model's.
    """
    home = device_of(model)
    cpu = torch.device("cpu")
    try:
        program = _traced(model, channels, size, dtype, cpu)
    except CaptureError as error:
        if home == cpu:
            raise
        try:
            program = _traced(model, channels, size, dtype, home)
        except CaptureError:
            raise error from None
    return _functional(program, size, channels, home)


def device_of(model: nn.Module) -> torch.device:
    """Where its first parameter or buffer is."""
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


# PyTorch's bound of a batch for cuDNN: a trace on a GPU is guarded by it.
_CUDNN_BATCH = 65535


def _traced(
    model: nn.Module,
    channels: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> torch.export.ExportedProgram:
    with torch.inference_mode(False):
        # Batch 2: an example batch of 1 would be specialised.
        image = torch.zeros(2, channels, *size, dtype=dtype, device=device)
        skeleton = copy_structure(model, device)
        name = image_argument(model)
        most = None if device.type == "cpu" else _CUDNN_BATCH
        shapes = {name: {0: torch.export.Dim("batch", min=0, max=most)}}
        try:
            with _quiet(), torch.no_grad():
                return torch.export.export(
                    skeleton, (), {name: image}, dynamic_shapes=shapes, strict=False
                )
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            raise CaptureError(
                f"torch.export failed at {size[0]}x{size[1]}: {type(error).__name__}: {first_line}"
            ) from error


def image_argument(model: nn.Module) -> str:
    """The name of forward's image argument: its first one."""
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            return parameter.name
    raise CaptureError(f"{type(model).__name__}.forward names no argument for the image")


# Results share memory with their first argument: writing into one would change the other.
_VIEW_NAMES = """
    view reshape flatten unflatten transpose permute expand expand_as slice select split
    split_with_sizes chunk unbind squeeze unsqueeze narrow detach alias t movedim swapaxes
    contiguous to
"""
_VIEWS = frozenset(f"aten.{name}" for name in _VIEW_NAMES.split())
_DROPOUTS = frozenset(
    f"aten.{name}{suffix}"
    for name in ("dropout", "feature_dropout", "alpha_dropout")
    for suffix in ("", "_")
)
_CHECKS = frozenset(
    {
        "aten._assert_tensor_metadata",
        "aten._assert_scalar",
        "aten._assert_async",
        "aten.sym_constrain_range",
    }
)


def _functional(
    program: torch.export.ExportedProgram,
    size: tuple[int, int],
    channels: int,
    home: torch.device,
) -> _Export:
    """The exported graph as functional calls: a write makes a value that later reads see.

    ``home`` is where the model is, and so its constants.
    """
    signature = program.graph_signature
    tensors: dict[str, str] = {}
    constants: dict[str, torch.Tensor] = {}
    image = ""
    for spec in signature.input_specs:
        if spec.kind is torch.export.graph_signature.InputKind.USER_INPUT:
            image = image or spec.arg.name
        else:
            tensors[spec.arg.name] = spec.target
            if spec.kind is torch.export.graph_signature.InputKind.CONSTANT_TENSOR:
                constants[spec.target] = program.constants[spec.target].to(home)
    if not all(
        spec.kind is torch.export.graph_signature.OutputKind.USER_OUTPUT
        for spec in signature.output_specs
    ):
        raise CaptureError(
            "the forward pass writes into its input or its own parameters or buffers"
        )

    current: dict[torch.fx.Node, Any] = {}  # what a read of this node sees now
    shared: dict[torch.fx.Node, torch.fx.Node] = {}  # view to the value whose memory it shares
    viewed: set[torch.fx.Node] = set()  # values that have views
    shapes: dict[str, tuple[int | None, ...]] = {}
    calls: list[Call] = []

    def value(arg: Any) -> Any:
        if isinstance(arg, torch.fx.Node):
            return current[arg]
        if isinstance(arg, list | tuple):
            return tuple(value(item) for item in arg)
        if isinstance(arg, torch.SymInt | torch.SymFloat | torch.SymBool):
            raise CaptureError(f"a symbolic number is baked into the graph: {arg}")
        return arg

    for node in program.graph.nodes:
        if node.op == "placeholder":
            current[node] = Ref(node.name)
            if (shape := _shape(node)) is not None:
                shapes[node.name] = shape
            continue
        if node.op != "call_function":
            if node.op == "output":
                outputs = value(node.args[0])
                continue
            raise CaptureError(f"the graph holds a {node.op} node ({node.target})")
        target = target_name(node.target)
        if target is None:
            raise CaptureError(
                f"the graph calls {node.target}, which is neither ATen nor arithmetic"
            )
        call = Call(
            node.name,
            target,
            value(node.args),
            {k: value(v) for k, v in node.kwargs.items()},
            _shape(node),
        )
        if call.op in _CHECKS:
            continue
        first = node.args[0] if node.args and isinstance(node.args[0], torch.fx.Node) else None
        in_place = (
            target.startswith("aten.") and call.op.endswith("_") and not call.op.endswith("__")
        )
        if call.op in _DROPOUTS and call.args[2:3] == (False,):
            current[node] = current[first]
            shared[node] = shared.get(first, first)
            continue
        if in_place:
            if first.op == "placeholder":
                raise CaptureError(f"{target} writes into {first.name}")
            if first in shared or first in viewed:
                raise CaptureError(
                    f"{target} writes into a tensor that shares its memory with a view"
                )
            call = replace(call, target=target.replace(call.op, call.op[:-1], 1))
            try:
                function(call.target)
            except (KeyError, AttributeError):
                raise CaptureError(f"{target} has no functional form") from None
            current[first] = Ref(node.name)
        elif call.op in _VIEWS and first is not None:
            root = shared.get(first, first)
            shared[node] = root
            viewed.add(root)
        elif target == "operator.getitem" and first in shared:
            shared[node] = shared[first]
        calls.append(call)
        current[node] = Ref(node.name)
        if call.shape is not None:
            shapes[call.name] = call.shape
    live = _live(calls, outputs)
    return _Export(
        image,
        tuple(live),
        outputs,
        program.call_spec.out_spec,
        _read(tensors, live, outputs),
        constants,
        shapes,
        size,
        channels,
    )


def _shape(node: torch.fx.Node) -> tuple[int | None, ...] | None:
    meta = node.meta.get("val")
    if not isinstance(meta, torch.Tensor):
        return None
    return tuple(edge if isinstance(edge, int) else None for edge in meta.shape)


def _live(calls: list[Call], outputs: tuple[Any, ...]) -> list[Call]:
    """The calls that some output depends on."""
    needed, kept = set(refs(outputs)), []
    for call in reversed(calls):
        if call.name in needed:
            kept.append(call)
            needed.update(call.reads())
    return kept[::-1]


def _read(
    tensors: Mapping[str, str], calls: list[Call], outputs: tuple[Any, ...]
) -> dict[str, str]:
    """Those of the tensors that are read at all (a BN's num_batches_tracked never is)."""
    names = {name for call in calls for name in call.reads()} | set(refs(outputs))
    return {name: full for name, full in tensors.items() if name in names}


# ---- two exports, merged -------------------------------------------------------------------------

_WINDOWED = {  # op: positions of (kernel, stride, dilation); a convolution's kernel is its weight's
    "aten.conv2d": (1, 3, 5),
    "aten.max_pool2d": (1, 2, 4),
    "aten.avg_pool2d": (1, 2, None),
}


def _merge(even: _Export, odd: _Export) -> Graph:
    """One graph for every size; `_SizeDependent` when it is not only SAME paddings that differ."""
    if [c.target for c in even.calls] != [
        c.target for c in odd.calls
    ] or even.tensors != odd.tensors:
        raise _SizeDependent("the two sizes run different operators")
    renamed = {b.name: a.name for a, b in zip(even.calls, odd.calls, strict=True)} | {
        odd.input: even.input
    }
    readers: dict[str, list[Call]] = {}
    for call in even.calls:
        for name in call.reads():
            readers.setdefault(name, []).append(call)

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Ref):
            return isinstance(b, Ref) and renamed.get(b.name, b.name) == a.name
        if isinstance(a, list | tuple):
            return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
        return type(a) is type(b) and (a == b or a != a)

    calls = []
    for a, b in zip(even.calls, odd.calls, strict=True):
        if same(a.args, b.args) and same(tuple(a.kwargs.items()), tuple(b.kwargs.items())):
            calls.append(a)
        elif a.op == "aten.pad":
            calls.append(_merged_pad(a, b, even, odd, readers.get(a.name, [])))
        elif a.op in ("aten.view", "aten.reshape") and same(a.args[0], b.args[0]):
            calls.append(_merged_reshape(a, b, same))
        elif a.op == "aten.avg_pool2d" and _is_global(a, even) and _is_global(b, odd):
            calls.append(
                replace(a, target="aten.mean.dim", args=(a.args[0], (2, 3), True), kwargs={})
            )
        else:
            raise _SizeDependent(
                f"{a.target} has numbers that follow the image size: {a.args[1:]} and {b.args[1:]}"
            )
    if not same(even.outputs, odd.outputs):
        raise _SizeDependent("the outputs differ")
    return Graph(
        even.input,
        tuple(calls),
        even.outputs,
        even.output_spec,
        even.tensors,
        even.constants,
        (even.size, odd.size),
        even.channels,
    )


def _single(export: _Export) -> Graph:
    return Graph(
        export.input,
        export.calls,
        export.outputs,
        export.output_spec,
        export.tensors,
        export.constants,
        (export.size,),
        export.channels,
    )


def _merged_pad(a: Call, b: Call, even: _Export, odd: _Export, readers: list[Call]) -> Call:
    """The SAME padding that both calls are, given the one window that reads it."""
    mode, fill = (*a.args[2:], "constant", None)[:2] if len(a.args) > 2 else ("constant", None)
    if len(readers) != 1 or readers[0].op not in _WINDOWED or mode != "constant":
        raise _SizeDependent(
            f"the padding {a.args[1]} follows the image size and is not read by one window alone"
        )
    window = _window(readers[0], even)
    for call, export in ((a, even), (b, odd)):
        h, w = export.shapes[call.args[0].name][-2:]
        top, left, bottom, right = window.pads(h, w)
        if tuple(call.args[1]) != (left, right, top, bottom):
            raise _SizeDependent(
                f"the padding {call.args[1]} at {h}x{w} follows the image size, but not as SAME "
                f"does"
            )
    args = (a.args[0], window.kernel, window.stride, window.dilation, float(fill or 0.0))
    return replace(a, target="effnet_fast.same_pad", args=args, kwargs={})


def _window(call: Call, export: _Export) -> Window:
    kernel, stride, dilation = (
        call.args[at] if at is not None and at < len(call.args) else None
        for at in _WINDOWED[call.op]
    )
    if isinstance(kernel, Ref):
        kernel = export.shapes[kernel.name][-2:]
    if call.op != "aten.conv2d":
        stride = stride or kernel
    return Window(_pair(kernel), _pair(stride or 1), _pair(dilation or 1), None)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else tuple(value)


def _merged_reshape(a: Call, b: Call, same: Any) -> Call:
    """A reshape in which one number alone follows the size: that one becomes -1."""
    differing = [
        i for i, (p, q) in enumerate(zip(a.args[1], b.args[1], strict=False)) if not same(p, q)
    ]
    if len(a.args[1]) != len(b.args[1]) or len(differing) != 1 or -1 in a.args[1]:
        raise _SizeDependent(f"{a.target} to {a.args[1]} and {b.args[1]} follows the image size")
    sizes = list(a.args[1])
    sizes[differing[0]] = -1
    return replace(a, args=(a.args[0], tuple(sizes)))


def _is_global(call: Call, export: _Export) -> bool:
    """Whether an average pool's window is its whole map, without padding."""
    return _pair(call.args[1]) == tuple(export.shapes[call.args[0].name][-2:]) and (
        len(call.args) < 4 or _pair(call.args[3]) == (0, 0)
    )
