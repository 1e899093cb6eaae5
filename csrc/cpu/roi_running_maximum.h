// The largest values of a bin so far, one per lane, and where they are.
#pragma once

#include <cfloat>

#include "common/simd_lanes.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename A, bool kArgmax>
struct RunningMaximum {
  vector_t<A> value = broadcast(A(-FLT_MAX));
  places_t<A> position = places_t<A>{} - 1;

  // In the order of positions: the first of equals stays.
  inline void add(vector_t<A> pixel, places_t<A> at) {
    if constexpr (kArgmax) {
      position = pixel > value ? at : position;
    }
    value = max(pixel, value);
  }

  // In any order.
  inline void merge(vector_t<A> other, places_t<A> at) {
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
inline void store_positions(places_t<A> v, int32_t* out, int64_t stride, int count) {
  lane_t<A> lanes[lanes_v<A>];
  memcpy(lanes, &v, sizeof v);
  for (int i = 0; i < count; ++i) {
    out[i * stride] = static_cast<int32_t>(lanes[i]);
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
