// The test binary: runs every test over every table of kernels, prints failures, exits 1 when there
// are any.
#include <cstdarg>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <random>
#include <thread>

#include "check.h"

namespace effnet_fast::test {

namespace {

struct Test {
  const char* name;
  TestBody body;
};

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

std::string running;
int failures_of_test = 0;
constexpr int kPrintedPerTest = 5;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

double ulp(double x) {
  const float f = std::fabs(static_cast<float>(x));
  return static_cast<double>(std::nextafter(f, std::numeric_limits<float>::infinity())) - f;
}

// max |act'|
double steepest(Act act) {
  return act == Act::kNone || act == Act::kRelu || act == Act::kRelu6 ? 1.0 : 1.51;
}

}  // namespace

Registered::Registered(const char* name, TestBody body) { tests().push_back({name, body}); }

void fail(const char* file, int line, const std::string& message) {
  if (++failures_of_test > kPrintedPerTest) return;
  const char* slash = std::strrchr(file, '/');
  std::printf("FAILED %s\n  %s:%d: %s\n", running.c_str(), slash ? slash + 1 : file, line,
              message.c_str());
}

std::string format(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return text;
}

std::vector<float> random_floats(int64_t n, uint32_t seed, float scale) {
  std::mt19937 generator(seed);
  std::vector<float> values(n);
  for (float& v : values) v = scale * (static_cast<float>(generator() >> 8) * 0x1p-23f - 1.0f);
  return values;
}

GuardedMap::GuardedMap(int64_t h, int64_t w, int64_t c, Cut cut) {
  const int64_t pixel = cut == kDense ? c : c + 3;
  const int64_t row = cut == kDense ? w * c : w * pixel + 5;
  const int64_t margin = cut == kDense ? 16 : 37;
  memory_.assign(margin + h * row + margin, kNaN);
  map_ = Map{memory_.data() + margin, h, w, c, row, pixel};
}

GuardedMap::GuardedMap(int64_t h, int64_t w, int64_t c, Cut cut, uint32_t seed, float scale)
    : GuardedMap(h, w, c, cut) {
  const std::vector<float> values = random_floats(h * w * c, seed, scale);
  for (int64_t p = 0; p < h * w; ++p) {
    std::memcpy(map_.at(p / w, p % w), values.data() + p * c, c * sizeof(float));
  }
}

std::vector<float> GuardedMap::values() const {
  std::vector<float> all;
  for (int64_t p = 0; p < map_.h * map_.w; ++p) {
    const float* pixel = map_.at(p / map_.w, p % map_.w);
    all.insert(all.end(), pixel, pixel + map_.c);
  }
  return all;
}

bool GuardedMap::surroundings_untouched() const {
  std::vector<bool> inside(memory_.size(), false);
  for (int64_t p = 0; p < map_.h * map_.w; ++p) {
    const int64_t first = map_.at(p / map_.w, p % map_.w) - memory_.data();
    for (int64_t c = 0; c < map_.c; ++c) inside[first + c] = true;
  }
  for (size_t i = 0; i < memory_.size(); ++i) {
    if (!inside[i] && !std::isnan(memory_[i])) return false;
  }
  return true;
}

GuardedImage::GuardedImage(const GuardedMap& values, Layout layout) {
  const int64_t h = values.map().h, w = values.map().w, c = values.map().c;
  switch (layout) {
    case kNchw:
      planes_ = {nullptr, c, h, w, h * w, w, 1};
      break;
    case kNhwc:
      planes_ = {nullptr, c, h, w, 1, w * c, c};
      break;
    case kStrided:
      planes_ = {nullptr, c, h, w, (2 * w + 3) * h + 7, 2 * w + 3, 2};
      break;
  }
  const Planes& p = planes_;
  memory_.assign(16 + c * (p.channel + 1) + h * p.row, kNaN);
  float* first = memory_.data() + 5;
  planes_.data = first;
  for (int64_t row = 0; row < h; ++row) {
    for (int64_t column = 0; column < w; ++column) {
      for (int64_t k = 0; k < c; ++k) {
        first[k * p.channel + row * p.row + column * p.pixel] = values.at(row, column, k);
      }
    }
  }
}

bool same(const std::vector<float>& a, const std::vector<float>& b) { return a == b; }

double act_reference(Act act, double x) {
  const auto relu6 = [](double v) { return std::fmin(std::fmax(v, 0.0), 6.0); };
  switch (act) {
    case Act::kNone:
      return x;
    case Act::kSwish:
      return x / (1.0 + std::exp(-x));
    case Act::kRelu:
      return std::fmax(x, 0.0);
    case Act::kRelu6:
      return relu6(x);
    case Act::kHardSwish:
      return x * relu6(x + 3.0) / 6.0;
    case Act::kHardSigmoid:
      return relu6(x + 3.0) / 6.0;
    case Act::kSigmoid:
      return 1.0 / (1.0 + std::exp(-x));
    case Act::kGelu:
      return 0.5 * x * std::erfc(-x * std::sqrt(0.5));
    case Act::kGeluTanh: {
      const double u = std::sqrt(2.0 / std::acos(-1.0)) * (x + 0.044715 * x * x * x);
      return x / (1.0 + std::exp(-2.0 * u));
    }
  }
  return kNaN;
}

Reference::Reference(const GuardedMap& map) : Reference(map.map().h, map.map().w, map.map().c) {
  const std::vector<float> values = map.values();
  value.assign(values.begin(), values.end());
}

Reference conv_reference(const Reference& x, const Window& window, int64_t cout, bool depthwise,
                         const float* weight, const float* bias, Act act) {
  Reference y(window.out_h(x.h), window.out_w(x.w), cout);
  const int64_t depth = depthwise ? 1 : x.c;
  const double chain = static_cast<double>(depth * window.kh * window.kw + 4) * 0x1p-24;
  for (int64_t i = 0; i < y.h * y.w * cout; ++i) {
    const int64_t o = i % cout, ox = i / cout % y.w, oy = i / cout / y.w;
    double sum = bias ? bias[o] : 0.0, magnitude = std::fabs(sum), carried = 0.0;
    for (int64_t tap = 0; tap < window.kh * window.kw; ++tap) {
      const int64_t iy = oy * window.stride_h - window.top + tap / window.kw * window.dilation_h;
      const int64_t ix = ox * window.stride_w - window.left + tap % window.kw * window.dilation_w;
      if (iy < 0 || iy >= x.h || ix < 0 || ix >= x.w) continue;
      for (int64_t k = 0; k < depth; ++k) {
        const double w = weight[(o * depth + k) * window.kh * window.kw + tap];
        const int64_t at = x.index(iy, ix, depthwise ? o : k);
        sum += w * x.value[at];
        magnitude += std::fabs(w * x.value[at]);
        carried += std::fabs(w) * x.bound[at];
      }
    }
    y.value[i] = act_reference(act, sum);
    y.bound[i] = ulp(y.value[i]) + (chain * magnitude + carried) * steepest(act) +
                 0x1p-21 * (std::fabs(sum) + 1.0) * std::fabs(y.value[i]);
  }
  return y;
}

Reference add_reference(const Reference& a, const Reference& b) {
  Reference sum = a;
  for (size_t i = 0; i < sum.value.size(); ++i) {
    sum.value[i] += b.value[i];
    sum.bound[i] += b.bound[i] + ulp(sum.value[i]);
  }
  return sum;
}

Reference sum_reference(const Reference& x) {
  Reference sum(1, 1, x.c);
  for (int64_t c = 0; c < x.c; ++c) {
    double magnitude = 0.0;
    for (int64_t p = 0; p < x.h * x.w; ++p) {
      sum.value[c] += x.value[p * x.c + c];
      sum.bound[c] += x.bound[p * x.c + c];
      magnitude += std::fabs(x.value[p * x.c + c]);
    }
    sum.bound[c] += static_cast<double>(x.h + x.w) * 0x1p-24 * magnitude + ulp(sum.value[c]);
  }
  return sum;
}

void check_close(const char* file, int line, const std::vector<float>& actual,
                 const Reference& expected, const std::string& what) {
  if (actual.size() != expected.value.size()) {
    fail(
        file, line,
        format("%s: %zu values, expected %zu", what.c_str(), actual.size(), expected.value.size()));
    return;
  }
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = std::fabs(actual[i] - expected.value[i]);
    if (error <= expected.bound[i]) continue;  // false for NaN
    const int64_t c = static_cast<int64_t>(i) % expected.c,
                  p = static_cast<int64_t>(i) / expected.c;
    fail(file, line,
         format("%s: y %lld, x %lld, channel %lld is %.9g, expected %.9g, error %.3g, allowed %.3g",
                what.c_str(), static_cast<long long>(p / expected.w),
                static_cast<long long>(p % expected.w), static_cast<long long>(c), actual[i],
                expected.value[i], error, expected.bound[i]));
    return;
  }
}

void run_workers(int count, const Scratch& scratch,
                 const std::function<void(const Worker&)>& body) {
  struct Guarded {
    explicit Guarded(int64_t floats) : floats(floats), memory(floats + 32, kNaN) {
      void* start = memory.data();
      size_t space = memory.size() * sizeof(float);
      data = static_cast<float*>(std::align(64, floats * sizeof(float), start, space));
    }
    bool intact() const { return std::isnan(data[floats]) && std::isnan(data[floats + 15]); }
    int64_t floats;
    std::vector<float> memory;
    float* data;
  };
  std::vector<Guarded> own;
  for (int i = 0; i < count; ++i) own.emplace_back(scratch.worker);
  const Guarded shared(scratch.shared);
  Barrier barrier(count);
  std::vector<std::thread> threads;
  const auto work = [&](int id) {
    body(Worker{id, count, count > 1 ? &barrier : nullptr, own[id].data, shared.data});
  };
  for (int id = 1; id < count; ++id) threads.emplace_back(work, id);
  work(0);
  for (std::thread& thread : threads) thread.join();
  for (const Guarded& guarded : own) {
    if (!guarded.intact()) fail(__FILE__, __LINE__, "a worker wrote past its scratch");
  }
  if (!shared.intact()) fail(__FILE__, __LINE__, "a worker wrote past the shared scratch");
}

std::string describe(const Window& w) {
  return format("window %lldx%lld stride %lld,%lld dilation %lld,%lld padding %lld,%lld,%lld,%lld",
                static_cast<long long>(w.kh), static_cast<long long>(w.kw),
                static_cast<long long>(w.stride_h), static_cast<long long>(w.stride_w),
                static_cast<long long>(w.dilation_h), static_cast<long long>(w.dilation_w),
                static_cast<long long>(w.top), static_cast<long long>(w.left),
                static_cast<long long>(w.bottom), static_cast<long long>(w.right));
}

}  // namespace effnet_fast::test

int main() {
  using namespace effnet_fast;
  int all_failed = 0;
  for (const Kernels* kernels : available_kernels()) {
    int passed = 0, failed = 0;
    for (const test::Test& each : test::tests()) {
      test::running = std::string(each.name) + " (" + kernels->name + ")";
      test::failures_of_test = 0;
      try {
        each.body(*kernels);
      } catch (const std::exception& error) {
        test::fail(each.name, 0, error.what());
      }
      (test::failures_of_test ? failed : passed)++;
    }
    std::printf("%s: %d passed, %d failed\n", kernels->name, passed, failed);
    all_failed += failed;
  }
  return all_failed ? 1 : 0;
}
