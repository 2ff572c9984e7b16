"""Triton kernels compiled ahead of time, without a driver or a GPU, and their launch arguments.

Triton's own launcher is not used: it needs a GPU and Python at every launch. So what it knows is
repeated here, and checked against the PTX: constants have no parameter, and two hidden pointers
follow the arguments, global scratch and profile scratch. All this may change with any minor version
of Triton, so only those are taken that were tried.
"""

from __future__ import annotations

import base64
import functools
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from effnet_fast import cache
from effnet_fast.errors import ArgumentError, BackendError, CompileError
from effnet_fast.gpu.compiled import Argument, CompiledKernel, Scratch, encode_arguments
from effnet_fast.gpu.ptx_text import Parameter
from effnet_fast.gpu.resources import MAX_REGISTERS, WARP, check_capability, resources_of

TRITONS = ("3.6", "3.7", "3.8", "3.9")  # the minor versions whose launch ABI is repeated here

SCALAR_BYTES = {
    "i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8,
    "u1": 1, "u8": 1, "u16": 2, "u32": 4, "u64": 8,
    "fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8,
}  # fmt: skip
_WANTED = f"'triton>={TRITONS[0]},<3.{int(TRITONS[-1].partition('.')[2]) + 1}'"
# How a signature calls a tensor's elements.
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
SCRATCH = ("global scratch", "profile scratch")
# A launch has no attributes: no clusters, no cooperative or dependent launch. The rest of these are
# set by arguments of compile_triton's own, or change what the parameters are.
REFUSED_OPTIONS = (
    "num_ctas", "launch_cooperative_grid", "launch_pdl", "instrumentation_mode", "warp_size",
    "backend_name", "arch", "ir_override",
)  # fmt: skip
# As Triton calls ptxas; the last works around a bug of ptxas 13.
PTXAS_FLAGS = ("-v", "-lineinfo", "--regAllocOptLevel=2")


def compile_triton(
    fn: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int,
    num_warps: int = 4,
    num_stages: int = 3,
    divisible: Iterable[str] = (),
    **options: Any,
) -> CompiledKernel:
    """Compile a Triton kernel, or take it from the cache.

    Parameters
    ----------
    fn : triton.JITFunction
        With ``@triton.autotune`` and ``@triton.heuristics`` around it or not; they have no say
        here.
    signature : mapping of str to str
        The type of each argument that is passed at a launch: ``"*fp16"``, ``"i64"``, ``"fp32"``.
    constants : mapping of str to Any
        The value of each argument that is compiled in: every ``tl.constexpr`` without a default,
        and any other that is to be specialised, such as a stride of 1 or an absent pointer (None).
    capability : int
        80, 86, 89, 90, 100 or 120.
    num_warps : int
        Warps of a block: a power of two.
    num_stages : int
        Depth of the software pipeline.
    divisible : iterable of str
        Arguments whose values will be multiples of 16: without it there are no vector accesses.
    **options
        Others of Triton's CUDA options: ``maxnreg``, ``enable_fp_fusion``, ...

    Returns
    -------
    CompiledKernel

    Raises
    ------
    BackendError
        Triton is missing, or has another minor version than those that are known; or its launch
        ABI is not what is expected.
    ArgumentError
        ``signature`` and ``constants`` are not the kernel's arguments, or another argument is not
        one of the accepted ones.
    CompileError
        The kernel does not compile.
    """
    triton = import_triton()
    check_capability(capability)
    fn = _jit_function(fn)
    if num_warps < 1 or num_warps & (num_warps - 1):
        raise ArgumentError(f"num_warps is {num_warps}; accepted: powers of two")
    arguments = _arguments(fn, signature, constants, tuple(divisible))
    target = triton.backends.compiler.GPUTarget("cuda", capability, WARP)
    backend = triton.compiler.compiler.make_backend(target)
    # Fused multiply-adds are asked for: what Triton does unasked is to change after 3.9.
    parsed = _parse_options(
        backend,
        fn.__name__,
        {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True, **options},
    )
    source = triton.compiler.ASTSource(
        fn=fn,
        signature={a.name: a.type for a in arguments},
        constexprs={(i,): a.constant for i, a in enumerate(arguments) if not a.passed},
        attrs={
            (i,): [["tt.divisibility", a.multiple]]
            for i, a in enumerate(arguments)
            if a.multiple > 1
        },
    )
    key = cache.digest(
        "triton",
        triton.__version__,
        backend.hash(),  # ptxas's version, capability
        fn.fn.__code__.co_filename,  # stands in the PTX
        _source_key(fn),
        [(a.name, a.type, _constant_key(a.constant), a.multiple) for a in arguments],
        parsed.hash(),
        sorted(triton._C.libtriton.get_cache_invalidating_env_vars().items()),
        PTXAS_FLAGS,
    )
    entry = cache.read(key)
    if entry is not None:
        return _kernel(entry, arguments, capability)
    entry = _compile(source, target, backend, parsed)
    kernel = _kernel(entry, arguments, capability)
    cache.write(key, entry)
    return kernel


def compile_without_spills(fn: Any, *arguments: Any, **options: Any) -> CompiledKernel:
    """As :func:`compile_triton`, and again where ptxas spills.

    Without a limit, ptxas sometimes spills a word to have another block on a multiprocessor; given
    a limit, it uses all of it. Each trial gives a thread 16 registers more.

    Returns
    -------
    CompiledKernel
        The first without spills; the unlimited one where every limit up to 255 spills.
    """
    first = kernel = compile_triton(fn, *arguments, **options)
    limit = first.resources.registers + 16
    while kernel.resources.spill_stores and limit < MAX_REGISTERS:
        kernel = compile_triton(fn, *arguments, **options, maxnreg=limit)
        limit += 16
    return first if kernel.resources.spill_stores else kernel


def launch_arguments(
    kernel: CompiledKernel, values: Mapping[str, Any], global_scratch: Any = None
) -> tuple[Any, ...]:
    """The arguments of a launch of a Triton kernel, checked, in the order of its parameters.

    Parameters
    ----------
    kernel : CompiledKernel
        From :func:`compile_triton`.
    values : mapping of str to Any
        By the names of the function's arguments. Those that were compiled in may be left out; where
        they are given, they have to be what was compiled.
    global_scratch : Buffer or int, optional
        For a kernel whose ``scratch.bytes`` is not 0: that many for each block of the grid,
        at an address that is a multiple of ``scratch.align``.

    Returns
    -------
    tuple
        For :class:`~effnet_fast.gpu.Launch`, and for
        :func:`~effnet_fast.gpu.compiled.pack_arguments`: scalars as ``bytes``, and buffers as they
        are, so that a launch keeps them alive.

    Raises
    ------
    ArgumentError
        A value is missing, unknown, of the wrong type or not the one compiled in; or the kernel
        needs global scratch and has none.
    """
    _check_names(kernel.name, "values", values, {a.name for a in kernel.arguments})
    passed = []
    for argument in kernel.arguments:
        if argument.passed:
            if argument.name not in values:
                raise ArgumentError(f"{kernel.name} needs a value for {argument.name!r}")
            passed.append(values[argument.name])
        elif argument.name in values and not _same(values[argument.name], argument.constant):
            raise ArgumentError(
                f"{argument.name} is {values[argument.name]!r}; {kernel.name} is compiled for "
                f"{argument.constant!r}"
            )
    passed += [_scratch(kernel, global_scratch), 0]
    encoded = encode_arguments(kernel, passed)
    return tuple(
        data if isinstance(value, (int, float, np.generic)) else value
        for value, data in zip(passed, encoded, strict=True)
    )


def _scratch(kernel: CompiledKernel, given: Any) -> Any:
    if not kernel.scratch.bytes:
        return 0
    if given is None:
        raise ArgumentError(
            f"global_scratch is None; {kernel.name} needs {kernel.scratch.bytes} bytes for each "
            "block of the grid"
        )
    address = getattr(given, "address", given)
    if address % kernel.scratch.align:
        raise ArgumentError(
            f"global_scratch is at {address:#x}; accepted: multiples of {kernel.scratch.align}"
        )
    return given


# ---- what is asked for ---------------------------------------------------------------------------


@functools.cache
def import_triton() -> Any:
    """Triton, of a version that is known.

    Raises
    ------
    BackendError
        It is missing, or of another version.
    """
    try:
        import triton
        import triton.backends.compiler
        import triton.compiler
    except ImportError as error:
        raise BackendError(
            f"Triton cannot be imported: {error}; install it with: pip install {_WANTED}"
        ) from error
    if ".".join(triton.__version__.split(".")[:2]) not in TRITONS:
        raise BackendError(
            f"Triton {triton.__version__} is installed; kernels are launched as Triton "
            f"{', '.join(TRITONS)} compile them: pip install {_WANTED}"
        )
    return triton


def _jit_function(fn: Any) -> Any:
    inner = fn
    while not isinstance(inner, import_triton().JITFunction):
        if type(inner).__name__ == "InterpretedFunction":
            raise ArgumentError(
                f"fn is {fn!r}, which is interpreted: TRITON_INTERPRET was set when it was defined"
            )
        if not hasattr(inner, "fn"):
            raise ArgumentError(f"fn is {fn!r}; accepted: a function under @triton.jit")
        inner = inner.fn  # of autotune or heuristics
    return inner


def _arguments(
    fn: Any, signature: Mapping[str, str], constants: Mapping[str, Any], divisible: tuple[str, ...]
) -> tuple[Argument, ...]:
    names = set(fn.arg_names)
    for what, given in (("signature", signature), ("constants", constants)):
        _check_names(fn.__name__, what, given, names)
    _check_names(fn.__name__, "divisible", divisible, set(signature))
    arguments = []
    for parameter in fn.params:
        name = parameter.name
        if name in signature and name in constants:
            raise ArgumentError(f"{name!r} is both in signature and in constants")
        if name in constants:
            arguments.append(Argument(name, "constexpr", constants[name]))
        elif name in signature and not parameter.is_constexpr:
            _check_type(name, signature[name])
            arguments.append(
                Argument(name, signature[name], multiple=16 if name in divisible else 1)
            )
        elif parameter.is_constexpr and parameter.has_default and name not in signature:
            arguments.append(Argument(name, "constexpr", parameter.default))
        else:
            where = "constants" if parameter.is_constexpr else "signature or constants"
            raise ArgumentError(f"{name!r} of {fn.__name__} is missing in {where}")
    return tuple(arguments)


def _check_names(kernel: str, what: str, given: Iterable[str], accepted: set[str]) -> None:
    for name in given:
        if name not in accepted:
            raise ArgumentError(
                f"{what} has {name!r}, which {kernel} does not; accepted: "
                f"{', '.join(sorted(accepted)) or 'none'}"
            )


def _check_type(name: str, given: Any) -> None:
    if given in SCALAR_BYTES:
        return
    pointed = re.fullmatch(r"\*k?(\w+)", given) if isinstance(given, str) else None
    if not pointed or not (pointed[1] in SCALAR_BYTES or re.fullmatch(r"fp8e\w+", pointed[1])):
        raise ArgumentError(
            f"signature[{name!r}] is {given!r}; accepted: {', '.join(SCALAR_BYTES)}, and pointers "
            "to them as in '*fp16'"
        )


def _parse_options(backend: Any, kernel: str, options: dict[str, Any]) -> Any:
    from triton.backends.nvidia.compiler import CUDAOptions

    accepted = [n for n in CUDAOptions.__dataclass_fields__ if n not in REFUSED_OPTIONS]
    for name in options:
        if name not in accepted:
            raise TypeError(
                f"compile_triton() has no option {name!r} for {kernel}; accepted: "
                f"{', '.join(accepted)}"
            )
    parsed = backend.parse_options(options)
    if parsed.arch != f"sm{backend.target.arch}":
        raise BackendError(
            f"TRITON_OVERRIDE_ARCH is set, to {parsed.arch}; {kernel} is to be compiled for "
            f"sm_{backend.target.arch}"
        )
    return parsed


def _source_key(fn: Any) -> str:
    """Of the function and all that it calls, as long as they are what they were at first."""
    key = fn.cache_key
    for (name, _), (value, scope) in fn.used_global_vals.items():
        if name not in scope or scope[name] != value:
            raise ArgumentError(
                f"the global variable {name} that {fn.__name__} uses has changed from {value} to "
                f"{scope.get(name)}"
            )
    return key


def _constant_key(value: Any) -> str:
    # 1, 1.0, True and "1" make different code.
    return f"{type(value).__name__} {getattr(value, 'cache_key', None) or value!r}"


def _same(given: Any, constant: Any) -> bool:
    try:
        return bool(given == constant)
    except (TypeError, ValueError):  # an array's truth
        return False


# ---- compiling -----------------------------------------------------------------------------------


def _compile(source: Any, target: Any, backend: Any, options: Any) -> dict[str, Any]:
    """Triton's stages one after another; its own cache is neither read nor written."""
    from triton._C.libtriton import ir
    from triton.errors import TritonError

    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, source.language)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    metadata: dict[str, Any] = {"num_warps": options.num_warps}
    try:
        module = source.make_ir(
            target,
            options,
            backend.get_codegen_implementation(options),
            backend.get_module_map(),
            context,
        )
        for name, stage in stages.items():
            if name != "cubin":
                module = stage(module, metadata)
    except (TritonError, RuntimeError) as error:
        raise CompileError(f"{source.name} does not compile for sm_{target.arch}: {error}") from (
            error
        )
    if metadata["profile_scratch_size"]:
        raise BackendError(f"{source.name} needs profile scratch, which a launch has not")
    cubin, log = _assemble(source.name, module, target.arch, options)
    return {
        "name": metadata["name"],
        "ptx": module,
        "cubin": base64.b64encode(cubin).decode(),
        "log": log,
        "warps": metadata["num_warps"],  # warp specialisation adds some
        "shared": metadata["shared"],
        "scratch": metadata["global_scratch_size"],
        "scratch_align": metadata["global_scratch_align"],
    }


def _assemble(name: str, ptx: str, capability: int, options: Any) -> tuple[bytes, str]:
    """Machine code and what ptxas said: Triton calls it the same way, but drops what it says."""
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    with tempfile.TemporaryDirectory(prefix="effnet_fast_") as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [get_ptxas(capability).path, *PTXAS_FLAGS]
        command += [] if options.enable_fp_fusion else ["--fmad=false"]
        command += options.ptx_options.split() if options.ptx_options else []
        command += [f"--gpu-name={sm_arch_from_capability(capability)}", source, "-o", cubin]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise CompileError(f"ptxas refuses {name} for sm_{capability}: {done.stderr.strip()}")
        return cubin.read_bytes(), done.stderr


def _kernel(
    entry: Mapping[str, Any], arguments: tuple[Argument, ...], capability: int
) -> CompiledKernel:
    kernel = CompiledKernel(
        name=entry["name"],
        language="triton",
        capability=capability,
        ptx=entry["ptx"],
        cubin=base64.b64decode(entry["cubin"]),
        resources=resources_of(entry["name"], entry["log"]),
        dynamic_shared=entry["shared"],
        arguments=arguments,
        scratch=Scratch(entry["scratch"], entry["scratch_align"]),
    )
    _check_abi(kernel, entry["warps"])
    return kernel


def _check_abi(kernel: CompiledKernel, warps: int) -> None:
    """Compare what a launch will pass with what the PTX takes."""
    expected = [(a.name, a.type) for a in kernel.arguments if a.passed]
    expected += [(name, "*i8") for name in SCRATCH]
    if len(expected) != len(kernel.parameters) or not all(
        _fits(type_, parameter)
        for (_, type_), parameter in zip(expected, kernel.parameters, strict=True)
    ):
        raise BackendError(
            f"{kernel.name} does not take what Triton is known to pass; expected: "
            + ", ".join(f"{name} ({type_}, {_size(type_)} bytes)" for name, type_ in expected)
            + "; the PTX has: "
            + (", ".join(map(str, kernel.parameters)) or "none")
        )
    if kernel.threads != WARP * warps:
        raise BackendError(
            f"{kernel.name} is compiled for {warps} warps; its PTX requires {kernel.threads} "
            "threads"
        )


def _size(type_: str) -> int:
    return SCALAR_BYTES.get(type_, 8)


def _fits(type_: str, parameter: Parameter) -> bool:
    if _size(type_) != parameter.bytes or type_.startswith("*") != parameter.pointer:
        return False
    return parameter.type.startswith("f") == (type_ in ("fp32", "fp64"))
