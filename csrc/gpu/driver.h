// The CUDA driver API, opened at run time: the real libcuda or the PTX machine, by the same code.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#include "../ptx_machine/ptx_machine.h"
#include "cuda_api.h"

namespace effnet_fast::gpu {

// No library, or one that cannot be used here; what() says what was looked for and found.
class OpenError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A device that has been closed, or is not one that can do what was asked.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A call of the driver that failed.
class DriverError : public std::runtime_error {
 public:
  DriverError(const std::string& message, std::string call, std::string name, cuda::CUresult result,
              std::string trap)
      : std::runtime_error(message),
        call(std::move(call)),
        name(std::move(name)),
        result(result),
        trap(std::move(trap)) {}
  std::string call;  // "cuLaunchKernel"
  std::string name;  // "CUDA_ERROR_INVALID_VALUE"
  cuda::CUresult result;
  std::string trap;  // what the machine stopped a kernel for: "shared race"; else ""
};

// What only the machine exports; null with a real driver.
struct MachineEntryPoints {
  decltype(&effnet_ptx_version) version = nullptr;
  decltype(&effnet_ptx_declare) declare = nullptr;
  decltype(&effnet_ptx_set_registers) set_registers = nullptr;
  decltype(&effnet_ptx_set_option) set_option = nullptr;
  decltype(&effnet_ptx_poison) poison = nullptr;
  decltype(&effnet_ptx_error) error = nullptr;
  decltype(&effnet_ptx_trap) trap = nullptr;
  decltype(&effnet_ptx_take_counts) take_counts = nullptr;
};

class Driver {
 public:
  // libcuda.so.1: the one in the process if there is one, otherwise the first that is a driver.
  // Opened and initialised once; later calls return the same.
  static std::shared_ptr<Driver> open_cuda();
  // The PTX machine's library.
  static std::shared_ptr<Driver> open_machine(const std::string& path);

  cuda::EntryPoints api;
  MachineEntryPoints machine;
  std::string path;
  int version = 0;  // 13000: CUDA 13.0

  bool is_machine() const { return machine.version != nullptr; }
  int device_count() const;
  // Throws DriverError unless the result is CUDA_SUCCESS.
  void check(cuda::CUresult result, const char* call) const {
    if (result != cuda::CUDA_SUCCESS) fail(result, call);
  }
  [[noreturn]] void fail(cuda::CUresult result, const char* call) const;

  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

 private:
  explicit Driver(void* library);
  void* library_;  // never closed: a driver does not survive it
};

// driver.check of a call by its name: EFFNET_CUDA(driver, cuMemFree, address).
#define EFFNET_CUDA(driver, name, ...) (driver).check((driver).api.name(__VA_ARGS__), #name)

}  // namespace effnet_fast::gpu
