// What becomes of a block's sums of products: bias, activation, residual; or sums over pixels.
#pragma once

#include "activation.cuh"
#include "divisor.cuh"
#include "element.cuh"

namespace effnet_fast::cuda {

// Channels are adjacent; all strides are in elements. effnet_fast/cuda/epilogue.py packs the same.
struct Epilogue {
  const float* bias;     // [cout], or null
  const void* residual;  // as y, or null
  void* y;               // [image][pixel][cout], or null
  float* sums;           // [image][tile][cout], or null
  int64_t r_image, y_image;
  int32_t r_row, r_pixel, y_row, y_pixel;
  Divisor columns;  // of a row of pixels
  int32_t cout;
  int32_t act;
  int32_t is_aligned;  // y and the residual, to 4 elements; and cout is a multiple of 4
};

// Of a block: its outputs.
struct Outputs {
  int64_t image, tile;  // the tile's number among those of all images
  int pixel, pixels;    // the first, and how many
  int channel, channels;
};

// Blocks are [image][tile of kM pixels][tile of kN channels]: those that run together share inputs.
template <int kM, int kN>
__device__ Outputs outputs_of_block(const Divisor& channel_tiles, const Divisor& tiles, int pixels,
                                    int cout) {
  Outputs o;
  unsigned channel_tile = blockIdx.x;
  unsigned tile = divide_off(channel_tile, channel_tiles);
  o.tile = tile;
  o.image = divide_off(tile, tiles);
  o.pixel = tile * kM;
  o.pixels = min(kM, pixels - o.pixel);
  o.channel = channel_tile * kN;
  o.channels = min(kN, cout - o.channel);
  return o;
}

__device__ inline int64_t offset_of(unsigned pixel, const Divisor& columns, int row, int column) {
  const int down = divide_off(pixel, columns);
  return int64_t{down} * row + int64_t{static_cast<int>(pixel)} * column;
}

// From sums [pixel][kPitch] of kN channels in shared memory. A thread has 4 channels of some
// pixels: activations that take many instructions are in the code once, and stores are whole
// sectors. kTakesSums and kTakesResidual: whether e may have these.
template <class T, int kThreads, int kN, int kPitch, bool kTakesSums = true,
          bool kTakesResidual = true>
__device__ void finish_outputs(const Epilogue& e, const Outputs& o, float* outputs) {
  constexpr int kQuad = 4, kQuads = kN / kQuad, kRows = kThreads / kQuads;  // at once
  const int row = threadIdx.x / kQuads;  // of kRows; a few threads may be left over
  const int quad = threadIdx.x % kQuads * kQuad, channel = o.channel + quad;
  const Act act = static_cast<Act>(e.act);
  float bias[kQuad], sum[kQuad] = {};
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    bias[j] = e.bias != nullptr && quad + j < o.channels ? e.bias[channel + j] : 0.0f;
  }
  const T* residual = static_cast<const T*>(e.residual) + o.image * e.r_image + channel;
  T* y = static_cast<T*>(e.y) + o.image * e.y_image + channel;
#pragma unroll 1
  for (int r = row; r < o.pixels; r += kRows) {
    if (quad >= o.channels || (kThreads % kQuads != 0 && row >= kRows)) break;
    float out[kQuad];
    load_quad(outputs + r * kPitch + quad, out);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) out[j] += bias[j];
    activate_quad(act, out);
    if (kTakesSums && e.sums != nullptr) {
#pragma unroll
      for (int j = 0; j < kQuad; ++j) sum[j] += out[j];
      continue;
    }
    T* const to = y + offset_of(o.pixel + r, e.columns, e.y_row, e.y_pixel);
    const T* const add = residual + offset_of(o.pixel + r, e.columns, e.r_row, e.r_pixel);
    if (e.is_aligned) {
      if (kTakesResidual && e.residual != nullptr) {
        float other[kQuad];
        load_quad(add, other);
#pragma unroll
        for (int j = 0; j < kQuad; ++j) out[j] += other[j];
      }
      store_quad(to, out);
    } else {
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        if (quad + j >= o.channels) break;
        if (kTakesResidual && e.residual != nullptr) out[j] += to_float(add[j]);
        to[j] = round_to<T>(out[j]);
      }
    }
  }
  if (!kTakesSums || e.sums == nullptr) return;
  // Where the thread's own first row was.
  if (kThreads % kQuads == 0 || row < kRows) store_quad(outputs + row * kPitch + quad, sum);
  __syncthreads();
  static_assert(kN <= kThreads);
  const int c = threadIdx.x;
  if (c < o.channels) {
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < kRows; ++i) total += outputs[i * kPitch + c];
    e.sums[o.tile * e.cout + o.channel + c] = total;
  }
}

}  // namespace effnet_fast::cuda
