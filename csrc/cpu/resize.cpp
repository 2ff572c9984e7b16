// Resampling as Pillow does it: an output is a weighted sum of the pixels within the filter's
// support, which grows with the scale; along rows, then along columns, 8 bits in between. Where the
// height shrinks by more than twice what the width does it is the other way round, which Pillow
// does since version 13. Weights are integers of 22 bits, so sums have no rounding and no order,
// and the pixels are Pillow's, bit for bit. Of what the crop leaves out nothing is computed.
#include "effnet_fast/resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace effnet_fast {

namespace {

// The filter's weight at x, in source pixels over the scale, and how far it reaches.
double weight_at(Filter filter, double x) {
  constexpr double kPi = 3.14159265358979323846;
  const auto sinc = [](double t) { return t == 0.0 ? 1.0 : std::sin(t * kPi) / (t * kPi); };
  const double distance = std::fabs(x);
  switch (filter) {
    case Filter::kBox:
      return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
    case Filter::kBilinear:
      return distance < 1.0 ? 1.0 - distance : 0.0;
    case Filter::kHamming:
      if (distance >= 1.0) return 0.0;
      return sinc(distance) * (0.54 + 0.46 * std::cos(distance * kPi));
    case Filter::kBicubic:  // with a = -0.5
      if (distance < 1.0) return (1.5 * distance - 2.5) * distance * distance + 1.0;
      if (distance < 2.0) return (((distance - 5.0) * distance + 8.0) * distance - 4.0) * -0.5;
      return 0.0;
    case Filter::kLanczos:
      return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0;
  }
  return 0.0;
}

double support_of(Filter filter) {
  switch (filter) {
    case Filter::kBox:
      return 0.5;
    case Filter::kBicubic:
      return 2.0;
    case Filter::kLanczos:
      return 3.0;
    default:
      return 1.0;
  }
}

// An axis: of which source pixels its outputs [begin, begin + count) are sums, with what weights.
struct Axis {
  std::vector<Taps> outputs;
  std::vector<int32_t> weights;
  int64_t begin, end;  // the source pixels that any of them reads

  Axis(int64_t from, int64_t to, int64_t first, int64_t count, Filter filter)
      : outputs(static_cast<size_t>(count)), begin(from), end(0) {
    const double scale = static_cast<double>(from) / static_cast<double>(to);
    const double spread = std::max(scale, 1.0);
    const double support = support_of(filter) * spread;
    const auto most = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
    weights.resize(static_cast<size_t>(count * most));
    std::vector<double> exact(static_cast<size_t>(most));
    for (int64_t i = 0; i < count; ++i) {
      const double center = (static_cast<double>(first + i) + 0.5) * scale;
      const int64_t low = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
      const int64_t high = std::min(static_cast<int64_t>(center + support + 0.5), from);
      double sum = 0.0;
      for (int64_t k = low; k < high; ++k) {
        // The product with the reciprocal, as there: a quotient has other bits.
        const double at = (static_cast<double>(k) - center + 0.5) * (1.0 / spread);
        sum += exact[static_cast<size_t>(k - low)] = weight_at(filter, at);
      }
      int32_t* const weight = weights.data() + i * most;
      for (int64_t k = 0; k < high - low; ++k) {
        const double normal = sum != 0.0 ? exact[static_cast<size_t>(k)] / sum : 0.0;
        weight[k] = static_cast<int32_t>((normal < 0.0 ? -0.5 : 0.5) + normal * (1 << kWeightBits));
      }
      outputs[static_cast<size_t>(i)] = {low, high - low, weight};
      begin = std::min(begin, low);
      end = std::max(end, high);
    }
  }

  // Counts source pixels from `begin`.
  void shift() {
    for (Taps& taps : outputs) taps.first -= begin;
  }
};

// A thread's own: photos come one after another, and to map 1 MB anew costs 250 page faults.
class Scratch8 {
 public:
  explicit Scratch8(size_t bytes) {
    if (memory().size() < bytes) memory().resize(bytes);
  }
  ~Scratch8() {
    if (memory().size() > kMostKept) std::vector<uint8_t>().swap(memory());
  }
  Scratch8(const Scratch8&) = delete;
  Scratch8& operator=(const Scratch8&) = delete;
  uint8_t* data() const { return memory().data(); }

 private:
  static constexpr size_t kMostKept = 4 << 20;
  static std::vector<uint8_t>& memory() {
    static thread_local std::vector<uint8_t> bytes;
    return bytes;
  }
};

}  // namespace

void resize(const Kernels& kernels, const RgbImage& x, int64_t to_height, int64_t to_width,
            Filter filter, const Crop& crop, uint8_t* y) {
  const bool resizes_height = to_height != x.height, resizes_width = to_width != x.width;
  const int64_t y_row = crop.width * 3;
  Axis rows(x.height, to_height, crop.top, resizes_height ? crop.height : 0, filter);
  Axis columns(x.width, to_width, crop.left, resizes_width ? crop.width : 0, filter);
  // The part of x that the crop is made of.
  if (!resizes_height) rows.begin = crop.top, rows.end = crop.top + crop.height;
  if (!resizes_width) columns.begin = crop.left, columns.end = crop.left + crop.width;
  const RgbImage part{x.data + rows.begin * x.row + columns.begin * 3, rows.end - rows.begin,
                      columns.end - columns.begin, x.row};
  rows.shift();
  columns.shift();

  const auto along_columns = [&](const RgbImage& from, uint8_t* to, int64_t to_row) {
    for (int64_t i = 0; i < crop.height; ++i) {
      uint8_t* const row = to + i * to_row;
      if (resizes_height) {
        kernels.resize_column(from.data, from.row, from.width * 3,
                              rows.outputs[static_cast<size_t>(i)], row);
      } else {
        std::memcpy(row, from.data + i * from.row, static_cast<size_t>(from.width * 3));
      }
    }
  };
  if (!resizes_width) return along_columns(part, y, y_row);

  const bool columns_first =
      to_height < x.height && x.height - to_height > 2 * (x.width - to_width);
  // Between the passes: rows resized, each with a byte past its last pixel; or columns resized.
  const int64_t between_row = columns_first ? part.width * 3 : y_row + 1;
  const int64_t between_rows = columns_first ? crop.height : part.height;
  const int64_t interleaved = part.width * kRowsAtOnce * 4, resized = kRowsAtOnce * (y_row + 1);
  const Scratch8 scratch(static_cast<size_t>(interleaved + resized + between_rows * between_row));
  uint8_t* const between = scratch.data() + interleaved + resized;
  const auto along_rows = [&](const RgbImage& from, int64_t row, uint8_t* to) {
    const int64_t count = std::min(kRowsAtOnce, from.height - row);
    const RgbImage block{from.data + row * from.row, count, from.width, from.row};
    kernels.resize_rows(block, columns.outputs.data(), crop.width, scratch.data(), to, y_row + 1);
    return count;
  };
  if (!columns_first) {
    for (int64_t row = 0; row < part.height; row += kRowsAtOnce)
      along_rows(part, row, between + row * between_row);
    along_columns({between, part.height, crop.width, between_row}, y, y_row);
    return;
  }
  along_columns(part, between, between_row);
  for (int64_t row = 0; row < crop.height; row += kRowsAtOnce) {
    uint8_t* const wide = scratch.data() + interleaved;
    const int64_t count = along_rows({between, crop.height, part.width, between_row}, row, wide);
    for (int64_t i = 0; i < count; ++i)
      std::memcpy(y + (row + i) * y_row, wide + i * (y_row + 1), static_cast<size_t>(y_row));
  }
}

}  // namespace effnet_fast
