// expand_depthwise in half precision: y = act(depthwise(wide) + bias), wide = act(W x + bias), both
// products on the matrix units; what is widest of a block is never in memory. The same with a stem
// in place of the expansion. In float32 it is expand_depthwise_float.cu.
//
// A block makes the outputs of a tile, for `planes` x 16 channels and for its images one after
// another. It slides down the rows: for a round of outputs, the rows of the wide map that they see
// are in shared memory (the window). Steps make some of these rows each: they
//   1. multiply W with the pixels of the rows, which makes W's channels the rows of a product and
//      pixels its columns, two of which are stored at once;
//   2. copy the pixels of the next step, while the outputs are made, if these were all rows.
// The window is in the type of x: that is where the wide map is rounded, as if it had been stored.
//
// The depthwise convolution of a channel is a product for each row k of the kernel:
//
//     inputs: 16 x 16, by ldmatrix            taps: 16 x 8               outputs: 16 x 8
//                columns of the window          outputs of a row
//             +--------------------+          +-------------+          +-------------+
//     8 rows  | unit 0 | unit 1    |          | t0          |          | 8 of a row, |
//     S apart |        |           |   times  | t1 t0       |     +=   | of 8 rows   |
//             +--------------------+          | t2 t1 t0 .. |          +-------------+
//     8 more: | unit S | unit S + 1|          |    t2 t1 .. |          | 8 more      |
//             +--------------------+          +-------------+          +-------------+
//
// A unit is 8 columns, 16 bytes of a channel. The second half of the rows is what lies 8 outputs to
// the right, or, for maps so narrow that this is nothing, 8 rows below, or the next image. Of maps
// with 9 to 16 columns halves are every other row: then a half is the other of the next row of the
// kernel, in registers already.
//
//   window: [image][row % phases][unit][row / phases][channel]; a product has rows `phases` apart
//
// Infinities and NaNs spread to all outputs of their product, to those whose swishes share a
// reciprocal, and a stem's to those of the windows beside theirs.
#include "activation.cuh"
#include "expand_depthwise.h"
#include "gemm.cuh"

namespace effnet_fast::cuda {
namespace {

constexpr int kPixels = 32;  // of a warp's product
constexpr int kGroup = 8;    // channels of a warp's outputs: 16 bytes of y
constexpr int kStemKernel = 3, kStemStride = 2;
constexpr int kStemGroups = 12;  // channels times rows of a kernel, of four channels

// Of a channel: for each row of the kernel the taps two by two, (0, t1), (t1, t2) .. (tK, 0), (0,
// 0), and alone, (t1, 0) .. (tK, 0), as the matrix units take them; then the bias, a float.
template <int K>
constexpr int kTapWords = 2 * K + 2;
template <int K>
constexpr int kConstants = K * kTapWords<K> + 1;

// From a row of the window to the next. An odd number of 16 bytes: ldmatrix meets no bank twice.
template <int kChannels>
constexpr int kRow = (kChannels + 1) * 16;

// A kernel's size and stride, and how its outputs are products.
//
//   kUnits: of inputs that 8 outputs see
//   kBlocks: of 8 outputs that the same units make, where they are all that a row has
//   kShares: see Activation; of no use where products or their inputs take more than swishes
template <int kK, int kS, int kUnits_, int kBlocks_, bool kShares_ = false>
struct Shape {
  static constexpr int K = kK, S = kS, kUnits = kUnits_, kBlocks = kBlocks_;
  static constexpr bool kShares = kShares_;
  static constexpr int kShifts = kUnits + kBlocks - 1;        // between a unit and 8 outputs
  static constexpr bool kIsWide = kUnits > S&& kBlocks == 1;  // a tile need not have all columns
  static constexpr bool kIsInterleaved = kBlocks == 2;        // halves are every other row
  // Whether a second half can be of another image, with sums of its own.
  static constexpr bool kTakesTwo = !kIsWide && !kIsInterleaved;
  // Whether what is beside the last of an odd number of columns is skipped, or has to be cleared.
  static constexpr bool kSkipsLast = kTakesTwo;

  static constexpr int kPhases = kIsInterleaved ? 2 * S : S;
  static constexpr int kRowsApart = kPhases / S;            // of y, in a product
  static constexpr int kPairs = kIsWide && S == 1 ? 2 : 1;  // of 8 columns of outputs
};

struct Tile {
  int64_t sums;           // of the image's tiles before this, and its channels before
  int image, end_image;   // of the batch
  int channel, channels;  // the first, and how many
  int row, column;        // the first of y
  int rows, columns;      // of y
  int column_of_map;      // the first of the wide map that is made
  int column_of_window;   // where that is in the window
  int wide_columns;       // that are made
};

template <class Shape, int kChannels>
__device__ Tile tile_of_block(const ExpandDepthwise& p) {
  Tile t;
  // Chunks are innermost: blocks that run together share x.
  unsigned chunk = blockIdx.x;
  unsigned tile = divide_off(chunk, p.chunks);
  t.channel = chunk * kChannels;
  t.channels = min(p.channels - t.channel, kChannels);
  t.image = divide_off(tile, p.tiles) * p.block_images;
  t.end_image = min(t.image + p.block_images, p.images);
  t.sums = int64_t{tile} * p.channels + t.channel;
  const int row_tile = divide_off(tile, p.column_tiles);
  t.row = row_tile * p.tile_rows;
  t.column = tile * p.tile_columns;
  t.rows = min(p.out_h - t.row, p.tile_rows);
  t.columns = min(p.out_w - t.column, p.tile_columns);
  const int column = t.column * Shape::S - p.window_left;
  t.column_of_map = max(column, 0);
  t.column_of_window = t.column_of_map - column;
  t.wide_columns = min(p.w - t.column_of_map, p.window_columns - t.column_of_window);
  return t;
}

// A round of outputs: rows of the window. The first are there from the round before.
struct Round {
  // How far the first row of the window is above the map's, where it is padding; or minus how far
  // below. Not the row itself, for ptxas 13.0 makes max(a, max(b, -row)) max(a, b, row) on sm_90.
  int above;
  int begin, end;                // to be made
  int inside_begin, inside_end;  // of the map

  template <class Shape>
  __device__ static Round of(const ExpandDepthwise& p, const Tile& t, int first) {
    Round r;
    r.above = p.top - (t.row + first) * Shape::S;
    r.begin = first == 0 ? 0 : Shape::K - Shape::S;
    r.end = (min(t.rows - first, p.round_rows) - 1) * Shape::S + Shape::K;
    r.inside_begin = max(r.begin, r.above);
    r.inside_end = min(r.end, p.h + r.above);
    return r;
  }
};

// Rows that are made at a time, of which some are inside the map.
struct Step {
  int end;
  int first, rows;  // inside the map

  __device__ Step(const ExpandDepthwise& p, const Round& r, int begin)
      : end(min(begin + p.step_rows, r.end)), first(max(begin, r.inside_begin)) {
    rows = max(min(end, r.inside_end) - first, 0);
  }
};

// Where two adjacent pixels of the window are. Of the window's first image and map, by row and
// column of what is made: a table, for to know it takes a dozen instructions.
struct Place {
  static constexpr uint32_t kNowhere = ~0u;
  uint32_t window;  // bytes
  int32_t x;        // elements from the window's first, or ~elements, if only the first of the two
                    // is inside the map; of a stem bytes from the first in shared memory
};

template <class Shape, int kThreads, int kChannels, bool kIsStem>
__device__ void make_places(const ExpandDepthwise& p, const Tile& t, Place* places) {
  const int rows = (p.round_rows - 1) * Shape::S + Shape::K, span = p.span.divisor;
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * span / 2; i += kThreads) {
    unsigned left = 2 * i;
    const unsigned row = divide_off(left, p.span);
    const int made = left, column = made + t.column_of_window;
    Place place;
    place.window = row % Shape::kPhases * p.phase_bytes + column / 8 * p.unit_bytes +
                   row / Shape::kPhases * kRow<kChannels> + column % 8 * 2;
    if (made >= t.wide_columns) place.window = Place::kNowhere;
    place.x = kIsStem ? (row * p.image_units.divisor * 16 + made * 2) * kStemStride
                      : row * p.x_row + made * p.x_pixel;
    if (!kIsStem && made + 1 == t.wide_columns) place.x = ~place.x;
    places[i] = place;
  }
}

// Where a unit of a row lies, in tiles of `rows` rows.
__device__ unsigned unit_at(unsigned row, unsigned unit, unsigned rows) {
  return unit / kRowUnits * rows * kRowBytes + unit_offset(row, unit % kRowUnits);
}

template <class T, int kThreads, int kChannels, int kWords>
__device__ void stage_constants(const ExpandDepthwise& p, const Tile& t, char* shared) {
  const T* weight = static_cast<const T*>(p.weight) + int64_t{t.channel} * p.weight_depth;
  const int units = p.units.divisor;
#pragma unroll 1
  for (int i = threadIdx.x; i < kChannels * units; i += kThreads) {
    unsigned unit = i;
    const int channel = divide_off(unit, p.units);
    const bool inside = channel < t.channels && static_cast<int>(unit) * kUnit<T> < p.weight_depth;
    copy_async(shared + p.weight_offset + unit_at(channel, unit, kChannels),
               weight + int64_t{channel} * p.weight_depth + unit * kUnit<T>, inside ? 16 : 0);
  }
  static_assert(kWords * kGroup % 4 == 0);
  const uint32_t* constants = p.constants + int64_t{t.channel} * kWords;
#pragma unroll 1
  for (int i = threadIdx.x * 4; i < t.channels * kWords; i += kThreads * 4) {
    copy_async(shared + i * sizeof(uint32_t), constants + i);
  }
  float* bias = reinterpret_cast<float*>(shared + p.bias_offset);
  const int i = threadIdx.x;
  if (i < kChannels) {
    bias[i] = p.expand_bias != nullptr && i < t.channels ? p.expand_bias[t.channel + i] : 0.0f;
  }
}

// x at the pixels of a step: [image][row][column], `span` columns of which some may be outside.
template <class T, class Shape, int kThreads>
__device__ void stage_pixels(const ExpandDepthwise& p, const Tile& t, const Round& r,
                             const Step& step, int image, int images, const Place* places,
                             uint32_t inputs) {
  // Two threads have the pixels of a place, and their units in turn: together sectors of 32 bytes.
  const unsigned unit = threadIdx.x % 2, own = step.rows * p.span.divisor / 2, all = images * own;
  const unsigned count = (2 * all + kPixels - 1) / kPixels * kPixels;
  const int pairs = p.units.divisor / 2;  // of units
  const T* x = static_cast<const T*>(p.x) + image * p.x_image - int64_t{r.above} * p.x_row +
               int64_t{t.column_of_map} * p.x_pixel + unit * kUnit<T>;
  // A row may end in its last unit, or before.
  const int in_last = (p.depth - (2 * pairs - 2 + static_cast<int>(unit)) * kUnit<T>)*2;
  const int last = max(min(in_last, 16), 0);
  const unsigned flip = p.fold ? kRowBytes / 2 : 16, next = p.fold ? 0 : kRowBytes;
  places += step.first * p.span.divisor / 2;
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < count; i += kThreads) {
    unsigned index = i / 2;
    const T* from = x;
    bool inside = false, is_alone = false;
    if (index < all) {
      if (Shape::kTakesTwo && index >= own) index -= own, from += p.x_image;
      const Place place = places[index];
      inside = place.window != Place::kNowhere, is_alone = place.x < 0;
      from += is_alone ? ~place.x : place.x;
    }
    const int first = inside ? 16 : 0, second = is_alone ? 0 : first;
    // Where the other pixel is; where the unit two on is, see step_offset.
    uint32_t at = inputs + unit_offset((i - unit) >> p.fold, unit);
    uint32_t beside = (at ^ flip) + next;
    int left = pairs;
#pragma unroll 1
    for (; left > kRowUnits / 2; left -= kRowUnits / 2) {
#pragma unroll
      for (int j = 0; j < kRowUnits / 2; ++j) {
        copy_async(step_offset(at, j), from + j * 2 * kUnit<T>, first);
        copy_async(step_offset(beside, j), from + p.x_pixel + j * 2 * kUnit<T>, second);
      }
      at += p.input_rows * kRowBytes, beside += p.input_rows * kRowBytes;
      from += kRowUnits * kUnit<T>;
    }
#pragma unroll
    for (int j = 0; j < kRowUnits / 2 - 1; ++j) {
      if (j + 1 >= left) break;
      copy_async(step_offset(at, j), from + j * 2 * kUnit<T>, first);
      copy_async(step_offset(beside, j), from + p.x_pixel + j * 2 * kUnit<T>, second);
    }
    from += (left - 1) * 2 * kUnit<T>;
    copy_async(step_offset(at, left - 1), from, min(first, last));
    copy_async(step_offset(beside, left - 1), from + p.x_pixel, min(second, last));
  }
}

// The first column of the image that is in shared memory, a multiple of 8; and the first that the
// stem's windows see.
struct ImageColumns {
  int begin, first;

  __device__ ImageColumns(const ExpandDepthwise& p, const Tile& t)
      : first(t.column_of_map * kStemStride - p.stem_left) {
    begin = first & ~7;
  }
};

// The part of the image that the stem's windows of a step see: [channel][row][column], zeros
// outside the image.
template <class T, int kThreads>
__device__ void stage_image(const ExpandDepthwise& p, const Tile& t, const Round& r,
                            const Step& step, int image, char* to) {
  const int rows = step.rows * kStemStride + kStemKernel - kStemStride;
  const int count = p.channels_in * p.image_rows.divisor * p.image_units.divisor;
  const int top = (step.first - r.above) * kStemStride - p.stem_top;
  const int left = ImageColumns(p, t).begin;
  const T* x = static_cast<const T*>(p.x) + image * p.x_image;
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kThreads) {
    unsigned unit = i;
    unsigned row = divide_off(unit, p.image_units);
    const unsigned channel = divide_off(row, p.image_rows);
    const int h = top + static_cast<int>(row), w = left + static_cast<int>(unit) * kUnit<T>;
    const bool has_row =
        static_cast<int>(row) < rows && static_cast<unsigned>(h) < static_cast<unsigned>(p.image_h);
    const T* from = x + channel * p.x_channel + int64_t{h} * p.x_row + int64_t{w} * p.x_pixel;
    if (p.image_is_aligned) {
      const int inside = has_row && w >= 0 ? (p.image_w - w) * static_cast<int>(sizeof(T)) : 0;
      copy_async(to + i * 16, from, max(min(inside, 16), 0));
    } else {
      Vector<T> v;
#pragma unroll
      for (int j = 0; j < kUnit<T>; ++j, from += p.x_pixel) {
        const bool inside =
            has_row && static_cast<unsigned>(w + j) < static_cast<unsigned>(p.image_w);
        v.at[j] = inside ? *from : round_to<T>(0.0f);
      }
      *reinterpret_cast<uint4*>(to + i * 16) = v.bits;
    }
  }
}

// The products of the stem's weights with a warp's pixels. Rows of both matrices are
// [channel][row][4]: two columns of a kernel are a register. One of the four has a weight of zero,
// the first where that makes the others begin at an even column of the image. `places` are the
// step's, `image` where the first's window is, `offsets` bytes to each channel and row of a kernel.
template <class T, class Product>
__device__ void multiply_stem(const ExpandDepthwise& p, const char* image, const Place* places,
                              const int* offsets, unsigned first, unsigned pixels, uint32_t weights,
                              Product& product) {
  constexpr int kTiles = kPixels / 8, kSteps = kStemGroups / 4;
  const unsigned lane = lane_of_thread(), pair = lane % 2;
  offsets += lane % 4 / 2;
  image += lane / 4 % 2 * kStemStride * sizeof(T) + pair * 4;
  const char* from[kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    from[n] = image + places[min(first / 2 + 4 * n + lane / 8, pixels / 2 - 1)].x;
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    uint32_t b[kTiles / 2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int offset = offsets[4 * step + 2 * half];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        b[n / 2][n % 2 * 2 + half] = *reinterpret_cast<const uint32_t*>(from[n] + offset);
      }
    }
    product.multiply_columns(step_offset(weights, step), b);
  }
}

// Swish, or a clamp that is relu, relu6 or nothing. With kShares every other four swishes share a
// reciprocal: more instructions, fewer results of the special-function unit.
template <bool kIsSwish, bool kShares>
struct Activation {
  float low, high;

  __device__ explicit Activation(Act act)
      : low(act == Act::kNone ? -__builtin_huge_valf() : 0.0f),
        high(act == Act::kRelu6 ? 6.0f : __builtin_huge_valf()) {}
  // In place; `turn` counts the fours before.
  __device__ void apply(float (&x)[4], int turn) const {
    if (kIsSwish && kShares && turn % 2 == 0) {
      swish_four(x);
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = kIsSwish ? swish(x[i]) : clamp(x[i], low, high);
  }
};

// The sums of a warp's product, from pixel `first` of a step on, to the window; `window` is where
// the lane's first channel is.
template <class T, class Shape, bool kIsSwish, class Product>
__device__ void store_wide(const ExpandDepthwise& p, const Place* places, unsigned first,
                           unsigned own, unsigned pixels, Product& product, char* window) {
  const Activation<kIsSwish, Shape::kShares> act(static_cast<Act>(p.expand_act));
  // From the lane's first pixel on: how many there are, and of the second image.
  const int own_first = first + Product::column(0), left = pixels - own_first;
  const int second = pixels - own;
  places += own_first / 2;
#pragma unroll
  for (int n = 0; n < Product::kRuns; ++n) {
    if (8 * n >= left) break;
    char* to = window;
    const Place* at = places + 4 * n;
    if (Shape::kTakesTwo && 8 * n >= left - second) at -= own / 2, to += p.image_bytes;
    const uint32_t place = at->window;
    if (Shape::kIsWide && place == Place::kNowhere) continue;  // narrow maps have all
    to += place;
#pragma unroll
    for (int i = 0; i < Product::kRows; i += 2) {
      // Two channels of each of two pixels.
      float x[4] = {product.run(i, n)[0], product.run(i + 1, n)[0], product.run(i, n)[1],
                    product.run(i + 1, n)[1]};
      act.apply(x, n + i / 2);
      store_two(reinterpret_cast<T*>(to + i * kGroup * 16), x[0], x[2]);
      store_two(reinterpret_cast<T*>(to + (i + 1) * kGroup * 16), x[1], x[3]);
    }
  }
}

// Makes the rows of a step that are inside the map.
template <class T, class Shape, int kWarps, int kChannels, bool kIsStem>
__device__ void expand(const ExpandDepthwise& p, const Tile& t, const Step& step, int images,
                       const Place* places, char* shared) {
  using Product = WarpTile<T, kChannels, kPixels>;
  const unsigned own = step.rows * p.span.divisor, pixels = images * own;
  const float* bias = reinterpret_cast<const float*>(shared + p.bias_offset) + Product::row(0);
  const char* const inputs = shared + p.input_offset;
  char* const window = shared + p.window_offset + Product::row(0) * 16;
  // A row of shared memory begins at a multiple of its bytes: see step_offset.
  const uint32_t weights = shared_address(shared + p.weight_offset) + Product::offset_a();
  // Of a stem where the windows of the window's first row would be.
  const ImageColumns columns(p, t);
  const char* const stem_window = inputs + (columns.first - columns.begin) * 2 -
                                  step.first * p.image_units.divisor * 16 * kStemStride;
  // Of 16 pixels, as WarpTile::offset_b, but where two share a row.
  const unsigned lane = lane_of_thread(), pixel = lane % 8 + lane / 16 * 8;
  const unsigned offset_b =
      unit_offset(pixel >> p.fold, (pixel & p.fold) * (kRowUnits / 2) + lane / 8 % 2);
  const unsigned pitch = 16 * kRowBytes >> p.fold;
  places += step.first * p.span.divisor / 2;
#pragma unroll 1
  for (unsigned first = warp_of_thread() * kPixels; first < pixels; first += kWarps * kPixels) {
    Product product;
#pragma unroll
    for (int i = 0; i < Product::kRows; ++i) {
      const float b = bias[i * kGroup];
#pragma unroll
      for (int n = 0; n < Product::kRuns; ++n) product.run(i, n)[0] = product.run(i, n)[1] = b;
    }
    if constexpr (kIsStem) {
      multiply_stem<T>(p, stem_window, places, reinterpret_cast<const int*>(shared + p.stem_offset),
                       first, pixels, weights, product);
    } else {
      uint32_t a = weights;
      uint32_t b = shared_address(inputs) + (first >> p.fold) * kRowBytes + offset_b;
#pragma unroll 1
      for (int left = p.depth; left > 0; left -= kDepth<T>) {
#pragma unroll
        for (int step = 0; step < kDepth<T> / kStep; ++step) {
          if (step > 0 && step * kStep >= left) break;
          product.multiply_at(step_offset(a, step), step_offset(b, step), pitch);
        }
        a += kChannels * kRowBytes, b += p.input_rows * kRowBytes;
      }
    }
    if (static_cast<Act>(p.expand_act) == Act::kSwish) {
      store_wide<T, Shape, true>(p, places, first, own, pixels, product, window);
    } else {
      store_wide<T, Shape, false>(p, places, first, own, pixels, product, window);
    }
  }
}

// Rows [first, end) of the window, which are outside the map.
template <class Shape, int kThreads, int kChannels>
__device__ void clear_rows(const ExpandDepthwise& p, int first, int end, char* window) {
  const int units = p.phase_bytes / p.unit_bytes;
#pragma unroll 1
  for (int row = first; row < end; ++row) {
    char* const to =
        window + row % Shape::kPhases * p.phase_bytes + row / Shape::kPhases * kRow<kChannels>;
#pragma unroll 1
    for (int unit = 0; unit < units; ++unit) {
#pragma unroll 1
      for (int channel = threadIdx.x; channel < kChannels; channel += kThreads) {
        *reinterpret_cast<uint4*>(to + unit * p.unit_bytes + channel * 16) = uint4{0, 0, 0, 0};
      }
    }
  }
}

// Of the rows that a step made the column after the map's last, where that is the first of two.
template <class T, class Shape, int kThreads, int kChannels>
__device__ void clear_column(const ExpandDepthwise& p, const Tile& t, const Step& step, int images,
                             char* window) {
  const unsigned column = t.column_of_window + t.wide_columns;
  window += column / 8 * p.unit_bytes + column % 8 * sizeof(T);
#pragma unroll 1
  for (int i = threadIdx.x; i < images * step.rows * kChannels; i += kThreads) {
    int row = i / kChannels;
    char* to = window + i % kChannels * 16;
    if (row >= step.rows) row -= step.rows, to += p.image_bytes;
    row += step.first;
    to += row % Shape::kPhases * p.phase_bytes + row / Shape::kPhases * kRow<kChannels>;
    *reinterpret_cast<T*>(to) = round_to<T>(0.0f);
  }
}

// The last rows of the window become the first.
template <class Shape, int kThreads, int kChannels>
__device__ void slide(const ExpandDepthwise& p, char* window) {
  constexpr int kBytes = (Shape::K - 1) / Shape::kPhases * kRow<kChannels>;  // adjacent, of a unit
  const int count = p.window_units * (kBytes / 16);
  const int step = p.round_rows / Shape::kRowsApart * kRow<kChannels>;
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kThreads) {
    char* const to = window + (i / (kBytes / 16) * p.unit_bytes + i % (kBytes / 16) * 16);
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(to + step);
  }
}

// A warp's outputs: of kGroup channels, 16 x 8 of each of the shape's blocks.
template <class T, class Shape, int kChannels>
class Outputs {
 public:
  // `inputs` is where the group's first channel is in the window.
  __device__ void multiply(const ExpandDepthwise& p, uint32_t inputs, int first_pair,
                           const uint32_t* constants) {
    constexpr int kPairs = Shape::kPairs, kWords = kConstants<Shape::K>;
    constexpr bool kIsWide = Shape::kIsWide;
    const unsigned lane = lane_of_thread(), half = lane / 8 % 2;
    const int units = p.phase_bytes / p.unit_bytes;
    // What a lane loads of the rows of each phase; of the third unit; where halves are every other
    // row, of the next.
    uint32_t from[kPairs][Shape::S], third[kPairs], next[2];
    inputs += lane % 8 * kRow<kChannels>;
#pragma unroll
    for (int i = 0; i < 2; ++i) next[i] = inputs + half * p.unit_bytes + i * p.phase_bytes;
    if (!kIsWide && half == 1) inputs += p.half_bytes;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      // What is beyond the window is not seen by outputs that there are: any numbers do.
      const int unit = lane / 16 + (kIsWide ? (2 * (first_pair + pair) + half) * Shape::S : 0);
      const uint32_t at = inputs + (unit < units ? unit : 0) * p.unit_bytes;
      third[pair] = unit + 2 < units ? 2 * p.unit_bytes : 0;
#pragma unroll
      for (int i = 0; i < Shape::S; ++i) from[pair][i] = at + i * p.phase_bytes;
    }
    // Taps that a lane has of the matrix for 8 outputs and a unit of columns so far from theirs.
    const uint32_t* taps[Shape::kShifts];
#pragma unroll
    for (int i = 0; i < Shape::kShifts; ++i) {
      const int first = 8 * (i - (Shape::kBlocks - 1)) + static_cast<int>(lane % 4 * 2) -
                        static_cast<int>(lane / 4) * Shape::S - p.tap_shift;
      const bool has_tap = first >= -1 && first < Shape::K;
      int word = has_tap ? first + 1 : Shape::K + 1;
      if (Shape::kSkipsLast && 8 * i + static_cast<int>(lane % 4 * 2) + 1 == p.w && has_tap) {
        word = Shape::K + (first < 0 ? 1 : 2 + first);
      }
      taps[i] = constants + word;
    }
    unroll<kGroup>([&](auto channel) {
      constexpr int c = decltype(channel)::value;

      const float bias = __uint_as_float(constants[c * kWords + Shape::K * kTapWords<Shape::K>]);
#pragma unroll
      for (int i = 0; i < kPairs * Shape::kBlocks; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum_[c][i][e] = bias;
      }
      uint32_t a[4];
      unroll<Shape::K>([&](auto row) {
        constexpr int k = decltype(row)::value;
        constexpr int kOffset = k / Shape::S * kRow<kChannels> + c * 16;
        constexpr int kNextOffset = (k + 1) / 2 * kRow<kChannels> + c * 16;
        // Or taps of all channels are loaded first, and spilled.
        if (k % (Shape::kUnits == 3 ? 2 : 3) == 0) __syncwarp();
        uint32_t tap[Shape::kShifts];
#pragma unroll
        for (int i = 0; i < Shape::kShifts; ++i) {
          tap[i] = taps[i][c * kWords + k * kTapWords<Shape::K>];
        }
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) {
          const uint32_t at = from[pair][k % Shape::S];
          [[maybe_unused]] uint32_t rest[2];
          if constexpr (Shape::kUnits == 1) {
            load_two_matrices<kOffset>(rest, at);
          } else if constexpr (Shape::kIsInterleaved && k > 0) {
            load_two_matrices<kNextOffset>(rest, next[(k + 1) % 2]);
            a[0] = a[1], a[1] = rest[0], a[2] = a[3], a[3] = rest[1];
          } else {
            load_matrices<kOffset>(a, at);
            if constexpr (Shape::kUnits == 3) {
              load_two_matrices<kOffset>(rest, at + third[pair]);
            }
          }
#pragma unroll
          for (int i = 0; i < Shape::kBlocks; ++i) {
            const uint32_t* const b = tap + Shape::kBlocks - 1 - i;
            float (&sum)[4] = sum_[c][pair * Shape::kBlocks + i];
            if constexpr (Shape::kUnits > 1) multiply_matrices<T>(sum, a, b[0], b[1]);
            if constexpr (Shape::kUnits == 1) multiply_matrices<T>(sum, rest, b[0]);
            if constexpr (Shape::kUnits == 3) multiply_matrices<T>(sum, rest, b[2]);
          }
        }
      });
    });
  }

  // Stores those of a half that are inside its first `rows` and `columns`, at y for the lane's
  // first, and adds them up.
  template <int kHalf, bool kIsSwish>
  __device__ void store(const ExpandDepthwise& p, int rows, int columns, T* y,
                        float (&sums)[kGroup]) {
    const Activation<kIsSwish, Shape::kShares> act(static_cast<Act>(p.act));
    __syncwarp();
    const int row = lane_of_thread() / 4 * Shape::kRowsApart, column = lane_of_thread() % 4 * 2;
#pragma unroll
    for (int i = 0; i < Shape::kBlocks; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float x[2][4];
#pragma unroll
        for (int c = 0; c < kGroup; ++c) {
          x[c / 4][c % 4] = sum_[c][kHalf / 2 * Shape::kBlocks + i][kHalf % 2 * 2 + e];
        }
        act.apply(x[0], 0), act.apply(x[1], 1);
        if (row < rows && column + 8 * i + e < columns) {
          uint32_t v[4];
#pragma unroll
          for (int c = 0; c < kGroup; ++c) {
            sums[c] += x[c / 4][c % 4];
            if (c % 2 == 0) v[c / 2] = two_of<T>(x[c / 4][c % 4], x[c / 4][c % 4 + 1]);
          }
          *reinterpret_cast<uint4*>(y) = make_uint4(v[0], v[1], v[2], v[3]);
        }
        y += e == 0 ? p.y_pixel : 7 * p.y_pixel;
      }
    }
  }

 private:
  float sum_[kGroup][Shape::kPairs * Shape::kBlocks][4];
};

// The sums of a warp's lanes; in the lanes that are multiples of 4, of one channel each.
__device__ float reduce(float (&x)[kGroup], unsigned& channel) {
  const unsigned lane = lane_of_thread();
  channel = lane / 16 * 4 + lane / 8 % 2 * 2 + lane / 4 % 2;
#pragma unroll
  for (int step = 16, count = kGroup / 2; count > 0; step /= 2, count /= 2) {
    const bool upper = lane & step;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const float sent = upper ? x[i] : x[i + count];
      x[i] = (upper ? x[i + count] : x[i]) + __shfl_xor_sync(~0u, sent, step);
    }
  }
  x[0] += __shfl_xor_sync(~0u, x[0], 2);
  x[0] += __shfl_xor_sync(~0u, x[0], 1);
  return x[0];
}

// The thread's number, for what depends on it not to be kept in registers from the kernel's begin
// on, and spilled.
__device__ inline unsigned thread_anew() {
  unsigned thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// Stores the sums of a warp's lanes over the tile's outputs of an image, and clears them.
template <int kWarps, int kGroups>
__device__ void store_sums(const ExpandDepthwise& p, const volatile Tile& t, int image,
                           float (&sums)[kGroup], float* scratch) {
  constexpr int kSplit = kWarps / kGroups;
  const unsigned thread = thread_anew();
  const unsigned warp = thread / 32, group = warp % kGroups;
  unsigned channel;
  float total = reduce(sums, channel);
  bool is_mine = thread % 4 == 0;
  if constexpr (kSplit > 1) {
    if (is_mine) scratch[warp * kGroup + channel] = total;
    __syncthreads();
    is_mine = is_mine && warp < kGroups;
    if (is_mine) {
      total = 0.0f;
#pragma unroll
      for (int i = 0; i < kSplit; ++i) total += scratch[(i * kGroups + group) * kGroup + channel];
    }
  }
  channel += group * kGroup;
  if (is_mine && p.sums != nullptr && static_cast<int>(channel) < t.channels) {
    p.sums[int64_t{image} * p.tiles.divisor * p.channels + t.sums + channel] = total;
  }
#pragma unroll
  for (int c = 0; c < kGroup; ++c) sums[c] = 0.0f;
}

template <class T, class Shape, int kWarps, int kPlanes, bool kIsStem>
__device__ void expand_depthwise(const ExpandDepthwise& p) {
  constexpr int kThreads = kWarps * 32, kChannels = kPlanes * 16, kGroups = kChannels / kGroup;
  constexpr int kSplit = kWarps / kGroups;  // warps that share a group
  static_assert(kWarps % kGroups == 0);
  constexpr int kWords = kConstants<Shape::K>;
  extern __shared__ __align__(128) char shared[];
  __shared__ float scratch[kSplit > 1 ? kWarps * kGroup : 1];
  // In shared memory, for it is a dozen registers.
  __shared__ Tile t;
  if (threadIdx.x == 0) t = tile_of_block<Shape, kChannels>(p);
  __syncthreads();
  char* const window = shared + p.window_offset;
  Place* const places = reinterpret_cast<Place*>(shared + p.places_offset);
  const auto stage = [&](const Round& round, int begin, int image) {
    const Step step(p, round, begin);
    char* const to = shared + p.input_offset;
    if constexpr (kIsStem) {
      stage_image<T, kThreads>(p, t, round, step, image, to);
    } else {
      const int images = min(t.end_image - image, 1 + p.half_images);
      stage_pixels<T, Shape, kThreads>(p, t, round, step, image, images, places,
                                       shared_address(to));
    }
  };
  make_places<Shape, kThreads, kChannels, kIsStem>(p, t, places);
  if (kIsStem && threadIdx.x < kStemGroups) {
    const int channel = threadIdx.x / kStemKernel, row = threadIdx.x % kStemKernel;
    // Beyond the last weights are 0; the first is there.
    const int at = channel < p.channels_in ? channel * p.image_rows.divisor + row : 0;
    reinterpret_cast<int*>(shared + p.stem_offset)[threadIdx.x] =
        at * static_cast<int>(p.image_units.divisor) * 16;
  }
  stage_constants<T, kThreads, kChannels, kWords>(p, t, shared);
#pragma unroll 1
  for (int i = threadIdx.x * 16; i < (1 + p.half_images) * p.image_bytes; i += kThreads * 16) {
    *reinterpret_cast<uint4*>(window + i) = uint4{0, 0, 0, 0};
  }
  if (!kIsStem) __syncthreads();  // for the places
  stage(Round::of<Shape>(p, t, 0), 0, t.image);

  const int64_t half_pitch = int64_t{p.half_rows} * p.y_row + int64_t{p.half_columns} * p.y_pixel +
                             p.half_images * p.y_image;
  float sums[kGroup] = {};
  // Of wide maps a block has one.
  const int end_image = Shape::kIsWide ? t.image + 1 : t.end_image;
#pragma unroll 1
  for (int image = t.image; image < end_image; image += 1 + p.half_images) {
    const int images = min(t.end_image - image, 1 + p.half_images);
#pragma unroll 1
    for (int first = 0; first < t.rows; first += p.round_rows) {
      Round round = Round::of<Shape>(p, t, first);
      const bool is_last = first + p.round_rows >= t.rows;
#pragma unroll 1
      for (int made = round.begin; made < round.end;) {
        const Step step(p, round, made);
        wait_for_copies();
        __syncthreads();
        expand<T, Shape, kWarps, kChannels, kIsStem>(p, t, step, images, places, shared);
        // What is outside is zero as before, unless other rows were in its place.
        if (step.end - made > step.rows && t.rows > p.round_rows) {
          clear_rows<Shape, kThreads, kChannels>(p, made, min(step.first, step.end), window);
          clear_rows<Shape, kThreads, kChannels>(p, max(made, round.inside_end), step.end, window);
        }
        __syncthreads();
        if (!Shape::kSkipsLast && t.wide_columns % 2 == 1) {
          clear_column<T, Shape, kThreads, kChannels>(p, t, step, images, window);
          __syncthreads();
        }
        made = step.end;
        if (Shape::kIsWide) {
          // In one place, for these have no register to spare.
          const bool is_made = made == round.end;
          if (is_made && is_last) break;
          if (is_made) round = Round::of<Shape>(p, t, first + p.round_rows), made = round.begin;
          stage(round, made, image);
          if (is_made) break;
        } else if (made < round.end) {
          stage(round, made, image);
        } else if (!is_last) {
          const Round next = Round::of<Shape>(p, t, first + p.round_rows);
          stage(next, next.begin, image);
        } else if (image + images < end_image) {
          stage(Round::of<Shape>(p, t, 0), 0, image + images);
        }
      }
      const unsigned thread = thread_anew(), lane = thread % 32;
      const int group = thread / 32 % kGroups, channel = group * kGroup;
      if (channel < t.channels) {
        const uint32_t* const constants =
            reinterpret_cast<const uint32_t*>(shared) + channel * kWords;
        T* const y =
            static_cast<T*>(p.y) + image * p.y_image +
            int64_t{t.row + first + static_cast<int>(lane / 4) * Shape::kRowsApart} * p.y_row +
            int64_t{t.column + static_cast<int>(lane % 4 * 2)} * p.y_pixel + t.channel + channel;
        const int pairs = Shape::kIsWide ? (t.columns + 15) / 16 : 1;
#pragma unroll 1
        for (int pair = thread / (32 * kGroups) * Shape::kPairs; pair < pairs;
             pair += kSplit * Shape::kPairs) {
          Outputs<T, Shape, kChannels> outputs;
          outputs.multiply(p, shared_address(window) + channel * 16, pair, constants);
          int rows = t.rows - first, columns = t.columns - pair * 16;
          T* to = y + int64_t{pair * 16} * p.y_pixel;
          unroll<2 * Shape::kPairs>([&](auto index) {
            constexpr int kHalf = decltype(index)::value;
            if (kHalf > 0 && (columns <= 0 || (p.half_images > 0 && kHalf >= images))) return;
            if (static_cast<Act>(p.act) == Act::kSwish) {
              outputs.template store<kHalf, true>(p, rows, columns, to, sums);
            } else {
              outputs.template store<kHalf, false>(p, rows, columns, to, sums);
            }
            to += half_pitch, rows -= p.half_rows, columns -= p.half_columns;
            if (Shape::kTakesTwo && p.half_images > 0) {
              store_sums<kWarps, kGroups>(p, t, image + kHalf, sums, scratch);
            }
          });
        }
      }
      if (!is_last) {
        __syncthreads();
        slide<Shape, kThreads, kChannels>(p, window);
      }
    }
    if (p.half_images == 0) store_sums<kWarps, kGroups>(p, t, image, sums, scratch);
  }
}

// Of maps of any width; of at most 16 columns, with as many outputs, or half; of at most 8.
template <int K>
using Wide = Shape<K, 1, 2, 1, true>;
template <int K>
using WideHalved = Shape<K, 2, 3, 1, true>;
template <int K>
using Block16 = Shape<K, 1, 2, 2>;
template <int K>
using Row16 = Shape<K, 2, 2, 1>;
template <int K>
using Row8 = Shape<K, 1, 1, 1>;

using OfStem = Shape<3, 1, 2, 1>;

using float16 = __half;
using bfloat16 = __nv_bfloat16;

}  // namespace

extern "C" {

#define EFFNET_FAST_KERNEL(name, T, Shape, warps, blocks, planes, is_stem) \
  __global__ void __launch_bounds__(warps * 32, blocks)                    \
      name##_##T(__grid_constant__ const ExpandDepthwise p) {              \
    expand_depthwise<T, Shape, warps, planes, is_stem>(p);                 \
  }

#define EFFNET_FAST_48(name, T, Shape) EFFNET_FAST_KERNEL(name##_48, T, Shape, 6, 2, 3, false)
// For less traffic of x where shared memory has room for the channels.
#define EFFNET_FAST_BOTH(name, T, Shape) \
  EFFNET_FAST_48(name, T, Shape)         \
  EFFNET_FAST_KERNEL(name##_64, T, Shape, 8, 1, 4, false)

#define EFFNET_FAST_ALL(K, T)                                        \
  EFFNET_FAST_48(expand_depthwise_k##K##s1_wide, T, Wide<K>)         \
  EFFNET_FAST_48(expand_depthwise_k##K##s2_wide, T, WideHalved<K>)   \
  EFFNET_FAST_BOTH(expand_depthwise_k##K##s1_block16, T, Block16<K>) \
  EFFNET_FAST_48(expand_depthwise_k##K##s2_row16, T, Row16<K>)       \
  EFFNET_FAST_BOTH(expand_depthwise_k##K##s1_row8, T, Row8<K>)

#define EFFNET_FAST_TYPE(T) \
  EFFNET_FAST_ALL(3, T)     \
  EFFNET_FAST_ALL(5, T)     \
  EFFNET_FAST_KERNEL(stem_depthwise_k3s1, T, OfStem, 8, 1, 2, true)

EFFNET_FAST_TYPE(float16)
EFFNET_FAST_TYPE(bfloat16)

#undef EFFNET_FAST_TYPE
#undef EFFNET_FAST_ALL
#undef EFFNET_FAST_BOTH
#undef EFFNET_FAST_48
#undef EFFNET_FAST_KERNEL

}  // extern "C"

}  // namespace effnet_fast::cuda
