"""Streams, events, copies and graphs: right programs, and wrong ones that the machine lets show."""

import ctypes
import struct
import time

import pytest
from gpu_driver import KERNELS, Bench, Raw, entry

u32, u64 = ctypes.c_uint32, ctypes.c_uint64


@pytest.fixture
def bench():
    bench = Bench(Raw("ptx"))
    yield bench
    bench.close()


def words(*values, count=16):
    return struct.pack(f"<{count}I", *(values * count)[:count])


def double_add(b, y, x, stream):
    assert b.launch("double_add", u64(y), u64(x), u32(16), stream=stream) == "CUDA_SUCCESS"


def test_work_runs_when_something_waits_for_it(bench):
    stream = bench.stream()
    address, host = bench.pinned(64)
    host[0] = 7
    assert bench.store(5, stream) == "CUDA_SUCCESS"
    bench.raw.must("cuMemcpyDtoHAsync_v2", address, bench.memory, 64, stream)
    assert host[0] == 7
    bench.raw.must("cuStreamSynchronize", bench.stream())  # of another stream
    assert host[0] == 7
    bench.raw.must("cuStreamSynchronize", stream)
    assert list(host) == [5] * 16


def test_a_missing_wait_between_streams_shows(bench):
    """The consumer goes first, as it may on hardware; with the wait it sees what was produced."""
    for wait, expected in ((False, 100), (True, 110)):
        producer, consumer, event = bench.stream(), bench.stream(), bench.event(2)
        x, y = bench.alloc(64), bench.alloc(64)
        bench.write(x, words(0))
        bench.write(y, words(50))
        assert bench.store(10, producer, at=x) == "CUDA_SUCCESS"
        bench.raw.must("cuEventRecord", event, producer)
        if wait:
            bench.raw.must("cuStreamWaitEvent", consumer, event, 0)
        double_add(bench, y, x, consumer)
        bench.raw.must("cuCtxSynchronize")
        assert bench.read(y) == [expected] * 16


def test_waiting_for_an_event_runs_only_what_is_before_it(bench):
    first, second, event = bench.stream(), bench.stream(), bench.event(2)
    address, host = bench.pinned(128)
    other = bench.alloc(64)
    assert bench.store(1, first) == "CUDA_SUCCESS"
    bench.raw.must("cuMemcpyDtoHAsync_v2", address, bench.memory, 64, first)
    bench.raw.must("cuEventRecord", event, first)
    assert bench.store(2, first, at=other) == "CUDA_SUCCESS"
    bench.raw.must("cuMemcpyDtoHAsync_v2", address + 64, other, 64, first)
    bench.raw.must("cuStreamWaitEvent", second, event, 0)
    bench.raw.must("cuStreamSynchronize", second)
    assert (host[0], host[16]) == (1, 0)
    bench.raw.must("cuEventSynchronize", event)
    assert host[16] == 0
    bench.raw.must("cuStreamSynchronize", first)
    assert host[16] == 2


def test_an_event_recorded_again_stands_for_the_later_record(bench):
    first, second, event = bench.stream(), bench.stream(), bench.event(2)
    x = bench.alloc(64)
    bench.raw.must("cuEventRecord", event, first)
    assert bench.store(9, first, at=x) == "CUDA_SUCCESS"
    bench.raw.must("cuEventRecord", event, first)
    bench.raw.must("cuStreamWaitEvent", second, event, 0)
    double_add(bench, bench.memory, x, second)
    bench.raw.must("cuStreamSynchronize", second)
    assert bench.read(bench.memory) == [9] * 16


@pytest.mark.parametrize("flags, expected", [(0, 25), (1, 5)])
def test_blocking_streams_and_the_legacy_stream_wait_for_each_other(bench, flags, expected):
    """A stream that does not block runs beside: its work, being newer, goes first."""
    stream, x = bench.stream(flags), bench.alloc(64)
    bench.write(x, words(5))
    bench.raw.must("cuCtxSynchronize")
    assert bench.store(10) == "CUDA_SUCCESS"  # in the legacy stream
    double_add(bench, bench.memory, x, stream)
    bench.raw.must("cuStreamSynchronize", stream)
    address, host = bench.pinned(64)
    bench.raw.must("cuMemcpyDtoHAsync_v2", address, bench.memory, 64, stream)
    bench.raw.must("cuStreamSynchronize", stream)
    assert list(host) == [expected] * 16


def test_the_legacy_stream_waits_for_blocking_ones(bench):
    stream = bench.stream(0)
    assert bench.store(3, stream) == "CUDA_SUCCESS"
    assert bench.read(bench.memory) == [3] * 16
    stream = bench.stream(1)
    assert bench.store(4, stream) == "CUDA_SUCCESS"
    assert bench.read(bench.memory) == [3] * 16
    bench.raw.must("cuStreamDestroy_v2", stream)  # its work goes on
    bench.raw.must("cuCtxSynchronize")
    assert bench.read(bench.memory) == [4] * 16


def test_pinned_memory_is_read_late_and_pageable_memory_at_the_call(bench):
    stream, x = bench.stream(), bench.alloc(64)
    address, host = bench.pinned(64)
    pageable = (u32 * 16)(*[1] * 16)
    host[:] = [1] * 16
    bench.raw.must("cuMemcpyHtoDAsync_v2", bench.memory, address, 64, stream)
    bench.raw.must("cuMemcpyHtoDAsync_v2", x, pageable, 64, stream)
    host[:] = [2] * 16
    pageable[:] = [2] * 16
    bench.raw.must("cuStreamSynchronize", stream)
    assert bench.read(bench.memory) == [2] * 16
    assert bench.read(x) == [1] * 16


def test_a_download_to_pageable_memory_waits(bench):
    stream, host = bench.stream(), (u32 * 16)()
    assert bench.store(6, stream) == "CUDA_SUCCESS"
    bench.raw.must("cuMemcpyDtoHAsync_v2", host, bench.memory, 64, stream)
    assert list(host) == [6] * 16


def test_copies_and_fills_on_the_device_return_before_they_run(bench):
    address, host = bench.pinned(64)
    x, side = bench.alloc(64), bench.stream(1)
    bench.raw.must("cuMemsetD32_v2", x, 8, 16)
    bench.raw.must("cuMemcpyDtoD_v2", bench.memory, x, 64)
    bench.raw.must("cuMemcpyDtoHAsync_v2", address, bench.memory, 64, side)
    bench.raw.must("cuStreamSynchronize", side)
    assert host[0] == 0
    assert bench.read(bench.memory) == [8] * 16


@pytest.mark.parametrize("width", [8, 16, 32])
def test_fills(bench, width):
    bench.raw.must(f"cuMemsetD{width}_v2", bench.memory + 16, 0x81, 3)
    data = (ctypes.c_uint8 * 64)()
    bench.raw.must("cuMemcpyDtoH_v2", data, bench.memory, 64)
    element = (0x81).to_bytes(width // 8, "little")
    assert bytes(data) == bytes(16) + 3 * element + bytes(48 - 3 * len(element))


def test_cu_memcpy_finds_out_which_way(bench):
    source, target = (u32 * 16)(*range(16)), (u32 * 16)()
    bench.raw.must("cuMemcpy", bench.memory, ctypes.addressof(source), 64)
    bench.raw.must("cuMemcpy", bench.memory + 64, bench.memory, 64)
    bench.raw.must("cuMemcpy", ctypes.addressof(target), bench.memory + 64, 64)
    assert list(target) == list(range(16))


def test_polling_gets_to_the_end(bench):
    stream, event = bench.stream(), bench.event()
    for value in range(5):
        assert bench.store(value, stream) == "CUDA_SUCCESS"
    bench.raw.must("cuEventRecord", event, stream)
    assert bench.raw.call("cuEventQuery", event) == "CUDA_ERROR_NOT_READY"
    asked = 1
    while bench.raw.call("cuEventQuery", event) == "CUDA_ERROR_NOT_READY":
        asked += 1
        assert asked < 10
    assert bench.raw.call("cuStreamQuery", stream) == "CUDA_SUCCESS"
    assert bench.read(bench.memory) == [4] * 16


def test_events_measure_time(bench):
    stream, start, end = bench.stream(), bench.event(), bench.event()
    bench.raw.must("cuEventRecord", start, stream)
    bench.raw.must("cuEventSynchronize", start)
    time.sleep(0.02)
    bench.raw.must("cuEventRecord", end, stream)
    bench.raw.must("cuEventSynchronize", end)
    elapsed = bench.raw.make("cuEventElapsedTime", start, end, kind=ctypes.c_float)
    assert 20 <= elapsed < 2000


def test_memory_freed_in_a_stream_is_gone_for_what_comes_later_there(bench):
    stream = bench.stream()
    address = bench.raw.make("cuMemAllocAsync", 64, stream)
    assert bench.store(1, stream, at=address) == "CUDA_SUCCESS"
    bench.raw.must("cuMemFreeAsync", address, stream)
    bench.raw.must("cuStreamSynchronize", stream)
    address = bench.raw.make("cuMemAllocAsync", 64, stream)
    bench.raw.must("cuMemFreeAsync", address, stream)
    assert bench.store(1, stream, at=address) == "CUDA_SUCCESS"
    assert bench.raw.call("cuStreamSynchronize", stream) == "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert "freed" in bench.raw.last_error


def test_freeing_waits_for_the_work_that_uses_the_memory(bench):
    stream, y = bench.stream(), bench.alloc(64)
    assert bench.store(1, stream, at=y) == "CUDA_SUCCESS"
    bench.raw.must("cuMemFree_v2", y)
    bench.check()


def test_capacity_is_given_back(bench):
    free, total = ctypes.c_size_t(), ctypes.c_size_t()

    def in_use():
        bench.raw.must("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value

    before = in_use()
    address = bench.alloc(1 << 30)
    assert in_use() == before + (1 << 30)
    bench.raw.must("cuMemFree_v2", address)
    assert in_use() == before


def test_pointer_attributes(bench):
    base, size = u64(), ctypes.c_size_t()
    bench.raw.must(
        "cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), bench.memory + 100
    )
    assert (base.value, size.value) == (bench.memory, 256)
    assert bench.raw.make("cuPointerGetAttribute", 2, bench.memory, kind=u32) == 2
    assert bench.raw.make("cuPointerGetAttribute", 9, bench.memory, kind=ctypes.c_int) == 0
    assert bench.raw.make("cuPointerGetAttribute", 12, bench.memory + 4) == 256
    assert bench.raw.make("cuPointerGetAttribute", 2, bench.pinned(64)[0], kind=u32) == 1


def test_variables_of_a_module(bench):
    address, size = u64(), ctypes.c_size_t()
    bench.raw.must(
        "cuModuleGetGlobal_v2", ctypes.byref(address), ctypes.byref(size), bench.module, b"variable"
    )
    assert size.value == 16
    assert bench.read(address.value, 4) == [0] * 4
    bench.raw.must("cuMemsetD32_v2", address.value, 6, 4)
    assert bench.read(address.value, 4) == [6] * 4


def test_poison_is_in_the_order_of_work(bench):
    assert bench.store(3) == "CUDA_SUCCESS"
    bench.raw.must("effnet_ptx_poison", bench.memory, 64)
    double_add(bench, bench.memory + 64, bench.memory, 0)
    assert bench.raw.call("cuCtxSynchronize") == "CUDA_ERROR_LAUNCH_FAILED"
    assert "uninitialized" in bench.raw.last_error


# ---- graphs --------------------------------------------------------------------------------------


def instantiate(b, stream):
    graph = u64()
    b.raw.must("cuStreamEndCapture", stream, ctypes.byref(graph))
    graph_exec = b.raw.make("cuGraphInstantiateWithFlags", graph.value, 0)
    count = ctypes.c_size_t()
    b.raw.must("cuGraphGetNodes", graph.value, None, ctypes.byref(count))
    b.raw.must("cuGraphDestroy", graph.value)
    return graph_exec, count.value


def test_a_graph_replays_what_was_captured_and_nothing_runs_before(bench):
    stream, x = bench.stream(), bench.alloc(64)
    bench.write(x, words(1))
    bench.raw.must("cuStreamBeginCapture_v2", stream, 1)
    assert bench.store(2, stream) == "CUDA_SUCCESS"
    double_add(bench, bench.memory, x, stream)
    double_add(bench, bench.memory, x, stream)
    graph_exec, nodes = instantiate(bench, stream)
    assert nodes == 3
    assert bench.read(bench.memory) == [0] * 16
    for _ in range(2):
        bench.raw.must("cuGraphLaunch", graph_exec, stream)
        bench.raw.must("cuStreamSynchronize", stream)
        assert bench.read(bench.memory) == [11] * 16
        bench.write(bench.memory, words(0))


def test_replays_of_one_graph_follow_each_other(bench):
    first, second, x = bench.stream(), bench.stream(), bench.alloc(64)
    address, host = bench.pinned(64)
    bench.write(x, words(1))
    bench.raw.must("cuStreamBeginCapture_v2", first, 1)
    double_add(bench, bench.memory, x, first)
    graph_exec, _ = instantiate(bench, first)
    bench.raw.must("cuGraphLaunch", graph_exec, first)
    bench.raw.must("cuGraphLaunch", graph_exec, second)
    bench.raw.must("cuMemcpyDtoHAsync_v2", address, bench.memory, 64, second)
    bench.raw.must("cuStreamSynchronize", second)
    assert list(host) == [3] * 16


@pytest.mark.parametrize("join, expected", [(True, 2 * 3 + 5), (False, 2 * 3 + 0)])
def test_streams_fork_and_join_in_a_capture(bench, join, expected):
    """Branches that were not joined before use run newest first, in a graph as well."""
    stream, side = bench.stream(), bench.stream()
    fork, done = bench.event(2), bench.event(2)
    x, y = bench.alloc(64), bench.memory
    bench.write(x, words(0))
    bench.raw.must("cuStreamBeginCapture_v2", stream, 1)
    bench.raw.must("cuEventRecord", fork, stream)
    bench.raw.must("cuStreamWaitEvent", side, fork, 0)
    assert bench.store(5, side, at=x) == "CUDA_SUCCESS"
    bench.raw.must("cuEventRecord", done, side)
    if join:
        bench.raw.must("cuStreamWaitEvent", stream, done, 0)
    assert bench.store(3, stream, at=y) == "CUDA_SUCCESS"
    double_add(bench, y, x, stream)
    bench.raw.must("cuStreamWaitEvent", stream, done, 0)
    graph_exec, nodes = instantiate(bench, stream)
    assert nodes == 3
    bench.raw.must("cuGraphLaunch", graph_exec, stream)
    bench.raw.must("cuStreamSynchronize", stream)
    assert bench.read(y) == [expected] * 16


def test_a_graph_reads_host_memory_at_the_replay(bench):
    stream, (address, host) = bench.stream(), bench.pinned(64)
    bench.raw.must("cuStreamBeginCapture_v2", stream, 1)
    bench.raw.must("cuMemcpyHtoDAsync_v2", bench.memory, address, 64, stream)
    graph_exec, _ = instantiate(bench, stream)
    for value in (4, 5):
        host[:] = [value] * 16
        bench.raw.must("cuGraphLaunch", graph_exec, stream)
        bench.raw.must("cuStreamSynchronize", stream)
        assert bench.read(bench.memory) == [value] * 16


def test_a_graph_launched_into_a_capture_becomes_part_of_it(bench):
    stream, x = bench.stream(), bench.alloc(64)
    bench.write(x, words(1))
    bench.raw.must("cuStreamBeginCapture_v2", stream, 1)
    double_add(bench, bench.memory, x, stream)
    inner, _ = instantiate(bench, stream)
    bench.raw.must("cuStreamBeginCapture_v2", stream, 1)
    assert bench.store(10, stream) == "CUDA_SUCCESS"
    bench.raw.must("cuGraphLaunch", inner, stream)
    bench.raw.must("cuGraphLaunch", inner, stream)
    outer, nodes = instantiate(bench, stream)
    assert nodes == 3
    bench.raw.must("cuGraphLaunch", outer, stream)
    bench.raw.must("cuStreamSynchronize", stream)
    assert bench.read(bench.memory) == [43] * 16


def test_capture_info(bench):
    stream = bench.begin(1)
    status, capture, graph = u32(), u64(), u64()
    nodes, count = u64(), ctypes.c_size_t()
    arguments = (stream, *(ctypes.byref(v) for v in (status, capture, graph, nodes, count)))
    bench.raw.must("cuStreamGetCaptureInfo_v2", *arguments)
    assert status.value == 1 and capture.value > 0 and graph.value and count.value == 1
    assert bench.raw.call("cuGraphDestroy", graph.value) == "CUDA_ERROR_ILLEGAL_STATE"
    assert bench.end(stream) == "CUDA_SUCCESS"


def test_a_captured_launch_keeps_its_regions(bench):
    class Region(ctypes.Structure):
        _fields_ = (
            ("name", ctypes.c_char_p),
            ("base", u64),
            ("bytes", u64),
            ("readable", ctypes.c_int),
            ("writable", ctypes.c_int),
        )

    stream = bench.stream()
    bench.raw.must("cuStreamBeginCapture_v2", stream, 1)
    bench.raw.must("effnet_ptx_declare", ctypes.byref(Region(b"out", bench.memory, 64, 0, 1)), 1)
    assert bench.store(2, stream, count=17) == "CUDA_SUCCESS"
    graph_exec, _ = instantiate(bench, stream)
    bench.raw.must("cuGraphLaunch", graph_exec, stream)
    assert bench.raw.call("cuStreamSynchronize", stream) == "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert "undeclared" in bench.raw.last_error


# ---- images --------------------------------------------------------------------------------------


def fat_binary(*entries):
    """A container of (kind, arch, payload, compressed)."""
    body = b""
    for kind, arch, payload, compressed in entries:
        payload += bytes(-len(payload) % 8)
        sizes = (len(payload), len(payload) // 2 if compressed else 0)
        flags, original = (0x8011, 2 * len(payload)) if compressed else (0x11, 0)
        head = struct.pack(
            "<HHIQIIHHIIIQQQ", kind, 0x101, 64, *sizes, 0, 0, 9, arch, 0, 0, flags, 0, original
        )
        body += head + payload
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def ptx_for(arch, suffix=""):
    target = f"sm_{arch}{suffix}"
    return KERNELS.replace("sm_80", target).replace("nothing", f"for_{arch}{suffix}").encode()


# An entry that says it is longer than the container.
DAMAGED = bytearray(fat_binary((1, 80, ptx_for(80), False)))
DAMAGED[16 + 8 : 16 + 16] = struct.pack("<Q", 1 << 40)
DAMAGED = bytes(DAMAGED)


def names(b, module):
    count = b.raw.make("cuModuleGetFunctionCount", module, kind=u32)
    functions = (u64 * count)()
    b.raw.must("cuModuleEnumerateFunctions", functions, count, module)
    return {
        ctypes.string_at(b.raw.make("cuFuncGetName", f, kind=ctypes.c_void_p)).decode()
        for f in functions
    }


@pytest.mark.parametrize(
    "device, own, chosen",
    [
        (0, ("", "a"), "for_80"),
        (1, ("", "a"), "for_89"),
        (2, (), "for_89"),  # not what is for sm_90 alone
        (2, ("",), "for_120"),
        (2, ("a",), "for_120a"),
        (2, ("f",), "for_120f"),
    ],
)
def test_the_newest_ptx_that_the_device_takes(device, own, chosen):
    image = fat_binary(
        (2, 80, b"\x7fELF machine code", False),
        (1, 75, ptx_for(75), False),
        (1, 80, ptx_for(80), False),
        (1, 89, ptx_for(89), False),
        (1, 90, ptx_for(90, "a"), False),
        (1, 121, ptx_for(121), False),
        *((1, 120, ptx_for(120, suffix), False) for suffix in own),
    )
    b = Bench(Raw("ptx"), device)
    assert chosen in names(b, b.load(image))
    # As host objects hold it: a wrapper that points to the container.
    held = ctypes.create_string_buffer(image, len(image))
    wrapper = struct.pack("<IIQQ", 0x466243B1, 1, ctypes.addressof(held), 0)
    assert chosen in names(b, b.raw.make("cuModuleLoadFatBinary", wrapper))
    b.close()


@pytest.mark.parametrize("device, has", [(0, 80), (1, 89), (2, 120)])
@pytest.mark.parametrize("suffix", ["", "a", "f"])
def test_texts_that_a_device_runs(device, has, suffix):
    """Of older architectures, but for what is for one alone or for one generation."""
    b = Bench(Raw("ptx"), device)
    for arch in (75, 80, 89, 90, 100, 103, 120, 121):
        image = ptx_for(arch, suffix) + bytes(64)
        among = {"": arch <= has, "a": arch == has, "f": arch <= has and arch // 10 == has // 10}
        if among[suffix]:
            assert f"for_{arch}{suffix}" in names(b, b.load(image))
            continue
        result = b.raw.call("cuModuleLoadData", ctypes.byref(u64()), image)
        assert result == "CUDA_ERROR_INVALID_PTX"
        assert f"does not run on sm_{has}" in b.raw.last_error
    b.close()


@pytest.mark.parametrize(
    "image, result, says",
    [
        (fat_binary((2, 80, b"\x7fELF", False)), "NO_BINARY_FOR_GPU", "machine code of sm 80"),
        (
            fat_binary((1, 80, ptx_for(80), True)),
            "NO_BINARY_FOR_GPU",
            "PTX of sm 80 (compressed); this device takes uncompressed PTX",
        ),
        (fat_binary((1, 90, ptx_for(90), False)), "NO_BINARY_FOR_GPU", "--no-compress"),
        (fat_binary(), "NO_BINARY_FOR_GPU", "holds nothing"),
        (DAMAGED, "INVALID_IMAGE", "damaged"),
        (b"\x7fELF\x02\x01\x01", "NO_BINARY_FOR_GPU", "machine code (a cubin)"),
        (ptx_for(90), "INVALID_PTX", "sm_90"),
        (
            fat_binary((1, 75, ptx_for(75, "a"), False)),
            "NO_BINARY_FOR_GPU",
            "holds PTX of sm 75a; this device takes PTX of sm 80 or older that is not for another",
        ),
        (
            ptx_for(75, "a"),
            "INVALID_PTX",
            "PTX for sm_75a, which is for that architecture alone, does not run on sm_80",
        ),
        (
            ptx_for(75, "f"),
            "INVALID_PTX",
            "PTX for sm_75f, which is for that generation alone, does not run on sm_80",
        ),
        (ptx_for(80, "b"), "INVALID_PTX", "unknown target sm_80b"),
    ],
    ids=[
        "machine code",
        "compressed",
        "newer",
        "empty",
        "damaged",
        "cubin",
        "newer text",
        "another's",
        "another's text",
        "another generation's text",
        "unknown text",
    ],
)
def test_images_that_cannot_run(bench, image, result, says):
    log = ctypes.create_string_buffer(1024)
    names = (ctypes.c_int * 2)(5, 6)
    values = (ctypes.c_void_p * 2)(ctypes.addressof(log), len(log))
    assert (
        bench.raw.call(
            "cuModuleLoadDataEx", ctypes.byref(u64()), image + bytes(64), 2, names, values
        )
        == f"CUDA_ERROR_{result}"
    )
    assert says in bench.raw.last_error
    assert says in log.value.decode()
    bench.check()


def test_occupancy(bench):
    def blocks(function, threads, shared=0):
        arguments = (function, threads, shared)
        return bench.raw.make(
            "cuOccupancyMaxActiveBlocksPerMultiprocessor", *arguments, kind=ctypes.c_int
        )

    function = bench.function("nothing")
    assert blocks(function, 32) == 32
    assert blocks(function, 1024) == 2
    assert blocks(function, 256) == 8
    assert blocks(function, 256, 40 << 10) == 4  # and 1 KB of each block for the system
    bench.raw.must("effnet_ptx_set_registers", function, 128)
    assert blocks(function, 256) == 2
    attribute = bench.raw.make("cuFuncGetAttribute", 4, function, kind=ctypes.c_int)
    assert attribute == 128
    assert bench.raw.make("cuFuncGetAttribute", 0, function, kind=ctypes.c_int) == 512


def test_shared_memory_up_to_the_optin_limit(bench):
    function = bench.function("shared_bytes")
    bench.raw.must("cuFuncSetAttribute", function, 8, 163 << 10)
    result = bench.launch(function, u64(bench.memory), u32(16), shared=163 << 10)
    assert result == "CUDA_SUCCESS"
    assert bench.read(bench.memory) == [163 << 10] * 16


def test_parameters_as_the_driver_tells_them(bench):
    offset, size = ctypes.c_size_t(), ctypes.c_size_t()
    module = bench.load(
        ".version 8.0\n.target sm_80\n.address_size 64\n"
        + entry("odd", "", ".param .u8 a, .param .u64 b, .param .align 4 .b8 c[12], .param .u16 d")
    )
    function = bench.function("odd", module)
    layout = []
    for i in range(4):
        bench.raw.must("cuFuncGetParamInfo", function, i, ctypes.byref(offset), ctypes.byref(size))
        layout.append((offset.value, size.value))
    assert layout == [(0, 1), (8, 8), (16, 12), (28, 2)]
    assert (
        bench.raw.call("cuFuncGetParamInfo", function, 4, ctypes.byref(offset), ctypes.byref(size))
        == "CUDA_ERROR_INVALID_VALUE"
    )
