// The sum of a vector's lanes, in the lanes' type. For files of csrc/cpu.
#pragma once

#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename T>
inline T sum_of_lanes(vector_t<T> v) {
  T sum = 0;
  for (int i = 0; i < lanes_v<T>; ++i) {
    sum += v[i];
  }
  return sum;
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
