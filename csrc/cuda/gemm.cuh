// Products of matrices in shared memory, by warps: on the matrix units in half precision, with
// multiply-adds in float.
//
// A tile in shared memory is rows of kRowBytes, 8 units of 16 bytes; unit u of row r lies at
// u ^ (r % 8), so that neither copies along a row nor reads down a column of units meet in a bank.
#pragma once

#include "async_copy.cuh"
#include "element.cuh"
#include "unroll.cuh"

namespace effnet_fast::cuda {

constexpr int kRowBytes = 128;
constexpr int kRowUnits = kRowBytes / 16;
constexpr int kStep = 16;  // columns that a warp multiplies at a time

template <class T>
constexpr int kUnit = 16 / sizeof(T);  // elements
template <class T>
constexpr int kDepth = kRowBytes / sizeof(T);  // columns of a tile

// Bytes from the begin of a tile; or of any of its rows whose number is a multiple of 8.
__device__ inline unsigned unit_offset(unsigned row, unsigned unit) {
  return row * kRowBytes + (unit ^ row % kRowUnits) * 16;
}

// Of one of the first kStep columns in half precision: where the one `step` steps on is.
__device__ inline unsigned step_offset(unsigned offset, unsigned step) {
  return offset ^ step * (kStep * 2);
}

// The thread's number in its warp, and its warp's: unsigned, for divisions to be shifts.
__device__ inline unsigned lane_of_thread() { return threadIdx.x % 32; }
__device__ inline unsigned warp_of_thread() { return threadIdx.x / 32; }

// Where something in shared memory is, for instructions that take no other address.
__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Four matrices of 8 x 8 halves, their rows at the addresses of 8 lanes each, and kOffset bytes on.
template <int kOffset = 0>
__device__ inline void load_matrices(uint32_t (&m)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(from), "n"(kOffset)
               : "memory");
}

__device__ inline void load_matrices(uint32_t (&m)[4], const char* row) {
  load_matrices(m, shared_address(row));
}
// Two of them, at the addresses of the first 16 lanes.
template <int kOffset = 0>
__device__ inline void load_two_matrices(uint32_t (&m)[2], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2 + %3];"
               : "=r"(m[0]), "=r"(m[1])
               : "r"(from), "n"(kOffset)
               : "memory");
}

// c += a b^T, of 16 x 16 and 8 x 16; or of 16 x 8 and 8 x 8.
template <class T>
__device__ void multiply_matrices(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void multiply_matrices<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                 uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void multiply_matrices<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4],
                                                        uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <class T>
__device__ void multiply_matrices(float (&c)[4], const uint32_t (&a)[2], uint32_t b);
template <>
__device__ inline void multiply_matrices<__half>(float (&c)[4], const uint32_t (&a)[2],
                                                 uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}
template <>
__device__ inline void multiply_matrices<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[2],
                                                        uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

// Two halves of one register.
template <class T>
struct Pair;
template <>
struct Pair<__half> {
  using Type = __half2;
};
template <>
struct Pair<__nv_bfloat16> {
  using Type = __nv_bfloat162;
};

// x becomes x g, rounded, and rest what that leaves out: together they are exact.
template <class T>
__device__ void gate_pair(uint32_t& x, uint32_t& rest, uint32_t g) {
  using Two = typename Pair<T>::Type;
  const Two value = reinterpret_cast<const Two&>(x), gate = reinterpret_cast<const Two&>(g);
  const Two product = __hmul2(value, gate);
  const Two left_out = __hfma2(value, gate, __hneg2(product));
  x = reinterpret_cast<const uint32_t&>(product);
  rest = reinterpret_cast<const uint32_t&>(left_out);
}

// What a warp's kM rows are multiplied with, in shared memory: for each column a number, the same
// for all rows, or another from `rows` elements on for those of each 8.
template <class T, int kM>
struct Gate {
  const T* values;
  int rows[kM / 8] = {};

  __device__ Gate(const T* all = nullptr) : values(all) {}
};

// A warp's sums: kM rows of a, kN of b.
template <class T, int kM, int kN>
class WarpTile {
  static_assert(kM % 16 == 0 && kN % 16 == 0);

 public:
  static constexpr int kRun = 2;  // adjacent sums of a thread

  // Adds the products of columns [kStep step, kStep step + kStep) of the tiles that begin at a and
  // b; with kIsGated of a times the gate, from one of its columns on.
  template <bool kIsGated>
  __device__ void multiply(const char* a, const char* b, unsigned step, const Gate<T, kM>& gate,
                           int column = 0) {
    const unsigned lane = lane_of_thread();
    const char* const from = a + step_offset(offset_a(), step);
    uint32_t fa[kM / 16][4], rest[kM / 16][4];
#pragma unroll
    for (int m = 0; m < kM / 16; ++m) load_matrices(fa[m], from + 16 * m * kRowBytes);
    if (kIsGated) {
      const T* const own = gate.values + column + lane % 4 * 2;
#pragma unroll
      for (int m = 0; m < kM / 16; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const T* const at = own + gate.rows[2 * m + i % 2] + i / 2 * 8;
          gate_pair<T>(fa[m][i], rest[m][i], *reinterpret_cast<const uint32_t*>(at));
        }
      }
    }
    multiply_fragments<kIsGated>(fa, rest, b, step);
  }

  // The same of rows in registers, as load_matrices gives them; with kIsGated of what gate_pair
  // left out, too.
  template <bool kIsGated>
  __device__ void multiply_fragments(const uint32_t (&fa)[kM / 16][4],
                                     const uint32_t (&rest)[kM / 16][4], const char* b,
                                     unsigned step) {
    const char* const from = b + step_offset(offset_b(), step);
#pragma unroll
    for (int n = 0; n < kN / 16; ++n) {
      uint32_t fb[4];
      load_matrices(fb, from + 16 * n * kRowBytes);
#pragma unroll
      for (int m = 0; m < kM / 16; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float (&sum)[4] = sum_[m][2 * n + i];
          if (kIsGated) multiply_matrices<T>(sum, rest[m], fb[2 * i], fb[2 * i + 1]);
          multiply_matrices<T>(sum, fa[m], fb[2 * i], fb[2 * i + 1]);
        }
      }
    }
  }

  // Where a lane's part of both begins, in bytes from a and b; a step on it is step_offset's.
  __device__ static unsigned offset_a() {
    return unit_offset(lane_of_thread() % 16, lane_of_thread() / 16);
  }
  __device__ static unsigned offset_b() {
    const unsigned lane = lane_of_thread();
    return unit_offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  }

  // Adds the products of kStep columns, at the addresses of a lane's parts; 16 rows of b are
  // `pitch` bytes.
  __device__ void multiply_at(uint32_t a, uint32_t b, uint32_t pitch) {
    uint32_t fb[kN / 16][4];
#pragma unroll
    for (int n = 0; n < kN / 16; ++n) load_matrices(fb[n], b + n * pitch);
    multiply_columns(a, fb);
  }

  // The same of b in registers, as load_matrices gives it.
  __device__ void multiply_columns(uint32_t from, const uint32_t (&fb)[kN / 16][4]) {
    unroll<kM / 16>([&](auto tile) {
      constexpr int m = decltype(tile)::value;
      uint32_t fa[4];
      load_matrices<16 * m * kRowBytes>(fa, from);
#pragma unroll
      for (int n = 0; n < kN / 8; ++n) {
        const uint32_t* const b = fb[n / 2] + n % 2 * 2;
        multiply_matrices<T>(sum_[m][n], fa, b[0], b[1]);
      }
    });
  }

  // A thread has kRows x kRuns runs of kRun adjacent sums.
  static constexpr int kRows = kM / 8, kRuns = kN / 8;
  __device__ static int row(int i) { return 8 * i + threadIdx.x % 32 / 4; }
  __device__ static int column(int n) { return 8 * n + threadIdx.x % 4 * kRun; }
  __device__ float* run(int i, int n) { return &sum_[i / 2][n][i % 2 * kRun]; }

 private:
  float sum_[kM / 16][kN / 8][4] = {};
};

template <int kM, int kN>
class WarpTile<float, kM, kN> {
  static_assert(kM % 4 == 0 && kN % 8 == 0);

 public:
  static constexpr int kRun = 1;

  template <bool kIsGated>
  __device__ void multiply(const char* a, const char* b, unsigned step, const Gate<float, kM>& gate,
                           int column = 0) {
    const unsigned down = lane_of_thread() / 8, across = threadIdx.x % 8;
#pragma unroll
    for (int u = 0; u < kStep / 4; ++u) {
      const unsigned unit = kStep / 4 * step + u;
      float g[4];
      if (kIsGated) load_quad(gate.values + column + 4 * u, g);
      float w[kN / 8][4];
#pragma unroll
      for (int n = 0; n < kN / 8; ++n) {
        load_quad(reinterpret_cast<const float*>(b + unit_offset(8 * n + across, unit)), w[n]);
      }
#pragma unroll
      for (int m = 0; m < kM / 4; ++m) {
        float x[4];
        load_quad(reinterpret_cast<const float*>(a + unit_offset(4 * m + down, unit)), x);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (kIsGated) x[j] *= g[j];
#pragma unroll
          for (int n = 0; n < kN / 8; ++n) sum_[m][n] += x[j] * w[n][j];
        }
      }
    }
  }

  static constexpr int kRows = kM / 4, kRuns = kN / 8;
  __device__ static int row(int i) { return 4 * i + threadIdx.x % 32 / 8; }
  __device__ static int column(int n) { return 8 * n + threadIdx.x % 8; }
  __device__ float* run(int i, int n) { return &sum_[i][n]; }

 private:
  float sum_[kM / 4][kN / 8] = {};
};

// A block's sums: kM rows of inputs times kN rows of weights, all of them over any number of
// columns.
//
//   warp:  kM / kWarpsM rows, kN / kWarpsN columns, and of the steps every kWarpsK-th
//   block: kStages tiles of both matrices in shared memory, copied while others are multiplied
template <class T, int kM, int kN, int kWarpsM, int kWarpsN, int kWarpsK, int kStages = 3>
class BlockProduct {
 public:
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN * kWarpsK;
  static constexpr int kTileBytes = (kM + kN) * kRowBytes;
  static constexpr int kWarpRows = kM / kWarpsM;
  // The first of the rows, every 8, that a lane has in half precision.
  __device__ static int first_row() {
    return warp_of_thread() % kWarpsM * kWarpRows + lane_of_thread() / 4;
  }
  static constexpr int kPitch = kN + 8;  // of sums in shared memory: no bank conflicts
  static constexpr int kRowsAtOnce = kThreads / kRowUnits;  // a thread copies one unit of each row

  // The products of `depth` columns. stage(tile, to) copies the inputs of columns from kDepth tile
  // on, of weights [kN][weight_depth] the first `rows` rows are there.
  template <bool kIsGated, class StageInputs>
  __device__ void multiply(int depth, const T* weights, int weight_depth, int rows,
                           const Gate<T, kM / kWarpsM>& gate, char* shared, StageInputs stage) {
    const unsigned columns = depth, tiles = (columns + kDepth<T> - 1) / kDepth<T>;
    const unsigned warp = warp_of_thread();
    const unsigned warp_m = warp % kWarpsM, warp_n = warp / kWarpsM % kWarpsN;
    const unsigned warp_k = warp / (kWarpsM * kWarpsN);
    const unsigned unit = threadIdx.x % kRowUnits, row = threadIdx.x / kRowUnits;
    const T* weight = weights + int64_t{static_cast<int>(row)} * weight_depth + unit * kUnit<T>;
    static_assert(kN % kRowsAtOnce == 0 && kM % kRowUnits == 0 && kRowsAtOnce % kRowUnits == 0);
    const unsigned own = unit_offset(row, unit);
    const auto stage_tile = [&](unsigned tile) {
      if (tile < tiles) {
        char* const to = shared + tile % kStages * kTileBytes;
        stage(tile, to);
        const unsigned column = tile * kDepth<T>;
        const bool inside = column + unit * kUnit<T> < static_cast<unsigned>(weight_depth);
#pragma unroll
        for (unsigned r = 0; r < kN; r += kRowsAtOnce) {
          copy_async(to + own + (kM + r) * kRowBytes,
                     weight + int64_t{static_cast<int>(r)} * weight_depth + column,
                     inside && r + row < static_cast<unsigned>(rows) ? 16 : 0);
        }
      }
      end_copy_group();
    };
    for (unsigned tile = 0; tile < kStages - 1; ++tile) stage_tile(tile);
#pragma unroll 1
    for (unsigned tile = 0; tile < tiles; ++tile) {
      wait_for_copy_groups<kStages - 2>();
      __syncthreads();
      stage_tile(tile + kStages - 1);
      const char* const a = shared + tile % kStages * kTileBytes;
      const unsigned left = columns - tile * kDepth<T>;
      const unsigned steps =
          min((left + kStep - 1) / kStep, static_cast<unsigned>(kDepth<T> / kStep));
#pragma unroll 1
      for (unsigned step = warp_k; step < steps; step += kWarpsK) {
        tile_.template multiply<kIsGated>(a + warp_m * (kM / kWarpsM) * kRowBytes,
                                          a + (kM + warp_n * (kN / kWarpsN)) * kRowBytes, step,
                                          gate, tile * kDepth<T> + step * kStep);
      }
    }
    __syncthreads();
  }

  // For other products.
  __device__ void clear() { tile_ = Warp(); }

  // The sums to shared memory: [kM][kPitch].
  __device__ void store(float* to) {
    const unsigned warp = warp_of_thread();
    const unsigned warp_m = warp % kWarpsM, warp_n = warp / kWarpsM % kWarpsN;
    const int warp_k = warp / (kWarpsM * kWarpsN);
    to += warp_m * (kM / kWarpsM) * kPitch + warp_n * (kN / kWarpsN);
#pragma unroll 1
    for (int k = 0; k < kWarpsK; ++k) {
      if (kWarpsK == 1 || k == warp_k) {
#pragma unroll
        for (int i = 0; i < Warp::kRows; ++i) {
          float* const row = to + Warp::row(i) * kPitch;
#pragma unroll
          for (int n = 0; n < Warp::kRuns; ++n) {
            float* const at = row + Warp::column(n);
            const float* const sum = tile_.run(i, n);
#pragma unroll
            for (int j = 0; j < Warp::kRun; ++j) at[j] = k == 0 ? sum[j] : at[j] + sum[j];
          }
        }
      }
      __syncthreads();
    }
  }

 private:
  using Warp = WarpTile<T, kM / kWarpsM, kN / kWarpsN>;
  Warp tile_;
};

// A warp has 32 rows, and in half precision 64 columns where there are as many: a row is loaded,
// and gated, once for all of them. Of large tiles two are in shared memory, or 99 KB would not do.
// effnet_fast/cuda/gemm.py counts the same threads and tiles.
template <class T>
constexpr int kWarpColumns = sizeof(T) == 2 ? 64 : 32;
template <class T, int kM, int kN, int kWarpsK = 1>
using TileProduct = BlockProduct<T, kM, kN, kM / 32, (kN + kWarpColumns<T> - 1) / kWarpColumns<T>,
                                 kWarpsK, (kM + kN > 192 ? 2 : 3)>;
// Resident on a multiprocessor: 12 warps, of at most 168 registers a thread.
template <class Product>
constexpr int kResident = 384 / Product::kThreads;

}  // namespace effnet_fast::cuda
