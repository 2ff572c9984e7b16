// Program: the same bits as its steps run one by one, for any batch, threads, layout and company;
// and its errors.
#include "effnet_fast/program.h"

#include <atomic>
#include <cstdlib>
#include <limits>
#include <new>
#include <stdexcept>
#include <thread>

#include "check.h"

// The sanitizers bring allocators of their own, with checks that these would hide.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define EFFNET_FAST_COUNT_ALLOCATIONS
namespace {

std::atomic<int64_t> allocations{0};

void* counted(std::size_t bytes, std::size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  const std::size_t whole = (bytes / alignment + 1) * alignment;
  if (void* memory = std::aligned_alloc(alignment, whole)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t bytes) { return counted(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
#endif

namespace effnet_fast::test {
namespace {

const Kernels& table() { return effnet_fast::kernels(); }

using Floats = std::vector<float>;

// Constants with weights of their own.
struct OwnConv {
  OwnConv(int64_t cin, int64_t cout, int64_t k, Act act, uint32_t seed)
      : bias(random_floats(cout, seed, 0.5f)) {
    const float scale = 1.7f / std::sqrt(static_cast<float>(cin * k * k));
    const Floats plain = random_floats(cout * cin * k * k, seed + 1, scale);
    packed.resize(table().packed_conv_size(cout, cin, k, k));
    table().pack_conv(plain.data(), cout, cin, k, k, packed.data());
    conv = {cin, cout, packed.data(), bias.data(), act};
  }
  Floats packed, bias;
  Conv conv;
};

struct OwnDepthwise {
  OwnDepthwise(int64_t c, const Window& window, Act act, uint32_t seed)
      : bias(random_floats(c, seed, 0.5f)) {
    const Floats plain = random_floats(c * window.kh * window.kw, seed + 1, 0.6f);
    packed.resize(table().packed_depthwise_size(c, window.kh, window.kw));
    table().pack_depthwise(plain.data(), c, window.kh, window.kw, packed.data());
    dw = {c, window, packed.data(), bias.data(), act};
  }
  Floats packed, bias;
  DepthwiseConv dw;
};

struct OwnSqueezeExcite {
  OwnSqueezeExcite(int64_t c, int64_t squeezed, uint32_t seed)
      : w1(random_floats(squeezed * c, seed, 0.5f)),
        b1(random_floats(squeezed, seed + 1, 0.5f)),
        w2(random_floats(squeezed * c, seed + 2, 0.5f)),
        b2(random_floats(c, seed + 3, 0.5f)),
        se{c, squeezed, w1.data(), b1.data(), w2.data(), b2.data(), Act::kSwish, Act::kSigmoid} {}
  Floats w1, b1, w2, b2;
  SqueezeExcite se;
};

Operand in_arena(int64_t offset, int64_t c, int64_t h, int64_t w) {
  return {Operand::kArena, offset, 0, c, h, w};
}

Operand in_tensor(int32_t index, int64_t c, int64_t h, int64_t w) {
  return {Operand::kTensor, 0, index, c, h, w};
}

constexpr Window kStem = {3, 3, 2, 2, 1, 1, 1, 1, 1, 1};
constexpr Window kSame3 = {3, 3, 1, 1, 1, 1, 1, 1, 1, 1};
constexpr Window kHalf5 = {5, 5, 2, 2, 1, 1, 1, 1, 2, 2};

// A small EfficientNet with every operator: 3 x 13 x 11 images to 9 logits.
class Network {
 public:
  static constexpr int64_t kH = 13, kW = 11, kHead = 40, kLogits = 9;

  Network() : program_(kArena) {
    program_.stem_conv(stem_.conv, kStem, in_tensor(0, 3, kH, kW), in_arena(kStemAt, 10, 7, 6));
    program_.expand_depthwise(expand_.conv, wide_.dw, in_arena(kStemAt, 10, 7, 6),
                              in_arena(kWideAt, 24, 7, 6), in_arena(kSumsAt, 24, 1, 1));
    program_.squeeze_excite(se_.se, in_arena(kSumsAt, 24, 1, 1), 42, in_arena(kGateAt, 24, 1, 1));
    program_.pointwise_conv(project_.conv, in_arena(kWideAt, 24, 7, 6), in_arena(kGateAt, 24, 1, 1),
                            in_arena(kStemAt, 10, 7, 6), in_arena(kBlockAt, 10, 7, 6), Operand{});
    program_.fused_mbconv(fused_.conv, kSame3, &fused_project_.conv, in_arena(kBlockAt, 10, 7, 6),
                          in_arena(kBlockAt, 10, 7, 6), in_arena(kFusedAt, 10, 7, 6));
    program_.depthwise_conv(half_.dw, in_arena(kFusedAt, 10, 7, 6), in_arena(kHalfAt, 10, 3, 3),
                            Operand{});
    program_.pointwise_conv(head_.conv, in_arena(kHalfAt, 10, 3, 3), Operand{}, Operand{},
                            Operand{}, in_tensor(1, kHead, 1, 1));
    program_.classifier(classifier_.conv, in_tensor(1, kHead, 1, 1), in_tensor(2, kLogits, 1, 1));
  }

  const Program& program() const { return program_; }

  // The logits of images [n][3][13][11], each step called by itself, on one worker.
  Floats reference(const Floats& images, int64_t batch) const {
    Floats logits;
    for (int64_t n = 0; n < batch; ++n) {
      Floats stem(10 * 42), wide(24 * 42), sums(24), gate(24), block(10 * 42), fused(10 * 42),
          half(90), pool(kHead), y(kLogits);
      const auto map = [](Floats& data, int64_t h, int64_t w) {
        const int64_t c = static_cast<int64_t>(data.size()) / (h * w);
        return Map{data.data(), h, w, c, w * c, c};
      };
      const Map s = map(stem, 7, 6), d = map(wide, 7, 6), b = map(block, 7, 6),
                f = map(fused, 7, 6), q = map(half, 3, 3), p = map(pool, 1, 1), l = map(y, 1, 1);
      const Planes x{images.data() + n * 3 * kH * kW, 3, kH, kW, kH * kW, kW, 1};
      const Kernels& k = table();
      run_workers(1, k.stem_conv_scratch(stem_.conv, kStem, x),
                  [&](const Worker& w) { k.stem_conv(stem_.conv, kStem, x, s, w); });
      run_workers(1, k.expand_depthwise_scratch(expand_.conv, wide_.dw, s, true),
                  [&](const Worker& w) {
                    k.expand_depthwise(expand_.conv, wide_.dw, s, d, sums.data(), w);
                  });
      run_workers(1, k.squeeze_excite_scratch(se_.se), [&](const Worker& w) {
        k.squeeze_excite(se_.se, sums.data(), 42, gate.data(), w);
      });
      run_workers(1, k.pointwise_conv_scratch(project_.conv, d, true, false), [&](const Worker& w) {
        k.pointwise_conv(project_.conv, d, gate.data(), &s, &b, nullptr, w);
      });
      run_workers(1, k.fused_mbconv_scratch(fused_.conv, kSame3, &fused_project_.conv, b),
                  [&](const Worker& w) {
                    k.fused_mbconv(fused_.conv, kSame3, &fused_project_.conv, b, &b, f, w);
                  });
      run_workers(1, k.depthwise_conv_scratch(half_.dw, f, false),
                  [&](const Worker& w) { k.depthwise_conv(half_.dw, f, q, nullptr, w); });
      run_workers(1, k.pointwise_conv_scratch(head_.conv, q, false, true), [&](const Worker& w) {
        k.pointwise_conv(head_.conv, q, nullptr, nullptr, nullptr, pool.data(), w);
      });
      run_workers(1, k.pointwise_conv_scratch(classifier_.conv, p, false, false),
                  [&](const Worker& w) {
                    k.pointwise_conv(classifier_.conv, p, nullptr, nullptr, &l, nullptr, w);
                  });
      logits.insert(logits.end(), y.begin(), y.end());
    }
    return logits;
  }

  static Floats images(int64_t batch) { return random_floats(batch * 3 * kH * kW, 91, 1.0f); }

 private:
  // Offsets in floats; the maps are small, so each has its own place but the last, which lies where
  // the first was.
  static constexpr int64_t kStemAt = 0, kWideAt = 432, kSumsAt = 1440, kGateAt = 1472,
                           kBlockAt = 1504, kFusedAt = 1936, kHalfAt = 0, kArena = 2356;

  OwnConv stem_{3, 10, 3, Act::kSwish, 1};
  OwnConv expand_{10, 24, 1, Act::kSwish, 3};
  OwnDepthwise wide_{24, kSame3, Act::kSwish, 5};
  OwnSqueezeExcite se_{24, 3, 7};
  OwnConv project_{24, 10, 1, Act::kNone, 11};
  OwnConv fused_{10, 20, 3, Act::kSwish, 13};
  OwnConv fused_project_{20, 10, 1, Act::kNone, 15};
  OwnDepthwise half_{10, kHalf5, Act::kRelu6, 17};
  OwnConv head_{10, kHead, 1, Act::kSwish, 19};
  OwnConv classifier_{kHead, kLogits, 1, Act::kNone, 21};
  Program program_;
};

// The three tensors of a call: NCHW images, features, logits. Outputs start as NaN.
struct Call {
  explicit Call(int64_t batch) : Call(batch, Network::images(batch)) {}
  Call(int64_t batch, Floats x)
      : batch(batch),
        images(std::move(x)),
        features(batch * Network::kHead, std::numeric_limits<float>::quiet_NaN()),
        logits(batch * Network::kLogits, std::numeric_limits<float>::quiet_NaN()) {
    constexpr int64_t h = Network::kH, w = Network::kW;
    tensors = {{images.data(), batch, 3, h, w, 3 * h * w, h * w, w, 1},
               vector(features, Network::kHead),
               vector(logits, Network::kLogits)};
  }
  Tensor vector(Floats& data, int64_t c) const { return {data.data(), batch, c, 1, 1, c, 1, c, c}; }
  void run(const Program& program, int threads, double* seconds = nullptr) const {
    program.run(tensors.data(), static_cast<int>(tensors.size()), batch, threads, seconds);
  }
  int64_t batch;
  Floats images, features, logits;
  std::vector<Tensor> tensors;
};

// The message of the std::invalid_argument that `body` throws, or a note that it throws none.
template <class Body>
std::string error_of(Body body) {
  try {
    body();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

#define CHECK_ERROR(expected, ...)                          \
  do {                                                      \
    const std::string got = error_of([&] { __VA_ARGS__; }); \
    CHECK(got == (expected), "got: " + got);                \
  } while (false)

EFFNET_FAST_TEST(program_gives_the_bits_of_its_steps) {
  const Network network;
  const Floats expected = network.reference(Network::images(17), 17);
  for (const int64_t batch : {1, 2, 3, 5, 17}) {
    const Floats wanted(expected.begin(), expected.begin() + batch * Network::kLogits);
    for (const int threads : {1, 2, 3, 4}) {
      Floats images = Network::images(17);
      images.resize(batch * 3 * Network::kH * Network::kW);
      const Call call(batch, images);
      call.run(network.program(), threads);
      CHECK(call.logits == wanted,
            format("batch %lld, %d threads", static_cast<long long>(batch), threads));
    }
  }
}

EFFNET_FAST_TEST(program_reads_images_of_any_strides) {
  constexpr int64_t h = Network::kH, w = Network::kW, batch = 3;
  const Network network;
  const Call nchw(batch);
  nchw.run(network.program(), 2);

  Call nhwc(batch);
  Call sliced(batch);  // of a map with 5 channels, 4 more columns and 1 more row
  sliced.images.assign(batch * 5 * (h + 1) * (w + 4), std::numeric_limits<float>::quiet_NaN());
  nhwc.tensors[0] = {nhwc.images.data(), batch, 3, h, w, 3 * h * w, 1, 3 * w, 3};
  const int64_t plane = (h + 1) * (w + 4);
  sliced.tensors[0] = {
      sliced.images.data() + plane + 2, batch, 3, h, w, 5 * plane, plane, w + 4, 1};
  for (int64_t i = 0; i < batch * 3 * h * w; ++i) {
    const int64_t x = i % w, y = i / w % h, c = i / (w * h) % 3, n = i / (w * h * 3);
    for (const Tensor& t : {nhwc.tensors[0], sliced.tensors[0]}) {
      t.data[n * t.stride_n + c * t.stride_c + y * t.stride_h + x * t.stride_w] = nchw.images[i];
    }
  }
  nhwc.run(network.program(), 2);
  sliced.run(network.program(), 2);
  CHECK(nhwc.logits == nchw.logits, "channels last");
  CHECK(sliced.logits == nchw.logits, "a slice");
}

EFFNET_FAST_TEST(program_runs_from_several_threads) {
  const Network network;
  const Call alone(6);
  alone.run(network.program(), 1);
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int repeat = 0; repeat < 10; ++repeat) {
        const Call call(6);
        call.run(network.program(), 1 + caller);
        wrong[caller] += call.logits != alone.logits;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == std::vector<int>(4, 0), "logits of a concurrent run");
}

EFFNET_FAST_TEST(program_of_an_empty_batch_or_no_steps_does_nothing) {
  const Network network;
  Call call(0);
  for (Tensor& tensor : call.tensors) tensor.data = nullptr;
  call.run(network.program(), 3);
  std::vector<double> seconds(8, -1.0);
  call.run(network.program(), 3, seconds.data());
  CHECK(seconds == std::vector<double>(8, 0.0), "seconds of an empty batch");

  const Program empty(0);
  empty.run(nullptr, 0, 4, 2);
  CHECK(empty.steps() == 0 && empty.workspace_bytes(3) == 0, "no steps");
}

EFFNET_FAST_TEST(program_profiles_every_step) {
  const Network network;
  CHECK(network.program().steps() == 8, "steps");
  const Call plain(5), profiled(5);
  plain.run(network.program(), 2);
  std::vector<double> seconds(8, -1.0);
  profiled.run(network.program(), 2, seconds.data());
  for (size_t i = 0; i < seconds.size(); ++i) {
    CHECK(seconds[i] > 0.0, format("step %zu took %g", i, seconds[i]));
  }
  CHECK(profiled.logits == plain.logits, "logits of a profiled run");
}

EFFNET_FAST_TEST(program_workspace_grows_with_threads_and_not_with_the_batch) {
  const Network network;
  const int64_t one = network.program().workspace_bytes(1);
  CHECK(one >= 2356 * 4 && one % 64 == 0, format("%lld bytes", static_cast<long long>(one)));
  CHECK(network.program().workspace_bytes(3) == 3 * one, "three threads");
  Call(20).run(network.program(), 1);
  CHECK(network.program().workspace_bytes(1) == one, "after a batch");
}

#if defined(EFFNET_FAST_COUNT_ALLOCATIONS)
EFFNET_FAST_TEST(program_allocates_nothing_in_the_steady_state) {
  const Network network;
  for (const int64_t batch : {1, 7}) {
    for (const int threads : {1, 3}) {
      const Call call(batch);
      call.run(network.program(), threads);
      const int64_t before = allocations.load();
      for (int repeat = 0; repeat < 5; ++repeat) call.run(network.program(), threads);
      const int64_t made = allocations.load() - before;
      CHECK(made == 0,
            format("batch %lld, %d threads: %lld allocations", static_cast<long long>(batch),
                   threads, static_cast<long long>(made)));
    }
  }
}
#endif

EFFNET_FAST_TEST(program_takes_steps_after_a_run) {
  const OwnConv first(5, 12, 1, Act::kRelu, 31), second(12, 7, 1, Act::kSwish, 33);
  Floats x = random_floats(2 * 5 * 6, 35, 1.0f), y(2 * 7 * 6), direct(2 * 7 * 6), middle(12 * 6);
  const Tensor tensors[] = {{x.data(), 2, 5, 2, 3, 30, 1, 15, 5},
                            {y.data(), 2, 7, 2, 3, 42, 1, 21, 7}};
  Program program(16 * 5);
  program.pointwise_conv(first.conv, in_tensor(0, 5, 2, 3), {}, {}, in_arena(0, 12, 2, 3), {});
  program.run(tensors, 1, 2, 1);
  program.pointwise_conv(second.conv, in_arena(0, 12, 2, 3), {}, {}, in_tensor(1, 7, 2, 3), {});
  program.run(tensors, 2, 2, 2);
  for (int n = 0; n < 2; ++n) {
    const Map from{x.data() + n * 30, 2, 3, 5, 15, 5}, between{middle.data(), 2, 3, 12, 36, 12},
        to{direct.data() + n * 42, 2, 3, 7, 21, 7};
    run_workers(1, {}, [&](const Worker& w) {
      table().pointwise_conv(first.conv, from, nullptr, nullptr, &between, nullptr, w);
      table().pointwise_conv(second.conv, between, nullptr, nullptr, &to, nullptr, w);
    });
  }
  CHECK(y == direct, "two steps");
}

EFFNET_FAST_TEST(classifier_takes_batches_past_its_block) {
  constexpr int64_t kBatch = 600, kIn = 11, kOut = 13;
  const OwnConv linear(kIn, kOut, 1, Act::kNone, 41);
  Floats x = random_floats(kBatch * (kIn + 2), 43, 1.0f), expected(kBatch * kOut);
  Program program(0);
  program.classifier(linear.conv, in_tensor(0, kIn, 1, 1), in_tensor(1, kOut, 1, 1));
  for (int64_t n = 0; n < kBatch; ++n) {
    const Map row{x.data() + n * (kIn + 2), 1, 1, kIn, kIn, kIn},
        out{expected.data() + n * kOut, 1, 1, kOut, kOut, kOut};
    run_workers(1, {}, [&](const Worker& w) {
      table().pointwise_conv(linear.conv, row, nullptr, nullptr, &out, nullptr, w);
    });
  }
  for (const int threads : {1, 3}) {
    Floats y(kBatch * kOut, std::numeric_limits<float>::quiet_NaN());
    // Rows of a wider matrix; the strides of sizes of 1 are noise.
    const Tensor tensors[] = {{x.data(), kBatch, kIn, 1, 1, kIn + 2, 1, -5, 77},
                              {y.data(), kBatch, kOut, 1, 1, kOut, 1, 0, 0}};
    program.run(tensors, 2, kBatch, threads);
    CHECK(y == expected, format("%d threads", threads));
  }
  const Tensor expanded[] = {{x.data(), kBatch, kIn, 1, 1, 0, 1, kIn, kIn},
                             {expected.data(), kBatch, kOut, 1, 1, kOut, 1, kOut, kOut}};
  CHECK_ERROR("classifier: x: tensor 0 has stride_n = 0; accepted: at least its channels, 11",
              program.run(expanded, 2, kBatch, 1));
}

EFFNET_FAST_TEST(activation_is_the_same_on_any_team) {
  constexpr int64_t kN = 100'003;
  const Floats x = random_floats(kN, 51, 8.0f);
  Floats expected(kN);
  table().activation(Act::kSwish, x.data(), expected.data(), kN);
  for (const int threads : {1, 2, 5}) {
    Floats y = x;
    activation(Act::kSwish, y.data(), y.data(), kN, threads);
    CHECK(y == expected, format("%d threads", threads));
  }
  activation(Act::kSwish, nullptr, nullptr, 0, 2);  // no floats, no error
  float f = 1.0f;
  CHECK_ERROR("activation: act is 9; accepted: 0 to 8", activation(Act(9), &f, &f, 1, 1));
  CHECK_ERROR("activation: n is -1; accepted: 0 or more", activation(Act::kRelu, &f, &f, -1, 1));
  CHECK_ERROR("activation: threads is 0; accepted: 1 or more",
              activation(Act::kRelu, &f, &f, 1, 0));
  CHECK_ERROR("activation: x has no data", activation(Act::kRelu, nullptr, &f, 1, 1));
  CHECK_ERROR("activation: y has no data", activation(Act::kRelu, &f, nullptr, 1, 1));
}

EFFNET_FAST_TEST(program_refuses_bad_constants) {
  const float weight[1] = {};
  const Conv good{4, 8, weight, nullptr, Act::kNone};
  const Operand x = in_arena(0, 4, 5, 5), y = in_arena(112, 8, 5, 5);
  Program p(1024);
  const auto pointwise = [&](const Conv& conv) { p.pointwise_conv(conv, x, {}, {}, y, {}); };
  const auto stem = [&](const Window& window) { p.stem_conv(good, window, x, y); };
  const auto excite = [&](const SqueezeExcite& se, int64_t pixels) {
    p.squeeze_excite(se, in_arena(0, 4, 1, 1), pixels, in_arena(16, 4, 1, 1));
  };
  CHECK_ERROR("arena_floats is -1; accepted: 0 or more", Program(-1));
  CHECK_ERROR("pointwise_conv: conv.cin is 0; accepted: 1 to 2097151",
              pointwise({0, 8, weight, nullptr, Act::kNone}));
  CHECK_ERROR("pointwise_conv: conv.cout is 2097152; accepted: 1 to 2097151",
              pointwise({4, 2097152, weight, nullptr, Act::kNone}));
  CHECK_ERROR("pointwise_conv: conv has no weight",
              pointwise({4, 8, nullptr, nullptr, Act::kNone}));
  CHECK_ERROR("pointwise_conv: conv.act is 9; accepted: 0 to 8",
              pointwise({4, 8, weight, nullptr, Act(9)}));
  CHECK_ERROR("pointwise_conv: conv.act is -1; accepted: 0 to 8",
              pointwise({4, 8, weight, nullptr, Act(-1)}));
  CHECK_ERROR("stem_conv: window.kh is 0; accepted: 1 to 2097151",
              stem({0, 3, 1, 1, 1, 1, 1, 1, 1, 1}));
  CHECK_ERROR("stem_conv: window.stride_w is 0; accepted: 1 to 2097151",
              stem({3, 3, 1, 0, 1, 1, 1, 1, 1, 1}));
  CHECK_ERROR("stem_conv: window.dilation_h is -2; accepted: 1 to 2097151",
              stem({3, 3, 1, 1, -2, 1, 1, 1, 1, 1}));
  CHECK_ERROR("stem_conv: window.right is -1; accepted: 0 to 2097151",
              stem({3, 3, 1, 1, 1, 1, 1, 1, 1, -1}));
  CHECK_ERROR("stem_conv: x has 5 x 5 pixels; accepted: with the padding, at least the window",
              stem({7, 3, 3, 1, 1, 1, 0, 1, 1, 1}));
  CHECK_ERROR("squeeze_excite: squeeze_excite has no weights",
              excite({4, 2, weight, nullptr, nullptr, nullptr, Act::kNone, Act::kNone}, 1));
  CHECK_ERROR("squeeze_excite: squeeze_excite.gate_act is 12; accepted: 0 to 8",
              excite({4, 2, weight, nullptr, weight, nullptr, Act::kNone, Act(12)}, 1));
  CHECK_ERROR("squeeze_excite: pixels is 0; accepted: 1 or more",
              excite({4, 2, weight, nullptr, weight, nullptr, Act::kNone, Act::kSigmoid}, 0));
  const DepthwiseConv dw{6, kSame3, weight, nullptr, Act::kNone};
  CHECK_ERROR("expand_depthwise: depthwise.c is 6; accepted: 8",
              p.expand_depthwise(good, dw, x, y, {}));
  CHECK_ERROR("stem_depthwise: depthwise.c is 6; accepted: 8",
              p.stem_depthwise(good, kSame3, dw, x, y, {}));
  CHECK_ERROR("stem_depthwise: stem_window.kw is 0; accepted: 1 to 2097151",
              p.stem_depthwise(good, {3, 0, 1, 1, 1, 1, 1, 1, 1, 1}, dw, x, y, {}));
  const DepthwiseConv wide{8, {6, 3, 1, 1, 1, 1, 0, 1, 0, 1}, weight, nullptr, Act::kNone};
  CHECK_ERROR(
      "stem_depthwise: the stem's map has 5 x 5 pixels; accepted: with the padding, at least the "
      "window",
      p.stem_depthwise(good, kSame3, wide, x, y, {}));
  CHECK_ERROR("fused_mbconv: project.cin is 4; accepted: 8",
              p.fused_mbconv(good, kSame3, &good, x, {}, y));
  CHECK(p.steps() == 0, "refused steps are not appended");
}

EFFNET_FAST_TEST(program_refuses_bad_operands) {
  const float weight[1] = {};
  const Conv conv{4, 8, weight, nullptr, Act::kNone};
  const Operand x = in_arena(0, 4, 5, 5), y = in_arena(112, 8, 5, 5);
  Program p(1024);
  const auto pointwise = [&](Operand from, Operand to) {
    p.pointwise_conv(conv, from, {}, {}, to, {});
  };
  CHECK_ERROR("pointwise_conv: x is missing", pointwise({}, y));
  CHECK_ERROR("pointwise_conv: y or pool is missing", pointwise(x, {}));
  CHECK_ERROR("pointwise_conv: x.c is 3; accepted: 4", pointwise(in_arena(0, 3, 5, 5), y));
  CHECK_ERROR("pointwise_conv: x.h is 0; accepted: 1 to 2097151",
              pointwise(in_arena(0, 4, 0, 5), y));
  CHECK_ERROR("pointwise_conv: y is 8 x 5 x 4; accepted: 8 x 5 x 5 (channels x height x width)",
              pointwise(x, in_arena(112, 8, 5, 4)));
  CHECK_ERROR("pointwise_conv: y.offset is 120; accepted: multiples of 16",
              pointwise(x, in_arena(120, 8, 5, 5)));
  CHECK_ERROR("pointwise_conv: y.offset is -16; accepted: multiples of 16",
              pointwise(x, in_arena(-16, 8, 5, 5)));
  CHECK_ERROR("pointwise_conv: y has 200 floats at 832; accepted: within the arena's 1024",
              pointwise(x, in_arena(832, 8, 5, 5)));
  CHECK_ERROR("pointwise_conv: y overlaps x; accepted: memory of its own",
              pointwise(x, in_arena(96, 8, 5, 5)));
  CHECK_ERROR("pointwise_conv: y overlaps x; accepted: memory of its own",
              pointwise(in_tensor(0, 4, 5, 5), in_tensor(0, 8, 5, 5)));
  CHECK_ERROR("pointwise_conv: x.index is -1; accepted: 0 or more",
              pointwise(in_tensor(-1, 4, 5, 5), y));
  CHECK_ERROR("pointwise_conv: x.kind is 3; accepted: 0 to 2",
              pointwise({Operand::Kind(3), 0, 0, 4, 5, 5}, y));
  CHECK_ERROR("pointwise_conv: gate is 8 x 1 x 1; accepted: 4 x 1 x 1 (channels x height x width)",
              p.pointwise_conv(conv, x, in_arena(512, 8, 1, 1), {}, y, {}));
  CHECK_ERROR(
      "pointwise_conv: residual is 4 x 5 x 5; accepted: 8 x 5 x 5 (channels x height x width)",
      p.pointwise_conv(conv, x, {}, x, y, {}));
  CHECK_ERROR("pointwise_conv: y overlaps pool; accepted: memory of its own",
              p.pointwise_conv(conv, x, {}, {}, y, in_arena(112, 8, 1, 1)));
  const DepthwiseConv dw{4, kSame3, weight, nullptr, Act::kNone};
  CHECK_ERROR("depthwise_conv: sums is 3 x 1 x 1; accepted: 4 x 1 x 1 (channels x height x width)",
              p.depthwise_conv(dw, x, in_arena(112, 4, 5, 5), in_arena(512, 3, 1, 1)));
  CHECK_ERROR("depthwise_conv: y is missing", p.depthwise_conv(dw, x, {}, {}));
  CHECK_ERROR("fused_mbconv: y is 8 x 5 x 5; accepted: 8 x 3 x 3 (channels x height x width)",
              p.fused_mbconv(conv, {3, 3, 1, 1, 1, 1, 0, 0, 0, 0}, nullptr, x, {}, y));
  CHECK_ERROR("squeeze_excite: sums is missing",
              p.squeeze_excite({4, 2, weight, nullptr, weight, nullptr, Act::kSwish, Act::kSigmoid},
                               {}, 1, in_arena(16, 4, 1, 1)));
  CHECK_ERROR("classifier: x is no tensor of the call; accepted: a tensor, which holds the batch",
              p.classifier(conv, in_arena(0, 4, 1, 1), in_tensor(0, 8, 1, 1)));
  CHECK(p.steps() == 0, "refused steps are not appended");

  p.classifier(conv, in_tensor(0, 4, 1, 1), in_tensor(1, 8, 1, 1));
  CHECK_ERROR(
      "depthwise_conv: x is tensor 1, which a classifier writes after all images; accepted: "
      "what is there before",
      p.depthwise_conv({8, kPointwise, weight, nullptr, Act::kNone}, in_tensor(1, 8, 1, 1),
                       in_arena(0, 8, 1, 1), {}));
}

EFFNET_FAST_TEST(program_refuses_bad_calls) {
  const Network network;
  const auto run = [&](auto change, int64_t batch = 2, int threads = 1) {
    Call call(2);
    call.batch = batch;
    change(call);
    call.run(network.program(), threads);
    CHECK(false, "ran");
  };
  const auto nothing = [](Call&) {};
  CHECK_ERROR("batch is -1; accepted: 0 or more", run(nothing, -1));
  CHECK_ERROR("threads is 0; accepted: 1 or more", run(nothing, 2, 0));
  CHECK_ERROR("threads is 0; accepted: 1 or more", network.program().workspace_bytes(0));
  CHECK_ERROR("stem_conv: x: tensor 0 has n = 2; accepted: the batch, 3", run(nothing, 3));
  CHECK_ERROR("pointwise_conv: pool: tensor 1 of a call with 1",
              run([](Call& call) { call.tensors.resize(1); }));
  CHECK_ERROR(
      "stem_conv: x: tensor 0 is 3 x 13 x 12; accepted: 3 x 13 x 11 (channels x height x width)",
      run([](Call& call) { call.tensors[0].w = 12; }));
  CHECK_ERROR("stem_conv: x: tensor 0 has no data",
              run([](Call& call) { call.tensors[0].data = nullptr; }));
  CHECK_ERROR("pointwise_conv: pool: tensor 1 has stride_c = 2; accepted: 1",
              run([](Call& call) { call.tensors[1].stride_c = 2; }));
  CHECK_ERROR(
      "pointwise_conv: pool: tensor 1 is written and has elements that share memory; "
      "accepted: strides that keep its elements apart",
      run([](Call& call) { call.tensors[1].stride_n = 39; }));
}

EFFNET_FAST_TEST(program_refuses_bad_strides) {
  const OwnConv own(4, 8, 1, Act::kNone, 61);
  Floats x(2 * 4 * 6), y(2 * 8 * 6);
  Program program(0);
  program.pointwise_conv(own.conv, in_tensor(0, 4, 2, 3), {}, {}, in_tensor(1, 8, 2, 3), {});
  const Tensor good_x{x.data(), 2, 4, 2, 3, 24, 1, 12, 4},
      good_y{y.data(), 2, 8, 2, 3, 48, 1, 24, 8};
  const auto run = [&](const Tensor& from, const Tensor& to) {
    const Tensor tensors[] = {from, to};
    program.run(tensors, 2, 2, 2);
  };
  run(good_x, good_y);

  Tensor planar = good_x, tight = good_x, repeated = good_x, colliding = good_y, rows = good_y;
  planar.stride_c = 6, planar.stride_w = 1;
  tight.stride_w = 3;
  repeated.stride_n = repeated.stride_h = 0;  // an input may be expanded along images and rows
  colliding.stride_n = 47;
  rows.stride_h = 0;
  run(repeated, good_y);
  CHECK_ERROR("pointwise_conv: x: tensor 0 has stride_c = 6; accepted: 1", run(planar, good_y));
  CHECK_ERROR("pointwise_conv: x: tensor 0 has stride_w = 3; accepted: at least its channels, 4",
              run(tight, good_y));
  for (const Tensor& bad : {colliding, rows}) {
    CHECK_ERROR(
        "pointwise_conv: y: tensor 1 is written and has elements that share memory; accepted: "
        "strides that keep its elements apart",
        run(good_x, bad));
  }
}

}  // namespace
}  // namespace effnet_fast::test
