// Integers as wide as a vector's lanes, shuffles of neighbouring lanes, and partial vectors.
#pragma once

#include <type_traits>

#include "common/simd.h"

// for what keeps vectors in registers only if it is inlined, lambdas included
#define FASTVISION_INLINED __attribute__((always_inline))

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename A>
struct lane {
  using type = int32_t;
  using unsigned_vector = uint32_v;
};
template <>
struct lane<double> {
  using type = int64_t;
  using unsigned_vector = uint64_v;
};
template <typename A>
using lane_t = typename lane<A>::type;
template <typename A>
using places_t = typename simd<A>::mask;  // a vector of lane_t
template <typename A>
using unsigned_places_t = typename lane<A>::unsigned_vector;

// first, first + step, first + 2 * step, ...
template <typename A>
inline places_t<A> places_from(int64_t first, int64_t step) {
  places_t<A> count;
  for (int i = 0; i < lanes_v<A>; ++i) {
    count[i] = i;
  }
  return count * static_cast<lane_t<A>>(step) + static_cast<lane_t<A>>(first);
}

template <typename V, int... I>
inline V even_lanes(V a, V b, lane_list<I...>) {
  return __builtin_shufflevector(a, b, (2 * I)...);
}
template <typename V, int... I>
inline V odd_lanes(V a, V b, lane_list<I...>) {
  return __builtin_shufflevector(a, b, (2 * I + 1)...);
}
template <typename V, int... I>
inline V lower_pairs(V a, V b, lane_list<I...>) {
  constexpr int n = sizeof...(I);
  return __builtin_shufflevector(a, b, (I / 2 + I % 2 * n)...);
}
template <typename V, int... I>
inline V upper_pairs(V a, V b, lane_list<I...>) {
  constexpr int n = sizeof...(I);
  return __builtin_shufflevector(a, b, (n / 2 + I / 2 + I % 2 * n)...);
}

template <typename V, int... I>
inline V lower_halves(V a, V b, lane_list<I...>) {
  constexpr int n = sizeof...(I);
  return __builtin_shufflevector(a, b, (I < n / 2 ? I : I + n / 2)...);
}
template <typename V, int... I>
inline V swap_halves(V v, lane_list<I...>) {
  constexpr int n = sizeof...(I);
  return __builtin_shufflevector(v, v, ((I + n / 2) % n)...);
}

// kWidth divides the number of lanes
template <int kWidth, int c, typename V, int... I>
inline V spread_lane(V v, lane_list<I...>) {
  return __builtin_shufflevector(v, v, (I / kWidth * kWidth + c)...);
}

template <typename V>
using lanes_of = typename make_lanes<sizeof(V) / sizeof(V{}[0])>::type;

// lanes 0, 2, 4, ... and 1, 3, 5, ... of two vectors in a row
template <typename V>
inline V even_lanes(V a, V b) {
  return even_lanes(a, b, lanes_of<V>{});
}
template <typename V>
inline V odd_lanes(V a, V b) {
  return odd_lanes(a, b, lanes_of<V>{});
}

// the first and the second vector of a[0], b[0], a[1], b[1], ...
template <typename V>
inline V lower_pairs(V a, V b) {
  return lower_pairs(a, b, lanes_of<V>{});
}
template <typename V>
inline V upper_pairs(V a, V b) {
  return upper_pairs(a, b, lanes_of<V>{});
}

// the lower half of a, then that of b
template <typename V>
inline V lower_halves(V a, V b) {
  return lower_halves(a, b, lanes_of<V>{});
}
template <typename V>
inline V swap_halves(V v) {
  return swap_halves(v, lanes_of<V>{});
}

// lane c of each kWidth lanes, in all of them
template <int kWidth, int c, typename V>
inline V spread_lane(V v) {
  return spread_lane<kWidth, c>(v, lanes_of<V>{});
}

// a and b in a row, as pairs: of each the second element where `odd` is 1, the first where it is 0
inline float_v pick_of_pairs(float_v a, float_v b, int32_v odd) {
#if defined(FASTVISION_AVX512)
  const int32_v index = odd + places_from<float>(0, 2);
  return (float_v)_mm512_permutex2var_ps((__m512)a, (__m512i)index, (__m512)b);
#else
  return odd == 1 ? odd_lanes(a, b) : even_lanes(a, b);
#endif
}
inline double_v pick_of_pairs(double_v a, double_v b, int64_v odd) {
  return odd == 1 ? odd_lanes(a, b) : even_lanes(a, b);
}

// The lower half of the lanes, and the upper one, as wider integers.
inline int64_v widen_lower(int32_v v) {
#if defined(FASTVISION_AVX512)
  return (int64_v)_mm512_cvtepi32_epi64(_mm512_castsi512_si256((__m512i)v));
#else
  int32_half_v half;
  memcpy(&half, &v, sizeof half);
  return __builtin_convertvector(half, int64_v);
#endif
}
inline int64_v widen_upper(int32_v v) {
#if defined(FASTVISION_AVX512)
  return (int64_v)_mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64((__m512i)v, 1));
#else
  int32_half_v half;
  memcpy(&half, reinterpret_cast<const char*>(&v) + sizeof half, sizeof half);
  return __builtin_convertvector(half, int64_v);
#endif
}

// A vector, of which only the first `count` lanes are in memory if kPartial.
template <bool kPartial, typename T>
inline auto load_lanes(const T* p, int count) {
  if constexpr (kPartial) {
    return load_partial(p, count);
  } else {
    return load(p);
  }
}

template <bool kPartial, typename T, typename V>
inline void store_lanes(T* p, V v, int count) {
  if constexpr (kPartial) {
    store_partial(p, v, count);
  } else {
    store(p, v);
  }
}

// Calls work(first, partial, lanes) for vectors of `count` elements; the last one may be partial.
template <typename A, typename Work>
inline void for_vectors(int64_t count, const Work& work) {
  int64_t i = 0;
  for (; i + lanes_v<A> <= count; i += lanes_v<A>) {
    work(i, std::false_type{}, lanes_v<A>);
  }
  if (i < count) {
    work(i, std::true_type{}, static_cast<int>(count - i));
  }
}

// Places plus `base` as 64-bit integers.
template <bool kPartial>
inline void store_indices(int64_t* p, int64_v places, int64_t base, int count) {
  store_lanes<kPartial>(reinterpret_cast<double*>(p), (double_v)(places + base), count);
}
template <bool kPartial>
inline void store_indices(int64_t* p, int32_v places, int64_t base, int count) {
  constexpr int half = lanes_v<double>;
  const int lower = count < half ? count : half;
  store_indices<kPartial>(p, widen_lower(places), base, lower);
  if (!kPartial || count > half) {
    store_indices<kPartial>(p + half, widen_upper(places), base, count - half);
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
