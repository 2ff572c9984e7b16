// The PTX in a module image: text as it is, or the newest one of a fat binary that the device runs.
// The container: a header (magic, version, header size, size of all entries), then entries, each a
// header and a payload. As nvcc 10 to 13 write it.
#include <algorithm>
#include <cstring>

#include "driver_state.h"
#include "parser.h"

namespace effnet_fast::ptx::driver {
namespace {

constexpr uint32_t kWrapperMagic =
    0x466243B1;  // what host objects hold: a pointer to the container
constexpr uint32_t kContainerMagic = 0xBA55ED50;
constexpr uint16_t kPtx = 1;

struct Wrapper {
  uint32_t magic, version;
  const void* container;
};

struct ContainerHeader {
  uint32_t magic;
  uint16_t version, header_bytes;
  uint64_t bytes;
};

struct EntryHeader {
  uint16_t kind, version;
  uint32_t header_bytes;
  uint64_t bytes;
  uint32_t compressed_bytes, options_offset;
  uint16_t minor, major;
  uint32_t arch;
  uint32_t name_offset, name_bytes;
  uint64_t flags, reserved, uncompressed_bytes;
};
static_assert(sizeof(EntryHeader) == 64);

template <class T>
T read_as(const void* address) {
  T value;
  std::memcpy(&value, address, sizeof value);
  return value;
}

// What PTX is for: an entry's header does not say whether it is for one architecture alone.
Target target_of(const std::string& ptx) {
  const size_t at = ptx.find(".target"), first = ptx.find("sm_", std::min(at, ptx.size()));
  if (first == std::string::npos) return {};
  return target_named(ptx.substr(first, ptx.find_first_of(", \t\r\n", first) - first));
}

std::string from_container(const uint8_t* container, int capability) {
  const auto header = read_as<ContainerHeader>(container);
  const uint8_t* at = container + header.header_bytes;
  const uint8_t* const end = at + header.bytes;
  std::string best, seen;
  uint32_t best_arch = 0;
  bool compressed = false, others = false;
  while (end - at >= static_cast<ptrdiff_t>(sizeof(EntryHeader))) {
    const auto entry = read_as<EntryHeader>(at);
    const uint64_t left = static_cast<uint64_t>(end - at);
    if (entry.header_bytes < sizeof(EntryHeader) || entry.header_bytes > left ||
        entry.bytes > left - entry.header_bytes) {
      refuse(CUDA_ERROR_INVALID_IMAGE, "the fat binary is cut off or damaged");
    }
    const bool is_ptx = entry.kind == kPtx;
    const bool is_compressed = entry.compressed_bytes != 0 || entry.uncompressed_bytes != 0;
    std::string ptx;
    if (is_ptx && !is_compressed) {
      const char* const payload = reinterpret_cast<const char*>(at + entry.header_bytes);
      ptx.assign(payload, strnlen(payload, entry.bytes));
    }
    const Target target = target_of(ptx);
    seen += text("%s%s %u%.*s%s", seen.empty() ? "" : ", ",
                 is_ptx ? "PTX of sm" : "machine code of sm", entry.arch, target.suffix ? 1 : 0,
                 &target.suffix, is_compressed ? " (compressed)" : "");
    if (is_ptx && entry.arch <= static_cast<uint32_t>(capability)) {
      if (is_compressed) {
        compressed = true;
      } else if (target.suffix && !target.runs_on(capability)) {
        others = true;
      } else if (entry.arch > best_arch) {
        best = std::move(ptx);
        best_arch = entry.arch;
      }
    }
    at += entry.header_bytes + entry.bytes;
  }
  if (best_arch == 0) {
    refuse(
        CUDA_ERROR_NO_BINARY_FOR_GPU,
        text("the fat binary holds %s; this device takes %sPTX of sm %d or older%s. Build it with "
             "nvcc -fatbin --no-compress -gencode arch=compute_80,code=compute_80",
             seen.empty() ? "nothing" : seen.c_str(), compressed ? "uncompressed " : "", capability,
             others ? " that is not for another architecture alone" : ""));
  }
  return best;
}

}  // namespace

std::string module_text(const void* image, int capability) {
  const auto* bytes = static_cast<const uint8_t*>(image);
  if (bytes[0] == 0x7F && std::memcmp(bytes + 1, "ELF", 3) == 0) {
    refuse(CUDA_ERROR_NO_BINARY_FOR_GPU,
           "the image is machine code (a cubin); the machine runs PTX: nvcc -ptx, or "
           "nvcc -fatbin --no-compress -gencode arch=compute_80,code=compute_80");
  }
  // Text of fewer than 4 characters is no PTX either.
  if (strnlen(static_cast<const char*>(image), 4) == 4) {
    const auto magic = read_as<uint32_t>(image);
    if (magic == kWrapperMagic) {
      bytes = static_cast<const uint8_t*>(read_as<Wrapper>(image).container);
      if (read_as<uint32_t>(bytes) != kContainerMagic) {
        refuse(CUDA_ERROR_INVALID_IMAGE, "the wrapper does not point to a fat binary");
      }
    }
    if (read_as<uint32_t>(bytes) == kContainerMagic) return from_container(bytes, capability);
  }
  const std::string ptx = static_cast<const char*>(image);
  if (ptx.find(".version") == std::string::npos) {
    refuse(CUDA_ERROR_INVALID_IMAGE, "the image is neither PTX nor a fat binary");
  }
  return ptx;
}

}  // namespace effnet_fast::ptx::driver
