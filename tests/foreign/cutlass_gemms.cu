// Two of CUTLASS's GEMMs for sm_80, D = alpha A B + beta C, and on the host what their kernels take.
#include <cutlass/epilogue/thread/linear_combination.h>
#include <cutlass/gemm/device/gemm.h>

#include <cstring>

using cutlass::half_t;
using cutlass::gemm::GemmShape;
using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;

// float32 on the FMA units, two stages through registers
using Simt = cutlass::gemm::device::Gemm<
    float, RowMajor, float, RowMajor, float, RowMajor, float, cutlass::arch::OpClassSimt,
    cutlass::arch::Sm80, GemmShape<64, 64, 8>, GemmShape<32, 32, 8>, GemmShape<1, 1, 1>>;

// float16 on the matrix units, three stages through cp.async, ldmatrix
using TensorOp = cutlass::gemm::device::Gemm<
    half_t, RowMajor, half_t, ColumnMajor, half_t, RowMajor, float,
    cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, GemmShape<64, 64, 32>,
    GemmShape<32, 32, 32>, GemmShape<16, 8, 16>,
    cutlass::epilogue::thread::LinearCombination<half_t, 8, float, float>,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, 3>;

template __global__ void cutlass::Kernel<Simt::GemmKernel>(Simt::GemmKernel::Params);
template __global__ void cutlass::Kernel<TensorOp::GemmKernel>(TensorOp::GemmKernel::Params);

// Writes the kernel's one parameter to `out` and returns its bytes. launch: grid x, y, z, threads,
// bytes of shared memory. c is D as well. level: the factors are the values, or behind pointers on
// the device, or behind arrays of such pointers.
template <class Gemm>
int parameters(void* out, int* launch, int m, int n, int k, void* a, int lda, void* b, int ldb,
               void* c, int ldc, float alpha, float beta, const void* alphas, const void* betas,
               int level) {
  using Kernel = typename Gemm::GemmKernel;
  using Tile = typename Gemm::ThreadblockShape;
  typename Gemm::ThreadblockSwizzle swizzle;
  const cutlass::gemm::GemmCoord problem(m, n, k);
  const auto tiled = swizzle.get_tiled_shape(problem, {Tile::kM, Tile::kN, Tile::kK}, 1);
  using Factors = typename Gemm::EpilogueOutputOp::Params;
  const auto pointer = [](const void* p) { return static_cast<const float*>(p); };
  const auto pointers = [](const void* p) { return static_cast<const float* const*>(p); };
  const Factors factors = level == 0   ? Factors(alpha, beta)
                          : level == 1 ? Factors(pointer(alphas), pointer(betas))
                                       : Factors(pointers(alphas), pointers(betas));
  const typename Kernel::Params params(
      problem, tiled, {static_cast<typename Gemm::ElementA*>(a), lda},
      {static_cast<typename Gemm::ElementB*>(b), ldb},
      {static_cast<typename Gemm::ElementC*>(c), ldc},
      {static_cast<typename Gemm::ElementC*>(c), ldc}, factors);
  std::memcpy(out, &params, sizeof(params));
  const dim3 grid = swizzle.get_grid_shape(tiled);
  const int values[5] = {static_cast<int>(grid.x), static_cast<int>(grid.y),
                         static_cast<int>(grid.z), Kernel::kThreadCount,
                         static_cast<int>(sizeof(typename Kernel::SharedStorage))};
  std::memcpy(launch, values, sizeof(values));
  return sizeof(params);
}

#define EXPORT(name, Gemm)                                                                       \
  extern "C" int name(void* out, int* launch, int m, int n, int k, void* a, int lda, void* b,    \
                      int ldb, void* c, int ldc, float alpha, float beta, const void* alphas,    \
                      const void* betas, int level) {                                            \
    return parameters<Gemm>(out, launch, m, n, k, a, lda, b, ldb, c, ldc, alpha, beta, alphas,   \
                            betas, level);                                                       \
  }
EXPORT(simt_parameters, Simt)
EXPORT(tensor_op_parameters, TensorOp)
