// Device and pinned host memory, copies and fills. Copies are stream work like any other: those of
// device memory to device memory, and fills, return before they run, as on hardware.
#include <cstdlib>
#include <cstring>

#include "driver_state.h"

namespace effnet_fast::ptx::driver {
namespace {

std::string hex(uint64_t address) {
  return text("0x%llx", static_cast<unsigned long long>(address));
}

CUdeviceptr allocate(Context& context, size_t bytes, bool stream_ordered) {
  if (bytes == 0) refuse(CUDA_ERROR_INVALID_VALUE, "bytesize is 0; accepted: 1 or more");
  const uint64_t address = context.memory->allocate(bytes);
  if (!address) {
    refuse(CUDA_ERROR_OUT_OF_MEMORY, text("%zu bytes, with %zu of %zu in use", bytes,
                                          context.memory->in_use(), context.memory->capacity()));
  }
  context.allocations[address] = {stream_ordered, false};
  return address;
}

// The live allocation that starts at the address and has no free under way.
Context::Allocated& find_allocated(Context& context, CUdeviceptr address) {
  const auto found = context.allocations.find(address);
  if (found == context.allocations.end()) {
    const Context* owner = owner_of(address);
    if (owner && owner != &context) {
      refuse(CUDA_ERROR_INVALID_VALUE,
             hex(address) + text(" belongs to device %d; the current context is of device %d",
                                 owner->ordinal, context.ordinal));
    }
    refuse(CUDA_ERROR_INVALID_VALUE, hex(address) + " is not what an allocation returned: " +
                                         context.memory->describe(address, 1));
  }
  if (found->second.free_queued) {
    refuse(CUDA_ERROR_INVALID_VALUE, hex(address) + " is being freed by a cuMemFreeAsync already");
  }
  return found->second;
}

void upload(Context& context, Stream& stream, CUdeviceptr to, const void* from, size_t bytes,
            bool wait) {
  if (bytes == 0) return;
  require_pointer(from, "srcHost");
  check_range(context, to, bytes, "dstDevice");
  Memory* const memory = context.memory.get();
  if (wait) {
    submit_and_wait(stream, [=] { memory->write(to, from, bytes); });
  } else if (pinned(from, bytes) || stream.capture) {
    submit(stream, [=] { memory->write(to, from, bytes); });
  } else {
    // As the driver stages it: the caller may change the source as soon as this returns.
    const auto* const begin = static_cast<const uint8_t*>(from);
    const auto staged = std::make_shared<std::vector<uint8_t>>(begin, begin + bytes);
    submit(stream, [=] { memory->write(to, staged->data(), bytes); });
  }
}

void download(Context& context, Stream& stream, void* to, CUdeviceptr from, size_t bytes,
              bool wait) {
  if (bytes == 0) return;
  require_pointer(to, "dstHost");
  check_range(context, from, bytes, "srcDevice");
  Memory* const memory = context.memory.get();
  const auto work = [=] { memory->read(to, from, bytes); };
  if (!stream.capture && (wait || !pinned(to, bytes))) {
    submit_and_wait(stream, work);
  } else {
    submit(stream, work);
  }
}

void copy_on_device(Context& context, Stream& stream, CUdeviceptr to, CUdeviceptr from,
                    size_t bytes) {
  if (bytes == 0) return;
  check_range(context, to, bytes, "dstDevice");
  check_range(context, from, bytes, "srcDevice");
  if (to < from + bytes && from < to + bytes) {
    refuse(CUDA_ERROR_INVALID_VALUE, "source and destination overlap");
  }
  Memory* const memory = context.memory.get();
  submit(stream, [=] { memory->copy(to, from, bytes); });
}

void copy_either_way(Context& context, Stream& stream, CUdeviceptr to, CUdeviceptr from,
                     size_t bytes, bool wait) {
  const bool to_device = owner_of(to) != nullptr, from_device = owner_of(from) != nullptr;
  void* const to_host = reinterpret_cast<void*>(static_cast<uintptr_t>(to));
  void* const from_host = reinterpret_cast<void*>(static_cast<uintptr_t>(from));
  if (to_device && from_device) {
    copy_on_device(context, stream, to, from, bytes);
  } else if (to_device) {
    upload(context, stream, to, from_host, bytes, wait);
  } else if (from_device) {
    download(context, stream, to_host, from, bytes, wait);
  } else {
    refuse(CUDA_ERROR_INVALID_VALUE, "neither address is in device memory");
  }
}

void fill(Context& context, Stream& stream, CUdeviceptr to, uint32_t value, size_t width,
          size_t count) {
  if (to % width != 0) {
    refuse(CUDA_ERROR_INVALID_VALUE,
           hex(to) + text(" is not a multiple of the %zu bytes of an element", width));
  }
  if (count == 0) return;
  if (count > SIZE_MAX / width) refuse(CUDA_ERROR_INVALID_VALUE, text("N is %zu", count));
  check_range(context, to, count * width, "dstDevice");
  Memory* const memory = context.memory.get();
  submit(stream, [=] { memory->fill(to, value, width, count); });
}

// The legacy stream, for calls without one that wait for it: not to be made in a capture.
Stream& synchronous(const char* call) {
  Context& context = current();
  refuse_in_capture(context, call);
  return *context.legacy;
}

}  // namespace

Context* owner_of(CUdeviceptr address) {
  for (int ordinal = 0; ordinal < kDevices; ++ordinal) {
    Context* const context = device_at(ordinal).primary;
    if (context && context->memory->find(address)) return context;
  }
  return nullptr;
}

void check_range(Context& context, CUdeviceptr address, size_t bytes, const char* what) {
  const Allocation* const allocation = context.memory->find(address);
  if (allocation && allocation->holds(address, bytes)) return;
  const Context* const owner = allocation ? nullptr : owner_of(address);
  if (owner && owner != &context) {
    refuse(CUDA_ERROR_INVALID_VALUE,
           text("%s ", what) + hex(address) +
               text(" belongs to device %d; the current context is of device %d", owner->ordinal,
                    context.ordinal));
  }
  refuse(CUDA_ERROR_INVALID_VALUE, text("%s ", what) + hex(address) +
                                       text(" with %zu bytes: ", bytes) +
                                       context.memory->describe(address, bytes));
}

bool pinned(const void* address, size_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  auto next = state().pinned.upper_bound(at);
  if (next == state().pinned.begin()) return false;
  const auto& [base, size] = *--next;
  return at - base <= size && bytes <= size - (at - base);
}

}  // namespace effnet_fast::ptx::driver

using namespace effnet_fast::ptx;
using namespace effnet_fast::ptx::driver;

// ---- device memory ------------------------------------------------------------------------------

EFFNET_PTX_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
  return api("cuMemAlloc", [&] {
    require_pointer(address, "dptr");
    Context& context = current();
    refuse_in_capture(context, "allocating memory");
    *address = allocate(context, bytes, false);
  });
}

EFFNET_PTX_EXPORT CUresult cuMemFree_v2(CUdeviceptr address) {
  return api("cuMemFree", [&] {
    Context& context = current();
    refuse_in_capture(context, "freeing memory");
    // What cuMemAllocAsync returned is freed without waiting: a driver does not either.
    if (!find_allocated(context, address).stream_ordered) finish_all(context);
    context.allocations.erase(address);
    context.memory->free(address);
  });
}

EFFNET_PTX_EXPORT CUresult cuMemAllocAsync(CUdeviceptr* address, size_t bytes, CUstream handle) {
  return api("cuMemAllocAsync", [&] {
    require_pointer(address, "dptr");
    Stream& stream = find_stream(handle);
    refuse_captured(stream, "allocating memory");
    *address = allocate(*stream.context, bytes, true);
  });
}

EFFNET_PTX_EXPORT CUresult cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
  return api("cuMemFreeAsync", [&] {
    Stream& stream = find_stream(handle);
    refuse_captured(stream, "freeing memory");
    Context* const context = stream.context;
    Context::Allocated& allocated = find_allocated(*context, address);
    submit(stream, [context, address] {
      context->allocations.erase(address);
      context->memory->free(address);
    });
    allocated.free_queued = true;
  });
}

EFFNET_PTX_EXPORT CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
  return api("cuMemGetInfo", [&] {
    const Memory& memory = *current().memory;
    if (free) *free = memory.capacity() - memory.in_use();
    if (total) *total = memory.capacity();
  });
}

EFFNET_PTX_EXPORT CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* bytes,
                                                   CUdeviceptr address) {
  return api("cuMemGetAddressRange", [&] {
    Context& context = current();
    check_range(context, address, 1, "dptr");
    const Allocation& allocation = *context.memory->find(address);
    if (base) *base = allocation.base;
    if (bytes) *bytes = allocation.bytes;
  });
}

EFFNET_PTX_EXPORT CUresult cuPointerGetAttribute(void* data, CUpointer_attribute attribute,
                                                 CUdeviceptr address) {
  return api("cuPointerGetAttribute", [&] {
    require_pointer(data, "data");
    current();
    Context* const owner = owner_of(address);
    void* const host = reinterpret_cast<void*>(static_cast<uintptr_t>(address));
    if (!owner && !pinned(host, 1)) {
      refuse(CUDA_ERROR_INVALID_VALUE,
             hex(address) + " is neither device memory nor pinned host memory");
    }
    const Allocation* const allocation = owner ? owner->memory->find(address) : nullptr;
    const auto device_only = [&] {
      if (!owner) refuse(CUDA_ERROR_INVALID_VALUE, hex(address) + " is pinned host memory");
    };
    const auto give = [&](auto value) { std::memcpy(data, &value, sizeof value); };
    switch (attribute) {
      case CU_POINTER_ATTRIBUTE_CONTEXT:
        device_only();
        return give(handle_of<CUcontext>(owner));
      case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        return give(unsigned{owner ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST});
      case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        device_only();
        return give(address);
      case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        if (owner) refuse(CUDA_ERROR_INVALID_VALUE, hex(address) + " is device memory");
        return give(host);
      case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        return give(0u);
      case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        return give(owner ? owner->ordinal : -2);
      case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        device_only();
        return give(CUdeviceptr{allocation->base});
      case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        device_only();
        return give(allocation->bytes);
      case CU_POINTER_ATTRIBUTE_MAPPED:
        return give(1u);
    }
    refuse(CUDA_ERROR_INVALID_VALUE,
           text("pointer attribute %u is not one that the machine knows", unsigned{attribute}));
  });
}

// ---- pinned host memory -------------------------------------------------------------------------

EFFNET_PTX_EXPORT CUresult cuMemHostAlloc(void** address, size_t bytes, unsigned flags) {
  return api("cuMemHostAlloc", [&] {
    require_pointer(address, "pp");
    Context& context = current();
    refuse_in_capture(context, "allocating pinned memory");
    if (bytes == 0) refuse(CUDA_ERROR_INVALID_VALUE, "bytesize is 0; accepted: 1 or more");
    if (flags & ~5u) {
      refuse(CUDA_ERROR_NOT_SUPPORTED,
             text("Flags is %#x; accepted: portable (1) and write-combined (4)", flags));
    }
    constexpr size_t kPage = 4096;
    void* const memory = std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage);
    if (!memory) refuse(CUDA_ERROR_OUT_OF_MEMORY, text("%zu bytes of host memory", bytes));
    state().pinned[reinterpret_cast<uintptr_t>(memory)] = bytes;
    *address = memory;
  });
}

EFFNET_PTX_EXPORT CUresult cuMemAllocHost_v2(void** address, size_t bytes) {
  return cuMemHostAlloc(address, bytes, 0);
}

EFFNET_PTX_EXPORT CUresult cuMemFreeHost(void* address) {
  return api("cuMemFreeHost", [&] {
    Context& context = current();
    refuse_in_capture(context, "freeing pinned memory");
    const auto found = state().pinned.find(reinterpret_cast<uintptr_t>(address));
    if (found == state().pinned.end()) {
      refuse(CUDA_ERROR_INVALID_VALUE, text("%p is not what cuMemHostAlloc returned", address));
    }
    // Queued copies hold the address.
    for (int ordinal = 0; ordinal < kDevices; ++ordinal) {
      if (Context* const each = device_at(ordinal).primary) finish_all(*each);
    }
    state().pinned.erase(found);
    std::free(address);
  });
}

// ---- copies -------------------------------------------------------------------------------------

EFFNET_PTX_EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
  return api("cuMemcpyHtoD", [&] {
    Stream& stream = synchronous("a synchronous copy");
    upload(*stream.context, stream, to, from, bytes, true);
  });
}

EFFNET_PTX_EXPORT CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
  return api("cuMemcpyDtoH", [&] {
    Stream& stream = synchronous("a synchronous copy");
    download(*stream.context, stream, to, from, bytes, true);
  });
}

EFFNET_PTX_EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  return api("cuMemcpyDtoD", [&] {
    Stream& stream = synchronous("a copy in the legacy stream");
    copy_on_device(*stream.context, stream, to, from, bytes);
  });
}

EFFNET_PTX_EXPORT CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  return api("cuMemcpy", [&] {
    Stream& stream = synchronous("a synchronous copy");
    copy_either_way(*stream.context, stream, to, from, bytes, true);
  });
}

EFFNET_PTX_EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes,
                                                CUstream handle) {
  return api("cuMemcpyHtoDAsync", [&] {
    Stream& stream = find_stream(handle);
    upload(*stream.context, stream, to, from, bytes, false);
  });
}

EFFNET_PTX_EXPORT CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes,
                                                CUstream handle) {
  return api("cuMemcpyDtoHAsync", [&] {
    Stream& stream = find_stream(handle);
    download(*stream.context, stream, to, from, bytes, false);
  });
}

EFFNET_PTX_EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes,
                                                CUstream handle) {
  return api("cuMemcpyDtoDAsync", [&] {
    Stream& stream = find_stream(handle);
    copy_on_device(*stream.context, stream, to, from, bytes);
  });
}

EFFNET_PTX_EXPORT CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes,
                                         CUstream handle) {
  return api("cuMemcpyAsync", [&] {
    Stream& stream = find_stream(handle);
    copy_either_way(*stream.context, stream, to, from, bytes, false);
  });
}

// ---- fills --------------------------------------------------------------------------------------

EFFNET_PTX_EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count,
                                           CUstream handle) {
  return api("cuMemsetD8Async", [&] {
    Stream& stream = find_stream(handle);
    fill(*stream.context, stream, to, value, 1, count);
  });
}

EFFNET_PTX_EXPORT CUresult cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t count,
                                            CUstream handle) {
  return api("cuMemsetD16Async", [&] {
    Stream& stream = find_stream(handle);
    fill(*stream.context, stream, to, value, 2, count);
  });
}

EFFNET_PTX_EXPORT CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count,
                                            CUstream handle) {
  return api("cuMemsetD32Async", [&] {
    Stream& stream = find_stream(handle);
    fill(*stream.context, stream, to, value, 4, count);
  });
}

EFFNET_PTX_EXPORT CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
  return api("cuMemsetD8", [&] {
    Stream& stream = synchronous("a fill in the legacy stream");
    fill(*stream.context, stream, to, value, 1, count);
  });
}

EFFNET_PTX_EXPORT CUresult cuMemsetD16_v2(CUdeviceptr to, unsigned short value, size_t count) {
  return api("cuMemsetD16", [&] {
    Stream& stream = synchronous("a fill in the legacy stream");
    fill(*stream.context, stream, to, value, 2, count);
  });
}

EFFNET_PTX_EXPORT CUresult cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count) {
  return api("cuMemsetD32", [&] {
    Stream& stream = synchronous("a fill in the legacy stream");
    fill(*stream.context, stream, to, value, 4, count);
  });
}
