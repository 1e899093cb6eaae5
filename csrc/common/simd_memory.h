// Loads a vector of float or double from any storage type, and stores it with rounding to nearest
// even.
#pragma once

#include <cstring>

#include "common/simd_types.h"

namespace fastvision::FASTVISION_ISA {
namespace {

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

// uint16_t: 16 bits of any type, in the lower halves of the lanes
inline float_v load(const uint16_t* p) {
  uint16_half_v raw;
  memcpy(&raw, p, sizeof raw);
  return (float_v) __builtin_convertvector(raw, uint32_v);
}
inline void store(uint16_t* p, float_v v) {
  const uint16_half_v raw = __builtin_convertvector((uint32_v)v, uint16_half_v);
  memcpy(p, &raw, sizeof raw);
}

// one instruction, where GCC emits up to six
#if defined(FASTVISION_AVX512)
inline float_v load(const bfloat16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return (float_v)_mm512_slli_epi32(wide, 16);
}
#elif defined(FASTVISION_AVX2)
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

inline uint16_half_v to_bfloat16(float_v v) {
  const uint32_v bits = (uint32_v)v;
  const uint32_v rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const int32_v is_nan = v != v;
  const uint32_v quiet_nan = uint32_v{} + 0x7fc0;
  const uint32_v chosen = ((uint32_v)is_nan & quiet_nan) | (~(uint32_v)is_nan & rounded);
  return __builtin_convertvector(chosen, uint16_half_v);
}

inline void store(bfloat16_t* p, float_v v) {
  const uint16_half_v raw = to_bfloat16(v);
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

// load_partial and store_partial: the first `count` lanes only; the others read as zero and are not
// written. Masked instructions where there are any, since a copy of variable length is a call.
#if defined(FASTVISION_AVX512)
inline __mmask16 first_lanes(int count) { return (__mmask16)((1u << count) - 1); }

inline float_v load_partial(const float* p, int count) {
  return (float_v)_mm512_maskz_loadu_ps(first_lanes(count), p);
}
inline double_v load_partial(const double* p, int count) {
  return (double_v)_mm512_maskz_loadu_pd((__mmask8)first_lanes(count), p);
}
inline float_v load_partial(const half_t* p, int count) {
  return (float_v)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(count), p));
}
inline float_v load_partial(const bfloat16_t* p, int count) {
  const __m256i raw = _mm256_maskz_loadu_epi16(first_lanes(count), p);
  return (float_v)_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16);
}
inline float_v load_partial(const uint16_t* p, int count) {
  return (float_v)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(count), p));
}
inline void store_partial(float* p, float_v v, int count) {
  _mm512_mask_storeu_ps(p, first_lanes(count), (__m512)v);
}
inline void store_partial(double* p, double_v v, int count) {
  _mm512_mask_storeu_pd(p, (__mmask8)first_lanes(count), (__m512d)v);
}
inline void store_partial(half_t* p, float_v v, int count) {
  const __m256i raw = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
  _mm256_mask_storeu_epi16(p, first_lanes(count), raw);
}
inline void store_partial(bfloat16_t* p, float_v v, int count) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), (__m256i)to_bfloat16(v));
}
inline void store_partial(uint16_t* p, float_v v, int count) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), _mm512_cvtepi32_epi16((__m512i)v));
}
#else
#if defined(FASTVISION_AVX2)
inline __m256i first_floats(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i first_doubles(int count) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}

inline float_v load_partial(const float* p, int count) {
  return (float_v)_mm256_maskload_ps(p, first_floats(count));
}
inline double_v load_partial(const double* p, int count) {
  return (double_v)_mm256_maskload_pd(p, first_doubles(count));
}
inline void store_partial(float* p, float_v v, int count) {
  _mm256_maskstore_ps(p, first_floats(count), (__m256)v);
}
inline void store_partial(double* p, double_v v, int count) {
  _mm256_maskstore_pd(p, first_doubles(count), (__m256d)v);
}
#endif

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
#endif

// Stores past the caches to an aligned address: a vector's bytes, half of them for 16 bits of any
// type. Other threads see them after end_streams().
#if defined(FASTVISION_AVX512)
inline void stream(float* p, float_v v) { _mm512_stream_ps(p, (__m512)v); }
inline void stream(double* p, double_v v) { _mm512_stream_pd(p, (__m512d)v); }
inline void stream(uint16_t* p, float_v v) {
  _mm256_stream_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)v));
}
#elif defined(FASTVISION_AVX2)
inline void stream(float* p, float_v v) { _mm256_stream_ps(p, (__m256)v); }
inline void stream(double* p, double_v v) { _mm256_stream_pd(p, (__m256d)v); }
inline void stream(uint16_t* p, float_v v) {
  const uint16_half_v raw = __builtin_convertvector((uint32_v)v, uint16_half_v);
  _mm_stream_si128((__m128i*)p, (__m128i)raw);
}
#else
template <typename T, typename V>
inline void stream(T* p, V v) {
  store(p, v);
}
#endif
inline void end_streams() {
#if defined(FASTVISION_AVX512) || defined(FASTVISION_AVX2)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
