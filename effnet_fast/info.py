"""What is built, what runs on this machine, and why the rest does not."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

PACKAGES = (
    "torch", "torchvision", "timm", "transformers", "efficientnet_pytorch", "numpy", "pillow",
    "pyarrow", "simplejpeg", "ray",
)  # fmt: skip


def collect() -> dict[str, Any]:
    """The facts as plain data, for a bug report or a program."""
    import torch

    from . import __version__
    from .errors import BackendError
    from .ops.extension import extension

    try:
        module = extension()
        built = {
            "loaded": True,
            "isa": module.isa(),
            "available_isas": list(module.available_isas()),
            **module.build_info(),
        }
    except BackendError as error:
        built = {"loaded": False, "reason": str(error)}
    cpu = {"runs": built["loaded"]}
    if not built["loaded"]:
        cpu["reason"] = built["reason"]
    return {
        "effnet_fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {
            "model": cpu_model(),
            "cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)),
        },
        "threads": torch.get_num_threads(),
        "ptx_machine": built["loaded"] and _machine_is_built(),
        "cuda_kernels": _cuda_kernels()
        if built["loaded"]
        else {"built": False, "reason": built["reason"]},
        "extension": built,
        "backends": {
            "cpu": cpu,
            "reference": {"runs": True},
            "gpu": _gpu_backend("gpu"),
            "ptx": _gpu_backend("ptx"),
        },
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _gpu_backend(backend: str) -> dict[str, Any]:
    import torch

    from .errors import EffnetFastError
    from .model import gpu_home

    try:
        home = gpu_home(backend, torch.device("cpu"))
    except EffnetFastError as error:
        return {"runs": False, "reason": str(error)}
    return {"runs": True, "on": str(home)}


def _machine_is_built() -> bool:
    from .gpu.device import machine_library

    return machine_library().is_file()


def _cuda_kernels() -> dict[str, Any]:
    from .errors import BackendError
    from .gpu import fat_binary

    try:
        kernels = {stem: len(fat_binary.kernels(stem)) for stem in fat_binary.STEMS}
    except BackendError as error:
        return {"built": False, "reason": str(error)}
    return {"built": True, "kernels": kernels, "archs": fat_binary.archs("swish")}


def describe(found: dict[str, Any]) -> str:
    """`collect`'s facts for people."""
    built = found["extension"]
    cpu = found["cpu"]
    lines = [
        f"effnet-fast {found['effnet_fast']}, Python {found['python']}, {found['platform']}",
        f"CPU: {cpu['model']}, {cpu['usable_cores']} of {cpu['cores']} cores usable, "
        f"{found['threads']} torch threads",
        f"GPU: {', '.join(found['gpus']) or 'none that torch can use'}",
    ]
    if built["loaded"]:
        lines.append(
            f"kernels: built for {', '.join(built['isas'])} with {built['compiler']}; "
            f"in use: {built['isa']}"
        )
        lines += [
            f"  {isa}: does not run on this CPU"
            for isa in built["isas"]
            if isa not in built["available_isas"]
        ]
        lines.append(f"PTX machine: {'built' if found['ptx_machine'] else 'not built'}")
    else:
        lines.append(f"kernels: not loaded: {built['reason']}")
    cuda = found["cuda_kernels"]
    if cuda["built"]:
        count, archs = sum(cuda["kernels"].values()), ", ".join(cuda["archs"])
        lines.append(f"CUDA kernels: {count}, for {archs}; in PTX for newer ones")
    else:
        lines.append(f"CUDA kernels: not built: {cuda['reason']}")
    lines.append("backends:")
    for name, backend in found["backends"].items():
        lines.append(f"  {name}: {_here(backend)}")
    lines.append("packages:")
    for name, version in found["packages"].items():
        lines.append(f"  {name}: {version or 'not installed'}")
    return "\n".join(lines)


def _here(backend: dict[str, Any]) -> str:
    if not backend["runs"]:
        return backend["reason"]
    return "runs here" + (f": {backend['on']}" if "on" in backend else "")


def cpu_model() -> str:
    """As the system names it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
