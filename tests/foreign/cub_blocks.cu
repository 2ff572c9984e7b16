// CUB's block-wide primitives on ragged tiles, as a kernel's author would call them.
#include <cub/cub.cuh>

constexpr int kThreads = 128;
constexpr int kItems = 4;
constexpr int kTile = kThreads * kItems;

extern "C" __global__ void __launch_bounds__(kThreads)
    block_reduce(const int* in, int* out, int n) {
  using Load = cub::BlockLoad<int, kThreads, kItems, cub::BLOCK_LOAD_TRANSPOSE>;
  using Reduce = cub::BlockReduce<int, kThreads>;
  __shared__ union {
    typename Load::TempStorage load;
    typename Reduce::TempStorage reduce;
  } storage;
  int items[kItems];
  const int first = blockIdx.x * kTile;
  Load(storage.load).Load(in + first, items, n - first, 0);
  __syncthreads();
  const int sum = Reduce(storage.reduce).Sum(items);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(kThreads) block_scan(const int* in, int* out, int n) {
  using Load = cub::BlockLoad<int, kThreads, kItems, cub::BLOCK_LOAD_TRANSPOSE>;
  using Store = cub::BlockStore<int, kThreads, kItems, cub::BLOCK_STORE_TRANSPOSE>;
  using Scan = cub::BlockScan<int, kThreads>;
  __shared__ union {
    typename Load::TempStorage load;
    typename Store::TempStorage store;
    typename Scan::TempStorage scan;
  } storage;
  int items[kItems];
  const int first = blockIdx.x * kTile;
  Load(storage.load).Load(in + first, items, n - first, 0);
  __syncthreads();
  Scan(storage.scan).ExclusiveSum(items, items);
  __syncthreads();
  Store(storage.store).Store(out + first, items, n - first);
}

extern "C" __global__ void __launch_bounds__(kThreads)
    block_sort(const unsigned* in, unsigned* out, int n) {
  using Load = cub::BlockLoad<unsigned, kThreads, kItems, cub::BLOCK_LOAD_DIRECT>;
  using Store = cub::BlockStore<unsigned, kThreads, kItems, cub::BLOCK_STORE_DIRECT>;
  using Sort = cub::BlockRadixSort<unsigned, kThreads, kItems>;
  __shared__ typename Sort::TempStorage storage;
  unsigned items[kItems];
  const int first = blockIdx.x * kTile;
  Load().Load(in + first, items, n - first, ~0u);
  Sort(storage).Sort(items);
  Store().Store(out + first, items, n - first);
}

// Of whole tiles, into bins that all blocks share.
extern "C" __global__ void __launch_bounds__(kThreads)
    block_histogram(const unsigned char* in, unsigned* out, int n) {
  constexpr int kBins = 256;
  using Load = cub::BlockLoad<unsigned char, kThreads, kItems, cub::BLOCK_LOAD_DIRECT>;
  using Histogram =
      cub::BlockHistogram<unsigned char, kThreads, kItems, kBins, cub::BLOCK_HISTO_ATOMIC>;
  __shared__ typename Histogram::TempStorage storage;
  __shared__ unsigned bins[kBins];
  const int first = blockIdx.x * kTile;
  if (first + kTile > n) return;
  unsigned char items[kItems];
  Load().Load(in + first, items);
  Histogram(storage).Histogram(items, bins);
  __syncthreads();
#pragma unroll 1  // by four, half of the code would never run
  for (int i = threadIdx.x; i < kBins; i += kThreads) atomicAdd(out + i, bins[i]);
}
