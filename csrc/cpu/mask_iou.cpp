// Packs masks into bits and counts the bits that two masks share.
#include "ops/mask_iou.h"

#include <cstring>

#include "common/simd_types.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// one bit per byte that is not 0, the first byte in the lowest bit
#if defined(FASTVISION_AVX512)
inline uint64_t pack(const uint8_t* p) {
  const __m512i bytes = _mm512_loadu_si512(p);
  return _mm512_test_epi8_mask(bytes, bytes);
}
#elif defined(FASTVISION_AVX2)
inline uint64_t pack(const uint8_t* p) {
  uint64_t zeros = 0;
  for (int half = 0; half < 2; ++half) {
    const __m256i bytes = _mm256_loadu_si256((const __m256i*)(p + 32 * half));
    const __m256i equal = _mm256_cmpeq_epi8(bytes, _mm256_setzero_si256());
    zeros |= (uint64_t)(uint32_t)_mm256_movemask_epi8(equal) << 32 * half;
  }
  return ~zeros;
}
#else
inline uint64_t pack(const uint8_t* p) {
  uint64_t bits = 0;
  for (int i = 0; i < 64; ++i) {
    bits |= (uint64_t)(p[i] != 0) << i;
  }
  return bits;
}
#endif

inline int64_t count_bits(uint64_t x) {
#if defined(__POPCNT__)
  return __builtin_popcountll(x);
#else
  x -= x >> 1 & 0x5555555555555555;
  x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0f;
  return (int64_t)(x * 0x0101010101010101 >> 56);
#endif
}

inline int64_t lower(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t higher(int64_t a, int64_t b) { return a > b ? a : b; }

MaskExtent pack_mask(const MaskBits& bits, const uint8_t* pixels, uint64_t* words) {
  MaskExtent extent{0, bits.H, 0, bits.row_words, 0};
  for (int64_t row = 0; row < bits.H; ++row) {
    for (int64_t column = 0; column < bits.row_words; ++column) {
      const int64_t left = bits.W - 64 * column;
      uint64_t word;
      if (left >= 64) {
        word = pack(pixels + 64 * column);
      } else {
        uint8_t rest[64] = {};
        memcpy(rest, pixels + 64 * column, left);
        word = pack(rest);
      }
      words[column] = word;
      if (word != 0) {
        extent.pixels += count_bits(word);
        extent.top = lower(extent.top, row);
        extent.bottom = row + 1;
        extent.left = lower(extent.left, column);
        extent.right = higher(extent.right, column + 1);
      }
    }
    pixels += bits.W;
    words += bits.row_words;
  }
  return extent.pixels > 0 ? extent : MaskExtent{};
}

}  // namespace

void pack_masks(const MaskBits& bits, const uint8_t* pixels, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    uint64_t* words = bits.words + i * bits.H * bits.row_words;
    bits.extents[i] = pack_mask(bits, pixels + i * bits.H * bits.W, words);
  }
}

int64_t mask_intersection(const MaskBits& a, int64_t i, const MaskBits& b, int64_t j) {
  const MaskExtent &ea = a.extents[i], &eb = b.extents[j];
  const int64_t top = higher(ea.top, eb.top), bottom = lower(ea.bottom, eb.bottom);
  const int64_t left = higher(ea.left, eb.left), right = lower(ea.right, eb.right);
  if (left >= right) {
    return 0;
  }
  int64_t count = 0;
  for (int64_t row = top; row < bottom; ++row) {
    const uint64_t* p = a.words + (i * a.H + row) * a.row_words;
    const uint64_t* q = b.words + (j * b.H + row) * b.row_words;
    for (int64_t column = left; column < right; ++column) {
      count += count_bits(p[column] & q[column]);
    }
  }
  return count;
}

}  // namespace fastvision::FASTVISION_ISA
