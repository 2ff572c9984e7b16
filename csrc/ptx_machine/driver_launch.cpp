// Launches: every rule that a driver has for them, and then the machine. Function attributes and
// occupancy follow the same rules.
#include <cstring>
#include <utility>

#include "driver_state.h"

namespace effnet_fast::ptx::driver {
namespace {

size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

// Warps that the register file holds: given in eights a thread, and to warps four at a time.
size_t warps_by_registers(int registers) {
  const size_t of_a_warp = round_up(static_cast<size_t>(registers) * 32, 256);
  return kRegisters / of_a_warp / 4 * 4;
}

size_t max_threads(const Function& function) {
  size_t threads = std::min<size_t>(1024, function.kernel->max_threads);
  if (function.kernel->registers > 0) {
    threads = std::min(threads, warps_by_registers(function.kernel->registers) * 32);
  }
  return threads;
}

size_t max_dynamic_shared(const Function& function) {
  if (function.max_dynamic_shared) return function.max_dynamic_shared;
  return kSharedDefault - std::min(kSharedDefault, function.kernel->static_shared);
}

std::string dims(const Dim3& d) { return text("%u x %u x %u", d.x, d.y, d.z); }

void check_grid(const Dim3& grid) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
    refuse(CUDA_ERROR_INVALID_VALUE, "the grid is " + dims(grid) + "; accepted: 1 or more");
  }
  if (grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535) {
    refuse(CUDA_ERROR_INVALID_VALUE,
           "the grid is " + dims(grid) + "; accepted: up to 2147483647 x 65535 x 65535");
  }
}

void check_block(const Kernel& kernel, const Dim3& block) {
  const std::string name = kernel.name + ": the block is " + dims(block);
  if (block.x == 0 || block.y == 0 || block.z == 0) {
    refuse(CUDA_ERROR_INVALID_VALUE, name + "; accepted: 1 or more");
  }
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || block.count() > 1024) {
    refuse(CUDA_ERROR_INVALID_VALUE,
           name + "; accepted: up to 1024 x 1024 x 64, and 1024 threads in all");
  }
  const Dim3& required = kernel.required_block;
  if (required.count() != 0 &&
      (block.x != required.x || block.y != required.y || block.z != required.z)) {
    refuse(CUDA_ERROR_INVALID_VALUE, name + "; its .reqntid is " + dims(required));
  }
  if (block.count() > kernel.max_threads) {
    refuse(CUDA_ERROR_INVALID_VALUE, name + text("; its .maxntid is %u", kernel.max_threads));
  }
  if (kernel.registers > 0) {
    const size_t warps = round_up(block.count(), 32) / 32;
    const size_t fit = warps_by_registers(kernel.registers);
    if (warps > fit) {
      refuse(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
             name + text("; with %d registers a thread the register file holds %zu of its %zu "
                         "warps",
                         kernel.registers, fit, warps));
    }
  }
}

void check_shared(const Function& function, size_t dynamic) {
  const size_t limit = max_dynamic_shared(function);
  if (dynamic <= limit) return;
  refuse(CUDA_ERROR_INVALID_VALUE,
         function.kernel->name +
             text(": %zu bytes of dynamic shared memory; accepted: %zu, beside %zu static ones",
                  dynamic, limit, function.kernel->static_shared) +
             (function.max_dynamic_shared
                  ? ", as CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES says"
                  : "; more needs CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"));
}

std::vector<uint8_t> parameters_by_pointer(const Kernel& kernel, void** pointers) {
  std::vector<uint8_t> packed(kernel.parameter_bytes);
  for (size_t i = 0; i < kernel.parameters.size(); ++i) {
    const Parameter& parameter = kernel.parameters[i];
    if (!pointers[i]) {
      refuse(CUDA_ERROR_INVALID_VALUE,
             kernel.name + text(": kernelParams[%zu], '%s', is null", i, parameter.name.c_str()));
    }
    std::memcpy(packed.data() + parameter.offset, pointers[i], parameter.bytes);
  }
  return packed;
}

std::vector<uint8_t> parameters_by_buffer(const Kernel& kernel, void** extra) {
  const uint8_t* buffer = nullptr;
  const size_t* bytes = nullptr;
  for (size_t i = 0; reinterpret_cast<uintptr_t>(extra[i]) != kLaunchParamEnd; i += 2) {
    const auto key = reinterpret_cast<uintptr_t>(extra[i]);
    if (key == kLaunchParamBufferPointer) {
      buffer = static_cast<const uint8_t*>(extra[i + 1]);
    } else if (key == kLaunchParamBufferSize) {
      bytes = static_cast<const size_t*>(extra[i + 1]);
    } else {
      refuse(
          CUDA_ERROR_INVALID_VALUE,
          text("extra[%zu] is neither CU_LAUNCH_PARAM_BUFFER_POINTER nor _SIZE, nor the end", i));
    }
  }
  if (!buffer || !bytes) {
    refuse(CUDA_ERROR_INVALID_VALUE, "extra lacks the parameter buffer or its size");
  }
  if (*bytes != kernel.parameter_bytes) {
    refuse(CUDA_ERROR_INVALID_VALUE,
           kernel.name + text(": %zu bytes of parameters; it has %zu parameters of %zu bytes",
                              *bytes, kernel.parameters.size(), kernel.parameter_bytes));
  }
  return {buffer, buffer + *bytes};
}

std::vector<uint8_t> parameters_of(const Kernel& kernel, void** pointers, void** extra) {
  if (pointers && extra) {
    refuse(CUDA_ERROR_INVALID_VALUE, "kernelParams and extra are both given; accepted: one");
  }
  if (extra) return parameters_by_buffer(kernel, extra);
  if (!pointers && !kernel.parameters.empty()) {
    refuse(CUDA_ERROR_INVALID_VALUE,
           kernel.name + text(": no parameters are given; it has %zu", kernel.parameters.size()));
  }
  return parameters_by_pointer(kernel, pointers);
}

void launch(CUfunction handle, const Dim3& grid, const Dim3& block, size_t shared,
            CUstream stream_handle, void** pointers, void** extra) {
  // Taken whatever comes of the launch: a declaration is for one call.
  std::vector<Region> regions = std::exchange(this_thread().regions, {});
  const Function& function = find_function(handle);
  Stream& stream = find_stream(stream_handle);
  Context* const context = stream.context;
  check_grid(grid);
  check_block(*function.kernel, block);
  check_shared(function, shared);
  for (const Region& region : regions) {
    if (region.bytes) {
      check_range(*context, region.base, region.bytes, ("region '" + region.name + "'").c_str());
    }
  }
  Launch launch{
      function.kernel,   grid, block, shared, parameters_of(*function.kernel, pointers, extra),
      std::move(regions)};
  submit(
      stream,
      [context, launch = std::move(launch)] {
        context->counts.push_back(run(launch, *context->memory, context->options).json());
      },
      const_cast<Function*>(&function));
}

const char* launch_attribute_name(unsigned id) {
  switch (id) {
    case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
      return "ACCESS_POLICY_WINDOW";
    case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
      return "COOPERATIVE";
    case CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY:
      return "SYNCHRONIZATION_POLICY";
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
      return "CLUSTER_DIMENSION";
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
      return "CLUSTER_SCHEDULING_POLICY_PREFERENCE";
    case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
      return "PROGRAMMATIC_STREAM_SERIALIZATION";
    case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT:
      return "PROGRAMMATIC_EVENT";
  }
  return "";
}

// Attributes that ask for nothing are taken; one that would change what runs is refused by name.
void check_attribute(const CUlaunchAttribute& attribute) {
  const unsigned id = attribute.id;
  const auto& cluster = attribute.value.clusterDim;
  if (id == CU_LAUNCH_ATTRIBUTE_IGNORE || id == CU_LAUNCH_ATTRIBUTE_PRIORITY) return;
  if (id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE && attribute.value.cooperative == 0) return;
  if (id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION && cluster.x == 1 && cluster.y == 1 &&
      cluster.z == 1) {
    return;
  }
  if (id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION &&
      attribute.value.programmaticStreamSerializationAllowed == 0) {
    return;
  }
  refuse(CUDA_ERROR_NOT_SUPPORTED, text("launch attribute %u %s is not one that the machine has",
                                        id, launch_attribute_name(id)));
}

int attribute_of(const Function& function, CUfunction_attribute attribute) {
  const int capability = function.context->device().capability;
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      return static_cast<int>(max_threads(function));
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
      return static_cast<int>(function.kernel->static_shared);
    case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
      return 0;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
      return static_cast<int>(function.kernel->local);
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
      return function.kernel->registers;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
      return capability;
    case CU_FUNC_ATTRIBUTE_CACHE_MODE_CA:
      return 0;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      return static_cast<int>(max_dynamic_shared(function));
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
      return function.carveout;
  }
  refuse(CUDA_ERROR_INVALID_VALUE,
         text("function attribute %u is not one that the machine knows", unsigned{attribute}));
}

int occupancy(const Function& function, int threads, size_t dynamic) {
  const Device& device = function.context->device();
  if (threads < 1 || static_cast<size_t>(threads) > max_threads(function)) {
    refuse(CUDA_ERROR_INVALID_VALUE,
           text("blockSize is %d; accepted: 1 to %zu", threads, max_threads(function)));
  }
  const size_t warps = round_up(static_cast<size_t>(threads), 32) / 32;
  const size_t shared = round_up(function.kernel->static_shared + dynamic, 128) + kSharedReserved;
  size_t blocks = static_cast<size_t>(device.blocks_per_multiprocessor);
  blocks = std::min(blocks, device.threads_per_multiprocessor / 32 / warps);
  if (function.kernel->registers > 0) {
    blocks = std::min(blocks, warps_by_registers(function.kernel->registers) / warps);
  }
  return static_cast<int>(std::min(blocks, device.shared_per_multiprocessor / shared));
}

}  // namespace
}  // namespace effnet_fast::ptx::driver

using namespace effnet_fast::ptx;
using namespace effnet_fast::ptx::driver;

EFFNET_PTX_EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y,
                                          unsigned grid_z, unsigned block_x, unsigned block_y,
                                          unsigned block_z, unsigned shared, CUstream stream,
                                          void** parameters, void** extra) {
  return api("cuLaunchKernel", [&] {
    launch(function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, stream,
           parameters, extra);
  });
}

EFFNET_PTX_EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function,
                                            void** parameters, void** extra) {
  return api("cuLaunchKernelEx", [&] {
    require_pointer(config, "config");
    if (config->numAttrs) require_pointer(config->attrs, "config->attrs");
    for (unsigned i = 0; i < config->numAttrs; ++i) check_attribute(config->attrs[i]);
    launch(function, {config->gridDimX, config->gridDimY, config->gridDimZ},
           {config->blockDimX, config->blockDimY, config->blockDimZ}, config->sharedMemBytes,
           config->hStream, parameters, extra);
  });
}

// ---- functions ----------------------------------------------------------------------------------

EFFNET_PTX_EXPORT CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute,
                                              CUfunction function) {
  return api("cuFuncGetAttribute", [&] {
    require_pointer(value, "pi");
    *value = attribute_of(find_function(function), attribute);
  });
}

EFFNET_PTX_EXPORT CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute,
                                              int value) {
  return api("cuFuncSetAttribute", [&] {
    Function& function = find_function(handle);
    if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) {
      if (value < -1 || value > 100) {
        refuse(CUDA_ERROR_INVALID_VALUE, text("value is %d; accepted: -1 to 100", value));
      }
      function.carveout = value;
      return;
    }
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
      refuse(CUDA_ERROR_INVALID_VALUE,
             text("function attribute %u cannot be set", unsigned{attribute}));
    }
    const size_t static_shared = function.kernel->static_shared;
    const size_t optin = function.context->device().shared_optin;
    if (value < 0 || static_cast<size_t>(value) + static_shared > optin) {
      refuse(CUDA_ERROR_INVALID_VALUE,
             function.kernel->name + text(": %d bytes of dynamic shared memory beside %zu static "
                                          "ones; the device has %zu for a block",
                                          value, static_shared, optin));
    }
    function.max_dynamic_shared = static_cast<size_t>(value);
  });
}

EFFNET_PTX_EXPORT CUresult cuFuncGetParamInfo(CUfunction handle, size_t index, size_t* offset,
                                              size_t* bytes) {
  return api("cuFuncGetParamInfo", [&] {
    require_pointer(offset, "paramOffset");
    const Kernel& kernel = *find_function(handle).kernel;
    if (index >= kernel.parameters.size()) {
      refuse(CUDA_ERROR_INVALID_VALUE,
             kernel.name + text(" has %zu parameters", kernel.parameters.size()));
    }
    *offset = kernel.parameters[index].offset;
    if (bytes) *bytes = kernel.parameters[index].bytes;
  });
}

EFFNET_PTX_EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks,
                                                                       CUfunction function,
                                                                       int threads, size_t shared) {
  return api("cuOccupancyMaxActiveBlocksPerMultiprocessor", [&] {
    require_pointer(blocks, "numBlocks");
    *blocks = occupancy(find_function(function), threads, shared);
  });
}
