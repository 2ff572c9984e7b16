#include "launch.h"

#include <stdexcept>

namespace effnet_fast::gpu {

using namespace cuda;  // NOLINT: the driver's own vocabulary

namespace {

std::string describe(const std::vector<ParameterLayout>& layout) {
  std::string text;
  for (const ParameterLayout& p : layout) {
    text += (text.empty() ? "" : ", ") + std::to_string(p.offset) + "+" + std::to_string(p.bytes);
  }
  return "[" + text + "]";
}

void declare(const Driver& driver, const std::vector<Region>& regions) {
  std::vector<effnet_ptx_region> plain;
  plain.reserve(regions.size());
  for (const Region& r : regions) {
    plain.push_back({r.name.c_str(), r.base, r.bytes, r.readable, r.writable});
  }
  driver.check(static_cast<CUresult>(driver.machine.declare(plain.data(), plain.size())),
               "effnet_ptx_declare");
}

// Destroys a graph when the scope ends: the executable one does not need it.
struct CapturedGraph {
  const Driver& driver;
  CUgraph graph = nullptr;
  ~CapturedGraph() {
    if (graph) driver.api.cuGraphDestroy(graph);
  }
};

}  // namespace

void prepare(Launch& launch) {
  Function& function = *launch.function;
  if (function.has_parameters()) {
    const auto& expected = function.parameters();
    bool same = launch.layout.size() == expected.size();
    for (size_t i = 0; same && i < expected.size(); ++i) {
      same = launch.layout[i].offset == expected[i].offset &&
             launch.layout[i].bytes == expected[i].bytes;
    }
    if (!same) {
      throw std::invalid_argument(function.name() + " has the parameters " + describe(expected) +
                                  " (offset+bytes); the arguments are " + describe(launch.layout));
    }
  }
  for (const ParameterLayout& p : launch.layout) {
    if (p.offset > launch.arguments.size() || p.bytes > launch.arguments.size() - p.offset) {
      throw std::invalid_argument(function.name() + ": an argument lies outside of the " +
                                  std::to_string(launch.arguments.size()) + " packed bytes");
    }
  }
  function.require_shared(launch.shared);
}

void run(const std::vector<const Launch*>& launches, Stream& stream) {
  const Device::Guard guard(stream.open());
  const Driver& driver = stream.device()->driver();
  for (const Launch* launch : launches) {
    if (launch->module->device() != stream.device()) {
      throw DeviceError(launch->function->name() +
                        " was loaded on another device than the stream's");
    }
    if (driver.is_machine() && !launch->regions.empty()) declare(driver, launch->regions);
    size_t bytes = launch->arguments.size();
    void* extra[] = {reinterpret_cast<void*>(kLaunchParamBufferPointer),
                     const_cast<uint8_t*>(launch->arguments.data()),
                     reinterpret_cast<void*>(kLaunchParamBufferSize), &bytes,
                     reinterpret_cast<void*>(kLaunchParamEnd)};
    const auto& [gx, gy, gz] = launch->grid;
    const auto& [bx, by, bz] = launch->block;
    const CUresult result = driver.api.cuLaunchKernel(launch->function->handle(), gx, gy, gz, bx,
                                                      by, bz, launch->shared, stream.handle(),
                                                      nullptr, bytes ? extra : nullptr);
    if (result == CUDA_SUCCESS) continue;
    try {
      driver.fail(result, "cuLaunchKernel");
    } catch (const DriverError& error) {
      throw DriverError(launch->function->name() + ": " + error.what(), error.call, error.name,
                        error.result, error.trap);
    }
  }
}

Graph::Graph(std::shared_ptr<Device> owner, std::vector<std::shared_ptr<const Launch>> launches)
    : Resource(std::move(owner)), launches_(std::move(launches)) {
  for (const auto& launch : launches_) order_.push_back(launch.get());
  try {
    const Device::Guard guard(open_device());
    const Driver& driver = device()->driver();
    CapturedGraph captured{driver};
    Stream side(device());
    EFFNET_CUDA(driver, cuStreamBeginCapture, side.handle(), CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    try {
      run(order_, side);
    } catch (...) {
      driver.api.cuStreamEndCapture(side.handle(), &captured.graph);
      throw;
    }
    EFFNET_CUDA(driver, cuStreamEndCapture, side.handle(), &captured.graph);
    EFFNET_CUDA(driver, cuGraphGetNodes, captured.graph, nullptr, &nodes_);
    EFFNET_CUDA(driver, cuGraphInstantiateWithFlags, &exec_, captured.graph, 0);
  } catch (...) {
    finish();
    throw;
  }
}

void Graph::release() noexcept {
  if (exec_) device()->driver().api.cuGraphExecDestroy(exec_);
  exec_ = nullptr;
}

void Graph::launch(Stream& stream) {
  const Device::Guard guard(open_device());
  if (stream.device() != device()) {
    throw DeviceError("the stream is of another device than the graph");
  }
  if (stream.capturing()) return run(order_, stream);
  EFFNET_CUDA(device()->driver(), cuGraphLaunch, exec_, stream.handle());
}

}  // namespace effnet_fast::gpu
