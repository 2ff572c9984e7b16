#include "memory.h"

#include <algorithm>

namespace effnet_fast::gpu {

Buffer::Buffer(std::shared_ptr<Device> owner, size_t bytes)
    : Resource(std::move(owner)), bytes_(bytes) {
  try {
    const Device::Guard guard(open_device());
    EFFNET_CUDA(device()->driver(), cuMemAlloc, &address_, std::max<size_t>(bytes, 1));
  } catch (...) {
    finish();
    throw;
  }
}

void Buffer::release() noexcept {
  if (address_) device()->driver().api.cuMemFree(address_);
  address_ = 0;
}

void Buffer::poison() {
  const Driver& driver = open_device().driver();
  if (!driver.is_machine()) throw DeviceError("only the PTX machine can poison a buffer");
  const Device::Guard guard(*device());
  driver.check(static_cast<cuda::CUresult>(driver.machine.poison(address_, bytes_)),
               "effnet_ptx_poison");
}

PinnedBuffer::PinnedBuffer(std::shared_ptr<Device> owner, size_t bytes)
    : Resource(std::move(owner)), bytes_(bytes) {
  try {
    const Device::Guard guard(open_device());
    EFFNET_CUDA(device()->driver(), cuMemHostAlloc, &data_, std::max<size_t>(bytes, 1), 0);
  } catch (...) {
    finish();
    throw;
  }
}

void PinnedBuffer::release() noexcept {
  if (data_) device()->driver().api.cuMemFreeHost(data_);
  data_ = nullptr;
}

void copy_to_device(Stream& stream, cuda::CUdeviceptr to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  const Device::Guard guard(stream.open());
  EFFNET_CUDA(stream.device()->driver(), cuMemcpyHtoDAsync, to, from, bytes, stream.handle());
}

void copy_to_host(Stream& stream, void* to, cuda::CUdeviceptr from, size_t bytes) {
  if (bytes == 0) return;
  const Device::Guard guard(stream.open());
  EFFNET_CUDA(stream.device()->driver(), cuMemcpyDtoHAsync, to, from, bytes, stream.handle());
}

void copy_on_device(Stream& stream, cuda::CUdeviceptr to, cuda::CUdeviceptr from, size_t bytes) {
  if (bytes == 0) return;
  const Device::Guard guard(stream.open());
  EFFNET_CUDA(stream.device()->driver(), cuMemcpyDtoDAsync, to, from, bytes, stream.handle());
}

void fill(Stream& stream, cuda::CUdeviceptr to, uint8_t value, size_t bytes) {
  if (bytes == 0) return;
  const Device::Guard guard(stream.open());
  EFFNET_CUDA(stream.device()->driver(), cuMemsetD8Async, to, value, bytes, stream.handle());
}

}  // namespace effnet_fast::gpu
