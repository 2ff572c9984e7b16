// What makes an image's gate of its sums: for squeeze_excite, and for the pointwise convolution
// that it gates.
#pragma once

#include "activation.cuh"
#include "element.cuh"
#include "squeeze_excite.h"

namespace effnet_fast::cuda {

// Four elements of a row of n from i on, zeros beyond its end.
template <class T>
__device__ void load_quad_of(const T* row, int i, int n, bool is_aligned, float (&x)[4]) {
  constexpr int kQuad = 4;
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

// The gates of kImages images from `first` on, [image][channels], by all threads of a block: in
// shared memory [image][channels, rounded up to 4] and [squeezed][image] floats.
template <class T, int kThreads, int kImages>
__device__ void make_gates(const SqueezeExcite& p, int64_t first, float* shared, T* gate) {
  constexpr int kQuad = 4, kWarps = kThreads / 32;
  const int channels = (p.channels + kQuad - 1) / kQuad * kQuad;
  float* means = shared;                         // [image][channels]
  float* squeezed = means + kImages * channels;  // [squeezed][image]
  const T *w1 = static_cast<const T*>(p.w1), *w2 = static_cast<const T*>(p.w2);
  const T *b1 = static_cast<const T*>(p.b1), *b2 = static_cast<const T*>(p.b2);
  const int images = static_cast<int>(min(p.images - first, int64_t{kImages}));

  for (int i = threadIdx.x; i < kImages * channels; i += kThreads) {
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
  for (int c = threadIdx.x * kQuad; c < p.channels; c += kThreads * kQuad) {
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

#pragma unroll 1
  for (int i = threadIdx.x; i < images * p.channels; i += kThreads) {
    const int image = i / p.channels, channel = i % p.channels;
    const float bias = b2 == nullptr ? 0.0f : to_float(b2[channel]);
    const float sum = means[image * channels + channel] + bias;
    gate[i] = round_to<T>(activate(static_cast<Act>(p.gate_act), sum));
  }
}

}  // namespace effnet_fast::cuda
