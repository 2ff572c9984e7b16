// effnet_fast._C.gpu: devices behind the CUDA driver API for Python. Checks and calls, nothing
// else.
//
// Host memory is passed as addresses (integers) and stays the caller's. The GIL is released around
// whatever may wait for a device.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "gpu/device.h"
#include "gpu/launch.h"
#include "gpu/memory.h"
#include "gpu/stream.h"

namespace py = pybind11;
using namespace py::literals;

namespace effnet_fast::gpu {
namespace {

using Address = std::uintptr_t;
using Unlocked = py::call_guard<py::gil_scoped_release>;
// name, base, bytes, readable, writable
using RegionTuple = std::tuple<std::string, uint64_t, size_t, bool, bool>;
using Dims = std::array<unsigned, 3>;

cuda::CUstream stream_handle(Address address) { return reinterpret_cast<cuda::CUstream>(address); }

// Raises an error type of effnet_fast.errors.
template <class... Arguments>
void raise_as(const char* type_name, const Arguments&... arguments) {
  const py::object type = py::module_::import("effnet_fast.errors").attr(type_name);
  PyErr_SetObject(type.ptr(), type(arguments...).ptr());
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const DriverError& error) {
    if (error.trap.empty()) {
      raise_as("GpuError", error.what(), error.call, error.name);
    } else {
      raise_as("KernelFault", error.what(), error.call, error.name, error.trap);
    }
  } catch (const OpenError& error) {
    raise_as("BackendError", error.what());
  } catch (const DeviceError& error) {
    raise_as("DeviceError", error.what());
  }
}

std::string lower_case(std::string name) {
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return name;
}

py::dict attributes_of(const Device& device) {
  py::dict attributes;
  // What an older driver does not know is left out.
#define EFFNET_CUDA_READ(name, value)                                                            \
  try {                                                                                          \
    attributes[py::str(lower_case(#name))] = device.attribute(cuda::CU_DEVICE_ATTRIBUTE_##name); \
  } catch (const DriverError&) {                                                                 \
  }
  EFFNET_CUDA_DEVICE_ATTRIBUTES(EFFNET_CUDA_READ)
#undef EFFNET_CUDA_READ
  return attributes;
}

std::shared_ptr<Launch> make_launch(const std::shared_ptr<Module>& module,
                                    const std::string& kernel, const Dims& grid, const Dims& block,
                                    unsigned shared, const py::bytes& arguments,
                                    const std::vector<std::pair<size_t, size_t>>& layout,
                                    const std::vector<RegionTuple>& regions) {
  auto launch = std::make_shared<Launch>();
  launch->module = module;
  launch->function = &module->function(kernel);
  launch->grid = grid;
  launch->block = block;
  launch->shared = shared;
  const std::string_view packed = arguments;
  launch->arguments.assign(packed.begin(), packed.end());
  for (const auto& [offset, bytes] : layout) launch->layout.push_back({offset, bytes});
  for (const auto& [name, base, bytes, readable, writable] : regions) {
    launch->regions.push_back({name, base, bytes, readable, writable});
  }
  prepare(*launch);
  return launch;
}

void bind_device(py::module_& m) {
  py::class_<Driver, std::shared_ptr<Driver>>(m, "Driver", "An opened driver library.")
      .def_static("open_cuda", &Driver::open_cuda, Unlocked(), "libcuda.so.1.")
      .def_static("open_machine", &Driver::open_machine, "path"_a, Unlocked(),
                  "The PTX machine's library.")
      .def_readonly("path", &Driver::path)
      .def_readonly("version", &Driver::version)
      .def_property_readonly("is_machine", &Driver::is_machine)
      .def("device_count", &Driver::device_count)
      .def(
          "set_option",
          [](const Driver& driver, const std::string& name, const std::string& value) {
            if (!driver.is_machine()) throw DeviceError("options are of the PTX machine");
            driver.check(
                static_cast<cuda::CUresult>(driver.machine.set_option(name.c_str(), value.c_str())),
                "effnet_ptx_set_option");
          },
          "name"_a, "value"_a, "An option of the machine, for contexts to come.");

  py::class_<Device, std::shared_ptr<Device>>(m, "Device", "A retained primary context.")
      .def_static("open", &Device::open, "driver"_a, "ordinal"_a, Unlocked())
      .def_property_readonly("name", &Device::name)
      .def_property_readonly("ordinal", &Device::ordinal)
      .def_property_readonly("capability", &Device::capability)
      .def_property_readonly("closed", &Device::closed)
      .def("attributes", &attributes_of, "By name, lower case.")
      .def("memory", &Device::memory, "Bytes: free, total.")
      .def("load", &Device::load, "image"_a, Unlocked(), "PTX, a cubin or a fat binary.")
      .def("synchronize", &Device::synchronize, Unlocked())
      .def("close", &Device::close, Unlocked())
      .def("set_option", &Device::set_option, "name"_a, "value"_a)
      .def("take_counts", &Device::take_counts, Unlocked(), "JSON: one object for each launch.");

  py::class_<Function, std::unique_ptr<Function, py::nodelete>>(m, "Function", "A loaded kernel.")
      .def_property_readonly("name", &Function::name)
      .def_property_readonly(
          "parameters",
          [](const Function& function) -> std::optional<std::vector<std::pair<size_t, size_t>>> {
            if (!function.has_parameters()) return std::nullopt;
            std::vector<std::pair<size_t, size_t>> layout;
            for (const ParameterLayout& p : function.parameters()) {
              layout.emplace_back(p.offset, p.bytes);
            }
            return layout;
          },
          "(offset, bytes) of each parameter, or None where the driver does not say.")
      .def_property_readonly("max_threads",
                             [](const Function& f) {
                               return f.attribute(cuda::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
                             })
      .def_property_readonly(
          "static_shared",
          [](const Function& f) { return f.attribute(cuda::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES); })
      .def_property_readonly(
          "local",
          [](const Function& f) { return f.attribute(cuda::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES); })
      .def_property_readonly(
          "registers",
          [](const Function& f) { return f.attribute(cuda::CU_FUNC_ATTRIBUTE_NUM_REGS); })
      .def("max_active_blocks", &Function::max_active_blocks, "threads"_a, "shared"_a)
      .def(
          "set_registers",
          [](const Function& f, int registers) {
            f.module().device()->set_registers(f, registers);
          },
          "registers"_a);

  py::class_<Module, std::shared_ptr<Module>>(m, "Module", "A loaded image.")
      .def("names", &Module::names)
      .def("function", &Module::function, "name"_a, py::return_value_policy::reference_internal,
           Unlocked())
      .def("global_", &Module::global, "name"_a, "(address, bytes) of a variable.");
}

void bind_memory(py::module_& m) {
  py::class_<Buffer, std::shared_ptr<Buffer>>(m, "Buffer", "Device memory.")
      .def(py::init<std::shared_ptr<Device>, size_t>(), "device"_a, "bytes"_a, Unlocked())
      .def_property_readonly("address", &Buffer::address)
      .def_property_readonly("bytes", &Buffer::bytes)
      .def("poison", &Buffer::poison, Unlocked());
  py::class_<PinnedBuffer, std::shared_ptr<PinnedBuffer>>(m, "PinnedBuffer", py::buffer_protocol(),
                                                          "Page-locked host memory.")
      .def(py::init<std::shared_ptr<Device>, size_t>(), "device"_a, "bytes"_a, Unlocked())
      .def_property_readonly("bytes", &PinnedBuffer::bytes)
      .def_buffer([](PinnedBuffer& pinned) {
        return py::buffer_info(static_cast<uint8_t*>(pinned.data()),
                               static_cast<py::ssize_t>(pinned.bytes()));
      });
  m.def(
      "copy_to_device",
      [](Stream& stream, uint64_t to, Address from, size_t bytes) {
        copy_to_device(stream, to, reinterpret_cast<const void*>(from), bytes);
      },
      "stream"_a, "to"_a, "from_"_a, "bytes"_a, Unlocked());
  m.def(
      "copy_to_host",
      [](Stream& stream, Address to, uint64_t from, size_t bytes) {
        copy_to_host(stream, reinterpret_cast<void*>(to), from, bytes);
      },
      "stream"_a, "to"_a, "from_"_a, "bytes"_a, Unlocked());
  m.def("copy_on_device", &copy_on_device, "stream"_a, "to"_a, "from_"_a, "bytes"_a, Unlocked());
  m.def("fill", &fill, "stream"_a, "to"_a, "value"_a, "bytes"_a, Unlocked());
}

void bind_work(py::module_& m) {
  py::class_<Stream, std::shared_ptr<Stream>>(m, "Stream", "A stream: ours, or one borrowed.")
      .def(py::init<std::shared_ptr<Device>>(), "device"_a)
      .def(py::init([](std::shared_ptr<Device> device, Address handle) {
             return std::make_shared<Stream>(std::move(device), stream_handle(handle));
           }),
           "device"_a, "handle"_a)
      .def_property_readonly("handle",
                             [](const Stream& s) { return reinterpret_cast<Address>(s.handle()); })
      .def("synchronize", &Stream::synchronize, Unlocked())
      .def("done", &Stream::done, Unlocked())
      .def("capturing", &Stream::capturing)
      .def("wait", &Stream::wait, "event"_a);
  py::class_<Event, std::shared_ptr<Event>>(m, "Event", "A point in a stream's work.")
      .def(py::init<std::shared_ptr<Device>, bool>(), "device"_a, "timing"_a)
      .def("record", &Event::record, "stream"_a)
      .def("synchronize", &Event::synchronize, Unlocked())
      .def("done", &Event::done, Unlocked())
      .def("elapsed_since", &Event::elapsed_since, "start"_a);
  py::class_<Launch, std::shared_ptr<Launch>>(m, "Launch", "A kernel with all that it is run with.")
      .def(py::init(&make_launch), "module"_a, "kernel"_a, "grid"_a, "block"_a, "shared"_a,
           "arguments"_a, "layout"_a, "regions"_a);
  m.def(
      "run",
      [](const std::vector<std::shared_ptr<Launch>>& launches, Stream& stream) {
        std::vector<const Launch*> order;
        order.reserve(launches.size());
        for (const auto& launch : launches) order.push_back(launch.get());
        py::gil_scoped_release release;
        run(order, stream);
      },
      "launches"_a, "stream"_a, "Hand launches to a stream, in order.");
  py::class_<Graph, std::shared_ptr<Graph>>(m, "Graph", "Launches, captured.")
      .def(py::init([](std::shared_ptr<Device> device,
                       const std::vector<std::shared_ptr<Launch>>& launches) {
             std::vector<std::shared_ptr<const Launch>> shared(launches.begin(), launches.end());
             py::gil_scoped_release release;
             return std::make_shared<Graph>(std::move(device), std::move(shared));
           }),
           "device"_a, "launches"_a)
      .def_property_readonly("nodes", &Graph::nodes)
      .def("launch", &Graph::launch, "stream"_a, Unlocked());
}

}  // namespace

void bind_gpu(py::module_& parent) {
  py::module_ m = parent.def_submodule("gpu", "Devices behind the CUDA driver API.");
  py::register_local_exception_translator(&translate);
  bind_device(m);
  bind_memory(m);
  bind_work(m);
}

}  // namespace effnet_fast::gpu
