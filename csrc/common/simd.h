// Vectors of one register's width for the CPU kernels: types, loads and stores, arithmetic.
// For files of csrc/cpu only. Everything here is compiled once per level, so it has internal
// linkage, and no header with inline functions of external linkage (torch, the standard library)
// may be included: the linker might keep the copy this CPU cannot execute.
#pragma once

#include "common/simd_memory.h"
#include "common/simd_types.h"

namespace fastvision::FASTVISION_ISA {
namespace {

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

// a * b + c, rounded once if the level has the instruction
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

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }  // of an int too

template <typename V>
inline V max(V a, V b) {
  return a > b ? a : b;
}

// one bit per lane of a mask
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

// Transposes a square of `lanes` vectors in place by swapping off-diagonal blocks of 1, 2, 4, ...
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
