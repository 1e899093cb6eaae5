// 16-bit floating-point storage types; arithmetic is done in float.
#pragma once

#include <cstdint>

namespace fastvision {

struct half_t {
  uint16_t bits;
};

struct bfloat16_t {
  uint16_t bits;
};

// compute type: double for double, otherwise float
template <typename T>
struct accumulate {
  using type = float;
};
template <>
struct accumulate<double> {
  using type = double;
};
template <typename T>
using accumulate_t = typename accumulate<T>::type;

}  // namespace fastvision
