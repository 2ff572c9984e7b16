"""Each misuse of the driver API: the driver's own error, and everything still works afterwards.

The same checks run against a real driver, except where it does not look (a stale handle crashes it)
or where the machine is stricter on purpose.
"""

import ctypes
import subprocess
import sys
import threading

import pytest
from gpu_driver import FAULTS, KERNELS, Bench, Raw, fault_image

from effnet_fast.errors import BackendError
from effnet_fast.gpu import Device
from effnet_fast.gpu.device import machine_library

BOGUS = 0x1234560
u32, u64 = ctypes.c_uint32, ctypes.c_uint64


@pytest.fixture(params=["ptx", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request):
    if request.param == "cuda":
        try:
            Device("cuda").close()
        except BackendError as error:
            pytest.skip(str(error))
    return request.param


@pytest.fixture
def bench(backend):
    bench = Bench(Raw(backend))
    yield bench
    bench.close()


@pytest.fixture
def machine_bench():
    bench = Bench(Raw("ptx"))
    yield bench
    bench.close()


MISUSES = []


def misuse(expected, says, machine_only=""):
    """Register a misuse: a function of a Bench that returns the misusing call's result.

    `machine_only` is why a real driver is not held to it.
    """

    def register(function):
        MISUSES.append(pytest.param(function, expected, says, machine_only, id=function.__name__))
        return function

    return register


@pytest.mark.parametrize("function, expected, says, machine_only", MISUSES)
def test_misuse(bench, function, expected, says, machine_only):
    if machine_only and not bench.raw.is_machine:
        pytest.skip(machine_only)
    assert function(bench) == "CUDA_ERROR_" + expected
    if bench.raw.is_machine:
        assert says in bench.raw.last_error
        assert bench.raw.library.effnet_ptx_trap() == b""
    bench.check()


UNLOOKED = "a real driver does not look at a handle before it uses it"
STRICTER = "the machine is stricter"


# ---- contexts ------------------------------------------------------------------------------------


@misuse("INVALID_CONTEXT", "no context is current")
def no_current_context(b):
    b.raw.must("cuCtxPopCurrent_v2", ctypes.byref(u64()))
    result = b.raw.call("cuMemAlloc_v2", ctypes.byref(u64()), 64)
    b.raw.must("cuCtxPushCurrent_v2", b.context)
    return result


@misuse("CONTEXT_IS_DESTROYED", "has been destroyed", "a real machine may have one GPU")
def current_context_destroyed(b):
    b.raw.must("cuCtxPushCurrent_v2", b.raw.make("cuDevicePrimaryCtxRetain", 1))
    b.raw.must("cuDevicePrimaryCtxRelease_v2", 1)
    result = b.raw.call("cuMemAlloc_v2", ctypes.byref(u64()), 64)
    b.raw.must("cuCtxPopCurrent_v2", ctypes.byref(u64()))
    return result


@misuse("INVALID_CONTEXT", "is not a context", UNLOOKED)
def push_of_no_context(b):
    return b.raw.call("cuCtxPushCurrent_v2", BOGUS)


@misuse("INVALID_CONTEXT", "is not active", "torch may hold the context of a real GPU")
def release_without_retain(b):
    return b.raw.call("cuDevicePrimaryCtxRelease_v2", 1)


@misuse("INVALID_DEVICE", "does not exist")
def no_such_device(b):
    return b.raw.call("cuDeviceGet", ctypes.byref(ctypes.c_int()), 4711)


@misuse("INVALID_VALUE", "device attribute 100000", STRICTER)
def no_such_attribute(b):
    return b.raw.call("cuDeviceGetAttribute", ctypes.byref(ctypes.c_int()), 100000, b.device)


@pytest.mark.parametrize("asks", [True, False])
def test_no_such_entry_point(bench, asks):
    found, status = u64(1), u32()
    result = bench.raw.call(
        "cuGetProcAddress_v2", b"cuNothing", ctypes.byref(found), 12000, 0,
        ctypes.byref(status) if asks else None,
    )  # fmt: skip
    assert (result, found.value, status.value) == ("CUDA_SUCCESS", 0, int(asks))


def test_calls_before_init():
    """In a process of its own: here the driver has been initialised long since."""
    code = (
        "import ctypes\n"
        f"library = ctypes.CDLL({str(machine_library())!r})\n"
        "library.effnet_ptx_error.restype = ctypes.c_char_p\n"
        "assert library.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == 3\n"
        "assert b'cuInit' in library.effnet_ptx_error()\n"
        "version = ctypes.c_int()\n"
        "assert library.cuDriverGetVersion(ctypes.byref(version)) == 0\n"
        "assert version.value == 13000\n"
        "assert library.cuInit(1) == 1 and library.cuInit(0) == 0\n"
        "assert library.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- handles -------------------------------------------------------------------------------------


@misuse("INVALID_HANDLE", "is not a handle", UNLOOKED)
def unknown_function(b):
    return b.launch(BOGUS)


@misuse("INVALID_HANDLE", "is not a handle", UNLOOKED)
def unknown_stream(b):
    return b.raw.call("cuStreamSynchronize", BOGUS)


@misuse("INVALID_HANDLE", "is not a handle", UNLOOKED)
def unknown_event(b):
    return b.raw.call("cuEventRecord", BOGUS, 0)


@misuse("INVALID_HANDLE", "is not a handle", UNLOOKED)
def unknown_module(b):
    return b.raw.call("cuModuleUnload", BOGUS)


@misuse("INVALID_HANDLE", "is not a handle", UNLOOKED)
def unknown_graph(b):
    return b.raw.call("cuGraphInstantiateWithFlags", ctypes.byref(u64()), BOGUS, 0)


@misuse("INVALID_HANDLE", "is not a handle", UNLOOKED)
def unknown_graph_exec(b):
    return b.raw.call("cuGraphLaunch", BOGUS, 0)


@misuse("INVALID_HANDLE", "is not a stream but a event", UNLOOKED)
def event_for_a_stream(b):
    return b.raw.call("cuStreamSynchronize", b.event())


@misuse("INVALID_HANDLE", "has been destroyed", UNLOOKED)
def destroyed_stream(b):
    stream = b.stream()
    b.raw.must("cuStreamDestroy_v2", stream)
    return b.store(1, stream)


@misuse("INVALID_HANDLE", "has been destroyed", UNLOOKED)
def destroyed_event(b):
    event = b.event()
    b.raw.must("cuEventDestroy_v2", event)
    return b.raw.call("cuEventRecord", event, 0)


@misuse("INVALID_HANDLE", "has been destroyed", UNLOOKED)
def function_of_an_unloaded_module(b):
    module = b.load(KERNELS)
    function = b.function("nothing", module)
    b.raw.must("cuModuleUnload", module)
    return b.launch(function)


def make_exec(b, module=None):
    stream = b.stream()
    b.raw.must("cuStreamBeginCapture_v2", stream, 1)
    assert b.launch(b.function("nothing", module), stream=stream) == "CUDA_SUCCESS"
    graph = u64()
    b.raw.must("cuStreamEndCapture", stream, ctypes.byref(graph))
    return b.raw.make("cuGraphInstantiateWithFlags", graph.value, 0), graph.value


@misuse("INVALID_HANDLE", "has been destroyed", UNLOOKED)
def destroyed_graph_exec(b):
    graph_exec, _ = make_exec(b)
    b.raw.must("cuGraphExecDestroy", graph_exec)
    return b.raw.call("cuGraphLaunch", graph_exec, 0)


@misuse("INVALID_HANDLE", "has been destroyed", UNLOOKED)
def destroyed_graph(b):
    _, graph = make_exec(b)
    b.raw.must("cuGraphDestroy", graph)
    return b.raw.call("cuGraphInstantiateWithFlags", ctypes.byref(u64()), graph, 0)


@misuse("INVALID_HANDLE", "has been unloaded", UNLOOKED)
def graph_of_an_unloaded_module(b):
    module = b.load(KERNELS)
    graph_exec, _ = make_exec(b, module)
    b.raw.must("cuModuleUnload", module)
    return b.raw.call("cuGraphLaunch", graph_exec, 0)


def on_the_other_device(b, use):
    """The result of `use(other bench)` with the context of device 0 current."""
    other = Bench(b.raw, 1)
    b.raw.must("cuCtxPushCurrent_v2", b.context)
    result = use(other)
    b.raw.must("cuCtxPopCurrent_v2", ctypes.byref(u64()))
    other.close()
    return result


ONE_GPU = "a real machine may have one GPU"


@misuse("INVALID_HANDLE", "belongs to another context", ONE_GPU)
def foreign_function(b):
    function = []
    other = Bench(b.raw, 1)
    function.append(other.function("nothing"))
    b.raw.must("cuCtxPushCurrent_v2", b.context)
    result = b.launch(function[0])
    b.raw.must("cuCtxPopCurrent_v2", ctypes.byref(u64()))
    other.close()
    return result


@misuse("INVALID_HANDLE", "belongs to another context", ONE_GPU)
def foreign_stream(b):
    other = Bench(b.raw, 1)
    stream = other.stream()
    b.raw.must("cuCtxPushCurrent_v2", b.context)
    result = b.store(1, stream)
    b.raw.must("cuCtxPopCurrent_v2", ctypes.byref(u64()))
    other.close()
    return result


@misuse("INVALID_HANDLE", "another context", ONE_GPU)
def foreign_event(b):
    other = Bench(b.raw, 1)
    event = other.event()
    b.raw.must("cuCtxPushCurrent_v2", b.context)
    result = b.raw.call("cuEventRecord", event, 0)
    b.raw.must("cuCtxPopCurrent_v2", ctypes.byref(u64()))
    other.close()
    return result


@misuse("INVALID_HANDLE", "another context", ONE_GPU)
def foreign_module(b):
    return on_the_other_device(
        b,
        lambda other: b.raw.call(
            "cuModuleGetFunction", ctypes.byref(u64()), other.module, b"nothing"
        ),
    )


@misuse("INVALID_VALUE", "belongs to device 1", ONE_GPU)
def foreign_memory_freed(b):
    return on_the_other_device(b, lambda other: b.raw.call("cuMemFree_v2", other.memory))


@misuse("INVALID_VALUE", "belongs to device 1", ONE_GPU)
def foreign_memory_copied(b):
    return on_the_other_device(
        b, lambda other: b.raw.call("cuMemcpyDtoD_v2", b.memory, other.memory, 64)
    )


# ---- launches ------------------------------------------------------------------------------------


def launch_extra(b, function, data, size):
    buffer, count = ctypes.create_string_buffer(data, len(data)), ctypes.c_size_t(size)
    extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(buffer), 2, ctypes.addressof(count), 0)
    return b.raw.call("cuLaunchKernel", b.function(function), 1, 1, 1, 32, 1, 1, 0, 0, None, extra)


def test_parameters_in_a_buffer(bench):
    data = bytes(u64(bench.memory)) + bytes(u32(5)) + bytes(u32(16))
    assert launch_extra(bench, "store", data, 16) == "CUDA_SUCCESS"
    assert bench.read(bench.memory) == [5] * 16


@misuse("INVALID_VALUE", "12 bytes of parameters; it has 3 parameters of 16 bytes", STRICTER)
def parameters_too_short(b):
    return launch_extra(b, "store", bytes(16), 12)


@misuse("INVALID_VALUE", "24 bytes of parameters; it has 3 parameters of 16 bytes", STRICTER)
def parameters_too_long(b):
    return launch_extra(b, "store", bytes(24), 24)


@misuse("INVALID_VALUE", "no parameters are given; it has 3", UNLOOKED)
def parameters_missing(b):
    return b.raw.call("cuLaunchKernel", b.function("store"), 1, 1, 1, 32, 1, 1, 0, 0, None, None)


@misuse("INVALID_VALUE", "kernelParams[1], 'v', is null", "a real driver reads address 0")
def parameter_null(b):
    pointers = (ctypes.c_void_p * 3)(ctypes.addressof(u64(b.memory)), None, None)
    return b.raw.call(
        "cuLaunchKernel", b.function("store"), 1, 1, 1, 32, 1, 1, 0, 0, pointers, None
    )


@misuse("INVALID_VALUE", "kernelParams and extra are both given", "it takes an empty extra")
def parameters_twice(b):
    pointers, extra = (ctypes.c_void_p * 1)(), (ctypes.c_void_p * 1)(0)
    return b.raw.call(
        "cuLaunchKernel", b.function("nothing"), 1, 1, 1, 32, 1, 1, 0, 0, pointers, extra
    )


@misuse("INVALID_VALUE", "the grid is 0 x 1 x 1; accepted: 1 or more")
def grid_of_zero(b):
    return b.launch("nothing", grid=(0, 1, 1))


@misuse("INVALID_VALUE", "up to 2147483647 x 65535 x 65535")
def grid_x_too_big(b):
    return b.launch("nothing", grid=(1 << 31, 1, 1))


@misuse("INVALID_VALUE", "the grid is 1 x 65536 x 1")
def grid_y_too_big(b):
    return b.launch("nothing", grid=(1, 65536, 1))


@misuse("INVALID_VALUE", "the grid is 1 x 1 x 65536")
def grid_z_too_big(b):
    return b.launch("nothing", grid=(1, 1, 65536))


@misuse("INVALID_VALUE", "the block is 32 x 0 x 1; accepted: 1 or more")
def block_of_zero(b):
    return b.launch("nothing", block=(32, 0, 1))


@misuse("INVALID_VALUE", "1024 threads in all")
def block_too_big(b):
    return b.launch("nothing", block=(1025, 1, 1))


@misuse("INVALID_VALUE", "1024 threads in all")
def block_product_too_big(b):
    return b.launch("nothing", block=(64, 32, 1))


@misuse("INVALID_VALUE", "the block is 1 x 1 x 65; accepted: up to 1024 x 1024 x 64")
def block_z_too_big(b):
    return b.launch("nothing", block=(1, 1, 65))


@misuse("INVALID_VALUE", "its .maxntid is 64")
def block_past_maxntid(b):
    return b.launch("at_most_64", block=(65, 1, 1))


@misuse("INVALID_VALUE", "its .reqntid is 64 x 1 x 1")
def block_other_than_reqntid(b):
    return b.launch("just_64", block=(32, 1, 1))


@misuse("INVALID_VALUE", "49153 bytes of dynamic shared memory; accepted: 49152")
def shared_without_the_attribute(b):
    return b.launch("nothing", shared=49153)


@misuse("INVALID_VALUE", "accepted: 32768, beside 16384 static ones")
def shared_beside_static(b):
    return b.launch("static_shared", shared=32769)


@misuse("INVALID_VALUE", "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES says")
def shared_past_the_attribute(b):
    function = b.function("nothing", b.load(KERNELS))
    b.raw.must("cuFuncSetAttribute", function, 8, 65536)
    assert b.launch(function, shared=65536) == "CUDA_SUCCESS"
    return b.launch(function, shared=65537)


@misuse("INVALID_VALUE", "the device has")
def shared_past_the_optin(b):
    optin = b.raw.make("cuDeviceGetAttribute", 97, b.device, kind=ctypes.c_int)
    b.raw.must("cuFuncSetAttribute", b.function("static_shared"), 8, optin - 16384)
    return b.raw.call("cuFuncSetAttribute", b.function("static_shared"), 8, optin - 16384 + 1)


@misuse("INVALID_VALUE", "cannot be set")
def attribute_that_is_fixed(b):
    return b.raw.call("cuFuncSetAttribute", b.function("nothing"), 4, 32)


# 80 registers are 2560 of a warp; 25 warps would fit, but they come in fours.
@misuse("LAUNCH_OUT_OF_RESOURCES", "holds 24 of its 25 warps", "ptxas decides on a real GPU")
def registers_past_the_file(b):
    function = b.function("nothing", b.load(KERNELS))
    assert b.raw.call("effnet_ptx_set_registers", function, 80) == "CUDA_SUCCESS"
    assert b.launch(function, block=(768, 1, 1)) == "CUDA_SUCCESS"
    return b.launch(function, block=(800, 1, 1))


@misuse("NOT_SUPPORTED", "launch attribute 2 COOPERATIVE", "a GPU has cooperative launches")
def unknown_launch_attribute(b):
    class Attribute(ctypes.Structure):
        _fields_ = (("id", u32), ("pad", u32), ("value", ctypes.c_char * 64))

    class Config(ctypes.Structure):
        _fields_ = (
            ("dims", u32 * 7),
            ("stream", u64),
            ("attributes", ctypes.POINTER(Attribute)),
            ("count", u32),
        )

    attribute = Attribute(2, 0, b"\1")
    config = Config((u32 * 7)(1, 1, 1, 32, 1, 1, 0), 0, ctypes.pointer(attribute), 1)
    ignored = Attribute(0, 0, b"")
    fine = Config((u32 * 7)(1, 1, 1, 32, 1, 1, 0), 0, ctypes.pointer(ignored), 1)
    function = b.function("nothing")
    b.raw.must("cuLaunchKernelEx", ctypes.byref(fine), function, None, None)
    return b.raw.call("cuLaunchKernelEx", ctypes.byref(config), function, None, None)


@misuse("INVALID_VALUE", "region 'y'", "regions are of the machine")
def region_outside_of_memory(b):
    class Region(ctypes.Structure):
        _fields_ = (
            ("name", ctypes.c_char_p),
            ("base", u64),
            ("bytes", u64),
            ("readable", ctypes.c_int),
            ("writable", ctypes.c_int),
        )

    b.raw.must("effnet_ptx_declare", ctypes.byref(Region(b"y", b.memory, 257, 1, 1)), 1)
    return b.store(1)


# ---- modules -------------------------------------------------------------------------------------


@misuse("NOT_FOUND", "has no kernel 'absent'; it has: ")
def no_such_kernel(b):
    return b.raw.call("cuModuleGetFunction", ctypes.byref(u64()), b.module, b"absent")


@misuse("NOT_FOUND", "has no variable 'absent'")
def no_such_variable(b):
    return b.raw.call(
        "cuModuleGetGlobal_v2", ctypes.byref(u64()), ctypes.byref(u64()), b.module, b"absent"
    )


@misuse("INVALID_PTX", "")
def ptx_with_a_mistake(b):
    image = KERNELS.replace("mad.lo.s32 i", "mad.lo.s32 undeclared").encode()
    return b.raw.call("cuModuleLoadData", ctypes.byref(u64()), image)


@misuse("INVALID_IMAGE", "neither PTX nor a fat binary", "a real driver may try to compile it")
def image_of_nothing(b):
    return b.raw.call("cuModuleLoadData", ctypes.byref(u64()), b"hello, world")


# ---- memory --------------------------------------------------------------------------------------


@misuse("INVALID_VALUE", "bytesize is 0")
def allocation_of_zero(b):
    return b.raw.call("cuMemAlloc_v2", ctypes.byref(u64()), 0)


@misuse("OUT_OF_MEMORY", "in use")
def allocation_too_big(b):
    return b.raw.call("cuMemAlloc_v2", ctypes.byref(u64()), 1 << 44)


@misuse("INVALID_VALUE", "is not what an allocation returned")
def double_free(b):
    address = b.alloc(64)
    b.raw.must("cuMemFree_v2", address)
    return b.raw.call("cuMemFree_v2", address)


@misuse("INVALID_VALUE", "is not what an allocation returned", STRICTER)
def free_inside_of_an_allocation(b):
    return b.raw.call("cuMemFree_v2", b.memory + 16)


@misuse("INVALID_VALUE", "is being freed", STRICTER)
def double_free_in_a_stream(b):
    stream = b.stream()
    address = b.raw.make("cuMemAllocAsync", 64, stream)
    b.raw.must("cuMemFreeAsync", address, stream)
    return b.raw.call("cuMemFreeAsync", address, stream)


@misuse("INVALID_VALUE", "dstDevice", STRICTER)
def copy_past_the_end(b):
    return b.raw.call("cuMemcpyHtoD_v2", b.memory + 192, bytes(65), 65)


@misuse("INVALID_VALUE", "srcDevice", "a real driver takes it for a host address")
def copy_from_nowhere(b):
    return b.raw.call("cuMemcpyDtoH_v2", (u32 * 4)(), 64, 16)


@misuse("INVALID_VALUE", "dstDevice", STRICTER)
def fill_past_the_end(b):
    return b.raw.call("cuMemsetD32_v2", b.memory, 0, 65)


@misuse("INVALID_VALUE", "is not a multiple of the 4 bytes")
def fill_misaligned(b):
    return b.raw.call("cuMemsetD32_v2", b.memory + 2, 0, 4)


@misuse("INVALID_VALUE", "overlap", STRICTER)
def copy_onto_itself(b):
    return b.raw.call("cuMemcpyDtoD_v2", b.memory, b.memory + 16, 32)


@misuse("INVALID_VALUE", "is not what cuMemHostAlloc returned", UNLOOKED)
def free_of_foreign_host_memory(b):
    return b.raw.call("cuMemFreeHost", ctypes.addressof(u64()))


@misuse("INVALID_VALUE", "is neither device memory nor pinned", "a GPU may reach it")
def attribute_of_pageable_memory(b):
    return b.raw.call(
        "cuPointerGetAttribute", ctypes.byref(u64()), 3, ctypes.addressof((u32 * 4)())
    )


# ---- events --------------------------------------------------------------------------------------


@misuse("INVALID_HANDLE", "hStart was created without timing")
def elapsed_without_timing(b):
    start, end = b.event(2), b.event()
    for event in (start, end):
        b.raw.must("cuEventRecord", event, 0)
    b.raw.must("cuCtxSynchronize")
    return b.raw.call("cuEventElapsedTime", ctypes.byref(ctypes.c_float()), start, end)


@misuse("INVALID_HANDLE", "hEnd was never recorded")
def elapsed_without_record(b):
    start, end = b.event(), b.event()
    b.raw.must("cuEventRecord", start, 0)
    return b.raw.call("cuEventElapsedTime", ctypes.byref(ctypes.c_float()), start, end)


@misuse("NOT_READY", "hStart is still pending", "a GPU may be done by then")
def elapsed_too_early(b):
    start, end = b.event(), b.event()
    for event in (start, end):
        b.raw.must("cuEventRecord", event, 0)
    return b.raw.call("cuEventElapsedTime", ctypes.byref(ctypes.c_float()), start, end)


# ---- capture -------------------------------------------------------------------------------------


def breaks_capture(call):
    """The result of `call(bench, captured stream)`, which has to invalidate the capture."""

    def run(b):
        stream = b.begin()
        result = call(b, stream)
        assert b.store(1, stream) == "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
        status = u32()
        b.raw.must("cuStreamIsCapturing", stream, ctypes.byref(status))
        assert status.value == 2
        last = getattr(b.raw, "last_error", "")
        assert b.end(stream) == "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
        b.raw.must("cuStreamIsCapturing", stream, ctypes.byref(status))
        assert status.value == 0
        b.raw.last_error = last
        return result

    return run


def capturing(expected, says, machine_only=""):
    def register(function):
        wrapped = breaks_capture(function)
        wrapped.__name__ = function.__name__ + "_in_capture"
        return misuse(expected, says, machine_only)(wrapped)

    return register


@capturing("STREAM_CAPTURE_UNSUPPORTED", "allocating memory")
def allocation(b, stream):
    return b.raw.call("cuMemAlloc_v2", ctypes.byref(u64()), 64)


@capturing("STREAM_CAPTURE_UNSUPPORTED", "freeing memory")
def free(b, stream):
    return b.raw.call("cuMemFree_v2", b.memory)


@capturing("STREAM_CAPTURE_UNSUPPORTED", "loading a module", STRICTER)
def module_load(b, stream):
    return b.raw.call("cuModuleLoadData", ctypes.byref(u64()), KERNELS.encode())


@capturing("STREAM_CAPTURE_UNSUPPORTED", "synchronising the stream")
def stream_synchronize(b, stream):
    return b.raw.call("cuStreamSynchronize", stream)


@capturing("STREAM_CAPTURE_UNSUPPORTED", "querying the stream")
def stream_query(b, stream):
    return b.raw.call("cuStreamQuery", stream)


@capturing("STREAM_CAPTURE_UNSUPPORTED", "synchronising the context")
def context_synchronize(b, stream):
    return b.raw.call("cuCtxSynchronize")


@capturing("CAPTURED_EVENT", "query of an event that was recorded in a capture")
def event_query(b, stream):
    event = b.event()
    b.raw.must("cuEventRecord", event, stream)
    return b.raw.call("cuEventQuery", event)


@capturing("CAPTURED_EVENT", "synchronisation of an event that was recorded in a capture")
def event_synchronize(b, stream):
    event = b.event()
    b.raw.must("cuEventRecord", event, stream)
    return b.raw.call("cuEventSynchronize", event)


@capturing("STREAM_CAPTURE_ISOLATION", "wait for an event from outside")
def wait_for_outside(b, stream):
    event = b.event()
    b.raw.must("cuEventRecord", event, b.stream())
    return b.raw.call("cuStreamWaitEvent", stream, event, 0)


@misuse("STREAM_CAPTURE_IMPLICIT", "would wait for a stream that is capturing")
def legacy_stream_in_a_global_capture(b):
    stream = b.begin(mode=0, flags=0)  # a blocking stream, so the legacy one would wait for it
    result = b.store(1)
    last = b.raw.error()
    assert b.end(stream) == "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
    b.raw.last_error = last
    return result


@misuse("STREAM_CAPTURE_UNSUPPORTED", "the legacy stream cannot be captured")
def capture_of_the_legacy_stream(b):
    return b.raw.call("cuStreamBeginCapture_v2", 0, 0)


@misuse("ILLEGAL_STATE", "is capturing already")
def begin_twice(b):
    stream = b.begin()
    result = b.raw.call("cuStreamBeginCapture_v2", stream, 0)
    assert b.end(stream) == "CUDA_SUCCESS"
    return result


@misuse("ILLEGAL_STATE", "is not capturing")
def end_without_begin(b):
    return b.end(b.stream())


def fork(b, origin):
    """Another stream in the origin's capture, with a launch of its own."""
    event, side = b.event(2), b.stream()
    b.raw.must("cuEventRecord", event, origin)
    b.raw.must("cuStreamWaitEvent", side, event, 0)
    assert b.launch("nothing", stream=side) == "CUDA_SUCCESS"
    return side


@misuse("STREAM_CAPTURE_UNJOINED", "was not joined")
def unjoined(b):
    stream = b.begin()
    fork(b, stream)
    return b.end(stream)


@misuse("STREAM_CAPTURE_UNMATCHED", "was begun on another stream")
def ended_on_another_stream(b):
    stream = b.begin()
    side = fork(b, stream)
    result, last = b.end(side), b.raw.error()
    b.end(stream)
    b.raw.last_error = last
    return result


@misuse("STREAM_CAPTURE_MERGE", "would merge two captures")
def merged(b):
    first, second, event = b.begin(1), b.begin(1), b.event(2)
    b.raw.must("cuEventRecord", event, first)
    result, last = b.raw.call("cuStreamWaitEvent", second, event, 0), b.raw.error()
    for stream in (first, second):
        assert b.end(stream) == "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
    b.raw.last_error = last
    return result


def in_a_thread(b, function):
    """The function's result in another thread, and what the driver said there."""
    results = []

    def run():
        b.raw.must("cuCtxPushCurrent_v2", b.context)
        results.extend((function(), b.raw.error()))
        b.raw.must("cuCtxPopCurrent_v2", ctypes.byref(u64()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results


@misuse("STREAM_CAPTURE_WRONG_THREAD", "was begun by another thread")
def ended_by_another_thread(b):
    stream = b.begin(mode=1)
    result, last = in_a_thread(b, lambda: b.end(stream))
    assert b.end(stream) == "CUDA_ERROR_ILLEGAL_STATE"  # it has ended
    b.raw.last_error = last
    return result


@misuse("STREAM_CAPTURE_UNSUPPORTED", "allocating memory")
def allocation_by_another_thread_in_a_global_capture(b):
    stream = b.begin(mode=0)
    result, last = in_a_thread(b, lambda: b.raw.call("cuMemAlloc_v2", ctypes.byref(u64()), 64))
    assert b.end(stream) == "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
    b.raw.last_error = last
    return result


def test_a_thread_local_capture_leaves_other_threads_alone(bench):
    stream = bench.begin(mode=1)
    assert in_a_thread(bench, lambda: bench.alloc(64))[0] > 0
    assert bench.end(stream) == "CUDA_SUCCESS"


def test_a_relaxed_thread_may_allocate_while_it_captures(bench):
    stream = bench.begin(mode=1)
    mode = u32(2)
    bench.raw.must("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    assert mode.value == 0
    bench.alloc(64)
    bench.raw.must("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    assert mode.value == 2
    assert bench.end(stream) == "CUDA_SUCCESS"


# ---- what a kernel does wrong --------------------------------------------------------------------


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_sticky_until_the_context_goes(machine_bench, name):
    b, (trap, result, _) = machine_bench, FAULTS[name]
    b.raw.must("effnet_ptx_set_option", b"max_instructions", b"100000")
    function = b.function(name, b.load(fault_image(name)))
    fresh, nothing = b.alloc(256), b.function("nothing")
    assert b.launch(function, u64(fresh), u32(64), block=(64, 1, 1)) == "CUDA_SUCCESS"
    for _ in range(2):
        assert b.raw.call("cuCtxSynchronize") == result
        assert b.raw.library.effnet_ptx_trap().decode() == trap
        assert f"kernel {name}" in b.raw.last_error
        assert "PTX line" in b.raw.last_error
    assert b.raw.call("cuMemAlloc_v2", ctypes.byref(u64()), 64) == result
    assert b.launch(nothing) == result
    b.close()
    b.__init__(b.raw)
    b.check()


def test_reset_takes_a_fault_away(machine_bench):
    b = machine_bench
    function = b.function("device_trap", b.load(fault_image("device_trap")))
    assert b.launch(function, u64(b.memory), u32(1)) == "CUDA_SUCCESS"
    assert b.raw.call("cuCtxSynchronize") == "CUDA_ERROR_LAUNCH_FAILED"
    b.raw.must("cuDevicePrimaryCtxReset_v2", 0)
    assert b.raw.call("cuCtxSynchronize") == "CUDA_ERROR_CONTEXT_IS_DESTROYED"
    b.raw.must("cuCtxPopCurrent_v2", ctypes.byref(u64()))
    b.__init__(b.raw)
    b.check()


def test_undeclared_memory_is_a_fault(machine_bench):
    b = machine_bench

    class Region(ctypes.Structure):
        _fields_ = (
            ("name", ctypes.c_char_p),
            ("base", u64),
            ("bytes", u64),
            ("readable", ctypes.c_int),
            ("writable", ctypes.c_int),
        )

    # A declaration is for one launch.
    b.raw.must("effnet_ptx_declare", ctypes.byref(Region(b"y", b.memory, 64, 0, 1)), 1)
    assert b.store(1, count=16) == "CUDA_SUCCESS"
    assert b.store(1, count=17) == "CUDA_SUCCESS"
    b.raw.must("cuCtxSynchronize")
    b.raw.must("effnet_ptx_declare", ctypes.byref(Region(b"y", b.memory, 64, 0, 1)), 1)
    assert b.store(1, count=17) == "CUDA_SUCCESS"
    assert b.raw.call("cuCtxSynchronize") == "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert "undeclared" in b.raw.last_error
