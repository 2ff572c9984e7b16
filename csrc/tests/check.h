// A check, a test, and what tests share: data, guarded maps, references in double, teams with exact
// scratch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "effnet_fast/kernels.h"

namespace effnet_fast::test {

// ---- tests --------------------------------------------------------------------------------------

using TestBody = void (*)(const Kernels&);

struct Registered {
  Registered(const char* name, TestBody body);
};

// A test runs once for every table of kernels that this processor has.
#define EFFNET_FAST_TEST(name)                                       \
  static void name(const Kernels&);                                  \
  static const ::effnet_fast::test::Registered name##_(#name, name); \
  static void name([[maybe_unused]] const Kernels& kernels)

// Fails the running test, with what was being tested.
void fail(const char* file, int line, const std::string& message);

#define CHECK(condition, message)                                                              \
  do {                                                                                         \
    if (!(condition))                                                                          \
      ::effnet_fast::test::fail(__FILE__, __LINE__, std::string(#condition ": ") + (message)); \
  } while (false)

std::string format(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- data ---------------------------------------------------------------------------------------

// Uniform in [-scale, scale), the same on every run and platform.
std::vector<float> random_floats(int64_t n, uint32_t seed, float scale);

inline const std::vector<Act> kEveryAct = {Act::kNone,    Act::kSwish,     Act::kRelu,
                                           Act::kRelu6,   Act::kHardSwish, Act::kHardSigmoid,
                                           Act::kSigmoid, Act::kGelu,      Act::kGeluTanh};

// A map cut out of a bigger allocation: everything around it is NaN and must neither reach a result
// nor change.
class GuardedMap {
 public:
  enum Cut {
    kDense,
    kSlice
  };  // kSlice: gaps after pixels and rows, and a start that no vector is aligned to

  GuardedMap(int64_t h, int64_t w, int64_t c, Cut cut);
  // Filled with random_floats.
  GuardedMap(int64_t h, int64_t w, int64_t c, Cut cut, uint32_t seed, float scale);
  GuardedMap(const GuardedMap&) = delete;
  GuardedMap& operator=(const GuardedMap&) = delete;

  const Map& map() const { return map_; }
  float at(int64_t y, int64_t x, int64_t c) const { return map_.at(y, x)[c]; }
  // The pixels in order, c values each.
  std::vector<float> values() const;
  bool surroundings_untouched() const;

 private:
  std::vector<float> memory_;
  Map map_;
};

// An image in one of the ways that a stem is given them: everything around it is NaN and must not
// reach a result.
class GuardedImage {
 public:
  enum Layout { kNchw, kNhwc, kStrided };

  GuardedImage(const GuardedMap& values, Layout layout);
  GuardedImage(const GuardedImage&) = delete;
  GuardedImage& operator=(const GuardedImage&) = delete;

  const Planes& planes() const { return planes_; }

 private:
  std::vector<float> memory_;
  Planes planes_;
};

// Checks that two runs gave the same values, taking -0 for 0.
bool same(const std::vector<float>& a, const std::vector<float>& b);

// ---- references in double -----------------------------------------------------------------------

double act_reference(Act act, double x);

// Values with the error that a float32 kernel may have.
struct Reference {
  int64_t h = 0, w = 0, c = 0;
  std::vector<double> value, bound;

  Reference() = default;
  Reference(int64_t h, int64_t w, int64_t c)
      : h(h), w(w), c(c), value(h * w * c), bound(h * w * c) {}
  explicit Reference(const GuardedMap& map);
  int64_t index(int64_t y, int64_t x, int64_t channel) const { return (y * w + x) * c + channel; }
};

// act(conv(x) + bias) for weights [cout][cin / groups][kh][kw], groups 1 or cin. The bound is that
// of a chain of K products, ulp(exact) + (K + 4) 2^-24 sum|x w| max|act'| + 2^-21 (|x| + 1)
// |act(x)|, plus what the bound of x grows to.
Reference conv_reference(const Reference& x, const Window& window, int64_t cout, bool depthwise,
                         const float* weight, const float* bias, Act act);
Reference add_reference(const Reference& a, const Reference& b);
// Per channel, over all pixels.
Reference sum_reference(const Reference& x);

// Fails when a value is not within its bound; the message says where and by how much.
void check_close(const char* file, int line, const std::vector<float>& actual,
                 const Reference& expected, const std::string& what);
#define CHECK_CLOSE(actual, expected, what) \
  ::effnet_fast::test::check_close(__FILE__, __LINE__, actual, expected, what)

// ---- running ------------------------------------------------------------------------------------

// Runs `body` on a team of exactly `count`, each worker with the scratch that was asked for and not
// a float more: it starts as NaN, and a write past its end fails the test.
void run_workers(int count, const Scratch& scratch, const std::function<void(const Worker&)>& body);

inline constexpr Window kPointwise = {1, 1, 1, 1, 1, 1, 0, 0, 0, 0};

std::string describe(const Window& window);

}  // namespace effnet_fast::test
