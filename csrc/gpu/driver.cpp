#include "driver.h"

#include <dlfcn.h>
#include <link.h>

#include <cstring>
#include <map>
#include <mutex>
#include <vector>

namespace effnet_fast::gpu {
namespace {

using namespace cuda;  // NOLINT: the driver's own vocabulary

constexpr int kMinimumVersion = 12000;  // cuGetProcAddress_v2 and graphs as they are used here
constexpr int kMachineVersion = 1;

// Where drivers are, beside what the dynamic loader finds: WSL, containers.
const char* const kCandidates[] = {"libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1",
                                   "/usr/local/nvidia/lib64/libcuda.so.1"};

std::string path_of(void* library) {
  link_map* map = nullptr;
  if (dlinfo(library, RTLD_DI_LINKMAP, &map) != 0 || !map || !map->l_name) return "";
  return map->l_name;
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

template <class Pointer>
Pointer symbol_as(void* address) {
  Pointer pointer;
  static_assert(sizeof pointer == sizeof address);
  std::memcpy(&pointer, &address, sizeof pointer);
  return pointer;
}

class Lookup {
 public:
  explicit Lookup(void* library)
      : library_(library),
        get_proc_address_(symbol_as<cuGetProcAddress_t>(dlsym(library, "cuGetProcAddress_v2"))) {}

  // By cuGetProcAddress; by the versioned symbol where that has nothing. Symbols that newer
  // versions of a call have other arguments under are asked for as they are at kMinimumVersion.
  template <class Pointer>
  void find(Pointer& pointer, const char* name, const char* symbol, bool required) {
    void* address = nullptr;
    auto status = CU_GET_PROC_ADDRESS_SUCCESS;
    if (get_proc_address_ && get_proc_address_(name, &address, required ? kMinimumVersion : 12040,
                                               0, &status) != CUDA_SUCCESS) {
      address = nullptr;
    }
    if (!address) address = dlsym(library_, symbol);
    if (!address && required) missing_.push_back(symbol);
    pointer = symbol_as<Pointer>(address);
  }

  const std::vector<std::string>& missing() const { return missing_; }

 private:
  void* library_;
  cuGetProcAddress_t get_proc_address_;
  std::vector<std::string> missing_;
};

std::string join(const std::vector<std::string>& parts, const char* between) {
  std::string joined;
  for (const std::string& part : parts) joined += (joined.empty() ? "" : between) + part;
  return joined;
}

}  // namespace

Driver::Driver(void* library) : path(path_of(library)), library_(library) {
  // The machine first: its sentences belong into what follows.
  const auto own = [&](auto& pointer, const char* symbol) {
    pointer = symbol_as<std::remove_reference_t<decltype(pointer)>>(dlsym(library_, symbol));
  };
  own(machine.version, "effnet_ptx_version");
  if (is_machine()) {
    if (machine.version() != kMachineVersion) {
      throw OpenError(path + " is version " + std::to_string(machine.version()) +
                      " of the PTX machine; this build speaks version " +
                      std::to_string(kMachineVersion));
    }
    own(machine.declare, "effnet_ptx_declare");
    own(machine.set_registers, "effnet_ptx_set_registers");
    own(machine.set_option, "effnet_ptx_set_option");
    own(machine.poison, "effnet_ptx_poison");
    own(machine.error, "effnet_ptx_error");
    own(machine.trap, "effnet_ptx_trap");
    own(machine.take_counts, "effnet_ptx_take_counts");
    if (!machine.declare || !machine.set_registers || !machine.set_option || !machine.poison ||
        !machine.error || !machine.trap || !machine.take_counts) {
      throw OpenError(path + " lacks functions of the PTX machine");
    }
  }
  const auto get_version = symbol_as<cuDriverGetVersion_t>(dlsym(library_, "cuDriverGetVersion"));
  if (!get_version) throw OpenError(path + " has no cuDriverGetVersion: not a CUDA driver");
  const CUresult result = get_version(&version);
  if (result == CUDA_ERROR_STUB_LIBRARY) {
    throw OpenError(path + " is the toolkit's stub, not a driver");
  }
  if (result != CUDA_SUCCESS) {
    throw OpenError(path + ": cuDriverGetVersion returned " + std::to_string(result));
  }
  if (version < kMinimumVersion) {
    throw OpenError(path + " is of CUDA " + version_text(version) + "; " +
                    version_text(kMinimumVersion) + " or newer is needed");
  }
  Lookup lookup(library_);
#define EFFNET_CUDA_FIND(name, symbol, arguments) lookup.find(api.name, #name, #symbol, true);
  EFFNET_CUDA_REQUIRED(EFFNET_CUDA_FIND)
#undef EFFNET_CUDA_FIND
#define EFFNET_CUDA_FIND(name, symbol, arguments) lookup.find(api.name, #name, #symbol, false);
  EFFNET_CUDA_OPTIONAL(EFFNET_CUDA_FIND)
#undef EFFNET_CUDA_FIND
  if (!lookup.missing().empty()) {
    throw OpenError(path + " (CUDA " + version_text(version) + ") lacks " +
                    join(lookup.missing(), ", "));
  }
  const CUresult started = api.cuInit(0);
  if (started == CUDA_ERROR_STUB_LIBRARY) {
    throw OpenError(path + " is the toolkit's stub, not a driver");
  }
  if (started != CUDA_SUCCESS) {
    const char* name = nullptr;
    const char* sentence = nullptr;
    api.cuGetErrorName(started, &name);
    api.cuGetErrorString(started, &sentence);
    const std::string why = is_machine() ? machine.error() : sentence ? sentence : "";
    throw OpenError(path + ": cuInit returned " + (name ? name : std::to_string(started)) +
                    (why.empty() ? "" : ": " + why));
  }
}

std::shared_ptr<Driver> Driver::open_cuda() {
  static std::mutex mutex;
  static std::shared_ptr<Driver> opened;
  const std::lock_guard<std::mutex> lock(mutex);
  if (opened) return opened;
  std::vector<std::string> tried;
  const auto attempt = [&](const char* name, int flags) {
    void* const library = dlopen(name, flags);
    if (!library) {
      if (!(flags & RTLD_NOLOAD)) {
        const char* const why = dlerror();
        tried.push_back(why ? why : name);
      }
      return;
    }
    const std::string path = path_of(library);
    if (path.find("/stubs/") != std::string::npos) {
      tried.push_back(path + " is the toolkit's stub, not a driver");
      return;
    }
    try {
      opened = std::shared_ptr<Driver>(new Driver(library));
    } catch (const OpenError& error) {
      tried.push_back(error.what());
    }
  };
  attempt(kCandidates[0], RTLD_NOW | RTLD_NOLOAD);
  for (const char* candidate : kCandidates) {
    if (!opened) attempt(candidate, RTLD_NOW | RTLD_LOCAL);
  }
  if (!opened) throw OpenError("no CUDA driver: " + join(tried, "; "));
  return opened;
}

std::shared_ptr<Driver> Driver::open_machine(const std::string& path) {
  static std::mutex mutex;
  static std::map<std::string, std::shared_ptr<Driver>> opened;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Driver>& driver = opened[path];
  if (driver) return driver;
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* const why = dlerror();
    throw OpenError(std::string("no PTX machine: ") + (why ? why : path));
  }
  auto created = std::shared_ptr<Driver>(new Driver(library));
  if (!created->is_machine()) throw OpenError(path + " is not the PTX machine");
  return driver = created;
}

int Driver::device_count() const {
  int count = 0;
  EFFNET_CUDA(*this, cuDeviceGetCount, &count);
  return count;
}

void Driver::fail(CUresult result, const char* call) const {
  // Asked first: the calls below are calls too.
  std::string why = is_machine() ? machine.error() : "";
  if (why.rfind(std::string(call) + ": ", 0) == 0) why.erase(0, std::strlen(call) + 2);
  const std::string trap = is_machine() ? machine.trap() : "";
  const char* name = nullptr;
  const char* sentence = nullptr;
  api.cuGetErrorName(result, &name);
  api.cuGetErrorString(result, &sentence);
  const std::string name_text = name ? name : "CUresult " + std::to_string(result);
  std::string message = std::string(call) + ": " + name_text;
  if (sentence) message += std::string(" (") + sentence + ")";
  if (!why.empty()) message += "\n  " + why;
  throw DriverError(message, call, name_text, result, trap);
}

}  // namespace effnet_fast::gpu
