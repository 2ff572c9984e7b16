import contextlib
import gc
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
# Test processes run side by side: more threads than cores spin while others wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def kernel_cache(tmp_path_factory):
    """The session's own: GPU kernels are compiled once, and the user's cache is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFNET_FAST_CACHE", str(tmp_path_factory.mktemp("kernel_cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def cpu_plans_do_not_depend_on_the_machine():
    """Nor take the time to measure."""
    from effnet_fast.engine import cpu_measure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_measure, "is_on", lambda: False)
        yield


@pytest.fixture(scope="module")
def machine():
    """The operators' device. Kernels are loaded once in a module; the modules that make faults, and
    count what a context holds, have the device for themselves."""
    with contextlib.closing(_Machine()) as machine:
        yield machine


@pytest.fixture(autouse=True, scope="module")
def devices_are_given_back():
    """A fault ends the context of all devices of a process: those of engines, which live in cycles,
    must be gone before the next module makes some."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def emulated_gpu(request):
    """A test with a parameter ``impl`` that is of a GPU has the PTX machine for one."""
    impl = getattr(request.node, "callspec", None) and request.node.callspec.params.get("impl")
    if impl not in ("cuda", "triton"):
        yield
        return
    from effnet_fast import ops
    from effnet_fast.errors import BackendError
    from effnet_fast.ops import gpu_step

    try:
        gpu_step.host_side(impl, "swish")
        if impl == "cuda":
            gpu_step.check_cuda()
    except BackendError as error:
        pytest.skip(str(error))
    machine = request.getfixturevalue("machine")
    marker = request.node.get_closest_marker("capability")
    with ops.emulated(machine.device(*marker.args if marker else ())):
        yield
    machine.check()


class _Machine:
    """Devices by their capability, and new ones after a fault."""

    def __init__(self):
        self._devices = {}

    def device(self, capability=80):
        from effnet_fast.gpu import Device
        from effnet_fast.gpu.catalogue import MACHINE

        if capability not in self._devices:
            index = MACHINE[capability]
            self._devices[capability] = Device("ptx", index, threads=1, shuffle=True)
        return self._devices[capability]

    def check(self):
        from effnet_fast.errors import GpuError

        try:
            for device in self._devices.values():
                device.synchronize()
        except GpuError:
            self.close()

    def close(self):
        for device in self._devices.values():
            device.close()
        self._devices.clear()
