// Program: a network's steps, checked as they are appended, run over a batch by one team.
#include "effnet_fast/program.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <chrono>
#include <functional>
#include <initializer_list>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace effnet_fast {
namespace {

constexpr int64_t kLine =
    16;  // floats in 64 bytes: a cache line, and the alignment of every buffer
constexpr int64_t kMaxSize = (int64_t{1} << 21) - 1;  // the product of three sizes fits 63 bits

// Images that a classifier takes in one pass over its weights: its scratch is then bounded at
// append time, and 256 images' arithmetic is many times the reading of the weights.
constexpr int64_t kClassifierImages = 256;

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

std::string text(int64_t value) { return std::to_string(value); }

std::string text(int64_t c, int64_t h, int64_t w) {
  return text(c) + " x " + text(h) + " x " + text(w);
}

int64_t round_up(int64_t floats) { return (floats + kLine - 1) / kLine * kLine; }

Scratch larger(const Scratch& a, const Scratch& b) {
  return {std::max(a.worker, b.worker), std::max(a.shared, b.shared)};
}

class Buffer {
 public:
  float* data() const { return data_.get(); }
  // Contents are not kept, and memory is not touched: its pages go to the worker that writes them
  // first.
  void grow(int64_t floats) {
    if (floats <= size_) return;
    data_.reset();
    size_ = 0;
    size_t bytes = static_cast<size_t>(round_up(floats)) * sizeof(float);
    const bool huge = bytes >= kHugePage;
    const std::align_val_t alignment{huge ? kHugePage : kLine * sizeof(float)};
    if (huge) bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    data_ = {static_cast<float*>(::operator new(bytes, alignment)), Free{alignment}};
    size_ = floats;
#if defined(__linux__)
    // Fewer misses of the TLB; where the system gives none, nothing changes.
    if (huge) ::madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
  }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;
  struct Free {
    std::align_val_t alignment;
    void operator()(float* data) const { ::operator delete(data, alignment); }
  };
  std::unique_ptr<float, Free> data_{nullptr, Free{}};
  int64_t size_ = 0;
};

// How a step uses an operand.
struct Use {
  enum Layout { kMap, kAnyStrides, kRows };  // kRows: images are the pixels of one map

  const char* role;
  Operand operand;
  bool written;
  Layout layout;
};

// The memory of one image: the tensors of the call and an arena.
struct Frame {
  const Tensor* tensors;
  float* arena;
  int64_t image;

  const Tensor& tensor(const Operand& o) const { return tensors[o.index]; }

  float* data(const Operand& o) const {
    switch (o.kind) {
      case Operand::kArena:
        return arena + o.offset;
      case Operand::kTensor:
        return tensor(o).data + image * tensor(o).stride_n;
      default:
        return nullptr;
    }
  }

  Map map(const Operand& o) const {
    if (o.kind != Operand::kTensor) return {data(o), o.h, o.w, o.c, o.w * o.c, o.c};
    // The stride of a size of 1 means nothing: callers put anything there.
    const int64_t pixel = o.w > 1 ? tensor(o).stride_w : o.c;
    return {data(o), o.h, o.w, o.c, o.h > 1 ? tensor(o).stride_h : o.w * pixel, pixel};
  }

  Planes planes(const Operand& o) const {
    if (o.kind != Operand::kTensor) return {data(o), o.c, o.h, o.w, 1, o.w * o.c, o.c};
    const Tensor& t = tensor(o);
    return {data(o), o.c, o.h, o.w, t.stride_c, t.stride_h, t.stride_w};
  }

  // The vectors of `count` images from this one on, as a map of 1 x count pixels.
  Map rows(const Operand& o, int64_t count) const {
    const int64_t pixel = count > 1 ? tensor(o).stride_n : o.c;
    return {data(o), 1, count, o.c, count * pixel, pixel};
  }
};

// Sizes alone, for the scratch that a kernel needs.
Map sizes(const Operand& o) { return {nullptr, o.h, o.w, o.c, o.w * o.c, o.c}; }

Planes image_sizes(const Operand& o) { return {nullptr, o.c, o.h, o.w, 1, o.w * o.c, o.c}; }

void check_act(const std::string& where, Act act) {
  if (act < Act::kNone || act > Act::kGeluTanh) {
    refuse(where + " is " + text(static_cast<int32_t>(act)) + "; accepted: 0 to " +
           text(static_cast<int32_t>(Act::kGeluTanh)));
  }
}

// Checks one step's constants and operands, and collects the operands' uses.
class Checks {
 public:
  Checks(const char* step, int64_t arena_floats) : step_(step), arena_floats_(arena_floats) {}

  void conv(const char* role, const Conv& conv) const {
    size(role, "cin", conv.cin, 1);
    size(role, "cout", conv.cout, 1);
    weight(role, conv.weight);
    check_act(where(role) + ".act", conv.act);
  }

  void depthwise(const DepthwiseConv& dw) const {
    size("depthwise", "c", dw.c, 1);
    weight("depthwise", dw.weight);
    check_act(where("depthwise") + ".act", dw.act);
    window(dw.window);
  }

  void squeeze_excite(const SqueezeExcite& se) const {
    size("squeeze_excite", "c", se.c, 1);
    size("squeeze_excite", "squeezed", se.squeezed, 1);
    if (!se.w1 || !se.w2) refuse(where("squeeze_excite") + " has no weights");
    check_act(where("squeeze_excite") + ".act", se.act);
    check_act(where("squeeze_excite") + ".gate_act", se.gate_act);
  }

  void window(const Window& window, const char* role = "window") const {
    size(role, "kh", window.kh, 1);
    size(role, "kw", window.kw, 1);
    size(role, "stride_h", window.stride_h, 1);
    size(role, "stride_w", window.stride_w, 1);
    size(role, "dilation_h", window.dilation_h, 1);
    size(role, "dilation_w", window.dilation_w, 1);
    size(role, "top", window.top, 0);
    size(role, "left", window.left, 0);
    size(role, "bottom", window.bottom, 0);
    size(role, "right", window.right, 0);
  }

  // The map's edges as `window` leaves them.
  std::pair<int64_t, int64_t> output(const Window& window, const Operand& x) const {
    return output(window, "x", x.h, x.w);
  }
  std::pair<int64_t, int64_t> output(const Window& window, const char* role, int64_t h,
                                     int64_t w) const {
    // Compared before the division, which rounds towards zero.
    const int64_t room_h = h + window.top + window.bottom - window.dilation_h * (window.kh - 1);
    const int64_t room_w = w + window.left + window.right - window.dilation_w * (window.kw - 1);
    if (room_h < 1 || room_w < 1) {
      refuse(where(role) + " has " + text(h) + " x " + text(w) +
             " pixels; accepted: with the padding, at least the window");
    }
    return {window.out_h(h), window.out_w(w)};
  }

  void size(const char* role, const char* field, int64_t value, int64_t least) const {
    if (value < least || value > kMaxSize) {
      refuse(where(role) + "." + field + " is " + text(value) + "; accepted: " + text(least) +
             " to " + text(kMaxSize));
    }
  }

  void match(const char* role, const char* field, int64_t value, int64_t wanted) const {
    if (value != wanted) {
      refuse(where(role) + "." + field + " is " + text(value) + "; accepted: " + text(wanted));
    }
  }

  // An operand whose sizes are free; the channels are checked against the constants by match().
  void input(const char* role, const Operand& o, Use::Layout layout = Use::kMap) {
    if (!o) refuse(where(role) + " is missing");
    use({role, o, false, layout});
  }

  void read(const char* role, const Operand& o, int64_t c, int64_t h, int64_t w) {
    if (o) shape({role, o, false, Use::kMap}, c, h, w);
  }

  void write(const char* role, const Operand& o, int64_t c, int64_t h, int64_t w) {
    if (o) shape({role, o, true, Use::kMap}, c, h, w);
  }

  void rows(const char* role, const Operand& o, int64_t c, bool written) {
    if (o.kind != Operand::kTensor) {
      refuse(where(role) + " is no tensor of the call; accepted: a tensor, which holds the batch");
    }
    shape({role, o, written, Use::kRows}, c, 1, 1);
  }

  void present(const char* role, const Operand& o) const {
    if (!o) refuse(where(role) + " is missing");
  }

  std::vector<Use> take() {
    for (const Use& out : uses_) {
      for (const Use& other : uses_) {
        if (out.written && &out != &other && overlap(out.operand, other.operand)) {
          refuse(where(out.role) + " overlaps " + other.role + "; accepted: memory of its own");
        }
      }
    }
    return std::move(uses_);
  }

 private:
  std::string where(const char* role) const { return std::string(step_) + ": " + role; }

  void weight(const char* role, const float* data) const {
    if (!data) refuse(where(role) + " has no weight");
  }

  void shape(const Use& u, int64_t c, int64_t h, int64_t w) {
    const Operand& o = u.operand;
    if (o.c != c || o.h != h || o.w != w) {
      refuse(where(u.role) + " is " + text(o.c, o.h, o.w) + "; accepted: " + text(c, h, w) +
             " (channels x height x width)");
    }
    use(u);
  }

  void use(const Use& u) {
    const Operand& o = u.operand;
    size(u.role, "c", o.c, 1);
    size(u.role, "h", o.h, 1);
    size(u.role, "w", o.w, 1);
    if (o.kind == Operand::kArena) {
      const int64_t floats = o.c * o.h * o.w;
      if (o.offset < 0 || o.offset % kLine != 0) {
        refuse(where(u.role) + ".offset is " + text(o.offset) + "; accepted: multiples of " +
               text(kLine));
      }
      if (floats > arena_floats_ || o.offset > arena_floats_ - floats) {
        refuse(where(u.role) + " has " + text(floats) + " floats at " + text(o.offset) +
               "; accepted: within the arena's " + text(arena_floats_));
      }
    } else if (o.kind != Operand::kTensor) {
      refuse(where(u.role) + ".kind is " + text(o.kind) + "; accepted: 0 to 2");
    } else if (o.index < 0) {
      refuse(where(u.role) + ".index is " + text(o.index) + "; accepted: 0 or more");
    }
    uses_.push_back(u);
  }

  static bool overlap(const Operand& a, const Operand& b) {
    if (a.kind != b.kind) return false;
    if (a.kind == Operand::kTensor) return a.index == b.index;
    return a.offset < b.offset + b.c * b.h * b.w && b.offset < a.offset + a.c * a.h * a.w;
  }

  const char* const step_;
  const int64_t arena_floats_;
  std::vector<Use> uses_;
};

// Whether no two elements share memory: each axis steps over all that the tighter ones span.
bool distinct(const Tensor& t) {
  struct Axis {
    int64_t stride, size;
  };
  Axis axes[] = {{t.stride_n, t.n}, {t.stride_c, t.c}, {t.stride_h, t.h}, {t.stride_w, t.w}};
  std::sort(std::begin(axes), std::end(axes),
            [](const Axis& a, const Axis& b) { return a.stride < b.stride; });
  int64_t span = 1;
  for (const Axis& axis : axes) {
    if (axis.size <= 1) continue;
    if (axis.stride < span) return false;
    span += (axis.size - 1) * axis.stride;
  }
  return true;
}

void check_tensor(const char* step, const Use& use, const Tensor* tensors, int count,
                  int64_t batch) {
  const Operand& o = use.operand;
  const auto refuse_it = [&](const std::string& what) {
    refuse(std::string(step) + ": " + use.role + ": tensor " + text(o.index) + what);
  };
  if (o.index >= count) refuse_it(" of a call with " + text(count));
  const Tensor& t = tensors[o.index];
  if (t.n != batch) refuse_it(" has n = " + text(t.n) + "; accepted: the batch, " + text(batch));
  if (t.c != o.c || t.h != o.h || t.w != o.w) {
    refuse_it(" is " + text(t.c, t.h, t.w) + "; accepted: " + text(o.c, o.h, o.w) +
              " (channels x height x width)");
  }
  if (batch == 0) return;
  if (!t.data) refuse_it(" has no data");
  if (use.layout != Use::kAnyStrides) {
    if (t.c > 1 && t.stride_c != 1) {
      refuse_it(" has stride_c = " + text(t.stride_c) + "; accepted: 1");
    }
    if (t.w > 1 && t.stride_w < t.c) {
      refuse_it(" has stride_w = " + text(t.stride_w) + "; accepted: at least its channels, " +
                text(t.c));
    }
  }
  if (use.layout == Use::kRows && batch > 1 && t.stride_n < t.c) {
    refuse_it(" has stride_n = " + text(t.stride_n) + "; accepted: at least its channels, " +
              text(t.c));
  }
  if (use.written && !distinct(t)) {
    refuse_it(
        " is written and has elements that share memory; accepted: strides that keep "
        "its elements apart");
  }
}

}  // namespace

struct Program::Step {
  const char* name;
  std::vector<Use> uses;
  Scratch scratch;
  bool whole_batch;
  std::function<void(const Frame&, const Worker&)> run;
};

// What one run writes to: arena(i) and shared(i) are of the i-th team, scratch(i) of the i-th
// worker.
struct Program::Workspace {
  std::vector<Buffer> arenas, scratches, shareds;

  void grow(int64_t arena_floats, const Scratch& scratch, int threads, int teams) {
    if (arenas.size() < static_cast<size_t>(teams)) {
      arenas.resize(teams);
      shareds.resize(teams);
    }
    if (scratches.size() < static_cast<size_t>(threads)) scratches.resize(threads);
    for (int i = 0; i < teams; ++i) {
      arenas[i].grow(arena_floats);
      shareds[i].grow(scratch.shared);
    }
    for (int i = 0; i < threads; ++i) scratches[i].grow(scratch.worker);
  }
};

// A workspace for one run; the one used last goes out first, as the caches still hold it.
class Program::Lease {
 public:
  Lease(const Program& program, int threads, int teams) : program_(program) {
    {
      std::lock_guard<std::mutex> lock(program.mutex_);
      if (program.idle_.empty()) {
        program.idle_.reserve(++program.workspaces_);  // so that no return of one can fail
      } else {
        workspace_ = std::move(program.idle_.back());
        program.idle_.pop_back();
      }
    }
    if (!workspace_) workspace_ = std::make_unique<Workspace>();
    workspace_->grow(program.arena_floats_, program.scratch_, threads, teams);
  }

  ~Lease() {
    std::lock_guard<std::mutex> lock(program_.mutex_);
    program_.idle_.push_back(std::move(workspace_));
  }

  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  const Workspace& operator*() const { return *workspace_; }

 private:
  const Program& program_;
  std::unique_ptr<Workspace> workspace_;
};

Program::Program(int64_t arena_floats) : arena_floats_(arena_floats) {
  if (arena_floats < 0) refuse("arena_floats is " + text(arena_floats) + "; accepted: 0 or more");
}

Program::~Program() = default;

void Program::append(Step step) {
  for (const Use& use : step.uses) {
    if (step.whole_batch || use.written || use.operand.kind != Operand::kTensor) continue;
    for (const auto& earlier : steps_) {
      for (const Use& made : earlier->uses) {
        if (earlier->whole_batch && made.written && made.operand.index == use.operand.index) {
          refuse(std::string(step.name) + ": " + use.role + " is tensor " +
                 text(use.operand.index) +
                 ", which a classifier writes after all images; accepted: what is there before");
        }
      }
    }
  }
  const Scratch scratch = larger(scratch_, step.scratch);
  steps_.push_back(std::make_unique<Step>(std::move(step)));
  scratch_ = scratch;
}

void Program::stem_conv(const Conv& conv, const Window& window, Operand x, Operand y) {
  Checks checks("stem_conv", arena_floats_);
  checks.conv("conv", conv);
  checks.window(window);
  checks.input("x", x, Use::kAnyStrides);
  checks.match("x", "c", x.c, conv.cin);
  const auto [h, w] = checks.output(window, x);
  checks.present("y", y);
  checks.write("y", y, conv.cout, h, w);
  append({"stem_conv", checks.take(), kernels().stem_conv_scratch(conv, window, image_sizes(x)),
          false, [=](const Frame& at, const Worker& worker) {
            kernels().stem_conv(conv, window, at.planes(x), at.map(y), worker);
          }});
}

void Program::pointwise_conv(const Conv& conv, Operand x, Operand gate, Operand residual, Operand y,
                             Operand pool) {
  Checks checks("pointwise_conv", arena_floats_);
  checks.conv("conv", conv);
  checks.input("x", x);
  checks.match("x", "c", x.c, conv.cin);
  checks.read("gate", gate, conv.cin, 1, 1);
  checks.read("residual", residual, conv.cout, x.h, x.w);
  if (!pool) checks.present("y or pool", y);
  checks.write("y", y, conv.cout, x.h, x.w);
  checks.write("pool", pool, conv.cout, 1, 1);
  const Scratch scratch = kernels().pointwise_conv_scratch(conv, sizes(x), bool(gate), bool(pool));
  append(
      {"pointwise_conv", checks.take(), scratch, false, [=](const Frame& at, const Worker& worker) {
         const Map added = at.map(residual), out = at.map(y);
         kernels().pointwise_conv(conv, at.map(x), at.data(gate), residual ? &added : nullptr,
                                  y ? &out : nullptr, at.data(pool), worker);
       }});
}

void Program::depthwise_conv(const DepthwiseConv& dw, Operand x, Operand y, Operand sums) {
  Checks checks("depthwise_conv", arena_floats_);
  checks.depthwise(dw);
  checks.input("x", x);
  checks.match("x", "c", x.c, dw.c);
  const auto [h, w] = checks.output(dw.window, x);
  checks.present("y", y);
  checks.write("y", y, dw.c, h, w);
  checks.write("sums", sums, dw.c, 1, 1);
  append({"depthwise_conv", checks.take(),
          kernels().depthwise_conv_scratch(dw, sizes(x), bool(sums)), false,
          [=](const Frame& at, const Worker& worker) {
            kernels().depthwise_conv(dw, at.map(x), at.map(y), at.data(sums), worker);
          }});
}

void Program::squeeze_excite(const SqueezeExcite& se, Operand sums, int64_t pixels, Operand gate) {
  Checks checks("squeeze_excite", arena_floats_);
  checks.squeeze_excite(se);
  checks.present("sums", sums);
  checks.read("sums", sums, se.c, 1, 1);
  if (pixels < 1) refuse("squeeze_excite: pixels is " + text(pixels) + "; accepted: 1 or more");
  checks.present("gate", gate);
  checks.write("gate", gate, se.c, 1, 1);
  append({"squeeze_excite", checks.take(), kernels().squeeze_excite_scratch(se), false,
          [=](const Frame& at, const Worker& worker) {
            kernels().squeeze_excite(se, at.data(sums), pixels, at.data(gate), worker);
          }});
}

void Program::expand_depthwise(const Conv& expand, const DepthwiseConv& dw, Operand x, Operand y,
                               Operand sums) {
  Checks checks("expand_depthwise", arena_floats_);
  checks.conv("expand", expand);
  checks.depthwise(dw);
  checks.match("depthwise", "c", dw.c, expand.cout);
  checks.input("x", x);
  checks.match("x", "c", x.c, expand.cin);
  const auto [h, w] = checks.output(dw.window, x);
  checks.present("y", y);
  checks.write("y", y, dw.c, h, w);
  checks.write("sums", sums, dw.c, 1, 1);
  append({"expand_depthwise", checks.take(),
          kernels().expand_depthwise_scratch(expand, dw, sizes(x), bool(sums)), false,
          [=](const Frame& at, const Worker& worker) {
            kernels().expand_depthwise(expand, dw, at.map(x), at.map(y), at.data(sums), worker);
          }});
}

void Program::stem_depthwise(const Conv& stem, const Window& stem_window, const DepthwiseConv& dw,
                             Operand x, Operand y, Operand sums) {
  Checks checks("stem_depthwise", arena_floats_);
  checks.conv("stem", stem);
  checks.window(stem_window, "stem_window");
  checks.depthwise(dw);
  checks.match("depthwise", "c", dw.c, stem.cout);
  checks.input("x", x, Use::kAnyStrides);
  checks.match("x", "c", x.c, stem.cin);
  const auto [stem_h, stem_w] = checks.output(stem_window, x);
  const auto [h, w] = checks.output(dw.window, "the stem's map", stem_h, stem_w);
  checks.present("y", y);
  checks.write("y", y, dw.c, h, w);
  checks.write("sums", sums, dw.c, 1, 1);
  const Scratch scratch =
      kernels().stem_depthwise_scratch(stem, stem_window, dw, image_sizes(x), bool(sums));
  append(
      {"stem_depthwise", checks.take(), scratch, false, [=](const Frame& at, const Worker& worker) {
         kernels().stem_depthwise(stem, stem_window, dw, at.planes(x), at.map(y), at.data(sums),
                                  worker);
       }});
}

void Program::fused_mbconv(const Conv& conv, const Window& window, const Conv* project, Operand x,
                           Operand residual, Operand y, bool winograd) {
  Checks checks("fused_mbconv", arena_floats_);
  checks.conv("conv", conv);
  checks.window(window);
  if (project) {
    checks.conv("project", *project);
    checks.match("project", "cin", project->cin, conv.cout);
  }
  const int64_t cout = project ? project->cout : conv.cout;
  checks.input("x", x);
  checks.match("x", "c", x.c, conv.cin);
  const auto [h, w] = checks.output(window, x);
  checks.read("residual", residual, cout, h, w);
  checks.present("y", y);
  checks.write("y", y, cout, h, w);
  if (winograd && (window.kh != 3 || window.kw != 3 || window.stride_h != 1 ||
                   window.stride_w != 1 || window.dilation_h != 1 || window.dilation_w != 1)) {
    refuse("fused_mbconv: winograd; accepted: a window of 3 x 3, stride and dilation 1");
  }
  const auto scratch_of =
      winograd ? kernels().winograd_mbconv_scratch : kernels().fused_mbconv_scratch;
  const auto kernel = winograd ? kernels().winograd_mbconv : kernels().fused_mbconv;
  const Scratch scratch = scratch_of(conv, window, project, sizes(x));
  const std::optional<Conv> second = project ? std::optional<Conv>(*project) : std::nullopt;
  append(
      {"fused_mbconv", checks.take(), scratch, false, [=](const Frame& at, const Worker& worker) {
         const Map added = at.map(residual);
         kernel(conv, window, second ? &*second : nullptr, at.map(x), residual ? &added : nullptr,
                at.map(y), worker);
       }});
}

void Program::classifier(const Conv& conv, Operand x, Operand y) {
  Checks checks("classifier", arena_floats_);
  checks.conv("conv", conv);
  checks.present("x", x);
  checks.rows("x", x, conv.cin, false);
  checks.present("y", y);
  checks.rows("y", y, conv.cout, true);
  const Map rows{nullptr, 1, kClassifierImages, conv.cin, kClassifierImages * conv.cin, conv.cin};
  append({"classifier", checks.take(), kernels().pointwise_conv_scratch(conv, rows, false, false),
          true, [=](const Frame& at, const Worker& worker) {
            const int64_t batch = at.tensor(x).n;
            for (int64_t image = 0; image < batch; image += kClassifierImages) {
              if (image) worker.sync();
              const int64_t count = std::min(kClassifierImages, batch - image);
              const Frame block{at.tensors, nullptr, image};
              const Map out = block.rows(y, count);
              kernels().pointwise_conv(conv, block.rows(x, count), nullptr, nullptr, &out, nullptr,
                                       worker);
            }
          }});
}

int64_t Program::steps() const { return static_cast<int64_t>(steps_.size()); }

int64_t Program::workspace_bytes(int threads) const {
  if (threads < 1) refuse("threads is " + text(threads) + "; accepted: 1 or more");
  const int64_t floats =
      round_up(arena_floats_) + round_up(scratch_.worker) + round_up(scratch_.shared);
  return floats * static_cast<int64_t>(sizeof(float)) * threads;
}

void Program::pass(bool whole_batch, const Tensor* tensors, float* arena, int64_t image,
                   const Worker& worker, double* seconds) const {
  using Clock = std::chrono::steady_clock;
  const Frame frame{tensors, arena, image};
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Step& step = *steps_[i];
    if (step.whole_batch != whole_batch) continue;
    const Clock::time_point start = seconds ? Clock::now() : Clock::time_point();
    step.run(frame, worker);
    worker.sync();
    if (seconds && worker.id == 0) {
      seconds[i] += std::chrono::duration<double>(Clock::now() - start).count();
    }
  }
}

void Program::run(const Tensor* tensors, int count, int64_t batch, int threads,
                  double* seconds) const {
  if (batch < 0) refuse("batch is " + text(batch) + "; accepted: 0 or more");
  if (threads < 1) refuse("threads is " + text(threads) + "; accepted: 1 or more");
  for (const auto& step : steps_) {
    for (const Use& use : step->uses) {
      if (use.operand.kind == Operand::kTensor) {
        check_tensor(step->name, use, tensors, count, batch);
      }
    }
  }
  if (seconds) std::fill_n(seconds, steps_.size(), 0.0);
  if (batch == 0) return;

  const bool by_image = !seconds && batch >= threads;
  const Lease lease(*this, threads, by_image ? threads : 1);
  const Workspace& space = *lease;
  Barrier barrier(threads);
  std::atomic<int64_t> next{0};
  const auto body = [&](int id, int workers) {
    const Worker team{id, workers, workers > 1 ? &barrier : nullptr, space.scratches[id].data(),
                      space.shareds[0].data()};
    int64_t whole = 0;  // images that single workers take; run_team gives one worker or `threads`
    if (by_image) {
      whole = batch - batch % workers;
      const Worker alone{0, 1, nullptr, team.scratch, space.shareds[id].data()};
      for (;;) {
        const int64_t image = next.fetch_add(1, std::memory_order_relaxed);
        if (image >= whole) break;
        pass(false, tensors, space.arenas[id].data(), image, alone, nullptr);
      }
      team.sync();
    }
    for (int64_t image = whole; image < batch; ++image) {
      pass(false, tensors, space.arenas[0].data(), image, team, seconds);
    }
    pass(true, tensors, nullptr, 0, team, seconds);
  };
  run_team(threads, std::ref(body));
}

void activation(Act act, const float* x, float* y, int64_t n, int threads) {
  check_act("activation: act", act);
  if (n < 0) refuse("activation: n is " + text(n) + "; accepted: 0 or more");
  if (threads < 1) refuse("activation: threads is " + text(threads) + "; accepted: 1 or more");
  if (n == 0) return;
  if (!x || !y) refuse(std::string("activation: ") + (x ? "y" : "x") + " has no data");
  // A worker's part must be worth its waking: 16K floats are about 10 us.
  constexpr int64_t kLeast = 16384;
  const int64_t workers = std::min<int64_t>(threads, std::max<int64_t>(n / kLeast, 1));
  const auto body = [&](int id, int count) {
    const Range lines = share((n + kLine - 1) / kLine, id, count);
    const int64_t begin = lines.begin * kLine, end = std::min(lines.end * kLine, n);
    kernels().activation(act, x + begin, y + begin, end - begin);
  };
  run_team(static_cast<int>(workers), std::ref(body));
}

}  // namespace effnet_fast
