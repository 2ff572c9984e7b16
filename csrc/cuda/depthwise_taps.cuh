// Depthwise taps over maps in shared memory: planes of 16 channels, a thread has 4 of them.
#pragma once

#include "async_copy.cuh"
#include "divisor.cuh"
#include "element.cuh"

namespace effnet_fast::cuda {

constexpr int kPlane = 16;  // channels of a plane
constexpr int kQuad = 4;    // channels of a thread

// The thread's number in the block, which is planes of warps.
__device__ inline int thread_of_block() { return threadIdx.y * blockDim.x + threadIdx.x; }
__device__ inline int threads_of_block() { return blockDim.y * blockDim.x; }

// Rows of a plane's constants in shared memory: taps, then bias, and one for neighbouring planes to
// lie in different banks.
template <int K>
constexpr int kConstants = K * K + 2;

// [plane][kConstants][16].
template <int K>
__device__ void stage_constants(const float* constants, int padded_channels, int first_channel,
                                const Divisor& planes, float* to) {
  constexpr unsigned kRows = K * K + 1, kQuads = kPlane / kQuad;
  const unsigned quads = kQuads * planes.divisor;
  for (unsigned i = thread_of_block(); i < kRows * quads; i += threads_of_block()) {
    const unsigned quad = i % kQuads;
    unsigned plane = i / kQuads;
    const unsigned row = divide_off(plane, planes);
    const int channel = first_channel + plane * kPlane + quad * kQuad;
    const bool inside = channel < padded_channels;
    copy_async(to + (plane * kConstants<K> + row) * kPlane + quad * kQuad,
               constants + int64_t{row} * padded_channels + channel, inside ? 16 : 0);
  }
}

// acc += the taps over the inputs at `in`, the upper left of what the thread's outputs see.
template <class T, int K, int S, int R, int C>
__device__ void accumulate_row(const char* in, const float* taps, int row, float (&acc)[R][C][4]) {
  constexpr int kColumns = (C - 1) * S + K;
  float x[kColumns][kQuad];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    load_quad(reinterpret_cast<const T*>(in + c * kPlane * sizeof(T)), x[c]);
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (row < r * S || row >= r * S + K) continue;
    const float* tap = taps + (row - r * S) * K * kPlane;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      float w[kQuad];
      load_quad(tap + k * kPlane, w);
#pragma unroll
      for (int c = 0; c < C; ++c) {
#pragma unroll
        for (int j = 0; j < kQuad; ++j) acc[r][c][j] += x[c * S + k][j] * w[j];
      }
    }
  }
}

}  // namespace effnet_fast::cuda
