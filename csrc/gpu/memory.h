// Device memory and pinned host memory, and copies between them.
#pragma once

#include "device.h"
#include "stream.h"

namespace effnet_fast::gpu {

class Buffer : public Resource {
 public:
  // At least one byte is allocated: an empty tensor has an address too.
  Buffer(std::shared_ptr<Device> device, size_t bytes);
  ~Buffer() override { finish(); }
  cuda::CUdeviceptr address() const { return address_; }
  size_t bytes() const { return bytes_; }
  // The machine only: contents gone, as if just allocated.
  void poison();

 protected:
  void release() noexcept override;

 private:
  cuda::CUdeviceptr address_ = 0;
  size_t bytes_;
};

class PinnedBuffer : public Resource {
 public:
  PinnedBuffer(std::shared_ptr<Device> device, size_t bytes);
  ~PinnedBuffer() override { finish(); }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 protected:
  void release() noexcept override;

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// In the stream's order; they return before the bytes have moved where the driver does.
void copy_to_device(Stream& stream, cuda::CUdeviceptr to, const void* from, size_t bytes);
void copy_to_host(Stream& stream, void* to, cuda::CUdeviceptr from, size_t bytes);
void copy_on_device(Stream& stream, cuda::CUdeviceptr to, cuda::CUdeviceptr from, size_t bytes);
void fill(Stream& stream, cuda::CUdeviceptr to, uint8_t value, size_t bytes);

}  // namespace effnet_fast::gpu
