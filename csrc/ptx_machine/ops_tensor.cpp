// mma.sync: products of small matrices held by the lanes of a warp.
#include <algorithm>

#include "decode.h"
#include "floats.h"
#include "launch_state.h"

namespace effnet_fast::ptx {
namespace {

// Where an element is: lane 4 g + t holds, of A (16 x K) in register i, rows g and g + 8 and
// columns 2t, 2t + 1 (halves) or t (tf32), the upper half of K in the registers from the third on;
// of B (K x 8) column g; of C and D (16 x 8) rows g and g + 8, columns 2t and 2t + 1. So the values
// of a register, lane by lane, are the rows of an 8 x 8 (tf32: 8 x 4) matrix.

// The halves of a register's 32 lanes as 64 floats.
void widen(const uint32_t* row, Type type, float* out) {
  uint16_t halves[2 * kLanes];
  std::memcpy(halves, row, sizeof(halves));
  if (type == Type::kF16) {
    halves_to_floats(halves, out, 2 * kLanes);
  } else {
    for (int i = 0; i < 2 * kLanes; ++i) out[i] = bfloat_to_float(halves[i]);
  }
}

// tf32 has 10 bits of mantissa: the hardware does not look at the rest.
void truncate(const uint32_t* row, float* out) {
  for (int l = 0; l < kLanes; ++l) out[l] = bit_cast<float>(row[l] & ~uint32_t{0x1FFF});
}

// in.count: input type, in.mode: K, in.target: accumulator type.
void multiply(Warp& w, const Instr& in, uint32_t exec) {
  if (exec != kAllLanes) {
    w.fail(Trap::kDivergentBarrier, __builtin_ctz(exec), "not all 32 threads of the warp are here");
  }
  const auto type = static_cast<Type>(in.count), accumulator = static_cast<Type>(in.target);
  const int k = in.mode;
  const bool tf32 = type == Type::kTf32, single = accumulator == Type::kF32;
  const int columns = tf32 ? 4 : 8;  // of a register
  const int a_count = 2 * k / columns, b_count = k / columns, c_count = single ? 4 : 2;
  const Ref* d = &w.block->launch->program.lists[in.list];
  const Ref *a = d + c_count, *b = a + a_count, *c = b + b_count;
  // Of a register the groups of lanes, rows of its matrix, that are defined.
  const auto groups = [&](Ref r) {
    uint32_t whole = 0;
    for (int g = 0; g < 8; ++g) whole |= uint32_t{(w.is_defined(r) >> (4 * g) & 15) == 15} << g;
    return whole;
  };
  const auto load = [&](Ref r, float* values) {
    if (tf32) {
      truncate(w.row<uint32_t>(r), values);
    } else {
      widen(w.row<uint32_t>(r), type, values);
    }
  };

  // A row of B or C is a vector of 8: GCC and clang both know the type.
  typedef float Row __attribute__((vector_size(32)));
  alignas(32) float ma[16][16], mb[16][8], mc[16][8], values[2 * kLanes];
  uint32_t a_rows[2] = {0xFF, 0xFF}, b_columns = 0xFF;
  for (int i = 0; i < a_count; ++i) {
    load(a[i], values);
    a_rows[i & 1] &= groups(a[i]);
    for (int g = 0; g < 8; ++g) {
      std::memcpy(&ma[g + 8 * (i & 1)][columns * (i >> 1)], values + columns * g,
                  static_cast<size_t>(columns) * sizeof(float));
    }
  }
  for (int i = 0; i < b_count; ++i) {
    load(b[i], values);
    b_columns &= groups(b[i]);
    for (int g = 0; g < 8; ++g) {
      for (int t = 0; t < columns; ++t) mb[columns * i + t][g] = values[columns * g + t];
    }
  }
  for (int i = 0; i < c_count; ++i) {
    if (single) {
      const auto* row = w.row<float>(c[i]);
      for (int l = 0; l < kLanes; ++l) mc[l / 4 + 8 * (i >> 1)][2 * (l % 4) + (i & 1)] = row[l];
    } else {
      widen(w.row<uint32_t>(c[i]), Type::kF16, values);
      std::memcpy(mc[8 * i], values, sizeof(values));
    }
  }
  // Products are exact in float32, tf32's too: a multiply and an add are a fused multiply-add. How
  // hardware rounds their sum is not documented: here after every product.
  const auto* rows = reinterpret_cast<const Row*>(mb);
  for (int m = 0; m < 16; m += 4) {
    Row sum[4];
    std::memcpy(sum, mc[m], sizeof(sum));
    for (int i = 0; i < k; ++i) {
      for (int r = 0; r < 4; ++r) sum[r] += ma[m + r][i] * rows[i];
    }
    std::memcpy(mc[m], sum, sizeof(sum));
  }
  for (int i = 0; i < c_count; ++i) {
    uint32_t result[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      const int g = l / 4, t = l % 4;
      if (single) {
        result[l] = bit_cast<uint32_t>(canonical(mc[g + 8 * (i >> 1)][2 * t + (i & 1)]));
      } else {
        result[l] = uint32_t{float_to_half(mc[g + 8 * i][2 * t + 1])} << 16 |
                    float_to_half(mc[g + 8 * i][2 * t]);
      }
    }
    // An element is as defined as the row of A, the column of B and the element of C behind it.
    uint32_t sources = 0;
    for (int l = 0; l < kLanes; ++l) {
      const uint32_t columns_of = single ? 1u << (2 * (l % 4) + (i & 1)) : 3u << (2 * (l % 4));
      const bool row = a_rows[single ? i >> 1 : i] >> (l / 4) & 1;
      sources |= uint32_t{row && (b_columns & columns_of) == columns_of} << l;
    }
    const uint32_t before = w.is_defined(c[i]);
    w.write(d[i], result, exec);
    w.define(d[i], exec, sources & before);
  }
}

void mma_rule(Decoder& d, Instr& in) {
  if (!d.take("sync") || !d.take("aligned")) return;
  const int shape = d.take_one_of({"m16n8k16", "m16n8k8", "m16n8k4"});
  if (shape < 0 || !d.take("row") || !d.take("col")) return;
  const Type td = d.type(), ta = d.type(), tb = d.type(), tc = d.type();
  const int k = 16 >> shape;
  const bool half = ta == Type::kF16, bfloat = ta == Type::kBf16, tf32 = ta == Type::kTf32;
  if (ta != tb || td != tc || !(half || bfloat || tf32)) return;
  if (td != Type::kF32 && !(half && td == Type::kF16)) return;
  if (tf32 ? k == 16 : k == 4) return;
  d.expect(4, 4);
  const size_t counts[] = {td == Type::kF32 ? 4u : 2u, static_cast<size_t>(tf32 ? k / 2 : k / 4),
                           static_cast<size_t>(tf32 ? k / 4 : k / 8), td == Type::kF32 ? 4u : 2u};
  std::vector<Ref> refs;
  for (size_t i = 0; i < 4; ++i) {
    const std::vector<Operand> parts = d.parts(i);
    if (parts.size() != counts[i]) d.unknown("the number of registers is not that of its shape");
    for (const Operand& p : parts) {
      refs.push_back(i == 0 ? d.destination(p, 32) : d.source(p, 32, i == 3 ? td : Type::kNone));
    }
  }
  in.list = d.list(refs);
  in.count = static_cast<uint8_t>(ta);
  in.mode = static_cast<uint8_t>(k);
  in.target = static_cast<uint32_t>(td);
  in.run = multiply;
}

// A matrix of 8 x 8 halves, transposed across the warp.
void move_matrix(Warp& w, const Instr& in, uint32_t exec) {
  if (exec != kAllLanes) {
    w.fail(Trap::kDivergentBarrier, __builtin_ctz(exec), "not all 32 threads of the warp are here");
  }
  const auto* a = w.row<uint32_t>(in.a);
  uint32_t result[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    result[l] = 0;
    for (int e = 0; e < 2; ++e) {
      const int row = 2 * (l % 4) + e, column = l / 4;  // of the source
      const uint32_t pair = a[4 * row + column / 2];
      result[l] |= (pair >> (16 * (column % 2)) & 0xFFFF) << (16 * e);
    }
  }
  const bool defined = w.is_defined(in.a) == kAllLanes;
  w.write(in.d, result, exec);
  w.define(in.d, exec, defined ? kAllLanes : 0);
}

void movmatrix_rule(Decoder& d, Instr& in) {
  if (!d.take("sync") || !d.take("aligned") || !d.take("m8n8") || !d.take("trans")) return;
  if (d.type() != Type::kB16) return;
  d.expect(2, 2);
  in.d = d.destination(0, 32);
  in.a = d.source(1, 32);
  in.run = move_matrix;
}

}  // namespace

std::vector<RuleEntry> tensor_rules() {
  return {{"mma", mma_rule, Class::kTensor}, {"movmatrix", movmatrix_rule, Class::kTensor}};
}

}  // namespace effnet_fast::ptx
