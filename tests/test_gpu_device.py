"""effnet_fast.gpu: the same programs on the PTX machine and, where there is one, on a GPU."""

import ctypes
import gc
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from gpu_driver import FAULTS, KERNELS, fault_image

from effnet_fast.errors import ArgumentError, BackendError, DeviceError, GpuError, KernelFault
from effnet_fast.gpu import Device, Event, Graph, Launch, Stream
from effnet_fast.gpu.device import machine_library


@pytest.fixture(params=["ptx", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    try:
        device = Device(request.param)
    except BackendError as error:
        assert request.param == "cuda"
        pytest.skip(str(error))
    with device:
        yield device


@pytest.fixture
def machine():
    with Device("ptx") as device:
        yield device


@pytest.fixture
def module(device):
    return device.load(KERNELS)


def store(module, y, value, count=16):
    regions = (y.region("y", "w"),)
    return Launch(module.kernel("store"), (1,), (32,), arguments=(y, value, count), regions=regions)


def double_add(module, y, x, count=16):
    regions = (y.region("y"), x.region("x", "r"))
    return Launch(
        module.kernel("double_add"), (1,), (32,), arguments=(y, x, count), regions=regions
    )


# ---- devices -------------------------------------------------------------------------------------


def test_attributes(device):
    attributes = device.attributes
    assert device.capability >= 80
    assert device.capability == (
        10 * attributes["compute_capability_major"] + attributes["compute_capability_minor"]
    )
    assert attributes["warp_size"] == 32
    assert attributes["max_threads_per_block"] == 1024
    assert attributes["max_shared_memory_per_block"] == 48 << 10
    free, total = device.memory
    assert 0 < free <= total
    assert device.backend in repr(device) and device.name in repr(device)


@pytest.mark.parametrize(
    "index, expected",
    [
        (0, (80, 108, 2048, 32, 163 << 10, 164 << 10, 40 << 20)),
        (1, (89, 128, 1536, 24, 99 << 10, 100 << 10, 72 << 20)),
        (2, (120, 170, 1536, 24, 99 << 10, 100 << 10, 96 << 20)),
    ],
)
def test_the_devices_of_the_machine(index, expected):
    with Device("ptx", index) as device:
        names = (
            "multiprocessor_count",
            "max_threads_per_multiprocessor",
            "max_blocks_per_multiprocessor",
            "max_shared_memory_per_block_optin",
            "max_shared_memory_per_multiprocessor",
            "l2_cache_size",
        )
        assert (device.capability, *(device.attributes[name] for name in names)) == expected


def test_devices_that_there_are_not():
    with pytest.raises(BackendError, match="has no device 3; it has 3"):
        Device("ptx", 3)
    with pytest.raises(BackendError, match="has no device -1"):
        Device("ptx", -1)
    with pytest.raises(ArgumentError, match="backend is 'metal'; accepted: cuda, ptx"):
        Device("metal")


def test_no_driver_says_what_was_looked_for():
    try:
        Device("cuda").close()
    except BackendError as error:
        assert "libcuda.so.1" in str(error)
    else:
        pytest.skip("there is a driver")


@pytest.mark.parametrize(
    "options, error, says",
    [
        ({"threads": -1}, GpuError, "threads is '-1'; accepted: 0 to 4096"),
        ({"shuffle": 2}, GpuError, "shuffle is '2'; accepted: 0 to 1"),
        ({"approx": "bad"}, GpuError, "accepted: 'perturbed', 'exact'"),
        ({"seed": "x"}, GpuError, "seed is 'x'"),
        ({"speed": 1}, TypeError, "no option 'speed'; accepted: threads, "),
    ],
)
def test_options_that_are_not_accepted(options, error, says):
    with pytest.raises(error, match=says):
        Device("ptx", **options)
    gc.collect()


def test_options_of_the_machine():
    with Device(
        "ptx",
        threads=1,
        shuffle=True,
        approx="exact",
        seed=7,
        max_instructions=1 << 20,
        capacity=1 << 20,
    ) as device:
        assert device.memory == (1 << 20, 1 << 20)
        with pytest.raises(GpuError, match="2097152 bytes, with 0 of 1048576 in use") as caught:
            device.empty(2 << 20)
        assert caught.value.result == "CUDA_ERROR_OUT_OF_MEMORY"
        with pytest.raises(ArgumentError, match="the context of device 0 is in use"):
            Device("ptx", capacity=1 << 21)
    with Device("ptx") as device:
        assert device.memory[1] == 40 << 30


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("last, made", [(0, 5), (2, 2), (5, 5), (6, 5)])
def test_the_last_blocks_alone(last, made, shuffle):
    """Of a grid of 5: the others have not run."""
    with Device("ptx", last_blocks=last, shuffle=shuffle) as device:
        y = device.upload(np.zeros(5 * 32, np.uint32))
        kernel = device.load(KERNELS).kernel("store")
        device.launch(Launch(kernel, (5,), (32,), arguments=(y, 7, 5 * 32)))
        blocks = device.download(y, np.uint32).reshape(5, 32)
    assert (blocks[5 - made :] == 7).all() and (blocks[: 5 - made] == 0).all()


STAND_IN = """
from effnet_fast import _C
from effnet_fast.errors import BackendError
from effnet_fast.gpu import Device
"""


def run_with_libcuda(folder, code, before=""):
    """Run code where the loader finds the machine's library as libcuda.so.1 of a folder.

    `before` runs before anything is imported.
    """
    folder.mkdir()
    (folder / "libcuda.so.1").symlink_to(machine_library())
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    subprocess.run([sys.executable, "-c", before + STAND_IN + code], check=True, env=environment)


def test_a_driver_is_found_by_its_name(tmp_path):
    code = f"""
with Device("cuda") as device:
    assert device.capability == 80
driver = _C.gpu.Driver.open_cuda()
assert driver.path == {str(tmp_path / "lib" / "libcuda.so.1")!r} and driver.version == 13000
assert _C.gpu.Driver.open_cuda() is driver
"""
    run_with_libcuda(tmp_path / "lib", code)


def test_the_driver_in_the_process_is_reused(tmp_path):
    """A copy from elsewhere, with the name that the loader knows a driver by, is loaded first."""
    name = machine_library().name.encode() + b"\0"
    renamed = b"libcuda.so.1\0".ljust(len(name), b"\0")
    loaded = tmp_path / "driver.so"
    loaded.write_bytes(machine_library().read_bytes().replace(name, renamed))
    before = f"import ctypes; ctypes.CDLL({str(loaded)!r})"
    code = f"""
assert _C.gpu.Driver.open_cuda().path == {str(loaded)!r}, _C.gpu.Driver.open_cuda().path
"""
    run_with_libcuda(tmp_path / "lib", code, before)


def test_the_toolkit_s_stub_is_no_driver(tmp_path):
    code = """
try:
    Device("cuda")
    assert False
except BackendError as error:
    assert "/stubs/libcuda.so.1 is the toolkit's stub, not a driver" in str(error), error
"""
    run_with_libcuda(tmp_path / "stubs", code)


def test_options_are_of_the_machine():
    with pytest.raises(ArgumentError, match="'seed' is an option of the backend 'ptx'"):
        Device("cuda", seed=1)


def test_a_closed_device_says_so(machine):
    module = machine.load(KERNELS)
    y = machine.empty(64)
    launch = store(module, y, 1)
    machine.launch(launch)
    machine.close()
    machine.close()
    assert machine.closed and "closed" in repr(machine)
    for call in (
        lambda: machine.empty(4),
        lambda: machine.load(KERNELS),
        lambda: machine.launch(launch),
        lambda: machine.download(y),
        machine.synchronize,
        machine.take_counts,
        lambda: Stream(machine),
        lambda: Event(machine),
        lambda: machine.capture(launch),
        lambda: module.kernel("nothing"),
        lambda: module.kernels,
    ):
        with pytest.raises(DeviceError, match="has been closed"):
            call()


def test_all_is_given_back():
    """Nothing is left of a context when the last object that lives there goes."""
    device = Device("ptx", 1)
    y = device.empty(64)
    native = device._native
    device = None
    gc.collect()
    assert native.memory()[1] - native.memory()[0] == 64
    del y
    gc.collect()
    assert native.memory()[1] == native.memory()[0]


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.arange(7, dtype=np.int16),
        np.arange(24, dtype=np.float64).reshape(2, 3, 4).transpose(2, 0, 1),
        np.float32(3.5),
        np.zeros((0, 4), np.float32),
    ],
    ids=["one", "strided", "scalar", "empty"],
)
def test_arrays_go_and_come(device, array):
    array = np.asarray(array)
    buffer = device.upload(array)
    assert buffer.bytes == array.nbytes and buffer.address > 0
    result = device.download(buffer, array.dtype, array.shape)
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, array)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_tensors_go_and_come(device, dtype):
    tensor = torch.arange(30).reshape(5, 6).to(dtype)[:, ::2]
    result = device.download(device.upload(tensor), dtype, tensor.shape)
    assert result.dtype == dtype
    assert torch.equal(result, tensor)


def test_upload_into_a_buffer(device):
    buffer = device.upload(np.zeros(8, np.uint8))
    assert device.upload(np.arange(4, dtype=np.uint8), into=buffer) is buffer
    assert device.download(buffer).tolist() == [0, 1, 2, 3, 0, 0, 0, 0]
    with pytest.raises(ArgumentError, match="source has 9 bytes; the buffer has 8"):
        device.upload(np.zeros(9, np.uint8), into=buffer)
    with pytest.raises(ArgumentError, match="the buffer has 8"):
        device.download(buffer, np.int32, (3,))
    with pytest.raises(ArgumentError, match="bytes is -1"):
        device.empty(-1)


def test_memory_is_freed_with_its_buffer(machine):
    before = machine.memory[0]
    buffer = machine.empty(1 << 20)
    assert machine.memory[0] == before - (1 << 20)
    del buffer
    assert machine.memory[0] == before


def test_pinned_memory(device):
    pinned = device.pinned(64)
    assert pinned.dtype == np.uint8 and pinned.shape == (64,)
    pinned[:] = np.arange(64)
    assert device.download(device.upload(pinned)).tolist() == list(range(64))


def test_poison(machine):
    module = machine.load(KERNELS)
    x, y = machine.upload(np.ones(16, np.uint32)), machine.upload(np.ones(16, np.uint32))
    x.poison()
    machine.launch(double_add(module, y, x))
    with pytest.raises(KernelFault, match="uninitialized") as caught:
        machine.synchronize()
    assert caught.value.trap == "uninitialized"


# ---- launches ------------------------------------------------------------------------------------


def test_launches_in_order(device, module):
    x, y = device.upload(np.arange(16, dtype=np.uint32)), device.empty(64)
    device.launch([store(module, y, 3), double_add(module, y, x), double_add(module, y, x)])
    expected = 12 + 3 * np.arange(16)
    np.testing.assert_array_equal(device.download(y, np.uint32), expected)


@pytest.mark.parametrize(
    "value",
    [
        7,
        np.uint32(7),
        ctypes.c_uint32(7),
        b"\7\0\0\0",
    ],
    ids=lambda value: type(value).__name__,
)
def test_arguments(device, module, value):
    y = device.empty(64)
    device.launch(store(module, y, value))
    assert device.download(y, np.uint32).tolist() == [7] * 16


def test_numbers_take_the_size_of_the_parameter(device, module):
    y = device.empty(64)
    device.launch(store(module, y, -1))
    assert device.download(y, np.int32).tolist() == [-1] * 16
    device.launch(store(module, y, 1.5))
    assert device.download(y, np.float32).tolist() == [1.5] * 16


@pytest.mark.parametrize(
    "arguments, says",
    [
        ((1, 2), "store takes 3 arguments; 2 are given"),
        ((1, 2, 3, 4), "store takes 3 arguments; 4 are given"),
        ((1, np.int64(2), 3), "argument 1 of store has 8 bytes; the parameter has 4"),
        ((1, 1 << 32, 3), "argument 1 of store is 4294967296, which does not fit its 4 bytes"),
        ((1, "2", 3), "argument 1 of store is '2', for a parameter of 4 bytes"),
        ((np.float32(1), 2, 3), "argument 0 of store has 4 bytes; the parameter has 8"),
        ((torch.zeros(1), 2, 3), "argument 0 of store is a tensor on cpu"),
    ],
)
def test_arguments_that_do_not_fit(device, module, arguments, says):
    launch = Launch(module.kernel("store"), (1,), (32,), arguments=arguments)
    if module.kernel("store").parameters is None:
        pytest.skip("this driver does not tell a kernel's parameters")
    with pytest.raises(ArgumentError, match=says):
        device.launch(launch)


def test_a_refused_launch_leaves_the_device_as_it_was(device, module):
    y = device.empty(64)
    with pytest.raises(GpuError) as caught:
        device.launch(Launch(module.kernel("nothing"), (1, 65536), (32,)))
    assert not isinstance(caught.value, KernelFault)
    assert caught.value.call == "cuLaunchKernel"
    assert caught.value.result == "CUDA_ERROR_INVALID_VALUE"
    assert str(caught.value).startswith("nothing: cuLaunchKernel: CUDA_ERROR_INVALID_VALUE (")
    if device.backend == "ptx":
        assert "the grid is 1 x 65536 x 1" in str(caught.value)
    device.launch(store(module, y, 2))
    assert device.download(y, np.uint32).tolist() == [2] * 16


@pytest.mark.parametrize("grid", [(), (1, 2, 3, 4), (-1,), (1 << 32,)])
def test_grids_that_are_none(device, module, grid):
    with pytest.raises(ArgumentError, match="grid is"):
        device.launch(Launch(module.kernel("nothing"), grid, (32,)))


def test_shared_memory_is_allowed_by_itself(device, module):
    y = device.empty(64)
    for shared in (1024, 64 << 10, 96 << 10, 64 << 10):
        launch = Launch(module.kernel("shared_bytes"), (1,), (32,), shared, (y, 16))
        device.launch(launch)
        assert device.download(y, np.uint32).tolist() == [shared] * 16
    optin = device.attributes["max_shared_memory_per_block_optin"]
    with pytest.raises(GpuError, match="CUDA_ERROR_INVALID_VALUE") as caught:
        device.launch(Launch(module.kernel("shared_bytes"), (1,), (32,), optin + 1, (y, 16)))
    assert caught.value.call == "cuFuncSetAttribute"


def test_kernels_say_what_they_are(device, module):
    kernel = module.kernel("static_shared")
    assert module.kernel("static_shared") is kernel
    assert (kernel.name, kernel.static_shared, kernel.local) == ("static_shared", 16384, 0)
    assert kernel.max_threads == 1024
    assert module.kernel("at_most_64").max_threads == 64
    assert 1 <= kernel.max_active_blocks(64) <= 32
    if kernel.parameters is not None:
        assert kernel.parameters == []
        assert module.kernel("store").parameters == [(0, 8), (8, 4), (12, 4)]
        assert set(module.kernels) >= {"store", "double_add", "nothing"}
    assert module.variable("variable")[1] == 16


def test_registers_limit_a_block_on_the_machine(machine):
    module = machine.load(KERNELS, registers={"nothing": 72})
    assert module.kernel("nothing").registers == 72
    assert module.kernel("nothing").max_threads == 896
    with pytest.raises(GpuError, match="CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"):
        machine.launch(Launch(module.kernel("nothing"), (1,), (1024,)))
    with pytest.raises(GpuError, match="accepted: 1 to 255"):
        machine.load(KERNELS, registers={"nothing": 256})


def test_an_image_is_loaded_once(device, module):
    assert device.load(KERNELS)._native is module._native
    assert device.load(KERNELS.encode())._native is module._native
    assert device.load(KERNELS + "\n")._native is not module._native


def test_images_and_kernels_that_there_are_not(device, module):
    with pytest.raises(GpuError) as caught:
        device.load(KERNELS.replace("mad.lo.s32 i,", "mad.lo.s32 undeclared,"))
    assert caught.value.result == "CUDA_ERROR_INVALID_PTX"
    assert "undeclared" in str(caught.value)
    with pytest.raises(GpuError, match="CUDA_ERROR_NOT_FOUND"):
        module.kernel("absent")
    with pytest.raises(GpuError, match="CUDA_ERROR_NOT_FOUND"):
        module.variable("absent")


def test_a_kernel_of_another_device(machine):
    with Device("ptx", 1) as other:
        kernel = other.load(KERNELS).kernel("nothing")
        with pytest.raises(DeviceError, match="another device"):
            machine.launch(Launch(kernel, (1,), (32,)))


def test_counts(machine):
    module = machine.load(KERNELS)
    y = machine.empty(64)
    machine.launch([store(module, y, 1), store(module, y, 2, count=8)])
    assert machine.take_counts() == []  # nothing has run
    machine.synchronize()
    first, second = machine.take_counts()
    assert first["kernel"] == "store"
    (tensor,) = first["tensors"]
    assert (tensor["name"], tensor["base"], tensor["bytes"]) == ("y", y.address, 64)
    assert tensor["write"]["bytes"] == 64
    assert second["tensors"][0]["write"]["bytes"] == 32
    assert machine.take_counts() == []


def test_counts_of_what_ran_before_a_fault():
    with Device("ptx") as device:
        y = device.empty(64)
        device.launch(store(device.load(KERNELS), y, 1))
        kernel = device.load(fault_image("device_trap")).kernel("device_trap")
        device.launch(Launch(kernel, (1,), (32,), arguments=(y, 1)))
        with pytest.raises(KernelFault):
            device.synchronize()
        assert [counts["kernel"] for counts in device.take_counts()] == ["store"]


# ---- streams, events, graphs ---------------------------------------------------------------------


def test_streams_wait_for_events(device, module):
    first, second = Stream(device), Stream(device)
    x, y = device.empty(64), device.upload(np.full(16, 50, np.uint32))
    device.launch(store(module, x, 10), first)
    second.wait(Event(device, timing=False).record(first))
    device.launch(double_add(module, y, x), second)
    assert device.download(y, np.uint32, stream=second).tolist() == [110] * 16
    device.synchronize()
    assert first.done and second.done


def test_events_measure(device, module):
    y = device.empty(64)
    start = Event(device).record()
    device.launch(store(module, y, 1))
    end = Event(device).record()
    end.synchronize()
    assert end.done
    assert end.elapsed_since(start) >= 0.0
    with pytest.raises(GpuError, match="CUDA_ERROR_INVALID_HANDLE"):
        end.elapsed_since(Event(device, timing=False).record())


def test_graphs(device, module):
    x, y = device.upload(np.ones(16, np.uint32)), device.upload(np.zeros(16, np.uint32))
    graph = device.capture([double_add(module, y, x)] * 3)
    assert graph.nodes == 3
    assert device.download(y, np.uint32).tolist() == [0] * 16
    graph.launch()
    assert device.download(y, np.uint32).tolist() == [7] * 16
    stream = Stream(device)
    graph.launch(stream)
    stream.synchronize()
    assert device.download(y, np.uint32).tolist() == [63] * 16


def test_a_graph_keeps_what_it_uses(device, module):
    y = device.upload(np.zeros(16, np.uint32))
    graph = Graph(device, double_add(module, y, device.upload(np.ones(16, np.uint32))))
    gc.collect()
    graph.launch()
    assert device.download(y, np.uint32).tolist() == [1] * 16


def test_a_refused_launch_in_a_graph(device, module):
    y = device.empty(64)
    with pytest.raises(GpuError, match="CUDA_ERROR_INVALID_VALUE"):
        device.capture([store(module, y, 1), Launch(module.kernel("nothing"), (1,), (2048,))])
    device.capture(store(module, y, 1)).launch()
    assert device.download(y, np.uint32).tolist() == [1] * 16


@pytest.fixture
def library(machine):
    """The driver itself, with the machine's context current."""
    library, context = ctypes.CDLL(str(machine_library())), ctypes.c_uint64()
    assert library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert library.cuCtxPushCurrent_v2(context) == 0
    yield library
    library.cuCtxPopCurrent_v2(ctypes.byref(context))
    library.cuDevicePrimaryCtxRelease_v2(0)


def test_a_graph_on_a_capturing_stream_makes_plain_launches(machine, library):
    """As torch.cuda.graph captures a caller's stream; here through the driver itself."""
    module = machine.load(KERNELS)
    x, y = machine.upload(np.ones(16, np.uint32)), machine.upload(np.zeros(16, np.uint32))
    graph = machine.capture([double_add(module, y, x)] * 2)
    stream = Stream(machine)
    assert library.cuStreamBeginCapture_v2(ctypes.c_uint64(stream.handle), 1) == 0
    assert stream.capturing
    graph.launch(stream)
    captured, count = ctypes.c_uint64(), ctypes.c_size_t()
    assert library.cuStreamEndCapture(ctypes.c_uint64(stream.handle), ctypes.byref(captured)) == 0
    assert library.cuGraphGetNodes(captured, None, ctypes.byref(count)) == 0
    assert count.value == 2
    assert machine.download(y, np.uint32).tolist() == [0] * 16


def test_buffers_may_go_while_a_stream_is_captured(machine, library):
    """Whenever the garbage collector runs: a free in a capture would invalidate it."""
    module = machine.load(KERNELS)
    y, garbage = machine.empty(64), [machine.empty(64) for _ in range(3)]
    free = machine.memory[0]
    stream = Stream(machine)
    assert library.cuStreamBeginCapture_v2(ctypes.c_uint64(stream.handle), 0) == 0
    machine.launch(store(module, y, 1), stream)
    garbage.clear()
    captured = ctypes.c_uint64()
    assert library.cuStreamEndCapture(ctypes.c_uint64(stream.handle), ctypes.byref(captured)) == 0
    assert machine.memory[0] == free + 3 * 64


def test_a_foreign_stream(machine):
    """Stream 0 is the legacy one, which is ours too when asked for."""
    module = machine.load(KERNELS)
    y = machine.empty(64)
    machine.launch(store(module, y, 4), stream=0)
    assert machine.download(y, np.uint32, stream=0).tolist() == [4] * 16


def test_threads_launch_side_by_side(device, module):
    buffers = [device.empty(64) for _ in range(4)]
    failed = []

    def work(index):
        try:
            stream = Stream(device)
            for value in range(20):
                device.launch(store(module, buffers[index], 100 * index + value), stream)
                graph = device.capture(store(module, buffers[index], 100 * index + value))
                graph.launch(stream)
                result = device.download(buffers[index], np.uint32, stream=stream)
                assert result.tolist() == [100 * index + value] * 16
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


# ---- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name):
    trap, result, _ = FAULTS[name]
    with Device("ptx", max_instructions=100000) as device:
        y = device.empty(256)
        kernel = device.load(fault_image(name)).kernel(name)
        device.launch(Launch(kernel, (1,), (64,), arguments=(y, 64)))
        for call in (device.synchronize, lambda: device.empty(4), lambda: device.download(y)):
            with pytest.raises(KernelFault) as caught:
                call()
            assert (caught.value.trap, caught.value.result) == (trap, result)
            assert f"kernel {name}" in str(caught.value)
        device.close()
    with Device("ptx") as device:  # a new context
        y = device.empty(64)
        device.launch(store(device.load(KERNELS), y, 5))
        assert device.download(y, np.uint32).tolist() == [5] * 16


def test_a_region_holds_a_launch_to_it(machine):
    module = machine.load(KERNELS)
    y = machine.empty(64)
    launch = Launch(
        module.kernel("store"), (1,), (32,), arguments=(y, 1, 16), regions=(y.region("y", "r"),)
    )
    machine.launch(launch)
    with pytest.raises(KernelFault) as caught:
        machine.synchronize()
    assert caught.value.trap == "undeclared access"
    with pytest.raises(ArgumentError, match="mode is 'x'; accepted: 'r', 'w', 'rw'"):
        y.region("y", "x")


def test_errors_can_be_pickled():
    error = KernelFault("text", "cuCtxSynchronize", "CUDA_ERROR_LAUNCH_FAILED", "shared race")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, KernelFault)
    assert (str(copy), copy.call, copy.result, copy.trap) == (
        "text",
        "cuCtxSynchronize",
        "CUDA_ERROR_LAUNCH_FAILED",
        "shared race",
    )
