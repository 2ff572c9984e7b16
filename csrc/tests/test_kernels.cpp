// Which tables of kernels there are: a build without the best would pass every other test.
#include "check.h"

namespace effnet_fast::test {
namespace {

EFFNET_FAST_TEST(tables_of_kernels_best_first) {
  std::vector<std::string> expected;
#if defined(__aarch64__)
  expected.push_back("neon");
#elif defined(__x86_64__)
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    expected.push_back("avx512");
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) expected.push_back("avx2");
#endif
  expected.push_back("scalar");
  std::vector<std::string> names;
  for (const Kernels* table : available_kernels()) names.push_back(table->name);
  std::string found;
  for (const std::string& name : names) found += " " + name;
  CHECK(names == expected, "found" + found);
}

}  // namespace
}  // namespace effnet_fast::test
