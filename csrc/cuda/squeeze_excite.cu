// squeeze_excite: gate = gate_act(w2 act(w1 mean + b1) + b2), all of it for some images in a block.
//
// The images of a block share what it reads of the weights: B0's largest have 216 kB, more than its
// maps at batch 1. Everything between the sums and the gate is float, in shared memory.
#include "activation.cuh"
#include "element.cuh"
#include "squeeze_excite.h"

namespace effnet_fast::cuda {
namespace {

constexpr int kSqueezeThreads = 256;
constexpr int kWarps = kSqueezeThreads / 32;
constexpr int kQuad = 4;

// Four elements of a row of n from i on, zeros beyond its end.
template <class T>
__device__ void load_quad_of(const T* row, int i, int n, bool is_aligned, float (&x)[4]) {
  if (is_aligned) {
    load_quad(row + i, x);
    return;
  }
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    const float last = to_float(row[min(i + j, n - 1)]);  // no branch
    x[j] = i + j < n ? last : 0.0f;
  }
}

template <class T, int kImages>
__device__ void squeeze_excite(const SqueezeExcite& p) {
  extern __shared__ __align__(16) float shared[];
  const int channels = (p.channels + kQuad - 1) / kQuad * kQuad;
  float* means = shared;                         // [image][channels]
  float* squeezed = means + kImages * channels;  // [squeezed][image]
  const T *w1 = static_cast<const T*>(p.w1), *w2 = static_cast<const T*>(p.w2);
  const T *b1 = static_cast<const T*>(p.b1), *b2 = static_cast<const T*>(p.b2);
  const int64_t first = int64_t{blockIdx.x} * kImages;
  const int images = static_cast<int>(min(p.images - first, int64_t{kImages}));

  for (int i = threadIdx.x; i < kImages * channels; i += kSqueezeThreads) {
    const int image = i / channels, channel = i % channels;
    float sum = 0.0f;
    if (image < images && channel < p.channels) {
      const float* from = p.sums + (first + image) * p.tiles * p.channels + channel;
      for (int tile = 0; tile < p.tiles; ++tile) sum += from[int64_t{tile} * p.channels];
    }
    means[i] = sum * p.scale;
  }
  __syncthreads();

  // A warp for each output, its lanes over the channels.
  const int lane = threadIdx.x % 32;
  for (int row = threadIdx.x / 32; row < p.squeezed; row += kWarps) {
    float sum[kImages] = {};
    for (int c = lane * kQuad; c < p.channels; c += 32 * kQuad) {
      float w[kQuad];
      load_quad_of(w1 + int64_t{row} * p.channels, c, p.channels, p.is_aligned, w);
#pragma unroll
      for (int i = 0; i < kImages; ++i) {
        float x[kQuad];
        load_quad(means + i * channels + c, x);
#pragma unroll
        for (int j = 0; j < kQuad; ++j) sum[i] += w[j] * x[j];
      }
    }
    // Every lane gets the sums; lane i goes on with image i.
    float own = 0.0f;
#pragma unroll
    for (int i = 0; i < kImages; ++i) {
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sum[i] += __shfl_xor_sync(~0u, sum[i], step);
      if (lane == i) own = sum[i];
    }
    if (lane < kImages) {
      const float bias = b1 == nullptr ? 0.0f : to_float(b1[row]);
      squeezed[row * kImages + lane] = activate(static_cast<Act>(p.act), own + bias);
    }
  }
  __syncthreads();

  // A thread for each four channels, over all rows; the sums take the place of the means.
  for (int c = threadIdx.x * kQuad; c < p.channels; c += kSqueezeThreads * kQuad) {
    float sum[kImages][kQuad] = {};
#pragma unroll 4
    for (int row = 0; row < p.squeezed; ++row) {
      float w[kQuad];
      load_quad_of(w2 + int64_t{row} * p.channels, c, p.channels, p.is_aligned, w);
#pragma unroll
      for (int i = 0; i < kImages; ++i) {
        const float x = squeezed[row * kImages + i];
#pragma unroll
        for (int j = 0; j < kQuad; ++j) sum[i][j] += w[j] * x;
      }
    }
#pragma unroll
    for (int i = 0; i < kImages; ++i) store_quad(means + i * channels + c, sum[i]);
  }
  __syncthreads();

  T* gate = static_cast<T*>(p.gate) + first * p.channels;
#pragma unroll 1
  for (int i = threadIdx.x; i < images * p.channels; i += kSqueezeThreads) {
    const int image = i / p.channels, channel = i % p.channels;
    const float bias = b2 == nullptr ? 0.0f : to_float(b2[channel]);
    const float sum = means[image * channels + channel] + bias;
    gate[i] = round_to<T>(activate(static_cast<Act>(p.gate_act), sum));
  }
}

}  // namespace

extern "C" {

#define EFFNET_FAST_IMAGES(images, name, T)                                       \
  __global__ void __launch_bounds__(kSqueezeThreads, 2)                           \
      squeeze_excite_##images##_##name(__grid_constant__ const SqueezeExcite p) { \
    squeeze_excite<T, images>(p);                                                 \
  }
#define EFFNET_FAST_ALL(name, T) \
  EFFNET_FAST_IMAGES(1, name, T) \
  EFFNET_FAST_IMAGES(2, name, T) \
  EFFNET_FAST_IMAGES(4, name, T)

EFFNET_FAST_ALL(float32, float)
EFFNET_FAST_ALL(float16, __half)
EFFNET_FAST_ALL(bfloat16, __nv_bfloat16)

#undef EFFNET_FAST_ALL
#undef EFFNET_FAST_IMAGES

}  // extern "C"

}  // namespace effnet_fast::cuda
