// The register tile of a matrix product: as large as fits the registers, next to a row of one
// factor and a value of the other.
#pragma once

#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {

constexpr int kTileRows = 6;
constexpr int kTileVectors = kVectorBytes == 64 ? 4 : 2;

namespace {

// sums[i][j] += column[i * stride] * row[j], where `row` has kVectors vectors. Sums stay in
// registers.
template <int kRows, int kVectors, typename V, typename T>
__attribute__((always_inline)) inline void add_outer_product(
    V (&sums)[kRows][kVectors], const T* column, const T* row, int64_t stride = 1
) {
  V values[kVectors];
#pragma GCC unroll 16
  for (int j = 0; j < kVectors; ++j) {
    values[j] = load(row + j * lanes_v<T>);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    const V x = broadcast(column[i * stride]);
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) {
      sums[i][j] = multiply_add(x, values[j], sums[i][j]);
    }
  }
}

}  // namespace

}  // namespace fastvision::FASTVISION_ISA
