"""Runs a command on a processor with AVX-512 as if it had AVX2 alone.

    python benchmarks/without_avx512.py python benchmarks/cpu.py --only '*b0*'

Ours and PyTorch's libraries are told by their variables. The other runtimes ask the processor: in
their libraries, and those of the command's processes alone, cpuid says that it has no AVX-512
(without_avx512.c). objdump and a C compiler are needed. What it can't hide is how fast the
processor is: its clock and its caches are those of one with AVX-512.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

# Of site-packages: what other runtimes decide by.
LIBRARIES = (
    "onnxruntime/capi/*.so*", "openvino/libs/*.so*", "ncnn/*.so*", "ncnn.libs/*.so*",
    "MNN/**/*.so*", "*mnn*.so", "ai_edge_litert/*.so*",
)  # fmt: skip
VARIABLES = {
    "EFFNET_FAST_ISA": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def sites(library: Path) -> list[str]:
    """The offsets of cpuid in a library, in hexadecimal."""
    command = ["objdump", "-d", "--no-show-raw-insn", library]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"^ *([0-9a-f]+):\s+cpuid\b", text, re.MULTILINE)


def main(command: list[str]) -> int:
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    for tool in ("objdump", "cc"):
        if shutil.which(tool) is None:
            print(f"without_avx512.py: error: there is no {tool} on PATH", file=sys.stderr)
            return 2
    packages = Path(sysconfig.get_path("purelib"))
    with tempfile.TemporaryDirectory() as folder:
        audit, found = Path(folder, "without_avx512.so"), Path(folder, "sites")
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", audit, source], check=True)
        lines = []
        for library in sorted({p for pattern in LIBRARIES for p in packages.glob(pattern)}):
            if library.is_file() and not library.is_symlink():
                places = sites(library)
                lines += [f"{library.name} {place}" for place in places]
        found.write_text("\n".join(lines) + "\n")
        own = {"LD_AUDIT": str(audit), "WITHOUT_AVX512_SITES": str(found)}
        return subprocess.run(command, env={**os.environ, **VARIABLES, **own}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
