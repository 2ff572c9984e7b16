// The GPU layer over the PTX machine, from C++: what Python cannot reach, and all of it once under
// the sanitizers.
#include <cstring>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "gpu/device.h"
#include "gpu/launch.h"
#include "gpu/memory.h"
#include "gpu/stream.h"

namespace effnet_fast::test {
namespace {

using namespace gpu;  // NOLINT: what is tested

// y[i] = v for i < n
const char kStore[] = R"(.version 8.0
.target sm_80
.address_size 64
.visible .entry store(.param .u64 y, .param .u32 v, .param .u32 n)
{
  .reg .pred p;
  .reg .b32 r<4>;
  .reg .b64 rd<3>;
  ld.param.u64 rd0, [y];
  ld.param.u32 r0, [v];
  ld.param.u32 r1, [n];
  mov.u32 r2, %tid.x;
  setp.ge.u32 p, r2, r1;
  @p ret;
  cvta.to.global.u64 rd0, rd0;
  mul.wide.u32 rd1, r2, 4;
  add.s64 rd2, rd0, rd1;
  st.global.u32 [rd2], r0;
  ret;
}
)";

std::shared_ptr<Driver> machine() { return Driver::open_machine(EFFNET_FAST_PTX_LIBRARY); }

std::shared_ptr<Launch> store(const std::shared_ptr<Module>& module, const Buffer& y,
                              uint32_t value, uint32_t count) {
  auto launch = std::make_shared<Launch>();
  launch->module = module;
  launch->function = &module->function("store");
  launch->block = {32, 1, 1};
  launch->arguments.resize(16);
  const uint64_t address = y.address();
  std::memcpy(launch->arguments.data(), &address, 8);
  std::memcpy(launch->arguments.data() + 8, &value, 4);
  std::memcpy(launch->arguments.data() + 12, &count, 4);
  launch->layout = {{0, 8}, {8, 4}, {12, 4}};
  launch->regions = {{"y", y.address(), y.bytes(), false, true}};
  return launch;
}

std::vector<uint32_t> contents(Stream& stream, const Buffer& buffer) {
  std::vector<uint32_t> values(buffer.bytes() / 4);
  copy_to_host(stream, values.data(), buffer.address(), buffer.bytes());
  stream.synchronize();
  return values;
}

template <class Error, class Body>
std::string error_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

EFFNET_FAST_TEST(gpu_libraries_that_are_no_driver) {
  std::string error = error_of<OpenError>([] { Driver::open_machine("/nowhere/libnone.so"); });
  CHECK(contains(error, "no PTX machine: /nowhere/libnone.so"), error);
  error = error_of<OpenError>([] { Driver::open_machine("libm.so.6"); });
  CHECK(contains(error, "has no cuDriverGetVersion: not a CUDA driver"), error);
  CHECK(machine() == machine(), "opened once");
  CHECK(machine()->is_machine() && machine()->version == 13000, "version");
}

cuda::CUresult attribute_of_sm_75(int* value, cuda::CUdevice_attribute attribute, cuda::CUdevice) {
  *value = attribute == cuda::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 7 : 5;
  return cuda::CUDA_SUCCESS;
}

EFFNET_FAST_TEST(gpu_devices_that_are_too_old) {
  const std::shared_ptr<Driver> driver = machine();
  const auto kept = driver->api.cuDeviceGetAttribute;
  driver->api.cuDeviceGetAttribute = &attribute_of_sm_75;
  const std::string error = error_of<OpenError>([&] { Device::open(driver, 0); });
  driver->api.cuDeviceGetAttribute = kept;
  CHECK(error == "effnet_fast PTX machine, sm_80 is sm_75; sm_80 or newer is needed", error);
}

EFFNET_FAST_TEST(gpu_launches_and_graphs) {
  const auto device = Device::open(machine(), 0);
  Stream stream(device);
  const auto module = device->load(kStore);
  CHECK(device->load(kStore) == module, "loaded once");
  Buffer y(device, 128);
  auto launch = store(module, y, 7, 32);
  prepare(*launch);
  run({launch.get()}, stream);
  CHECK(contents(stream, y) == std::vector<uint32_t>(32, 7), "launch");

  auto other = store(module, y, 9, 16);
  prepare(*other);
  Graph graph(device, {launch, other});
  CHECK(graph.nodes() == 2, "nodes");
  graph.launch(stream);
  std::vector<uint32_t> expected(32, 7);
  std::fill_n(expected.begin(), 16, 9);
  CHECK(contents(stream, y) == expected, "graph");
  CHECK(contains(device->take_counts(), "\"store\""), "counts");
}

EFFNET_FAST_TEST(gpu_arguments_that_are_not_the_parameters) {
  const auto device = Device::open(machine(), 0);
  const auto module = device->load(kStore);
  Buffer y(device, 128);
  auto launch = store(module, y, 7, 32);
  launch->layout = {{0, 8}, {8, 4}};
  std::string error = error_of<std::invalid_argument>([&] { prepare(*launch); });
  CHECK(error ==
            "store has the parameters [0+8, 8+4, 12+4] (offset+bytes); the arguments are "
            "[0+8, 8+4]",
        error);
  launch->layout = {{0, 8}, {8, 4}, {16, 4}};
  error = error_of<std::invalid_argument>([&] { prepare(*launch); });
  CHECK(contains(error, "the arguments are [0+8, 8+4, 16+4]"), error);
  launch->layout = {{0, 8}, {8, 4}, {12, 4}};
  launch->arguments.resize(12);
  error = error_of<std::invalid_argument>([&] { prepare(*launch); });
  CHECK(contains(error, "outside of the 12 packed bytes"), error);
}

EFFNET_FAST_TEST(gpu_objects_outlive_their_device) {
  auto device = Device::open(machine(), 1);
  Stream stream(device);
  const auto module = device->load(kStore);
  Buffer y(device, 128);
  PinnedBuffer pinned(device, 64);
  Event event(device);
  auto launch = store(module, y, 7, 32);
  prepare(*launch);
  Graph graph(device, {launch});
  run({launch.get()}, stream);  // never runs: the context goes first
  device->close();
  const std::string error = error_of<DeviceError>([&] { graph.launch(stream); });
  CHECK(error == "the device has been closed", error);
  device = Device::open(machine(), 1);
  CHECK(device->memory().first == device->memory().second, "everything was given back");
}

EFFNET_FAST_TEST(gpu_faults_are_errors_until_the_device_is_closed) {
  auto device = Device::open(machine(), 0);
  {
    Stream stream(device);
    Buffer y(device, 64);
    auto launch = store(device->load(kStore), y, 7, 17);
    launch->regions.clear();
    prepare(*launch);
    run({launch.get()}, stream);
    for (int i = 0; i < 2; ++i) {
      try {
        stream.synchronize();
        CHECK(false, "no error");
      } catch (const DriverError& error) {
        CHECK(error.trap == "out of bounds", error.trap);
        CHECK(error.result == cuda::CUDA_ERROR_ILLEGAL_ADDRESS, error.name);
        CHECK(contains(error.what(), "thread (16, 0, 0)"), error.what());
      }
    }
  }
  device->close();
  device = Device::open(machine(), 0);
  device->synchronize();
}

EFFNET_FAST_TEST(gpu_threads_share_a_device) {
  const auto device = Device::open(machine(), 0);
  std::vector<std::thread> threads;
  std::vector<std::string> failures(3);
  for (uint32_t t = 0; t < 3; ++t) {
    threads.emplace_back([&device, &failures, t] {
      try {
        Stream stream(device);
        Buffer y(device, 128);
        for (uint32_t i = 0; i < 10; ++i) {
          auto launch = store(device->load(kStore), y, 10 * t + i, 32);
          prepare(*launch);
          Graph(device, {launch}).launch(stream);
          if (contents(stream, y) != std::vector<uint32_t>(32, 10 * t + i)) failures[t] = "values";
        }
      } catch (const std::exception& error) {
        failures[t] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& failure : failures) CHECK(failure.empty(), failure);
}

}  // namespace
}  // namespace effnet_fast::test
