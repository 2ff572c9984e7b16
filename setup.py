"""Builds effnet_fast._C by driving CMakeLists.txt, the one list of sources and flags."""

import os
import subprocess
import sys
from pathlib import Path

import cmake
import ninja
import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class BuildCMake(build_ext):
    """Configures and builds with the cmake and ninja of the build requirements."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # Not self.build_temp: an editable install throws that away, to build all anew next time.
        build = ROOT / "build" / f"{self.plat_name}-{sys.implementation.cache_tag}"
        tool = Path(cmake.CMAKE_BIN_DIR) / "cmake"
        # The tools' and headers' places are said each time: an isolated build has others.
        configure = [
            *(tool, "-S", ROOT, "-B", build, "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        subprocess.run(configure, check=True)
        jobs = ["--parallel", str(self.parallel)] if self.parallel else []
        subprocess.run([tool, "--build", build, *jobs], check=True)
        self.install = [tool, "--install", build, "--prefix"]
        subprocess.run([*self.install, target.parent], check=True)

    def copy_extensions_to_source(self) -> None:
        # Of an editable install. setuptools copies `_C`, but not the library that lies beside it.
        super().copy_extensions_to_source()
        subprocess.run([*self.install, ROOT], check=True)


setup(
    ext_modules=[Extension("effnet_fast._C", sources=[])],
    cmdclass={"build_ext": BuildCMake},
)
