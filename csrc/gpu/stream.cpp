#include "stream.h"

namespace effnet_fast::gpu {

using namespace cuda;  // NOLINT: the driver's own vocabulary

namespace {

bool done_or_throw(const Driver& driver, CUresult result, const char* call) {
  if (result == CUDA_ERROR_NOT_READY) return false;
  driver.check(result, call);
  return true;
}

}  // namespace

Stream::Stream(std::shared_ptr<Device> owner) : Resource(std::move(owner)) {
  try {
    const Device::Guard guard(open());
    EFFNET_CUDA(device()->driver(), cuStreamCreateWithPriority, &handle_, CU_STREAM_NON_BLOCKING,
                0);
  } catch (...) {
    finish();
    throw;
  }
}

Stream::Stream(std::shared_ptr<Device> owner, CUstream borrowed)
    : Resource(std::move(owner)), handle_(borrowed), borrowed_(true) {}

void Stream::release() noexcept {
  if (handle_ && !borrowed_) device()->driver().api.cuStreamDestroy(handle_);
  handle_ = nullptr;
}

void Stream::synchronize() {
  const Device::Guard guard(open());
  EFFNET_CUDA(device()->driver(), cuStreamSynchronize, handle_);
}

bool Stream::done() {
  const Device::Guard guard(open());
  const Driver& driver = device()->driver();
  return done_or_throw(driver, driver.api.cuStreamQuery(handle_), "cuStreamQuery");
}

bool Stream::capturing() const {
  const Device::Guard guard(open());
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  EFFNET_CUDA(device()->driver(), cuStreamIsCapturing, handle_, &status);
  return status != CU_STREAM_CAPTURE_STATUS_NONE;
}

void Stream::wait(const Event& event) {
  const Device::Guard guard(open());
  EFFNET_CUDA(device()->driver(), cuStreamWaitEvent, handle_, event.handle(), 0);
}

Event::Event(std::shared_ptr<Device> owner, bool timing) : Resource(std::move(owner)) {
  try {
    const Device::Guard guard(open_device());
    EFFNET_CUDA(device()->driver(), cuEventCreate, &handle_,
                timing ? CU_EVENT_DEFAULT : CU_EVENT_DISABLE_TIMING);
  } catch (...) {
    finish();
    throw;
  }
}

void Event::release() noexcept {
  if (handle_) device()->driver().api.cuEventDestroy(handle_);
  handle_ = nullptr;
}

void Event::record(Stream& stream) {
  const Device::Guard guard(open_device());
  EFFNET_CUDA(device()->driver(), cuEventRecord, handle_, stream.handle());
}

void Event::synchronize() {
  const Device::Guard guard(open_device());
  EFFNET_CUDA(device()->driver(), cuEventSynchronize, handle_);
}

bool Event::done() {
  const Device::Guard guard(open_device());
  const Driver& driver = device()->driver();
  return done_or_throw(driver, driver.api.cuEventQuery(handle_), "cuEventQuery");
}

float Event::elapsed_since(const Event& start) const {
  const Device::Guard guard(open_device());
  float milliseconds = 0.0F;
  EFFNET_CUDA(device()->driver(), cuEventElapsedTime, &milliseconds, start.handle_, handle_);
  return milliseconds;
}

}  // namespace effnet_fast::gpu
