// A whole network as data: steps over operands, run for a batch in one call.
//
// One image at a time passes through the steps, so the arena does not grow with the batch. With at
// least as many images as threads, each worker takes whole images, a team of one each; the images
// left over, and batches smaller than the thread count, are run by all workers together with a
// barrier between steps. `classifier` steps run once per call, after every image, over the whole
// batch: weights as large as the last layer's are read once, not per image.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "effnet_fast/kernels.h"

namespace effnet_fast {

// A tensor of one call: NCHW order of sizes, any strides (in floats). Vectors (gates, sums, pools)
// have h = w = 1.
struct Tensor {
  float* data;
  int64_t n, c, h, w;
  int64_t stride_n, stride_c, stride_h, stride_w;
};

// What a step reads or writes: a dense NHWC map at an offset of the arena, or a tensor of the call.
struct Operand {
  enum Kind : int32_t { kNone = 0, kArena, kTensor };
  Kind kind = kNone;
  int64_t offset = 0;  // kArena: floats from the arena's start, a multiple of 16
  int32_t index = 0;   // kTensor: which tensor of the call
  int64_t c = 0, h = 0, w = 0;

  explicit operator bool() const { return kind != kNone; }
};

class Program {
 public:
  // arena_floats: what one image's arena operands span.
  explicit Program(int64_t arena_floats);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // Append a step. Sizes are checked here (std::invalid_argument names the step and the operand),
  // never in run. Pointers to weights must outlive the program.
  void stem_conv(const Conv&, const Window&, Operand x, Operand y);
  void pointwise_conv(const Conv&, Operand x, Operand gate, Operand residual, Operand y,
                      Operand pool);
  void depthwise_conv(const DepthwiseConv&, Operand x, Operand y, Operand sums);
  void squeeze_excite(const SqueezeExcite&, Operand sums, int64_t pixels, Operand gate);
  void expand_depthwise(const Conv& expand, const DepthwiseConv&, Operand x, Operand y,
                        Operand sums);
  void stem_depthwise(const Conv& stem, const Window& stem_window, const DepthwiseConv&, Operand x,
                      Operand y, Operand sums);
  // With `winograd`, conv's weight is packed for Kernels::winograd_mbconv.
  void fused_mbconv(const Conv&, const Window&, const Conv* project, Operand x, Operand residual,
                    Operand y, bool winograd = false);
  // y[n][cout] = act(W x[n] + b) over the whole batch; x and y must be tensors of the call.
  void classifier(const Conv&, Operand x, Operand y);

  int64_t steps() const;
  // Bytes that a run on `threads` threads keeps: arenas and scratch.
  int64_t workspace_bytes(int threads) const;

  // Runs the batch; tensors[i].n == batch for all. Safe to call from several threads at once: each
  // concurrent run has a workspace of its own, kept for the next one, so the steady state allocates
  // nothing. `seconds`, when given, receives each step's wall time summed over the batch (steps()
  // doubles) and makes the run single-team. std::invalid_argument when a tensor does not fit its
  // operands.
  void run(const Tensor* tensors, int count, int64_t batch, int threads,
           double* seconds = nullptr) const;

 private:
  struct Step;
  struct Workspace;
  class Lease;

  void append(Step step);
  // One image through the steps that take one, or the batch through those that take it whole.
  void pass(bool whole_batch, const Tensor* tensors, float* arena, int64_t image,
            const Worker& worker, double* seconds) const;

  const int64_t arena_floats_;
  Scratch scratch_;  // the largest of all steps
  std::vector<std::unique_ptr<Step>> steps_;
  mutable std::mutex mutex_;
  mutable size_t workspaces_ = 0;  // made so far
  mutable std::vector<std::unique_ptr<Workspace>> idle_;
};

// y[i] = act(x[i]), x == y allowed, by as many workers as the length is worth.
// std::invalid_argument names the argument.
void activation(Act act, const float* x, float* y, int64_t n, int threads);

}  // namespace effnet_fast
