"""The driver API called raw, through ctypes, and small kernels: what the GPU tests share."""

import ctypes

from effnet_fast.gpu.device import machine_library

_HEADER = """.version 8.0
.target sm_80
.address_size 64
"""


def entry(name, body, parameters="", directives=""):
    """A kernel's PTX; registers r, rd and p are declared, and `i` is the thread's index."""
    return f"""
.visible .entry {name}({parameters}) {directives}
{{
  .reg .pred p<4>;
  .reg .b32 r<16>, i, block, width, lane;
  .reg .b64 rd<16>;
  mov.u32 block, %ctaid.x;
  mov.u32 width, %ntid.x;
  mov.u32 lane, %tid.x;
  mad.lo.s32 i, block, width, lane;
{body}
  ret;
}}
"""


# y[i] at rd1, for i < n; other threads leave.
_POINTER_Y = """
  ld.param.u64 rd0, [y];
  ld.param.u32 r0, [n];
  setp.ge.u32 p0, i, r0;
  @p0 ret;
  cvta.to.global.u64 rd0, rd0;
  mul.wide.u32 rd2, i, 4;
  add.s64 rd1, rd0, rd2;
"""

KERNELS = _HEADER + "".join(
    (
        "\n.visible .global .align 4 .u32 variable[4];\n",
        # y[i] = v
        entry(
            "store",
            _POINTER_Y + "ld.param.u32 r1, [v]; st.global.u32 [rd1], r1;",
            ".param .u64 y, .param .u32 v, .param .u32 n",
        ),
        # y[i] = 2 y[i] + x[i]: the order of two of them shows
        entry(
            "double_add",
            _POINTER_Y
            + """
  ld.param.u64 rd3, [x];
  cvta.to.global.u64 rd3, rd3;
  add.s64 rd4, rd3, rd2;
  ld.global.u32 r1, [rd1];
  ld.global.u32 r2, [rd4];
  mad.lo.s32 r1, r1, 2, r2;
  st.global.u32 [rd1], r1;""",
            ".param .u64 y, .param .u64 x, .param .u32 n",
        ),
        # y[i] = the number of dynamic shared memory bytes
        entry(
            "shared_bytes",
            _POINTER_Y + "mov.u32 r1, %dynamic_smem_size; st.global.u32 [rd1], r1;",
            ".param .u64 y, .param .u32 n",
        ),
        entry("static_shared", "  .shared .align 4 .b8 tile[16384];"),
        entry("nothing", ""),
        entry("at_most_64", "", directives=".maxntid 64, 1, 1"),
        entry("just_64", "", directives=".reqntid 64, 1, 1"),
    )
)

# What breaks a context: a kernel over (y, n) each, with the trap that stops it.
_Y_N = ".param .u64 y, .param .u32 n"
_SHARED = """
  .shared .align 4 .b8 tile[4096];
  mov.u32 r3, tile;
  shl.b32 r4, lane, 2;
  add.s32 r5, r3, r4;
"""
FAULTS = {
    "out_of_bounds": (
        "out of bounds",
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        _POINTER_Y + "st.global.u32 [rd1+1048576], i;",
    ),
    "misaligned": (
        "misaligned",
        "CUDA_ERROR_MISALIGNED_ADDRESS",
        _POINTER_Y + "st.global.u32 [rd1+1], i;",
    ),
    "uninitialized": (
        "uninitialized",
        "CUDA_ERROR_LAUNCH_FAILED",
        _POINTER_Y + "ld.global.u32 r1, [rd1]; setp.eq.s32 p1, r1, 0; @p1 st.global.u32 [rd1], r1;",
    ),
    "shared_race": (
        "shared race",
        "CUDA_ERROR_LAUNCH_FAILED",
        _SHARED + "st.shared.u32 [r5], i; xor.b32 r6, r5, 128; ld.shared.u32 r7, [r6];",
    ),
    "global_race": (
        "global race",
        "CUDA_ERROR_LAUNCH_FAILED",
        _POINTER_Y + "st.global.u32 [rd0], i;",
    ),
    "divergent_barrier": (
        "divergent barrier",
        "CUDA_ERROR_LAUNCH_FAILED",
        "setp.lt.u32 p1, lane, 32; @p1 bra skip; bar.sync 0;\nskip:\n bar.sync 1;",
    ),
    "endless_loop": ("endless loop", "CUDA_ERROR_LAUNCH_TIMEOUT", "again:\n bra again;"),
    "device_trap": ("device trap", "CUDA_ERROR_LAUNCH_FAILED", "trap;"),
}


def fault_image(name):
    return _HEADER + entry(name, FAULTS[name][2], _Y_N)


class Raw:
    """A driver library, each call returning the name of its result."""

    def __init__(self, backend):
        self.is_machine = backend == "ptx"
        path = str(machine_library()) if self.is_machine else "libcuda.so.1"
        self.library = ctypes.CDLL(path)
        if self.is_machine:
            self.library.effnet_ptx_error.restype = ctypes.c_char_p
            self.library.effnet_ptx_trap.restype = ctypes.c_char_p
            self.library.effnet_ptx_take_counts.restype = ctypes.c_size_t
        self.must("cuInit", 0)

    def call(self, function, *arguments):
        # Every integer in 64 bits: the calling convention has room, and ctypes would cut addresses.
        passed = [
            ctypes.c_uint64(a & (1 << 64) - 1) if isinstance(a, int) else a for a in arguments
        ]
        code = getattr(self.library, function)(*passed)
        name = ctypes.c_char_p()
        if code == 0:
            return "CUDA_SUCCESS"
        error = self.error()
        self.library.cuGetErrorName(code, ctypes.byref(name))
        self.last_error = error
        return name.value.decode()

    def must(self, function, *arguments):
        result = self.call(function, *arguments)
        assert result == "CUDA_SUCCESS", (function, result, self.error())

    def make(self, function, *arguments, kind=ctypes.c_uint64):
        """Call a function whose first argument is where its result goes; returns that."""
        result = kind()
        self.must(function, ctypes.byref(result), *arguments)
        return result.value

    def error(self):
        return self.library.effnet_ptx_error().decode() if self.is_machine else ""


class Bench:
    """A context with memory and kernels, to do right and wrong things in."""

    def __init__(self, raw, device=0):
        self.raw, self.device = raw, device
        self.context = raw.make("cuDevicePrimaryCtxRetain", device)
        raw.must("cuCtxPushCurrent_v2", self.context)
        self.module = self.load(KERNELS)
        self.memory = self.alloc(256)
        self.write(self.memory, bytes(256))

    def close(self):
        self.raw.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_uint64()))
        self.raw.call("cuDevicePrimaryCtxRelease_v2", self.device)

    def load(self, image):
        image = image.encode() if isinstance(image, str) else image
        return self.raw.make("cuModuleLoadData", image)

    def function(self, name, module=None):
        return self.raw.make("cuModuleGetFunction", module or self.module, name.encode())

    def alloc(self, count):
        return self.raw.make("cuMemAlloc_v2", count)

    def pinned(self, count):
        """Address of pinned host memory, zeroed, and an array over it."""
        address = self.raw.make("cuMemHostAlloc", count, 0)
        ctypes.memset(address, 0, count)
        return address, (ctypes.c_uint32 * (count // 4)).from_address(address)

    def stream(self, flags=1):
        return self.raw.make("cuStreamCreate", flags)

    def event(self, flags=0):
        return self.raw.make("cuEventCreate", flags)

    def write(self, address, data):
        self.raw.must("cuMemcpyHtoD_v2", address, data, len(data))

    def read(self, address, count=16):
        values = (ctypes.c_uint32 * count)()
        self.raw.must("cuMemcpyDtoH_v2", values, address, 4 * count)
        return list(values)

    def launch(self, function, *values, grid=(1, 1, 1), block=(32, 1, 1), shared=0, stream=0):
        """The result's name; values are ctypes objects."""
        function = self.function(function) if isinstance(function, str) else function
        pointers = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(v) for v in values))
        return self.raw.call(
            "cuLaunchKernel", function, *grid, *block, shared, stream, pointers, None
        )

    def store(self, value, stream=0, at=None, count=16):
        """y[i] = value in the stream; the result's name."""
        return self.launch(
            "store",
            ctypes.c_uint64(at or self.memory),
            ctypes.c_uint32(value),
            ctypes.c_uint32(count),
            stream=stream,
        )

    def begin(self, mode=0, flags=1):
        """A stream that is being captured, with one launch."""
        stream = self.stream(flags)
        self.raw.must("cuStreamBeginCapture_v2", stream, mode)
        assert self.store(1, stream) == "CUDA_SUCCESS"
        return stream

    def end(self, stream):
        """The name of the result of ending its capture."""
        return self.raw.call("cuStreamEndCapture", stream, ctypes.byref(ctypes.c_uint64()))

    def check(self):
        """A launch and copies still work."""
        self.raw.must("cuCtxSynchronize")
        assert self.store(41) == "CUDA_SUCCESS", self.raw.error()
        assert self.read(self.memory) == [41] * 16
