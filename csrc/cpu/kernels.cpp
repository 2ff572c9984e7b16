// Which table of kernels this processor runs: the best one it has, or the one that EFFNET_FAST_ISA
// names.
#include "effnet_fast/kernels.h"

#include <cstdlib>
#include <stdexcept>

namespace effnet_fast {

namespace scalar {
extern const Kernels kTable;
}
#if defined(EFFNET_FAST_HAVE_NEON)
namespace neon {
extern const Kernels kTable;
}
#endif

#if defined(EFFNET_FAST_HAVE_AVX2)
namespace avx2 {
extern const Kernels kTable;
}
#endif

#if defined(EFFNET_FAST_HAVE_AVX512)
namespace avx512 {
extern const Kernels kTable;
}
#endif

const std::vector<const Kernels*>& available_kernels() {
  static const std::vector<const Kernels*> tables = [] {
    std::vector<const Kernels*> found;
#if defined(EFFNET_FAST_HAVE_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
      found.push_back(&avx512::kTable);
#endif
#if defined(EFFNET_FAST_HAVE_AVX2)
    // Also false when the operating system doesn't save the wide registers.
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      found.push_back(&avx2::kTable);
#endif
#if defined(EFFNET_FAST_HAVE_NEON)
    found.push_back(&neon::kTable);  // every aarch64 has it
#endif
    found.push_back(&scalar::kTable);
    return found;
  }();
  return tables;
}

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
    const std::vector<const Kernels*>& tables = available_kernels();
    const char* asked = std::getenv("EFFNET_FAST_ISA");
    if (!asked || !*asked) return *tables.front();
    std::string names;
    for (const Kernels* table : tables) {
      if (table->name == std::string(asked)) return *table;
      names += (names.empty() ? "" : ", ") + std::string(table->name);
    }
    throw std::invalid_argument("EFFNET_FAST_ISA is \"" + std::string(asked) +
                                "\"; this processor runs: " + names);
  }();
  return chosen;
}

}  // namespace effnet_fast
