// fused_mbconv for 3 x 3 windows of stride 1 by Winograd's F(2 x 2, 3 x 3): 16 products for four
// outputs and an input channel instead of 36.
//
// Outputs are cut into tiles of 2 x 2. Of a tile, 4 x 4 input pixels d become B' d B: 16 vectors of
// input channels. Each is multiplied with a matrix of its own, of the weights G g G' (packed as a
// 4 x 4 window: [panel][place][input channel][channels of the panel]), and A' m A makes the 2 x 2
// outputs of the 16 results (Lavin and Gray 2015). That makes an error of the products 1.7 times as
// large, so their chains are shorter than elsewhere. An input reaches no output but its windows',
// where an infinite one comes out as NaN.
#include "activation.h"
#include "gemm.h"
#include "operators.h"

namespace effnet_fast::EFFNET_FAST_ISA {

namespace {

constexpr int64_t kPlaces = 16;  // of a tile's 4 x 4 inputs
// Products in a chain. With 96 input channels the relative L2 error is 3.0e-7 in one chain, 2.2e-7
// in two, as the direct convolution's; a network of 61 such layers, tf_efficientnetv2_xl, missed
// its bound with one.
constexpr int64_t kMostOfRun = 48;

struct Layout {
  int64_t tiles;                                 // of a block
  int64_t inputs, products, wide, zeros, total;  // offsets into the worker's scratch

  Layout(const Conv& conv, const Conv* project) {
    // Multiples of the register tiles' rows, 14 and 6. With 48 to 192 channels a block takes 340
    // KB.
    tiles = 42;
    inputs = 0;
    products = inputs + round_up(kPlaces * tiles * conv.cin, 16);
    wide = products + kPlaces * tiles * kMaxPanel;
    zeros = wide + (project ? round_up(4 * tiles * conv.cout, 16) : 0);
    total = zeros + round_up(conv.cin, 16);
  }
};

// Where the tiles of an output map lie.
struct Tiles {
  int64_t width, count;

  explicit Tiles(const Map& y) : width(ceil_div(y.w, 2)), count(width * ceil_div(y.h, 2)) {}
};

// inputs[place * stride + c] = the c-th channel of B' d B, d the 4 x 4 pixels.
void transform_input(const float* const (&d)[kPlaces], int64_t channels, int64_t stride,
                     float* inputs) {
  for_each_vec(channels, [&](int64_t c, auto lanes) {
    const auto at = [&](int row, int column) { return load(d[4 * row + column] + c, lanes); };
    for (int row = 0; row < 4; ++row) {
      // Of rows: d0 - d2, d1 + d2, d2 - d1, d1 - d3; then of columns alike.
      Vec t[4];
      for (int column = 0; column < 4; ++column) {
        const Vec one = at(row == 0 ? 0 : row == 2 ? 2 : 1, column);
        const Vec other = at(row == 2 ? 1 : row == 3 ? 3 : 2, column);
        t[column] = row == 1 ? one + other : one - other;
      }
      float* const to = inputs + 4 * row * stride + c;
      store(to, t[0] - t[2], lanes);
      store(to + stride, t[1] + t[2], lanes);
      store(to + 2 * stride, t[2] - t[1], lanes);
      store(to + 3 * stride, t[1] - t[3], lanes);
    }
  });
}

// y = act(A' m A + bias) of one vector of channels, m[place * stride]; y in reading order.
EFFNET_FAST_INLINE void transform_output(const float* m, int64_t stride, Vec bias, Act act,
                                         Vec (&y)[4]) {
  Vec s[2][4];
  for (int column = 0; column < 4; ++column) {
    const auto at = [&](int row) { return load(m + (4 * row + column) * stride); };
    const Vec sum = at(1) + at(2), difference = at(1) - at(2);
    s[0][column] = at(0) + sum;
    s[1][column] = difference - at(3);
  }
  for (int row = 0; row < 2; ++row) {
    y[2 * row] = s[row][0] + (s[row][1] + s[row][2]) + bias;
    y[2 * row + 1] = (s[row][1] - s[row][2]) - s[row][3] + bias;
  }
  activate(act, y);
}

// A tile's outputs that lie on the map: where they go, and what is added; null where they don't.
struct Outputs {
  float* y[4];
  const float* residual[4];
};

// A panel's outputs of a block of tiles.
void finish_panel(const Gemm& g, int64_t panel, const float* products, int64_t tiles,
                  int64_t stride, const Outputs* outputs) {
  const int64_t channel = panel * kPanel;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const Outputs& out = outputs[tile];
    const float* m = products + tile * kMaxPanel;
    for_each_vec(g.panels.channels(panel), [&](int64_t c, auto lanes) {
      const Vec bias = g.bias ? load(g.bias + channel + c, lanes) : zero();
      Vec y[4];
      transform_output(m + c, stride, bias, g.act, y);
      for (int i = 0; i < 4; ++i) {
        if (!out.y[i]) continue;
        if (out.residual[i]) y[i] = y[i] + load(out.residual[i] + channel + c, lanes);
        store(out.y[i] + channel + c, y[i], lanes);
      }
    });
  }
}

}  // namespace

Scratch winograd_mbconv_scratch(const Conv& conv, const Window&, const Conv* project, const Map&) {
  return {Layout(conv, project).total, 0};
}

void winograd_mbconv(const Conv& conv, const Window& window, const Conv* project, const Map& x,
                     const Map* residual, const Map& y, const Worker& worker) {
  const Layout layout(conv, project);
  float* const inputs = worker.scratch + layout.inputs;
  float* const products = worker.scratch + layout.products;
  float* const wide = worker.scratch + layout.wide;
  float* const zeros = worker.scratch + layout.zeros;
  for (int64_t c = 0; c < conv.cin; ++c) zeros[c] = 0.0f;
  const int64_t input_stride = layout.tiles * conv.cin;
  const int64_t product_stride = layout.tiles * kMaxPanel;
  const int64_t run = ceil_div(conv.cin, ceil_div(conv.cin, kMostOfRun));

  const Gemm dense{conv.weight, conv.bias, 1, conv.cin, conv.act, Panels(conv.cout)};
  const Conv& last = project ? *project : conv;
  const Gemm narrow{last.weight, last.bias, 1, last.cin, last.act, Panels(last.cout)};
  const float* a_pixels[kMaxBlock];
  float* y_pixels[kMaxBlock];
  const float* wide_pixels[kMaxBlock];
  const float* residual_pixels[kMaxBlock];
  Outputs outputs[kMaxBlock / 4];

  const Tiles all(y);
  const int64_t first = all.count * worker.id / worker.count;
  const EvenCut blocks(all.count * (worker.id + 1) / worker.count - first, layout.tiles);
  for (int64_t i = 0; i < blocks.count; ++i) {
    const int64_t begin = first + blocks.begin(i), count = first + blocks.begin(i + 1) - begin;
    int64_t pixels = 0;  // of the block's outputs, those on the map
    for (int64_t tile = 0; tile < count; ++tile) {
      const int64_t row = (begin + tile) / all.width * 2, column = (begin + tile) % all.width * 2;
      const float* d[kPlaces];
      for (int place = 0; place < kPlaces; ++place) {
        const int64_t iy = row - window.top + place / 4, ix = column - window.left + place % 4;
        const bool inside = iy >= 0 && iy < x.h && ix >= 0 && ix < x.w;
        d[place] = inside ? x.data + iy * x.row + ix * x.pixel : zeros;
      }
      transform_input(d, conv.cin, input_stride, inputs + tile * conv.cin);
      for (int j = 0; j < 4; ++j) {
        const int64_t oy = row + j / 2, ox = column + j % 2;
        const bool inside = oy < y.h && ox < y.w;
        outputs[tile].y[j] = nullptr;
        outputs[tile].residual[j] = nullptr;
        if (!inside) continue;
        const float* const added =
            residual ? residual->data + oy * residual->row + ox * residual->pixel : nullptr;
        outputs[tile].y[j] = y.data + oy * y.row + ox * y.pixel;
        outputs[tile].residual[j] = added;
        if (!project) continue;
        y_pixels[pixels] = outputs[tile].y[j];
        residual_pixels[pixels] = added;
        wide_pixels[pixels] = outputs[tile].y[j] = wide + pixels * conv.cout;
        outputs[tile].residual[j] = nullptr;
        ++pixels;
      }
    }
    for (int64_t panel = 0; panel < dense.panels.count; ++panel) {
      const int64_t floats = conv.cin * dense.panels.vecs(panel) * kLanes;  // of a place's weights
      for (int64_t place = 0; place < kPlaces; ++place) {
        Gemm of_place{conv.weight + panel * kPanel * (kPlaces - 1) * conv.cin + place * floats,
                      nullptr,
                      1,
                      conv.cin,
                      Act::kNone,
                      dense.panels,
                      run};
        float* product_pixels[kMaxBlock];
        for (int64_t tile = 0; tile < count; ++tile) {
          a_pixels[tile] = inputs + place * input_stride + tile * conv.cin;
          product_pixels[tile] = products + place * product_stride + tile * kMaxPanel;
        }
        gemm_panel(of_place, panel, Pixels{count, a_pixels, 0, product_pixels, nullptr},
                   panel * kPanel);
      }
      finish_panel(dense, panel, products, count, product_stride, outputs);
    }
    if (!project) continue;
    const Pixels out{pixels, wide_pixels, 0, y_pixels, residual ? residual_pixels : nullptr};
    for (int64_t panel = 0; panel < narrow.panels.count; ++panel) gemm_panel(narrow, panel, out);
  }
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
