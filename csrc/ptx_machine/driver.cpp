// The PTX machine as a CUDA driver: libraries that open libcuda can open this one. Here: the state,
// errors, initialisation, devices, and looking up entry points.
#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "driver_state.h"
#include "ptx_machine.h"

namespace effnet_fast::ptx::driver {
namespace {

constexpr int kDriverVersion = 13000;

Device devices[kDevices] = {
    {"effnet_fast PTX machine, sm_80", 80, 108, 2048, 32, 164 << 10, 163 << 10, size_t{40} << 20,
     size_t{40} << 30, 1215000, 5120, 1410000, nullptr, 0},
    {"effnet_fast PTX machine, sm_89", 89, 128, 1536, 24, 100 << 10, 99 << 10, size_t{72} << 20,
     size_t{24} << 30, 10501000, 384, 2520000, nullptr, 0},
    {"effnet_fast PTX machine, sm_120", 120, 170, 1536, 24, 100 << 10, 99 << 10, size_t{96} << 20,
     size_t{32} << 30, 14001000, 512, 2407000, nullptr, 0},
};

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::kContext:
      return "context";
    case Kind::kModule:
      return "module";
    case Kind::kFunction:
      return "function";
    case Kind::kStream:
      return "stream";
    case Kind::kEvent:
      return "event";
    case Kind::kGraph:
      return "graph";
    case Kind::kNode:
      return "graph node";
    case Kind::kGraphExec:
      return "executable graph";
  }
  return "object";
}

int attribute_of(const Device& device, CUdevice_attribute attribute) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y:
      return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z:
      return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X:
      return 0x7FFFFFFF;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z:
      return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
      return kSharedDefault;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY:
      return 65536;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR:
      return kRegisters;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
      return device.clock_khz;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      return device.multiprocessors;
    case CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT:
    case CU_DEVICE_ATTRIBUTE_INTEGRATED:
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_COMPUTE_MODE:
    case CU_DEVICE_ATTRIBUTE_ECC_ENABLED:
    case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH:
      return 0;
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
      return 1;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT:
      return 2;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
      return device.memory_clock_khz;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH:
      return device.bus_bits;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
      return static_cast<int>(device.l2);
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
      return device.threads_per_multiprocessor;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      return device.capability / 10;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      return device.capability % 10;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      return static_cast<int>(device.shared_per_multiprocessor);
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      return static_cast<int>(device.shared_optin);
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR:
      return device.blocks_per_multiprocessor;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK:
      return kSharedReserved;
  }
  refuse(CUDA_ERROR_INVALID_VALUE,
         text("device attribute %u is not one that the machine knows", unsigned{attribute}));
}

// Whether the processor has what the interpreter is compiled for (CMakeLists.txt).
bool runs_here() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
#else
  return true;
#endif
}

// The newest version of an entry point of this library: what it exports is the list.
void* entry_point(const std::string& name) {
  static void* const self = [] {
    Dl_info info{};
    dladdr(reinterpret_cast<void*>(&device_at), &info);
    return dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  }();
  if (name.rfind("cu", 0) != 0 || name.find("_v") != std::string::npos) return nullptr;
  // The plain symbol would be the call of old drivers, with other arguments.
  if (name == "cuGraphInstantiate") return dlsym(self, "cuGraphInstantiateWithFlags");
  for (const char* version : {"_v3", "_v2", ""}) {
    if (void* const found = dlsym(self, (name + version).c_str())) return found;
  }
  return nullptr;
}

const char* result_name(CUresult code) {
  switch (code) {
#define EFFNET_CUDA_CASE(name, value, text) \
  case name:                                \
    return #name;
    EFFNET_CUDA_RESULTS(EFFNET_CUDA_CASE)
#undef EFFNET_CUDA_CASE
  }
  return nullptr;
}

const char* result_text(CUresult code) {
  switch (code) {
#define EFFNET_CUDA_CASE(name, value, text) \
  case name:                                \
    return text;
    EFFNET_CUDA_RESULTS(EFFNET_CUDA_CASE)
#undef EFFNET_CUDA_CASE
  }
  return nullptr;
}

}  // namespace

// Never destroyed: threads of the host may still call while static objects go.
State& state() {
  static State* const only = new State;
  return *only;
}

Thread& this_thread() {
  static thread_local Thread thread;
  return thread;
}

Device& device_at(CUdevice ordinal) {
  if (ordinal < 0 || ordinal >= kDevices) {
    refuse(CUDA_ERROR_INVALID_DEVICE,
           text("device %d does not exist; there are 0 to %d", ordinal, kDevices - 1));
  }
  return devices[ordinal];
}

void refuse(CUresult code, const std::string& text) { throw Refusal{code, text}; }

std::string text(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  char buffer[2048];
  std::vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

CUresult guarded(const char* call, bool needs_init, const std::function<CUresult()>& body) {
  const std::lock_guard<std::mutex> lock(state().mutex);
  Thread& thread = this_thread();
  const auto failed = [&](CUresult code, const std::string& why, const std::string& trap) {
    thread.error = std::string(call) + ": " + why;
    thread.trap = trap;
    return code;
  };
  try {
    if (needs_init && !state().initialised) {
      refuse(CUDA_ERROR_NOT_INITIALIZED, "cuInit has not been called");
    }
    return body();
  } catch (const Refusal& refusal) {
    return failed(refusal.code, refusal.text, refusal.trap);
  } catch (const Fault& fault) {  // of the host's access to memory
    return failed(CUDA_ERROR_INVALID_VALUE, fault.what(), "");
  } catch (const std::bad_alloc&) {
    return failed(CUDA_ERROR_OUT_OF_MEMORY, "the host is out of memory", "");
  } catch (const std::exception& error) {
    return failed(CUDA_ERROR_UNKNOWN, error.what(), "");
  }
}

Context& current(bool broken_too) {
  const Thread& thread = this_thread();
  if (thread.contexts.empty() || !thread.contexts.back()) {
    refuse(CUDA_ERROR_INVALID_CONTEXT, "no context is current to this thread");
  }
  Context& context = *thread.contexts.back();
  if (!context.alive) {
    refuse(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the context that is current has been destroyed");
  }
  if (context.broken && !broken_too) throw *context.broken;
  return context;
}

Object& find_object(const void* handle, Kind kind, const char* what) {
  if (!handle) refuse(CUDA_ERROR_INVALID_HANDLE, text("%s is null", what));
  const auto found = state().objects.find(handle);
  if (found == state().objects.end()) {
    refuse(CUDA_ERROR_INVALID_HANDLE, text("%s %p is not a handle", what, handle));
  }
  Object& object = *found->second;
  if (object.kind != kind) {
    refuse(CUDA_ERROR_INVALID_HANDLE, text("%s %p is not a %s but a %s", what, handle,
                                           kind_name(kind), kind_name(object.kind)));
  }
  if (!object.alive) {
    refuse(CUDA_ERROR_INVALID_HANDLE, text("%s %p has been destroyed", what, handle));
  }
  return object;
}

}  // namespace effnet_fast::ptx::driver

using namespace effnet_fast::ptx;
using namespace effnet_fast::ptx::driver;

// ---- errors and initialisation ------------------------------------------------------------------

EFFNET_PTX_EXPORT CUresult cuGetErrorName(CUresult code, const char** name) {
  return api_before_init("cuGetErrorName", [&] {
    require_pointer(name, "pStr");
    *name = result_name(code);
    if (!*name) refuse(CUDA_ERROR_INVALID_VALUE, text("%u is not a result", unsigned{code}));
  });
}

EFFNET_PTX_EXPORT CUresult cuGetErrorString(CUresult code, const char** sentence) {
  return api_before_init("cuGetErrorString", [&] {
    require_pointer(sentence, "pStr");
    *sentence = result_text(code);
    if (!*sentence) refuse(CUDA_ERROR_INVALID_VALUE, text("%u is not a result", unsigned{code}));
  });
}

EFFNET_PTX_EXPORT CUresult cuInit(unsigned flags) {
  return api_before_init("cuInit", [&] {
    if (flags) refuse(CUDA_ERROR_INVALID_VALUE, text("Flags is %u; accepted: 0", flags));
    if (!runs_here()) {
      refuse(CUDA_ERROR_NO_DEVICE, "the interpreter needs a processor with AVX2, FMA and F16C");
    }
    state().initialised = true;
  });
}

EFFNET_PTX_EXPORT CUresult cuDriverGetVersion(int* version) {
  return api_before_init("cuDriverGetVersion", [&] {
    require_pointer(version, "driverVersion");
    *version = kDriverVersion;
  });
}

EFFNET_PTX_EXPORT CUresult cuGetProcAddress_v2(const char* name, void** function, int version,
                                               uint64_t flags,
                                               CUdriverProcAddressQueryResult* status) {
  return api_before_init("cuGetProcAddress", [&] {
    require_pointer(name, "symbol");
    require_pointer(function, "pfn");
    if (flags > 1) {
      refuse(CUDA_ERROR_INVALID_VALUE,
             text("flags is %llu; the machine has no per-thread default stream",
                  static_cast<unsigned long long>(flags)));
    }
    *function = version >= 2000 ? entry_point(name) : nullptr;
    // What is missing is no error: driver 580 returns CUDA_SUCCESS and a null pointer.
    if (status) {
      *status = *function           ? CU_GET_PROC_ADDRESS_SUCCESS
                : entry_point(name) ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT
                                    : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    }
  });
}

// ---- devices ------------------------------------------------------------------------------------

EFFNET_PTX_EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  return api("cuDeviceGet", [&] {
    require_pointer(device, "device");
    device_at(ordinal);
    *device = ordinal;
  });
}

EFFNET_PTX_EXPORT CUresult cuDeviceGetCount(int* count) {
  return api("cuDeviceGetCount", [&] {
    require_pointer(count, "count");
    *count = kDevices;
  });
}

EFFNET_PTX_EXPORT CUresult cuDeviceGetName(char* name, int bytes, CUdevice device) {
  return api("cuDeviceGetName", [&] {
    require_pointer(name, "name");
    if (bytes < 1) refuse(CUDA_ERROR_INVALID_VALUE, text("len is %d; accepted: 1 or more", bytes));
    std::snprintf(name, static_cast<size_t>(bytes), "%s", device_at(device).name);
  });
}

EFFNET_PTX_EXPORT CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute,
                                                CUdevice device) {
  return api("cuDeviceGetAttribute", [&] {
    require_pointer(value, "pi");
    *value = attribute_of(device_at(device), attribute);
  });
}

EFFNET_PTX_EXPORT CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
  return api("cuDeviceTotalMem", [&] {
    require_pointer(bytes, "bytes");
    Device& d = device_at(device);
    *bytes = d.primary ? d.primary->memory->capacity()
                       : (state().capacity ? state().capacity : d.capacity);
  });
}

EFFNET_PTX_EXPORT CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
  return api("cuDeviceGetUuid", [&] {
    require_pointer(uuid, "uuid");
    device_at(device);
    std::memcpy(uuid->bytes, "effnet-fast-ptx", 15);
    uuid->bytes[15] = static_cast<char>(device);
  });
}

EFFNET_PTX_EXPORT CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice device) {
  return cuDeviceGetUuid_v2(uuid, device);
}

// ---- what only this library has -----------------------------------------------------------------

extern "C" {

__attribute__((visibility("default"))) int effnet_ptx_version(void) { return 1; }

__attribute__((visibility("default"))) const char* effnet_ptx_error(void) {
  return this_thread().error.c_str();
}

__attribute__((visibility("default"))) const char* effnet_ptx_trap(void) {
  return this_thread().trap.c_str();
}

__attribute__((visibility("default"))) int effnet_ptx_declare(const effnet_ptx_region* regions,
                                                              size_t count) {
  return api_before_init("effnet_ptx_declare", [&] {
    if (count) require_pointer(regions, "regions");
    std::vector<Region> declared;
    for (size_t i = 0; i < count; ++i) {
      const effnet_ptx_region& r = regions[i];
      declared.push_back({r.name ? r.name : "", r.base, r.bytes, r.readable != 0, r.writable != 0});
    }
    this_thread().regions = std::move(declared);
  });
}

__attribute__((visibility("default"))) int effnet_ptx_set_registers(void* function, int registers) {
  return api("effnet_ptx_set_registers", [&] {
    current();
    if (registers < 0 || registers > 255) {
      refuse(CUDA_ERROR_INVALID_VALUE,
             text("registers is %d; accepted: 1 to 255, or 0 for unknown", registers));
    }
    find_function(static_cast<CUfunction>(function)).kernel->registers = registers;
  });
}

__attribute__((visibility("default"))) int effnet_ptx_set_option(const char* name,
                                                                 const char* value) {
  return api_before_init("effnet_ptx_set_option", [&] {
    require_pointer(name, "name");
    require_pointer(value, "value");
    const std::string key = name, given = value;
    const auto number = [&](uint64_t limit) -> uint64_t {
      const bool digits = !given.empty() && given.size() < 20 &&
                          given.find_first_not_of("0123456789") == std::string::npos;
      const uint64_t parsed = digits ? std::stoull(given) : 0;
      if (!digits || parsed > limit) {
        refuse(CUDA_ERROR_INVALID_VALUE, text("%s is '%s'; accepted: 0 to %llu", name, value,
                                              static_cast<unsigned long long>(limit)));
      }
      return parsed;
    };
    const Thread& thread = this_thread();
    Context* const context = thread.contexts.empty() ? nullptr : thread.contexts.back();
    Options& options = context ? context->options : state().options;
    if (key == "threads") {
      options.threads = static_cast<int>(number(4096));
    } else if (key == "shuffle") {
      options.shuffle = number(1) != 0;
    } else if (key == "approx") {
      if (given != "perturbed" && given != "exact") {
        refuse(CUDA_ERROR_INVALID_VALUE,
               text("approx is '%s'; accepted: 'perturbed', 'exact'", value));
      }
      options.exact_approximations = given == "exact";
    } else if (key == "seed") {
      options.seed = number(UINT64_MAX);
    } else if (key == "max_instructions") {
      options.max_instructions = number(UINT64_MAX);
    } else if (key == "last_blocks") {
      options.last_blocks = number(UINT64_MAX);
    } else if (key == "capacity") {
      state().capacity = number(uint64_t{1} << 40);
    } else {
      refuse(CUDA_ERROR_INVALID_VALUE,
             text("no option '%s'; accepted: threads, shuffle, approx, seed, max_instructions, "
                  "last_blocks, capacity",
                  name));
    }
  });
}

__attribute__((visibility("default"))) int effnet_ptx_poison(uint64_t base, uint64_t bytes) {
  return api("effnet_ptx_poison", [&] {
    Context& context = current();
    check_range(context, base, bytes, "base");
    refuse_in_capture(context, "effnet_ptx_poison");
    submit_and_wait(*context.legacy,
                    [&context, base, bytes] { context.memory->poison(base, bytes); });
  });
}

__attribute__((visibility("default"))) size_t effnet_ptx_take_counts(char* buffer, size_t size) {
  size_t needed = 0;
  api("effnet_ptx_take_counts", [&] {
    Context& context = current(true);  // what ran before a fault is of interest after it
    std::string json = "[";
    for (const std::string& counts : context.counts) {
      if (json.size() > 1) json += ",\n";
      json += counts;
    }
    json += "]";
    needed = json.size() + 1;
    if (!buffer || size < needed) return;
    std::memcpy(buffer, json.c_str(), needed);
    context.counts.clear();
  });
  return needed;
}

}  // extern "C"
