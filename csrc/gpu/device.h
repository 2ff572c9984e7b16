// A device: its primary context, modules and functions, and the lifetime of all that lives there.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "driver.h"

namespace effnet_fast::gpu {

class Device;
class Stream;

// Something of a device that has to be given back. Device::close() gives back all; after that, and
// after an error that broke the context, objects are empty shells.
class Resource {
 public:
  explicit Resource(std::shared_ptr<Device> device);
  virtual ~Resource();
  Resource(const Resource&) = delete;
  Resource& operator=(const Resource&) = delete;

  const std::shared_ptr<Device>& device() const { return device_; }

 protected:
  friend class Device;
  // Called once, with the context current. Must not throw: errors are ignored, a context that is
  // broken or gone has nothing to give back.
  virtual void release() noexcept = 0;
  // To be called by the destructor of every final class, while its members are alive.
  void finish() noexcept;
  // The device, or an error that says it has been closed.
  Device& open_device() const;

 private:
  std::shared_ptr<Device> device_;
  bool released_ = false;
};

struct ParameterLayout {
  size_t offset = 0, bytes = 0;
};

class Module;

// A kernel of a module, loaded and ready.
class Function {
 public:
  Function(Module& module, const std::string& name);
  const std::string& name() const { return name_; }
  Module& module() const { return module_; }
  cuda::CUfunction handle() const { return handle_; }
  // Of the driver (CUDA 12.4 or newer); nothing where it does not say.
  bool has_parameters() const { return has_parameters_; }
  const std::vector<ParameterLayout>& parameters() const { return parameters_; }
  int attribute(cuda::CUfunction_attribute attribute) const;
  int max_active_blocks(int threads, size_t shared) const;
  // Allows launches with that much dynamic shared memory.
  void require_shared(size_t bytes);

 private:
  Module& module_;
  std::string name_;
  cuda::CUfunction handle_ = nullptr;
  bool has_parameters_ = false;
  std::vector<ParameterLayout> parameters_;
  std::mutex mutex_;
  size_t shared_limit_ = 0;
};

class Module : public Resource {
 public:
  Module(std::shared_ptr<Device> device, std::string image);
  ~Module() override { finish(); }
  const std::string& image() const { return image_; }
  cuda::CUmodule handle() const { return handle_; }
  // The kernels' names, where the driver says (CUDA 12.4 or newer).
  std::vector<std::string> names() const;
  // Lives as long as the module.
  Function& function(const std::string& name);
  std::pair<cuda::CUdeviceptr, size_t> global(const std::string& name) const;

 protected:
  void release() noexcept override;

 private:
  std::string image_;
  cuda::CUmodule handle_ = nullptr;
  std::mutex mutex_;
  std::map<std::string, std::unique_ptr<Function>> functions_;
};

class Device : public std::enable_shared_from_this<Device> {
 public:
  // Retains the primary context. Throws OpenError for an ordinal that there is not, and for a
  // device older than sm_80.
  static std::shared_ptr<Device> open(std::shared_ptr<Driver> driver, int ordinal);
  ~Device();

  const Driver& driver() const { return *driver_; }
  int ordinal() const { return ordinal_; }
  const std::string& name() const { return name_; }
  int capability() const { return capability_; }  // 10 * major + minor
  int attribute(cuda::CUdevice_attribute attribute) const;
  std::pair<size_t, size_t> memory() const;  // free, total
  bool closed() const { return context_ == nullptr; }

  // Gives everything back and releases the context; later calls fail. Idempotent.
  void close() noexcept;
  // Loads an image, or returns the module that was loaded from the same bytes before.
  std::shared_ptr<Module> load(const std::string& image);
  // Waits for all work of the context.
  void synchronize();

  // The machine only; a real driver has none of these.
  void set_option(const std::string& name, const std::string& value);
  void set_registers(const Function& function, int registers);
  std::string take_counts();  // JSON

  // Makes the context current to this thread for a scope.
  class Guard {
   public:
    explicit Guard(const Device& device);
    ~Guard();
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    const Device& device_;
  };

 private:
  friend class Resource;
  Device(std::shared_ptr<Driver> driver, int ordinal) : driver_(driver), ordinal_(ordinal) {}
  void require_machine(const char* what) const;

  std::shared_ptr<Driver> driver_;
  int ordinal_;
  int capability_ = 0;
  std::string name_;
  cuda::CUdevice device_ = 0;
  cuda::CUcontext context_ = nullptr;
  std::recursive_mutex mutex_;  // of what follows
  std::set<Resource*> resources_;
  std::multimap<size_t, std::weak_ptr<Module>> modules_;  // by the hash of the image
};

// Lets a thread give back memory while some stream of its process is being captured: the driver
// takes such calls for mistakes unless told that they are meant.
class RelaxedCapture {
 public:
  explicit RelaxedCapture(const Driver& driver);
  ~RelaxedCapture();
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  const Driver& driver_;
  cuda::CUstreamCaptureMode mode_ = cuda::CU_STREAM_CAPTURE_MODE_RELAXED;
};

}  // namespace effnet_fast::gpu
