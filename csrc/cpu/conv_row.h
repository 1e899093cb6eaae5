// Tiles of adjacent output pixels in a row: what depthwise and grouped convolutions share.
#pragma once

#include "common/simd.h"
#include "common/simd_activation.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// sums[i] += the taps, `tap` values apart, times input(i * kStep + tap), of those columns that are
// inside(column). Inputs are asked for once and in order.
template <int kRows, int kTaps, int kStep, typename T, typename Input, typename Inside>
inline void add_row_of_taps(
    vector_t<T> (&sums)[kRows], const T* weights, int64_t tap, Input input, Inside inside
) {
  vector_t<T> w[kTaps];
#pragma GCC unroll 16
  for (int s = 0; s < kTaps; ++s) {
    w[s] = load(weights + s * tap);
  }
#pragma GCC unroll 32
  for (int column = 0; column < (kRows - 1) * kStep + kTaps; ++column) {
    if (!inside(column)) {
      continue;
    }
    const vector_t<T> value = input(column);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const int s = column - i * kStep;
      if (s >= 0 && s < kTaps) {
        sums[i] = multiply_add(value, w[s], sums[i]);
      }
    }
  }
}

// Writes the first `rows` sums to pixels `pitch` values apart, of which `count` lanes are channels,
// with the residual, if any, and clamped.
template <int kRows, typename T>
inline void finish_row(
    vector_t<T> (&sums)[kRows],
    T* output,
    const T* residual,
    int64_t pitch,
    int64_t rows,
    int count,
    vector_t<T> low,
    vector_t<T> high
) {
  const bool full = count == lanes_v<T>;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    if (i >= rows) {
      return;
    }
    const int64_t at = i * pitch;
    if (residual != nullptr) {
      sums[i] += full ? load(residual + at) : load_partial(residual + at, count);
    }
    const vector_t<T> v = clamp(sums[i], low, high);
    if (full) {
      store(output + at, v);
    } else {
      store_partial(output + at, v, count);
    }
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
