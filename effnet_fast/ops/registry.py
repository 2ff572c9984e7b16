"""Registers the operators with torch and picks the implementation that a call runs on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from effnet_fast.errors import (
    ArgumentError,
    BackendError,
    DeviceError,
    DtypeError,
    InferenceOnlyError,
)
from effnet_fast.ops import gpu_step

LIBRARY = torch.library.Library("effnet_fast", "FRAGMENT")

IMPLS = ("auto", "reference", "cpu", "cuda", "triton")
# Where the native implementations run: device type, dtypes.
GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NATIVE = {
    "cpu": ("cpu", (torch.float32,)),
    "cuda": ("cuda", GPU_DTYPES),
    "triton": ("cuda", GPU_DTYPES),
}

OPERATORS: dict[str, Operator] = {}


class Operator:
    """A registered operator: its schema, its argument checks and its implementations.

    Parameters
    ----------
    schema : str
        The torch schema, name first, without the namespace.
    arguments : type
        The NamedTuple of the schema's arguments, with the same defaults; all below take one.
    check : callable
        Raises a typed error for arguments that don't fit; runs before everything else.
    fake : callable
        The outputs, allocated and not computed.
    reference, **native : callable
        The implementations by name: ``reference`` runs anywhere, the others where ``NATIVE`` says.
    gpu : callable, optional
        Runs on a GPU; takes the kernels' language as well.
    languages : tuple of str
        Of the GPU kernels: ``"cuda"``, ``"triton"``, best first.
    """

    def __init__(
        self,
        schema: str,
        arguments: type,
        *,
        check: Callable[[Any], None],
        fake: Callable[[Any], Any],
        reference: Callable[[Any], Any],
        gpu: Callable[[Any, str], Any] | None = None,
        languages: tuple[str, ...] = gpu_step.LANGUAGES,
        **native: Callable[[Any], Any],
    ):
        self.name = schema.partition("(")[0]
        self.arguments = arguments
        self.check = check
        self.fake = fake
        self.implementations = {"reference": reference, **native}
        self.languages = () if gpu is None else languages
        self.implementations |= {
            language: functools.partial(gpu, language=language) for language in self.languages
        }
        LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
        # For both devices: a tensor where nothing is built gets our error, not the dispatcher's.
        LIBRARY.impl(self.name, self._run, "CPU")
        LIBRARY.impl(self.name, self._run, "CUDA")
        LIBRARY.impl(self.name, self._refuse_gradient, "Autograd")
        torch.library.register_fake(f"effnet_fast::{self.name}", self._run_fake, lib=LIBRARY)
        self.overload = getattr(torch.ops.effnet_fast, self.name).default
        OPERATORS[self.name] = self

    def __call__(self, *args: Any, impl: str = "auto") -> Any:
        """Run on ``impl``: "auto", or an implementation, which then must take ``args``."""
        if impl == "auto":
            return self.overload(*args)
        if impl not in IMPLS:
            raise ArgumentError(f"impl is {impl!r}; accepted: {', '.join(map(repr, IMPLS))}")
        if impl not in self.implementations:
            raise BackendError(
                f"impl is {impl!r}, which is not built for {self.name}; built: "
                f"{', '.join(map(repr, self.implementations))}"
            )
        if impl == "reference":
            call = self.arguments(*args)
            refuse_gradient(call)
            self.check(call)
            return self.implementations["reference"](call)
        device, dtypes = NATIVE[impl]
        call = self.arguments(*args)
        for name, tensor in tensors_of(call):
            if device_type(tensor) != device:
                hint = ", or cpu in effnet_fast.ops.emulated()" if device == "cuda" else ""
                raise DeviceError(
                    f"{name} is on {tensor.device}; accepted by impl={impl!r}: {device}{hint}"
                )
            if tensor.dtype not in dtypes:
                raise DtypeError(
                    f"{name} is {tensor.dtype}; accepted by impl={impl!r}: "
                    f"{', '.join(map(str, dtypes))}"
                )
        if impl == "cpu":
            return self.overload(*args)
        refuse_gradient(call)
        self.check(call)
        return self.implementations[impl](call)

    def _run(self, *args: Any) -> Any:
        call = self.arguments(*args)
        self.check(call)
        return self.implementations[self.choose(call)](call)

    def choose(self, call: Any) -> str:
        """The implementation that "auto" runs on for checked arguments.

        On the CPU that is the C++ kernel for float32 and the reference for other types; on a GPU
        the CUDA kernel, or Triton's where no CUDA kernels are built, and the reference for float64.
        """
        tensors = list(tensors_of(call))
        name, first = tensors[0]
        device = device_type(first)
        if device not in ("cpu", "cuda"):
            raise DeviceError(f"{name} is on {first.device}; accepted: cpu, cuda")
        if device == "cuda" and not self.languages:
            raise DeviceError(
                f"{name} is on {first.device}; accepted: cpu (no GPU kernels of {self.name} are "
                "built)"
            )
        impl = "cpu" if device == "cpu" else "cuda"
        if any(tensor.dtype not in NATIVE[impl][1] for _, tensor in tensors):
            return "reference"
        return impl if impl == "cpu" else gpu_step.preferred_language(self.languages)

    def _run_fake(self, *args: Any) -> Any:
        call = self.arguments(*args)
        self.check(call)
        return self.fake(call)

    def _refuse_gradient(self, *args: Any) -> Any:
        refuse_gradient(self.arguments(*args))
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*args)


def device_type(tensor: torch.Tensor) -> str:
    """Where a tensor is, in the sense of implementations: emulated GPUs have theirs on the CPU."""
    is_emulated = tensor.device.type == "cpu" and gpu_step.machine() is not None
    return "cuda" if is_emulated else tensor.device.type


def tensors_of(call: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors among the fields of ``call``, with their names."""
    for name, value in zip(call._fields, call, strict=True):
        if isinstance(value, torch.Tensor):
            yield name, value


def refuse_gradient(call: Any) -> None:
    """Raise where autograd would have to record a call."""
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors_of(call):
        if tensor.requires_grad:
            raise InferenceOnlyError(
                f"{name} requires a gradient, and the operators compute none; accepted: tensors "
                "that require none, or a call under torch.no_grad() or torch.inference_mode()"
            )
