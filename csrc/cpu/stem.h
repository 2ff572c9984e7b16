// Rows of a stem's map, one after the other.
//
// Input rows are copied into a ring of NHWC rows with their padding, where a window's row is one
// run of kw * cin floats: gemm takes it as one tap.
#pragma once

#include "gemm.h"

namespace effnet_fast::EFFNET_FAST_ISA {

class StemRows {
 public:
  StemRows(const Conv& conv, const Window& window, const Planes& x);

  int64_t scratch_floats() const { return total_; }
  const Panels& panels() const { return gemm_.panels; }

  // Must come before the rows, which go from top to bottom. `scratch` is ours until the last.
  void start(float* scratch);
  // Makes channels of panels [begin, end): pixel p's first of them lies at y + p * y_pixel.
  void make(int64_t row, int64_t begin, int64_t end, float* y, int64_t y_pixel);

 private:
  const Window window_;
  const Planes x_;
  const int64_t y_width_;
  const bool merged_;  // a window's row is contiguous: a tap per row, not per pixel
  const Gemm gemm_;
  const int64_t rows_, width_;                        // of the ring
  int64_t zeros_at_, pointers_at_, ring_at_, total_;  // offsets into the scratch
  float* scratch_ = nullptr;
  int64_t next_ = 0;  // the first input row that isn't in the ring yet
};

}  // namespace effnet_fast::EFFNET_FAST_ISA
