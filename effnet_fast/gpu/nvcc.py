"""CUDA C++ compiled with nvcc, to the same objects as Triton kernels."""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from effnet_fast import cache
from effnet_fast.errors import ArgumentError, BackendError, CompileError
from effnet_fast.gpu.compiled import CompiledKernel
from effnet_fast.gpu.ptx_text import read_ptx
from effnet_fast.gpu.resources import check_capability, resources_of

FLAGS = ("-std=c++17", "-lineinfo")
# What nvcc and its preprocessor take from the environment.
VARIABLES = (
    "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN", "CPATH", "CPLUS_INCLUDE_PATH",
)  # fmt: skip


def find_nvcc() -> Path:
    """Find nvcc: of ``$CUDA_HOME``, on the ``PATH``, in ``/usr/local/cuda``, in this order.

    Raises
    ------
    BackendError
        There is none; the message says where it was looked for.
    """
    home = os.environ.get("CUDA_HOME")
    places = [Path(home, "bin", "nvcc")] if home else []
    on_path = shutil.which("nvcc")
    places += [Path(on_path)] if on_path else []
    places.append(Path("/usr/local/cuda/bin/nvcc"))
    for place in places:
        if os.access(place, os.X_OK) and place.is_file():
            return place
    looked = [f"$CUDA_HOME ({home})" if home else "$CUDA_HOME (not set)", "the PATH", places[-1]]
    raise BackendError(
        "CUDA kernels are compiled with nvcc of the CUDA toolkit, which was not found in "
        + ", ".join(map(str, looked))
    )


def compile_cuda(
    sources: str | os.PathLike | Sequence[str | os.PathLike],
    capability: int,
    include_dirs: Iterable[str | os.PathLike] = (),
    options: Iterable[str] = (),
    names: Iterable[str] | None = None,
) -> dict[str, CompiledKernel]:
    """Compile CUDA files, each to a module of its own, or take them from the cache.

    Parameters
    ----------
    sources : path or sequence of paths
    capability : int
        80, 86, 89, 90, 100 or 120.
    include_dirs : iterable of paths
    options : iterable of str
        More flags for nvcc: ``"-DWIDTH=3"``, ``"-maxrregcount=64"``.
    names : iterable of str, optional
        The kernels to return; all of them by default.

    Returns
    -------
    dict of str to CompiledKernel
        By the names in the PTX: mangled, unless a kernel is ``extern "C"``.

    Raises
    ------
    BackendError
        There is no nvcc.
    CompileError
        A source does not compile; the message is the compiler's.
    ArgumentError
        A source is not there, two have a kernel of one name, or a name of ``names`` is of none.
    """
    check_capability(capability)
    nvcc = find_nvcc()
    flags = [*FLAGS, *(f"-I{Path(folder).resolve()}" for folder in include_dirs), *options]
    kernels: dict[str, CompiledKernel] = {}
    for source in [sources] if isinstance(sources, (str, os.PathLike)) else sources:
        path = Path(source).resolve()
        for kernel in _compile_file(nvcc, path, capability, flags):
            if kernel.name in kernels:
                raise ArgumentError(f"sources has two kernels {kernel.name}, one in {path}")
            kernels[kernel.name] = kernel
    if names is None:
        return kernels
    for name in names:
        if name not in kernels:
            raise ArgumentError(
                f"names has {name!r}; the sources have: {', '.join(sorted(kernels)) or 'none'}"
            )
    return {name: kernels[name] for name in names}


def _compile_file(
    nvcc: Path, source: Path, capability: int, flags: list[str]
) -> list[CompiledKernel]:
    try:
        text = source.read_bytes()
    except OSError as error:
        raise ArgumentError(f"sources has {source}: {error.strerror}") from error
    key = cache.digest(
        "cuda",
        _version(nvcc),
        capability,
        flags,
        [os.environ.get(name) for name in VARIABLES],
        str(source),
        hashlib.sha256(text).hexdigest(),
    )
    entry = cache.read(key)
    # What it included is looked at anew; but not whether another header would be found before it.
    if entry is None or not all(_hash(file) == hash_ for file, hash_ in entry["files"].items()):
        entry = _compile(nvcc, source, capability, flags)
        cache.write(key, entry)
    cubin = base64.b64decode(entry["cubin"])
    return [
        CompiledKernel(
            name=name,
            language="cuda",
            capability=capability,
            ptx=entry["ptx"],
            cubin=cubin,
            resources=resources_of(name, entry["log"]),
        )
        for name in read_ptx(entry["ptx"]).entries
    ]


def _compile(nvcc: Path, source: Path, capability: int, flags: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="effnet_fast_") as folder:
        ptx, cubin, depend = (Path(folder, source.stem + e) for e in (".ptx", ".cubin", ".d"))
        arch = f"-arch=sm_{capability}"
        _run(nvcc, arch, "-ptx", *flags, "-MD", "-MF", depend, "-o", ptx, source)
        log = _run(nvcc, arch, "-cubin", *flags, "-Xptxas=-v", "-o", cubin, ptx)
        # A make rule: "target : file file \", a space in a name is escaped.
        rule = depend.read_text().replace("\\\n", " ").partition(" : ")[2]
        files = [re.sub(r"\\(.)", r"\1", name) for name in re.findall(r"(?:\\.|\S)+", rule)]
        return {
            "ptx": ptx.read_text(),
            "cubin": base64.b64encode(cubin.read_bytes()).decode(),
            "log": log,
            "files": {file: _hash(file) for file in files},
        }


def _run(nvcc: Path, *arguments: str | Path) -> str:
    """What it printed on stderr."""
    done = subprocess.run([nvcc, *arguments], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr + done.stdout).strip()
        raise CompileError(f"nvcc does not compile {arguments[-1]}: {said}")
    return done.stderr


@functools.cache
def _version(nvcc: Path) -> str:
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout


def _hash(file: str) -> str:
    """Of the contents; of a file that is not there, nothing that was ever written."""
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return uuid.uuid4().hex
