// The sum and the largest of a vector's lanes. For files of csrc/cpu.
#pragma once

#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// Joins lanes kStep apart, then half as far, down to neighbours: each lane gets the total.
template <int kStep, typename V, typename Join, int... I>
inline V fold(V v, const Join& join, lane_list<I...> lanes) {
  v = join(v, __builtin_shufflevector(v, v, (I ^ kStep)...));
  if constexpr (kStep > 1) {
    return fold<kStep / 2>(v, join, lanes);
  }
  return v;
}

// Every second lane, from kFirst on, in a type twice as wide.
template <typename Wide, int kFirst, typename V, int... I>
inline Wide widen_lanes(V v, lane_list<I...>) {
  return __builtin_convertvector(__builtin_shufflevector(v, v, (2 * I + kFirst)...), Wide);
}

// Summed in S, which is T or, of floats, double: in pairs, so that few additions wait for others.
template <typename T, typename S = T>
inline S sum_of_lanes(vector_t<T> v) {
  using Lanes = typename make_lanes<lanes_v<S>>::type;
  const auto add = [](vector_t<S> a, vector_t<S> b) { return a + b; };
  if constexpr (sizeof(S) == sizeof(T)) {
    return fold<lanes_v<S> / 2>(v, add, Lanes{})[0];
  } else {
    const vector_t<S> sum =
        widen_lanes<vector_t<S>, 0>(v, Lanes{}) + widen_lanes<vector_t<S>, 1>(v, Lanes{});
    return fold<lanes_v<S> / 2>(sum, add, Lanes{})[0];
  }
}

// A NaN among the lanes may be passed over.
template <typename T>
inline T largest_lane(vector_t<T> v) {
  using V = vector_t<T>;
  using Lanes = typename make_lanes<lanes_v<T>>::type;
  return fold<lanes_v<T> / 2>(v, [](V a, V b) { return max(a, b); }, Lanes{})[0];
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
