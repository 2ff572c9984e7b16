// The part of the CUDA driver API that is spoken here, declared by ourselves: no toolkit is needed
// to build. csrc/tests/test_cuda_api.cpp compares every value and size with the toolkit's cuda.h.
// Names are the driver's; the namespace keeps them apart from cuda.h in one translation unit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace effnet_fast::cuda {

// ---- handles ------------------------------------------------------------------------------------

using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = struct CUctx_st*;
using CUmodule = struct CUmod_st*;
using CUfunction = struct CUfunc_st*;
using CUstream = struct CUstream_st*;
using CUevent = struct CUevent_st*;
using CUgraph = struct CUgraph_st*;
using CUgraphNode = struct CUgraphNode_st*;
using CUgraphExec = struct CUgraphExec_st*;

struct CUuuid {
  char bytes[16];
};

// ---- results ------------------------------------------------------------------------------------

#define EFFNET_CUDA_RESULTS(X)                                                                    \
  X(CUDA_SUCCESS, 0, "no error")                                                                  \
  X(CUDA_ERROR_INVALID_VALUE, 1, "an argument is out of its range")                               \
  X(CUDA_ERROR_OUT_OF_MEMORY, 2, "not enough memory")                                             \
  X(CUDA_ERROR_NOT_INITIALIZED, 3, "cuInit has not been called")                                  \
  X(CUDA_ERROR_DEINITIALIZED, 4, "the driver is shutting down")                                   \
  X(CUDA_ERROR_STUB_LIBRARY, 34, "the library is the toolkit's stub, not a driver")               \
  X(CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER, 36, "the call needs a newer driver")                   \
  X(CUDA_ERROR_DEVICE_UNAVAILABLE, 46, "the device is busy or unavailable")                       \
  X(CUDA_ERROR_NO_DEVICE, 100, "there is no CUDA device")                                         \
  X(CUDA_ERROR_INVALID_DEVICE, 101, "there is no device of that ordinal")                         \
  X(CUDA_ERROR_INVALID_IMAGE, 200, "the module image is invalid")                                 \
  X(CUDA_ERROR_INVALID_CONTEXT, 201, "no context is current, or it is invalid")                   \
  X(CUDA_ERROR_NO_BINARY_FOR_GPU, 209, "the image has no code for this device")                   \
  X(CUDA_ERROR_ECC_UNCORRECTABLE, 214, "an uncorrectable memory error")                           \
  X(CUDA_ERROR_INVALID_PTX, 218, "PTX compilation failed")                                        \
  X(CUDA_ERROR_JIT_COMPILER_NOT_FOUND, 221, "the PTX compiler library is missing")                \
  X(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, 222, "the PTX is of a newer version than the driver")     \
  X(CUDA_ERROR_INVALID_SOURCE, 300, "the device source is invalid")                               \
  X(CUDA_ERROR_FILE_NOT_FOUND, 301, "file not found")                                             \
  X(CUDA_ERROR_OPERATING_SYSTEM, 304, "a call of the operating system failed")                    \
  X(CUDA_ERROR_INVALID_HANDLE, 400, "a handle is unknown, destroyed or of another context")       \
  X(CUDA_ERROR_ILLEGAL_STATE, 401, "the object's state does not allow the call")                  \
  X(CUDA_ERROR_NOT_FOUND, 500, "no symbol of that name")                                          \
  X(CUDA_ERROR_NOT_READY, 600, "work is still pending")                                           \
  X(CUDA_ERROR_ILLEGAL_ADDRESS, 700, "an illegal memory access")                                  \
  X(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, 701, "the launch asks for too many resources")            \
  X(CUDA_ERROR_LAUNCH_TIMEOUT, 702, "the kernel ran too long")                                    \
  X(CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE, 708, "the primary context is active already")              \
  X(CUDA_ERROR_CONTEXT_IS_DESTROYED, 709, "the current context has been destroyed")               \
  X(CUDA_ERROR_ASSERT, 710, "a device-side assertion")                                            \
  X(CUDA_ERROR_HARDWARE_STACK_ERROR, 714, "a hardware stack error")                               \
  X(CUDA_ERROR_ILLEGAL_INSTRUCTION, 715, "an illegal instruction")                                \
  X(CUDA_ERROR_MISALIGNED_ADDRESS, 716, "a misaligned address")                                   \
  X(CUDA_ERROR_INVALID_ADDRESS_SPACE, 717, "an address of the wrong state space")                 \
  X(CUDA_ERROR_INVALID_PC, 718, "an invalid program counter")                                     \
  X(CUDA_ERROR_LAUNCH_FAILED, 719, "the kernel failed")                                           \
  X(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE, 720, "a cooperative grid that does not fit")         \
  X(CUDA_ERROR_NOT_PERMITTED, 800, "not permitted")                                               \
  X(CUDA_ERROR_NOT_SUPPORTED, 801, "not supported")                                               \
  X(CUDA_ERROR_SYSTEM_NOT_READY, 802, "the system is not ready for CUDA work")                    \
  X(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, 803, "kernel driver and library do not match")             \
  X(CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE, 804, "forward compatibility needs another device") \
  X(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 900, "not allowed while a stream is capturing")        \
  X(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 901, "an earlier error invalidated the capture")       \
  X(CUDA_ERROR_STREAM_CAPTURE_MERGE, 902, "the call would merge two captures")                    \
  X(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, 903, "the capture was not begun on this stream")         \
  X(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, 904, "the capture has work that was not joined")          \
  X(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, 905, "a captured stream depends on uncaptured work")     \
  X(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, 906, "the legacy stream would depend on a capture")       \
  X(CUDA_ERROR_CAPTURED_EVENT, 907, "the event was last recorded in a capture")                   \
  X(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, 908, "the capture was begun by another thread")       \
  X(CUDA_ERROR_TIMEOUT, 909, "the wait timed out")                                                \
  X(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE, 910, "the graph differs too much to update")            \
  X(CUDA_ERROR_FUNCTION_NOT_LOADED, 913, "the function is not loaded")                            \
  X(CUDA_ERROR_UNKNOWN, 999, "an unknown error")

enum CUresult : unsigned {
#define EFFNET_CUDA_ENUMERATOR(name, value, text) name = value,
  EFFNET_CUDA_RESULTS(EFFNET_CUDA_ENUMERATOR)
#undef EFFNET_CUDA_ENUMERATOR
};

// ---- attributes and flags -----------------------------------------------------------------------

#define EFFNET_CUDA_DEVICE_ATTRIBUTES(X)      \
  X(MAX_THREADS_PER_BLOCK, 1)                 \
  X(MAX_BLOCK_DIM_X, 2)                       \
  X(MAX_BLOCK_DIM_Y, 3)                       \
  X(MAX_BLOCK_DIM_Z, 4)                       \
  X(MAX_GRID_DIM_X, 5)                        \
  X(MAX_GRID_DIM_Y, 6)                        \
  X(MAX_GRID_DIM_Z, 7)                        \
  X(MAX_SHARED_MEMORY_PER_BLOCK, 8)           \
  X(TOTAL_CONSTANT_MEMORY, 9)                 \
  X(WARP_SIZE, 10)                            \
  X(MAX_REGISTERS_PER_BLOCK, 12)              \
  X(CLOCK_RATE, 13)                           \
  X(MULTIPROCESSOR_COUNT, 16)                 \
  X(KERNEL_EXEC_TIMEOUT, 17)                  \
  X(INTEGRATED, 18)                           \
  X(CAN_MAP_HOST_MEMORY, 19)                  \
  X(COMPUTE_MODE, 20)                         \
  X(CONCURRENT_KERNELS, 31)                   \
  X(ECC_ENABLED, 32)                          \
  X(MEMORY_CLOCK_RATE, 36)                    \
  X(GLOBAL_MEMORY_BUS_WIDTH, 37)              \
  X(L2_CACHE_SIZE, 38)                        \
  X(MAX_THREADS_PER_MULTIPROCESSOR, 39)       \
  X(ASYNC_ENGINE_COUNT, 40)                   \
  X(UNIFIED_ADDRESSING, 41)                   \
  X(COMPUTE_CAPABILITY_MAJOR, 75)             \
  X(COMPUTE_CAPABILITY_MINOR, 76)             \
  X(STREAM_PRIORITIES_SUPPORTED, 78)          \
  X(MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, 81) \
  X(MAX_REGISTERS_PER_MULTIPROCESSOR, 82)     \
  X(MANAGED_MEMORY, 83)                       \
  X(COOPERATIVE_LAUNCH, 95)                   \
  X(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 97)    \
  X(MAX_BLOCKS_PER_MULTIPROCESSOR, 106)       \
  X(RESERVED_SHARED_MEMORY_PER_BLOCK, 111)    \
  X(MEMORY_POOLS_SUPPORTED, 115)              \
  X(CLUSTER_LAUNCH, 120)

enum CUdevice_attribute : unsigned {
#define EFFNET_CUDA_ENUMERATOR(name, value) CU_DEVICE_ATTRIBUTE_##name = value,
  EFFNET_CUDA_DEVICE_ATTRIBUTES(EFFNET_CUDA_ENUMERATOR)
#undef EFFNET_CUDA_ENUMERATOR
};

enum CUfunction_attribute : unsigned {
  CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0,
  CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1,
  CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES = 2,
  CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3,
  CU_FUNC_ATTRIBUTE_NUM_REGS = 4,
  CU_FUNC_ATTRIBUTE_PTX_VERSION = 5,
  CU_FUNC_ATTRIBUTE_BINARY_VERSION = 6,
  CU_FUNC_ATTRIBUTE_CACHE_MODE_CA = 7,
  CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
  CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9,
};

enum CUpointer_attribute : unsigned {
  CU_POINTER_ATTRIBUTE_CONTEXT = 1,
  CU_POINTER_ATTRIBUTE_MEMORY_TYPE = 2,
  CU_POINTER_ATTRIBUTE_DEVICE_POINTER = 3,
  CU_POINTER_ATTRIBUTE_HOST_POINTER = 4,
  CU_POINTER_ATTRIBUTE_IS_MANAGED = 8,
  CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9,
  CU_POINTER_ATTRIBUTE_RANGE_START_ADDR = 11,
  CU_POINTER_ATTRIBUTE_RANGE_SIZE = 12,
  CU_POINTER_ATTRIBUTE_MAPPED = 13,
};

enum CUmemorytype : unsigned { CU_MEMORYTYPE_HOST = 1, CU_MEMORYTYPE_DEVICE = 2 };

enum CUjit_option : unsigned {
  CU_JIT_INFO_LOG_BUFFER = 3,
  CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES = 4,
  CU_JIT_ERROR_LOG_BUFFER = 5,
  CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6,
};

enum CUctx_flags : unsigned {
  CU_CTX_SCHED_AUTO = 0,
  CU_CTX_SCHED_SPIN = 1,
  CU_CTX_SCHED_YIELD = 2,
  CU_CTX_SCHED_BLOCKING_SYNC = 4,
};

enum CUstream_flags : unsigned { CU_STREAM_DEFAULT = 0, CU_STREAM_NON_BLOCKING = 1 };

enum CUevent_flags : unsigned {
  CU_EVENT_DEFAULT = 0,
  CU_EVENT_BLOCKING_SYNC = 1,
  CU_EVENT_DISABLE_TIMING = 2,
  CU_EVENT_INTERPROCESS = 4,
};

enum CUstreamCaptureMode : unsigned {
  CU_STREAM_CAPTURE_MODE_GLOBAL = 0,
  CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1,
  CU_STREAM_CAPTURE_MODE_RELAXED = 2,
};

enum CUstreamCaptureStatus : unsigned {
  CU_STREAM_CAPTURE_STATUS_NONE = 0,
  CU_STREAM_CAPTURE_STATUS_ACTIVE = 1,
  CU_STREAM_CAPTURE_STATUS_INVALIDATED = 2,
};

enum CUdriverProcAddressQueryResult : unsigned {
  CU_GET_PROC_ADDRESS_SUCCESS = 0,
  CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND = 1,
  CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT = 2,
};

enum CUlaunchAttributeID : unsigned {
  CU_LAUNCH_ATTRIBUTE_IGNORE = 0,
  CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW = 1,
  CU_LAUNCH_ATTRIBUTE_COOPERATIVE = 2,
  CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY = 3,
  CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION = 4,
  CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE = 5,
  CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6,
  CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT = 7,
  CU_LAUNCH_ATTRIBUTE_PRIORITY = 8,
};

struct CUlaunchAttribute {
  CUlaunchAttributeID id;
  char pad[4];
  union {
    char bytes[64];
    int cooperative;
    int programmaticStreamSerializationAllowed;
    int priority;
    struct {
      unsigned x, y, z;
    } clusterDim;
  } value;
};

struct CUlaunchConfig {
  unsigned gridDimX, gridDimY, gridDimZ;
  unsigned blockDimX, blockDimY, blockDimZ;
  unsigned sharedMemBytes;
  CUstream hStream;
  CUlaunchAttribute* attrs;
  unsigned numAttrs;
};

// What the toolkit spells as macros: values of the `extra` list of a launch, and special streams.
inline constexpr uintptr_t kLaunchParamEnd = 0;
inline constexpr uintptr_t kLaunchParamBufferPointer = 1;
inline constexpr uintptr_t kLaunchParamBufferSize = 2;
inline constexpr uintptr_t kStreamLegacy = 1;
inline constexpr uintptr_t kStreamPerThread = 2;

// ---- entry points -------------------------------------------------------------------------------

// X(name to ask cuGetProcAddress for, exported symbol, arguments). Every call that csrc/gpu makes;
// the optional ones came with later drivers (cuFuncLoad with 12.4) and may be null.
#define EFFNET_CUDA_REQUIRED(X)                                                                   \
  X(cuInit, cuInit, (unsigned flags))                                                             \
  X(cuGetErrorName, cuGetErrorName, (CUresult result, const char** text))                         \
  X(cuGetErrorString, cuGetErrorString, (CUresult result, const char** text))                     \
  X(cuDeviceGet, cuDeviceGet, (CUdevice * device, int ordinal))                                   \
  X(cuDeviceGetCount, cuDeviceGetCount, (int* count))                                             \
  X(cuDeviceGetName, cuDeviceGetName, (char* name, int bytes, CUdevice device))                   \
  X(cuDeviceGetAttribute, cuDeviceGetAttribute,                                                   \
    (int* value, CUdevice_attribute attribute, CUdevice device))                                  \
  X(cuDeviceTotalMem, cuDeviceTotalMem_v2, (size_t* bytes, CUdevice device))                      \
  X(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))   \
  X(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, (CUdevice device))                   \
  X(cuDevicePrimaryCtxReset, cuDevicePrimaryCtxReset_v2, (CUdevice device))                       \
  X(cuCtxPushCurrent, cuCtxPushCurrent_v2, (CUcontext context))                                   \
  X(cuCtxPopCurrent, cuCtxPopCurrent_v2, (CUcontext * context))                                   \
  X(cuCtxSynchronize, cuCtxSynchronize, ())                                                       \
  X(cuModuleLoadDataEx, cuModuleLoadDataEx,                                                       \
    (CUmodule * module, const void* image, unsigned options, CUjit_option* names, void** values)) \
  X(cuModuleUnload, cuModuleUnload, (CUmodule module))                                            \
  X(cuModuleGetFunction, cuModuleGetFunction,                                                     \
    (CUfunction * function, CUmodule module, const char* name))                                   \
  X(cuModuleGetGlobal, cuModuleGetGlobal_v2,                                                      \
    (CUdeviceptr * address, size_t* bytes, CUmodule module, const char* name))                    \
  X(cuFuncGetAttribute, cuFuncGetAttribute,                                                       \
    (int* value, CUfunction_attribute attribute, CUfunction function))                            \
  X(cuFuncSetAttribute, cuFuncSetAttribute,                                                       \
    (CUfunction function, CUfunction_attribute attribute, int value))                             \
  X(cuOccupancyMaxActiveBlocksPerMultiprocessor, cuOccupancyMaxActiveBlocksPerMultiprocessor,     \
    (int* blocks, CUfunction function, int threads, size_t shared))                               \
  X(cuMemAlloc, cuMemAlloc_v2, (CUdeviceptr * address, size_t bytes))                             \
  X(cuMemFree, cuMemFree_v2, (CUdeviceptr address))                                               \
  X(cuMemGetInfo, cuMemGetInfo_v2, (size_t* free, size_t* total))                                 \
  X(cuMemHostAlloc, cuMemHostAlloc, (void** address, size_t bytes, unsigned flags))               \
  X(cuMemFreeHost, cuMemFreeHost, (void* address))                                                \
  X(cuMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2,                                                      \
    (CUdeviceptr destination, const void* source, size_t bytes, CUstream stream))                 \
  X(cuMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2,                                                      \
    (void* destination, CUdeviceptr source, size_t bytes, CUstream stream))                       \
  X(cuMemcpyDtoDAsync, cuMemcpyDtoDAsync_v2,                                                      \
    (CUdeviceptr destination, CUdeviceptr source, size_t bytes, CUstream stream))                 \
  X(cuMemsetD8Async, cuMemsetD8Async,                                                             \
    (CUdeviceptr destination, unsigned char value, size_t count, CUstream stream))                \
  X(cuStreamCreateWithPriority, cuStreamCreateWithPriority,                                       \
    (CUstream * stream, unsigned flags, int priority))                                            \
  X(cuStreamDestroy, cuStreamDestroy_v2, (CUstream stream))                                       \
  X(cuStreamSynchronize, cuStreamSynchronize, (CUstream stream))                                  \
  X(cuStreamQuery, cuStreamQuery, (CUstream stream))                                              \
  X(cuStreamWaitEvent, cuStreamWaitEvent, (CUstream stream, CUevent event, unsigned flags))       \
  X(cuStreamBeginCapture, cuStreamBeginCapture_v2, (CUstream stream, CUstreamCaptureMode mode))   \
  X(cuStreamEndCapture, cuStreamEndCapture, (CUstream stream, CUgraph * graph))                   \
  X(cuStreamIsCapturing, cuStreamIsCapturing, (CUstream stream, CUstreamCaptureStatus * status))  \
  X(cuThreadExchangeStreamCaptureMode, cuThreadExchangeStreamCaptureMode,                         \
    (CUstreamCaptureMode * mode))                                                                 \
  X(cuEventCreate, cuEventCreate, (CUevent * event, unsigned flags))                              \
  X(cuEventDestroy, cuEventDestroy_v2, (CUevent event))                                           \
  X(cuEventRecord, cuEventRecord, (CUevent event, CUstream stream))                               \
  X(cuEventQuery, cuEventQuery, (CUevent event))                                                  \
  X(cuEventSynchronize, cuEventSynchronize, (CUevent event))                                      \
  X(cuEventElapsedTime, cuEventElapsedTime, (float* milliseconds, CUevent start, CUevent end))    \
  X(cuGraphInstantiateWithFlags, cuGraphInstantiateWithFlags,                                     \
    (CUgraphExec * exec, CUgraph graph, unsigned long long flags))                                \
  X(cuGraphUpload, cuGraphUpload, (CUgraphExec exec, CUstream stream))                            \
  X(cuGraphLaunch, cuGraphLaunch, (CUgraphExec exec, CUstream stream))                            \
  X(cuGraphDestroy, cuGraphDestroy, (CUgraph graph))                                              \
  X(cuGraphExecDestroy, cuGraphExecDestroy, (CUgraphExec exec))                                   \
  X(cuGraphGetNodes, cuGraphGetNodes, (CUgraph graph, CUgraphNode * nodes, size_t* count))        \
  X(cuLaunchKernel, cuLaunchKernel,                                                               \
    (CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,    \
     unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void** parameters,     \
     void** extra))

#define EFFNET_CUDA_OPTIONAL(X)                                                             \
  X(cuFuncLoad, cuFuncLoad, (CUfunction function))                                          \
  X(cuFuncGetName, cuFuncGetName, (const char** name, CUfunction function))                 \
  X(cuFuncGetParamInfo, cuFuncGetParamInfo,                                                 \
    (CUfunction function, size_t index, size_t* offset, size_t* bytes))                     \
  X(cuModuleGetFunctionCount, cuModuleGetFunctionCount, (unsigned* count, CUmodule module)) \
  X(cuModuleEnumerateFunctions, cuModuleEnumerateFunctions,                                 \
    (CUfunction * functions, unsigned count, CUmodule module))

// The two that are looked up by name, before any other can be.
using cuDriverGetVersion_t = CUresult (*)(int* version);
using cuGetProcAddress_t = CUresult (*)(const char* name, void** function, int version,
                                        uint64_t flags, CUdriverProcAddressQueryResult* status);

struct EntryPoints {
#define EFFNET_CUDA_POINTER(name, symbol, arguments) CUresult(*name) arguments = nullptr;
  EFFNET_CUDA_REQUIRED(EFFNET_CUDA_POINTER)
  EFFNET_CUDA_OPTIONAL(EFFNET_CUDA_POINTER)
#undef EFFNET_CUDA_POINTER
};

}  // namespace effnet_fast::cuda
