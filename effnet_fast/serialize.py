"""Optimised models on disk: the captured graph as JSON beside the weights, no code."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .errors import CaptureError, CheckpointError
from .files import whole_file
from .graph import Call, Graph, Ref, function, run_graph
from .memory import drop_pages, trim
from .report import Report
from .verify import Block, Parity

if TYPE_CHECKING:
    from .model import OptimizedModel

FORMAT = 1


def save(model: OptimizedModel, path: str | Path) -> None:
    """Write an optimised model to ``path``, whole or not at all."""
    from .model import Fused

    body = model._body
    if not isinstance(body, Fused):
        parts = ", ".join(model.report.parts)
        raise CaptureError(
            f"save: stock modules stand between the fused parts ({parts}), and their code can't be "
            "written to a file; pickle the model instead"
        )
    body._watch.check()
    content = {
        "effnet_fast": FORMAT,
        "graph": json.dumps(graph_to_plain(body.graph)),
        "report": json.dumps(model.report.to_dict()),
        "backend": body.backend,
        "dtype": str(body.dtype).removeprefix("torch."),
        "argument": model._argument,
        "state_dict": dict(model.original.state_dict()),
        # Read by the graph and not in the state dict: constants and non-persistent buffers.
        "others": {
            name: tensor
            for name, tensor in body.tensors().items()
            if name not in model.original.state_dict()
        },
    }
    with whole_file(path) as file:
        torch.save(content, file)


def load(path: str | Path) -> OptimizedModel:
    """Read a model that `OptimizedModel.save` wrote.

    Its ``original`` is the captured graph in plain PyTorch, with the original's state dict. In
    memory are packed weights alone: the state dict stays in the file, and is read where it is asked
    for. The file may be deleted or replaced meanwhile, but not written over in place.

    Raises
    ------
    CheckpointError : missing, truncated, another kind of file, or written by a newer version; later
        on, where the state dict is asked for, if the file was written over.
    """
    from .model import Fused, OptimizedModel

    try:
        file = _File(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path}: not a file that save() wrote, or damaged: {error}"
        ) from error
    if not isinstance(content, dict) or "effnet_fast" not in content:
        raise CheckpointError(
            f"{path}: a checkpoint, but not one that an optimised model's save() wrote"
        )
    if content["effnet_fast"] != FORMAT:
        raise CheckpointError(f"{path}: format {content['effnet_fast']}; accepted: {FORMAT}")
    try:
        graph = graph_from_plain(json.loads(content["graph"]), content["others"])
        original = CapturedModel(
            graph, content["argument"], content["state_dict"], content["others"], file
        )
        body = Fused(original, graph, content["backend"], getattr(torch, content["dtype"]))
        report = _report_from_plain(json.loads(content["report"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged: {type(error).__name__}: {error}") from error
    if body.backend != "reference":  # whose kernels are torch's, and read the tensors themselves
        drop_pages(original.buffers(), file.inode)
    trim()
    return OptimizedModel(original, body, content["argument"], report)


class _File:
    """A file that tensors are mapped from, to notice when it's written over: they change with it.

    A new file of the same name is another one, and the old one lives as long as its mapping.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        self._state = self._read()

    @property
    def inode(self) -> int:
        return self._state[1]

    def _read(self) -> tuple[int, ...]:
        found = os.stat(self.path)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def check(self) -> None:
        try:
            now = self._read()
        except OSError:
            return
        if now != self._state and now[:2] == self._state[:2]:
            raise CheckpointError(
                f"{self.path}: written over since the model was loaded, whose state dict was in "
                "it; load it anew, and replace a file by renaming another"
            )


class CapturedModel(nn.Module):
    """A captured graph in plain PyTorch, its tensors under the names that they had in the model.

    Parameters
    ----------
    graph, argument : of the model.
    state_dict, others : its tensors, and those that the graph reads besides.
    file : that they are mapped from, if they are.
    """

    def __init__(
        self,
        graph: Graph,
        argument: str,
        state_dict: dict[str, torch.Tensor],
        others: dict[str, torch.Tensor],
        file: _File | None = None,
    ):
        super().__init__()
        self.file = file
        self.graph = graph
        self.argument = argument
        for name, tensor in state_dict.items():
            _register(self, name, tensor, persistent=True)
        for name, tensor in others.items():
            _register(self, name, tensor, persistent=False)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        (x,) = (*args, *kwargs.values())
        self.check_file()
        tensors = {name: _tensor(self, name) for name in self.graph.tensors.values()}
        flat = run_graph(self.graph, x, tensors)
        return pytree.tree_unflatten(flat, self.graph.output_spec)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.check_file()
        return super().state_dict(*args, **kwargs)

    def check_file(self) -> None:
        """Raise `CheckpointError` where the tensors are no longer what they were."""
        if self.file is not None:
            self.file.check()

    def __getstate__(self) -> dict[str, Any]:
        self.check_file()
        return {**self.__dict__, "file": None}  # a copy has its tensors in memory


def _tensor(module: nn.Module, name: str) -> torch.Tensor:
    owner, _, key = name.rpartition(".")
    return getattr(module.get_submodule(owner), key)


def _register(root: nn.Module, name: str, tensor: torch.Tensor, persistent: bool) -> None:
    *path, key = name.split(".")
    module = root
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module._modules[part]
    module.register_buffer(key, tensor, persistent=persistent)


# ---- graphs as plain data ------------------------------------------------------------------------


def graph_to_plain(graph: Graph) -> dict[str, Any]:
    """As what JSON can hold, its constant tensors by name.

    Raises
    ------
    CaptureError : it holds an object that can't be written.
    """
    return {
        "input": graph.input,
        "calls": [
            [
                call.name,
                call.target,
                _plain(call.args),
                _plain(dict(call.kwargs)),
                _plain(call.shape),
            ]
            for call in graph.calls
        ],
        "outputs": _plain(graph.outputs),
        "output_spec": pytree.treespec_dumps(graph.output_spec),
        "tensors": dict(graph.tensors),
        "constants": list(graph.constants),
        "sizes": [list(size) for size in graph.sizes],
        "channels": graph.channels,
    }


def graph_from_plain(plain: dict[str, Any], others: dict[str, torch.Tensor]) -> Graph:
    """What `graph_to_plain` wrote; ``others`` has the constant tensors.

    Raises
    ------
    KeyError, TypeError, ValueError, AttributeError : damaged, or it names what a graph may not.
    """
    calls = []
    for name, target, args, kwargs, shape in plain["calls"]:
        function(target)  # refuses what a graph may not name
        calls.append(Call(name, target, _value(args), _value(kwargs), _value(shape)))
    return Graph(
        input=plain["input"],
        calls=tuple(calls),
        outputs=_value(plain["outputs"]),
        output_spec=pytree.treespec_loads(plain["output_spec"]),
        tensors=plain["tensors"],
        constants={name: others[name] for name in plain["constants"]},
        sizes=tuple((h, w) for h, w in plain["sizes"]),
        channels=plain["channels"],
    )


_TORCH_TYPES = (torch.dtype, torch.memory_format, torch.layout)


def _plain(value: Any) -> Any:
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {key: _plain(item) for key, item in value.items()}}
    if isinstance(value, _TORCH_TYPES):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CaptureError(
        f"save: the graph holds a {type(value).__name__}, which can't be written to a file"
    )


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return tuple(_value(item) for item in plain)
    if isinstance(plain, dict):
        ((kind, value),) = plain.items()
        if kind == "ref":
            return Ref(value)
        if kind == "dict":
            return {key: _value(item) for key, item in value.items()}
        if kind == "device":
            return torch.device(value)
        found = getattr(torch, value)
        if not isinstance(found, _TORCH_TYPES):
            raise ValueError(f"torch.{value}")
        return found
    return plain


def _report_from_plain(plain: dict[str, Any]) -> Report:
    plain = dict(plain)
    for name, kind in (("parity", Parity), ("blocks", Block)):
        # Files of before there were blocks have none.
        rows = plain.get(name, ())
        plain[name] = tuple(kind(**{**row, "shape": tuple(row["shape"])}) for row in rows)
    for name in ("fallbacks", "parts"):
        plain[name] = tuple(plain[name])
    if plain["locked"] is not None:
        plain["locked"] = tuple(plain["locked"])
    return Report(**plain)
