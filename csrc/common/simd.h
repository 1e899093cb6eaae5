// Vectors of one register's width for the CPU kernels, on the compiler's vector extensions.
// Included by files of csrc/cpu only: everything here is compiled once per level, so it has
// internal linkage and no header with inline functions of external linkage (torch, the standard
// library) may come in beside it: the linker could keep the copy that this CPU cannot run.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(FASTVISION_EMULATE_AVX512)
// 64-byte vectors in plain code: the widest level can be tested on a CPU that does not have it
#elif defined(__AVX512F__)
#define FASTVISION_AVX512
#include <immintrin.h>
#elif defined(__AVX2__)
#define FASTVISION_AVX2
#include <immintrin.h>
#endif

#include "common/scalar.h"

namespace fastvision::FASTVISION_ISA {
namespace {

#if defined(FASTVISION_AVX512) || defined(FASTVISION_EMULATE_AVX512)
constexpr int kVectorBytes = 64;
#elif defined(FASTVISION_AVX2)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef float float_v __attribute__((vector_size(kVectorBytes)));
typedef double double_v __attribute__((vector_size(kVectorBytes)));
typedef int32_t int32_v __attribute__((vector_size(kVectorBytes)));
typedef int64_t int64_v __attribute__((vector_size(kVectorBytes)));
typedef uint32_t uint32_v __attribute__((vector_size(kVectorBytes)));
typedef uint64_t uint64_v __attribute__((vector_size(kVectorBytes)));
typedef uint16_t uint16_half_v __attribute__((vector_size(kVectorBytes / 2)));

template <typename T>
struct simd;
template <>
struct simd<float> {
  using vector = float_v;
  using mask = int32_v;  // what comparing two vectors gives: -1 or 0 per lane
  static constexpr int lanes = kVectorBytes / 4;
};
template <>
struct simd<double> {
  using vector = double_v;
  using mask = int64_v;
  static constexpr int lanes = kVectorBytes / 8;
};
template <typename T>
using vector_t = typename simd<T>::vector;
template <typename T>
constexpr int lanes_v = simd<T>::lanes;

// ---- load a register of float or double from any storage type, and store it back (rounding to
// nearest even)

inline float_v load(const float* p) {
  float_v v;
  memcpy(&v, p, sizeof v);
  return v;
}

inline double_v load(const double* p) {
  double_v v;
  memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, float_v v) { memcpy(p, &v, sizeof v); }
inline void store(double* p, double_v v) { memcpy(p, &v, sizeof v); }

#if defined(FASTVISION_AVX2)
// in one instruction, for which GCC takes four
inline float_v load(const bfloat16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  return (float_v)_mm256_slli_epi32(wide, 16);
}
#else
inline float_v load(const bfloat16_t* p) {
  uint16_half_v raw;
  memcpy(&raw, p, sizeof raw);
  const uint32_v bits = __builtin_convertvector(raw, uint32_v) << 16;
  return (float_v)bits;
}
#endif

inline void store(bfloat16_t* p, float_v v) {
  const uint32_v bits = (uint32_v)v;
  const uint32_v rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const int32_v is_nan = v != v;
  const uint32_v quiet_nan = uint32_v{} + 0x7fc0;
  const uint32_v chosen = ((uint32_v)is_nan & quiet_nan) | (~(uint32_v)is_nan & rounded);
  const uint16_half_v raw = __builtin_convertvector(chosen, uint16_half_v);
  memcpy(p, &raw, sizeof raw);
}

#if defined(FASTVISION_AVX512)
inline float_v load(const half_t* p) {
  return (float_v)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
inline void store(half_t* p, float_v v) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(FASTVISION_AVX2)
inline float_v load(const half_t* p) {
  return (float_v)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
inline void store(half_t* p, float_v v) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
// no conversion instruction: the exponent is rebased by a float multiplication, exact also for
// subnormals
inline float_v load(const half_t* p) {
  uint16_half_v raw;
  memcpy(&raw, p, sizeof raw);
  const uint32_v wide = __builtin_convertvector(raw, uint32_v);
  const uint32_v sign = (wide & 0x8000) << 16;
  const uint32_v magnitude = wide & 0x7fff;
  const float_v scaled = (float_v)(magnitude << 13) * 0x1p112f;
  const uint32_v special = (uint32_v)(magnitude >= 0x7c00);  // infinity and NaN keep their mantissa
  const uint32_v bits =
      (special & ((magnitude << 13) | 0x7f800000)) | (~special & (uint32_v)scaled);
  return (float_v)(bits | sign);
}

inline void store(half_t* p, float_v v) {
  const uint32_v bits = (uint32_v)v;
  const uint32_v sign = (bits >> 16) & 0x8000;
  const uint32_v magnitude = bits & 0x7fffffff;
  // normal results: round the 13 lost bits to nearest even, then rebase the exponent
  const uint32_v normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
  // subnormal results: adding 0.5 lets the float unit do the rounding
  const uint32_v subnormal = (uint32_v)((float_v)magnitude + 0.5f) - 0x3f000000;
  const uint32_v is_small = (uint32_v)(magnitude < (113u << 23));
  const uint32_v is_large = (uint32_v)(magnitude >= 0x477ff000);
  const uint32_v is_nan = (uint32_v)(magnitude > 0x7f800000);
  uint32_v result = (is_small & subnormal) | (~is_small & normal);
  result = (is_large & 0x7c00) | (~is_large & result);
  result = (is_nan & 0x7e00) | (~is_nan & result);
  const uint16_half_v raw = __builtin_convertvector(result | sign, uint16_half_v);
  memcpy(p, &raw, sizeof raw);
}
#endif

// ---- the first `count` lanes only; the others read as zero and are not written

template <typename T>
inline auto load_partial(const T* p, int count) {
  T buffer[kVectorBytes / sizeof(accumulate_t<T>)] = {};
  memcpy(buffer, p, count * sizeof(T));
  return load(buffer);
}

template <typename T, typename V>
inline void store_partial(T* p, V v, int count) {
  T buffer[kVectorBytes / sizeof(accumulate_t<T>)];
  store(buffer, v);
  memcpy(p, buffer, count * sizeof(T));
}

// ---- arithmetic

#if defined(FASTVISION_AVX512)
inline float_v broadcast(float x) { return (float_v)_mm512_set1_ps(x); }
inline double_v broadcast(double x) { return (double_v)_mm512_set1_pd(x); }
#elif defined(FASTVISION_AVX2)
inline float_v broadcast(float x) { return (float_v)_mm256_set1_ps(x); }
inline double_v broadcast(double x) { return (double_v)_mm256_set1_pd(x); }
#else
template <typename T>
inline vector_t<T> broadcast(T x) {
  vector_t<T> v;
  for (int i = 0; i < lanes_v<T>; ++i) {
    v[i] = x;
  }
  return v;
}
#endif

// a * b + c with one rounding where the level has the instruction
inline float_v multiply_add(float_v a, float_v b, float_v c) {
#if defined(FASTVISION_AVX512)
  return (float_v)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(FASTVISION_AVX2)
  return (float_v)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

inline double_v multiply_add(double_v a, double_v b, double_v c) {
#if defined(FASTVISION_AVX512)
  return (double_v)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(FASTVISION_AVX2)
  return (double_v)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

template <typename V>
inline V min(V a, V b) {
  return a < b ? a : b;
}

template <typename V>
inline V max(V a, V b) {
  return a > b ? a : b;
}

// one bit per lane of a comparison's result
inline uint32_t movemask(int32_v m) {
#if defined(FASTVISION_AVX512)
  return _mm512_movepi32_mask((__m512i)m);
#elif defined(FASTVISION_AVX2)
  return (uint32_t)_mm256_movemask_ps((__m256)m);
#else
  uint32_t bits = 0;
  for (int i = 0; i < lanes_v<float>; ++i) {
    bits |= (uint32_t)(m[i] & 1) << i;
  }
  return bits;
#endif
}

inline uint32_t movemask(int64_v m) {
#if defined(FASTVISION_AVX512)
  return _mm512_movepi64_mask((__m512i)m);
#elif defined(FASTVISION_AVX2)
  return (uint32_t)_mm256_movemask_pd((__m256d)m);
#else
  uint32_t bits = 0;
  for (int i = 0; i < lanes_v<double>; ++i) {
    bits |= (uint32_t)(m[i] & 1) << i;
  }
  return bits;
#endif
}

// Transposes the square of `lanes` vectors in place: off-diagonal blocks of 1, 2, 4, ... are
// swapped.
template <int... I>
struct lane_list {};
template <int N, int... I>
struct make_lanes : make_lanes<N - 1, N - 1, I...> {};
template <int... I>
struct make_lanes<0, I...> {
  using type = lane_list<I...>;
};

template <int kBlock, typename V, int... I>
inline void swap_blocks(V& a, V& b, lane_list<I...>) {
  constexpr int n = sizeof...(I);
  const V upper = __builtin_shufflevector(a, b, ((I & kBlock) ? n + I - kBlock : I)...);
  const V lower = __builtin_shufflevector(a, b, ((I & kBlock) ? n + I : I + kBlock)...);
  a = upper;
  b = lower;
}

template <int kBlock = 1, typename V, int n>
inline void transpose(V (&rows)[n]) {
  if constexpr (kBlock < n) {
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
      if ((i & kBlock) == 0) {
        swap_blocks<kBlock>(rows[i], rows[i + kBlock], typename make_lanes<n>::type{});
      }
    }
    transpose<kBlock * 2>(rows);
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
