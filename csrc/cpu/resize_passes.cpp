// The two passes of a resize. Both are sums of rows of bytes with a weight for each row: along
// columns they are the image's rows; along rows kRowsAtOnce of them are interleaved, pixel by pixel
// in 4 bytes, and every source column is such a row of bytes.
#include "operators.h"
#include "simd.h"

namespace effnet_fast::EFFNET_FAST_ISA {

namespace {

constexpr int64_t kBlock = 32;  // bytes that are summed in registers
static_assert(kBlock == kRowsAtOnce * 4);

#if defined(__AVX512F__)

struct Sums8 {
  __m512i low, high;
};
EFFNET_FAST_INLINE Sums8 halves() {
  const __m512i half = _mm512_set1_epi32(1 << (kWeightBits - 1));
  return {half, half};
}
EFFNET_FAST_INLINE void add(Sums8& sums, const uint8_t* x, int32_t weight) {
  const __m512i w = _mm512_set1_epi32(weight);
  const auto product = [&](const uint8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_mullo_epi32(_mm512_cvtepu8_epi32(bytes), w);
  };
  sums.low = _mm512_add_epi32(sums.low, product(x));
  sums.high = _mm512_add_epi32(sums.high, product(x + 16));
}
EFFNET_FAST_INLINE void store(uint8_t* y, const Sums8& sums) {
  const auto bytes = [](__m512i sum) {
    const __m512i whole = _mm512_srai_epi32(sum, kWeightBits);
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(whole, _mm512_setzero_si512()));
  };
  _mm_storeu_si128(reinterpret_cast<__m128i*>(y), bytes(sums.low));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(y + 16), bytes(sums.high));
}

#elif defined(__AVX2__)

struct Sums8 {
  __m256i part[4];
};
EFFNET_FAST_INLINE Sums8 halves() {
  const __m256i half = _mm256_set1_epi32(1 << (kWeightBits - 1));
  return {{half, half, half, half}};
}
EFFNET_FAST_INLINE void add(Sums8& sums, const uint8_t* x, int32_t weight) {
  const __m256i w = _mm256_set1_epi32(weight);
  for (int i = 0; i < 4; ++i) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x + 8 * i));
    const __m256i product = _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), w);
    sums.part[i] = _mm256_add_epi32(sums.part[i], product);
  }
}
EFFNET_FAST_INLINE void store(uint8_t* y, const Sums8& sums) {
  const auto whole = [&](int i) { return _mm256_srai_epi32(sums.part[i], kWeightBits); };
  // Both saturate, and both do so within halves of a register, which the permutation undoes.
  const __m256i words[2] = {_mm256_packs_epi32(whole(0), whole(1)),
                            _mm256_packs_epi32(whole(2), whole(3))};
  const __m256i bytes = _mm256_packus_epi16(words[0], words[1]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm256_permutevar8x32_epi32(bytes, order));
}

#else

struct Sums8 {
  int32_t lane[kBlock];
};
EFFNET_FAST_INLINE Sums8 halves() {
  Sums8 sums;
  for (int32_t& lane : sums.lane) lane = 1 << (kWeightBits - 1);
  return sums;
}
EFFNET_FAST_INLINE void add(Sums8& sums, const uint8_t* x, int32_t weight) {
  for (int64_t i = 0; i < kBlock; ++i) sums.lane[i] += weight * x[i];
}
EFFNET_FAST_INLINE void store(uint8_t* y, const Sums8& sums) {
  for (int64_t i = 0; i < kBlock; ++i) {
    const int32_t whole = sums.lane[i] >> kWeightBits;
    y[i] = static_cast<uint8_t>(whole < 0 ? 0 : whole > 255 ? 255 : whole);
  }
}

#endif

// Of kRowsAtOnce rows the pixels [0, the result) that can be read in the quickest way, in 4 bytes
// each, the last of which means nothing: y[pixel][row].
EFFNET_FAST_INLINE int64_t interleave(const uint8_t* const (&rows)[kRowsAtOnce], int64_t width,
                                      uint8_t* y) {
  int64_t i = 0;
#if defined(__AVX2__)
  // A transposition of four pixels of eight rows: 24 instructions, where copies would be 64. A load
  // takes 16 bytes of which 12 are used.
  const __m256i spread = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1));
  for (; 3 * i + 16 <= 3 * width; i += 4, y += 4 * kBlock) {
    __m256i pair[4];  // rows r and r + 4
    for (int r = 0; r < 4; ++r) {
      const auto half = [&](int row) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + 3 * i));
      };
      pair[r] = _mm256_shuffle_epi8(_mm256_set_m128i(half(r + 4), half(r)), spread);
    }
    const __m256i low[2] = {_mm256_unpacklo_epi32(pair[0], pair[1]),
                            _mm256_unpacklo_epi32(pair[2], pair[3])};
    const __m256i high[2] = {_mm256_unpackhi_epi32(pair[0], pair[1]),
                             _mm256_unpackhi_epi32(pair[2], pair[3])};
    __m256i* const to = reinterpret_cast<__m256i*>(y);
    _mm256_storeu_si256(to, _mm256_unpacklo_epi64(low[0], low[1]));
    _mm256_storeu_si256(to + 1, _mm256_unpackhi_epi64(low[0], low[1]));
    _mm256_storeu_si256(to + 2, _mm256_unpacklo_epi64(high[0], high[1]));
    _mm256_storeu_si256(to + 3, _mm256_unpackhi_epi64(high[0], high[1]));
  }
#else
  for (; i + 1 < width; ++i, y += kBlock) {
    for (int64_t r = 0; r < kRowsAtOnce; ++r) __builtin_memcpy(y + 4 * r, rows[r] + 3 * i, 4);
  }
#endif
  return i;
}

// y[0, kBlock) = the weighted sum of rows `stride` bytes apart.
EFFNET_FAST_INLINE void sum_block(const uint8_t* x, int64_t stride, const Taps& taps, uint8_t* y) {
  Sums8 sums = halves();
  for (int64_t k = 0; k < taps.count; ++k, x += stride) add(sums, x, taps.weight[k]);
  store(y, sums);
}

}  // namespace

void resize_rows(const RgbImage& x, const Taps* outputs, int64_t count, uint8_t* scratch,
                 uint8_t* y, int64_t y_row) {
  const uint8_t* rows[kRowsAtOnce];
  for (int64_t r = 0; r < kRowsAtOnce; ++r) rows[r] = x.data + least(r, x.height - 1) * x.row;
  for (int64_t i = interleave(rows, x.width, scratch); i < x.width; ++i) {
    for (int64_t r = 0; r < kRowsAtOnce; ++r) {
      uint8_t* const pixel = scratch + i * kBlock + 4 * r;
      __builtin_memcpy(pixel, rows[r] + 3 * i, 3);
      pixel[3] = 0;
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    uint8_t pixels[kBlock];
    sum_block(scratch + outputs[i].first * kBlock, kBlock, outputs[i], pixels);
    for (int64_t r = 0; r < x.height; ++r)
      __builtin_memcpy(y + r * y_row + 3 * i, pixels + 4 * r, 4);
  }
}

void resize_column(const uint8_t* x, int64_t row, int64_t bytes, const Taps& taps, uint8_t* y) {
  const uint8_t* const top = x + taps.first * row;
  if (bytes < kBlock) {
    for (int64_t i = 0; i < bytes; ++i) {
      int32_t sum = 1 << (kWeightBits - 1);
      for (int64_t k = 0; k < taps.count; ++k) sum += taps.weight[k] * top[k * row + i];
      const int32_t whole = sum >> kWeightBits;
      y[i] = static_cast<uint8_t>(whole < 0 ? 0 : whole > 255 ? 255 : whole);
    }
    return;
  }
  // The last block may overlap the one before.
  for (int64_t i = 0; i < bytes; i += kBlock) {
    const int64_t at = least(i, bytes - kBlock);
    sum_block(top + at, row, taps, y + at);
  }
}

}  // namespace effnet_fast::EFFNET_FAST_ISA
