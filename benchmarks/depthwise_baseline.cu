// What the depthwise kernels are compared with: the algorithm of PyTorch's own, plainly.
//
// NCHW; a thread for each output scalar, from its linear index; taps tested one by one against the
// map's borders, window and stride compiled in; 32-bit indices. Then an elementwise pass for swish
// and a reduction for each channel's mean, as unfused layers have them. Products are summed in
// float32. The batch norm is in the weights already, which PyTorch does not do by itself.
#include <cuda_fp16.h>

#include <cstdint>

namespace {

template <int K, int S>
__device__ void depthwise(const __half* x, const __half* weight, const __half* bias, __half* y,
                          int outputs, int channels, int h, int w, int out_h, int out_w, int top,
                          int left) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < outputs; i += gridDim.x * blockDim.x) {
    const int out_column = i % out_w;
    const int out_row = i / out_w % out_h;
    const int channel = i / out_w / out_h % channels;
    const int image = i / out_w / out_h / channels;
    const int map = (image * channels + channel) * h * w;
    const int first_row = out_row * S - top, first_column = out_column * S - left;
    float sum = __half2float(bias[channel]);
#pragma unroll
    for (int tap_row = 0; tap_row < K; ++tap_row) {
#pragma unroll
      for (int tap_column = 0; tap_column < K; ++tap_column) {
        const int row = first_row + tap_row, column = first_column + tap_column;
        if (row >= 0 && row < h && column >= 0 && column < w) {
          const __half tap = __ldg(weight + (channel * K + tap_row) * K + tap_column);
          sum += __half2float(__ldg(x + map + row * w + column)) * __half2float(tap);
        }
      }
    }
    y[i] = __float2half_rn(sum);
  }
}

}  // namespace

#define DEPTHWISE(K, S)                                                                    \
  extern "C" __global__ void depthwise_k##K##s##S(                                         \
      const __half* x, const __half* weight, const __half* bias, __half* y, int outputs,   \
      int channels, int h, int w, int out_h, int out_w, int top, int left) {               \
    depthwise<K, S>(x, weight, bias, y, outputs, channels, h, w, out_h, out_w, top, left); \
  }
DEPTHWISE(3, 1)
DEPTHWISE(3, 2)
DEPTHWISE(5, 1)
DEPTHWISE(5, 2)

// Four elements of a thread, as PyTorch's elementwise kernels have it.
extern "C" __global__ void swish(const __half* x, __half* y, int n) {
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  if (i + 4 <= n) {
    const uint2 four = *reinterpret_cast<const uint2*>(x + i);
    uint2 out;
    const __half* from = reinterpret_cast<const __half*>(&four);
    __half* to = reinterpret_cast<__half*>(&out);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float v = __half2float(from[j]);
      to[j] = __float2half_rn(v / (1.0f + __expf(-v)));
    }
    *reinterpret_cast<uint2*>(y + i) = out;
  } else {
    for (int j = i; j < n; ++j) {
      const float v = __half2float(x[j]);
      y[j] = __float2half_rn(v / (1.0f + __expf(-v)));
    }
  }
}

// A block of 128 threads for each channel of an image.
extern "C" __global__ void mean(const __half* x, float* means, int pixels) {
  __shared__ float sums[4];
  float sum = 0.0f;
  for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
    sum += __half2float(x[static_cast<int64_t>(blockIdx.x) * pixels + i]);
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) means[blockIdx.x] = (sums[0] + sums[1] + sums[2] + sums[3]) / pixels;
}
