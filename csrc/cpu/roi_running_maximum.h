// The largest values of a bin so far, one per lane, and where they are.
#pragma once

#include <cfloat>

#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// A position per lane, as wide as a value: what comparing two vectors of values gives.
template <typename A>
using positions_t = typename simd<A>::mask;

template <typename A, bool kArgmax>
struct RunningMaximum {
  vector_t<A> value = broadcast(A(-FLT_MAX));
  positions_t<A> position = positions_t<A>{} - 1;

  // In the order of positions: the first of equals stays.
  inline void add(vector_t<A> pixel, positions_t<A> at) {
    if constexpr (kArgmax) {
      position = pixel > value ? at : position;
    }
    value = max(pixel, value);
  }

  // In any order.
  inline void merge(vector_t<A> other, positions_t<A> at) {
    if constexpr (kArgmax) {
      const auto better = (other > value) | ((other == value) & (at < position));
      value = better ? other : value;
      position = better ? at : position;
    } else {
      value = max(other, value);
    }
  }
};

template <typename A>
inline void store_positions(positions_t<A> v, int32_t* out, int64_t stride, int count) {
  decltype(+v[0]) lanes[lanes_v<A>];
  memcpy(lanes, &v, sizeof v);
  for (int i = 0; i < count; ++i) {
    out[i * stride] = static_cast<int32_t>(lanes[i]);
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
