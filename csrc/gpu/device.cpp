#include "device.h"

#include <algorithm>
#include <functional>
#include <iterator>

namespace effnet_fast::gpu {

using namespace cuda;  // NOLINT: the driver's own vocabulary

constexpr int kSharedDefault = 48 << 10;  // static and dynamic, until a function is told otherwise

// ---- resources ----------------------------------------------------------------------------------

Resource::Resource(std::shared_ptr<Device> device) : device_(std::move(device)) {
  const std::lock_guard<std::recursive_mutex> lock(device_->mutex_);
  device_->resources_.insert(this);
}

Resource::~Resource() = default;

void Resource::finish() noexcept {
  const std::lock_guard<std::recursive_mutex> lock(device_->mutex_);
  device_->resources_.erase(this);
  if (released_ || device_->closed()) return;
  released_ = true;
  try {
    const Device::Guard guard(*device_);
    const RelaxedCapture relaxed(device_->driver());
    release();
  } catch (const std::exception&) {  // the context is gone, and with it what was to be released
  }
}

Device& Resource::open_device() const {
  if (device_->closed()) throw DeviceError("the device has been closed");
  return *device_;
}

RelaxedCapture::RelaxedCapture(const Driver& driver) : driver_(driver) {
  driver_.api.cuThreadExchangeStreamCaptureMode(&mode_);
}

RelaxedCapture::~RelaxedCapture() { driver_.api.cuThreadExchangeStreamCaptureMode(&mode_); }

// ---- functions and modules ----------------------------------------------------------------------

Function::Function(Module& module, const std::string& name) : module_(module), name_(name) {
  const Driver& driver = module.device()->driver();
  EFFNET_CUDA(driver, cuModuleGetFunction, &handle_, module.handle(), name.c_str());
  // Drivers load lazily; a first launch inside a capture would be too late.
  if (driver.api.cuFuncLoad) EFFNET_CUDA(driver, cuFuncLoad, handle_);
  int static_shared = 0;
  EFFNET_CUDA(driver, cuFuncGetAttribute, &static_shared, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
              handle_);
  shared_limit_ = static_cast<size_t>(std::max(0, kSharedDefault - static_shared));
  has_parameters_ = driver.api.cuFuncGetParamInfo != nullptr;
  for (size_t i = 0; has_parameters_; ++i) {
    ParameterLayout layout;
    const CUresult result =
        driver.api.cuFuncGetParamInfo(handle_, i, &layout.offset, &layout.bytes);
    if (result == CUDA_ERROR_INVALID_VALUE) break;  // past the last
    driver.check(result, "cuFuncGetParamInfo");
    parameters_.push_back(layout);
  }
}

int Function::attribute(CUfunction_attribute attribute) const {
  const Device::Guard guard(*module_.device());
  int value = 0;
  EFFNET_CUDA(module_.device()->driver(), cuFuncGetAttribute, &value, attribute, handle_);
  return value;
}

int Function::max_active_blocks(int threads, size_t shared) const {
  const Device::Guard guard(*module_.device());
  int blocks = 0;
  EFFNET_CUDA(module_.device()->driver(), cuOccupancyMaxActiveBlocksPerMultiprocessor, &blocks,
              handle_, threads, shared);
  return blocks;
}

void Function::require_shared(size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (bytes <= shared_limit_) return;
  const Device::Guard guard(*module_.device());
  EFFNET_CUDA(module_.device()->driver(), cuFuncSetAttribute, handle_,
              CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, static_cast<int>(bytes));
  shared_limit_ = bytes;
}

Module::Module(std::shared_ptr<Device> owner, std::string image)
    : Resource(std::move(owner)), image_(std::move(image)) {
  try {
    const Device::Guard guard(open_device());
    const Driver& driver = device()->driver();
    std::vector<char> log(8192);
    CUjit_option names[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
    void* values[] = {log.data(), reinterpret_cast<void*>(log.size())};
    const CUresult result =
        driver.api.cuModuleLoadDataEx(&handle_, image_.c_str(), 2, names, values);
    if (result == CUDA_SUCCESS) return;
    try {
      driver.fail(result, "cuModuleLoadDataEx");
    } catch (const DriverError& error) {
      // The machine's sentence is in the error already.
      if (driver.is_machine() || !log[0]) throw;
      throw DriverError(std::string(error.what()) + "\n" + log.data(), error.call, error.name,
                        error.result, error.trap);
    }
  } catch (...) {
    finish();  // a constructor that throws has no destructor run
    throw;
  }
}

void Module::release() noexcept {
  if (handle_) device()->driver().api.cuModuleUnload(handle_);
  handle_ = nullptr;
}

std::vector<std::string> Module::names() const {
  const Device::Guard guard(open_device());
  const Driver& driver = device()->driver();
  std::vector<std::string> names;
  if (!driver.api.cuModuleGetFunctionCount || !driver.api.cuModuleEnumerateFunctions ||
      !driver.api.cuFuncGetName) {
    return names;
  }
  unsigned count = 0;
  EFFNET_CUDA(driver, cuModuleGetFunctionCount, &count, handle_);
  std::vector<CUfunction> functions(count);
  if (count) EFFNET_CUDA(driver, cuModuleEnumerateFunctions, functions.data(), count, handle_);
  for (CUfunction function : functions) {
    const char* name = nullptr;
    EFFNET_CUDA(driver, cuFuncGetName, &name, function);
    names.emplace_back(name);
  }
  return names;
}

Function& Module::function(const std::string& name) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::unique_ptr<Function>& function = functions_[name];
  if (!function) {
    const Device::Guard guard(open_device());
    function = std::make_unique<Function>(*this, name);
  }
  return *function;
}

std::pair<CUdeviceptr, size_t> Module::global(const std::string& name) const {
  const Device::Guard guard(open_device());
  std::pair<CUdeviceptr, size_t> found;
  EFFNET_CUDA(device()->driver(), cuModuleGetGlobal, &found.first, &found.second, handle_,
              name.c_str());
  return found;
}

// ---- devices ------------------------------------------------------------------------------------

std::shared_ptr<Device> Device::open(std::shared_ptr<Driver> driver, int ordinal) {
  const int count = driver->device_count();
  if (ordinal < 0 || ordinal >= count) {
    throw OpenError(driver->path + " has no device " + std::to_string(ordinal) + "; it has " +
                    std::to_string(count));
  }
  auto device = std::shared_ptr<Device>(new Device(driver, ordinal));
  EFFNET_CUDA(*driver, cuDeviceGet, &device->device_, ordinal);
  char name[256] = {};
  EFFNET_CUDA(*driver, cuDeviceGetName, name, sizeof name, device->device_);
  device->name_ = name;
  device->capability_ = 10 * device->attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) +
                        device->attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  if (device->capability_ < 80) {
    throw OpenError(device->name_ + " is sm_" + std::to_string(device->capability_) +
                    "; sm_80 or newer is needed");
  }
  EFFNET_CUDA(*driver, cuDevicePrimaryCtxRetain, &device->context_, device->device_);
  return device;
}

Device::~Device() { close(); }

void Device::close() noexcept {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (closed()) return;
  try {
    const Guard guard(*this);
    const RelaxedCapture relaxed(*driver_);
    for (Resource* resource : resources_) {
      if (!resource->released_) resource->release();
      resource->released_ = true;
    }
  } catch (const std::exception&) {
  }
  driver_->api.cuDevicePrimaryCtxRelease(device_);
  context_ = nullptr;
}

int Device::attribute(CUdevice_attribute attribute) const {
  int value = 0;
  EFFNET_CUDA(*driver_, cuDeviceGetAttribute, &value, attribute, device_);
  return value;
}

std::pair<size_t, size_t> Device::memory() const {
  const Guard guard(*this);
  std::pair<size_t, size_t> sizes;
  EFFNET_CUDA(*driver_, cuMemGetInfo, &sizes.first, &sizes.second);
  return sizes;
}

std::shared_ptr<Module> Device::load(const std::string& image) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  if (closed()) throw DeviceError("the device has been closed");
  const size_t hash = std::hash<std::string>()(image);
  auto [first, last] = modules_.equal_range(hash);
  while (first != last) {
    const std::shared_ptr<Module> module = first->second.lock();
    if (module && module->image() == image) return module;
    first = module ? std::next(first) : modules_.erase(first);
  }
  auto module = std::make_shared<Module>(shared_from_this(), image);
  modules_.emplace(hash, module);
  return module;
}

void Device::synchronize() {
  const Guard guard(*this);
  EFFNET_CUDA(*driver_, cuCtxSynchronize);
}

void Device::require_machine(const char* what) const {
  if (driver_->is_machine()) return;
  throw DeviceError(std::string(what) + " is of the PTX machine; this device is " + name_);
}

void Device::set_option(const std::string& name, const std::string& value) {
  require_machine("an option");
  const Guard guard(*this);
  driver_->check(static_cast<CUresult>(driver_->machine.set_option(name.c_str(), value.c_str())),
                 "effnet_ptx_set_option");
}

void Device::set_registers(const Function& function, int registers) {
  require_machine("a number of registers");
  const Guard guard(*this);
  driver_->check(
      static_cast<CUresult>(driver_->machine.set_registers(function.handle(), registers)),
      "effnet_ptx_set_registers");
}

std::string Device::take_counts() {
  require_machine("counting");
  const Guard guard(*this);
  std::string json;
  // The size may grow between the two calls, when another thread synchronises.
  while (true) {
    const size_t needed = driver_->machine.take_counts(nullptr, 0);
    if (needed == 0) throw std::runtime_error(driver_->machine.error());
    json.resize(needed);
    if (driver_->machine.take_counts(json.data(), json.size()) <= json.size()) break;
  }
  json.resize(json.find('\0'));
  return json;
}

Device::Guard::Guard(const Device& device) : device_(device) {
  if (device.closed()) throw DeviceError("the device has been closed");
  EFFNET_CUDA(*device.driver_, cuCtxPushCurrent, device.context_);
}

Device::Guard::~Guard() {
  CUcontext popped;
  device_.driver_->api.cuCtxPopCurrent(&popped);
}

}  // namespace effnet_fast::gpu
