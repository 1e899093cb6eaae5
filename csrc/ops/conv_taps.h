// Pointer tables of the pixels that a convolution's taps read.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/divide.h"

namespace fastvision {

// Output pixels along an axis; less than 1 if the window does not fit.
inline int64_t extent(
    int64_t size, int64_t before, int64_t after, int64_t taps, int64_t dilation, int64_t stride
) {
  const int64_t room = size + before + after - dilation * (taps - 1) - 1;
  return room < 0 ? room : room / stride + 1;
}

// Per axis, output pixel y reads input pixel y * step + first + r * dilation at tap r, or zeros
// outside the map.
struct ConvWindow {
  int64_t R, S;
  int64_t step_y, step_x, first_y, first_x, dilation_y, dilation_x;
};

// pointers `step` values apart
template <typename P>
void fill_pointers(P** pointers, int64_t count, P* first, int64_t step) {
  for (int64_t i = 0; i < count; ++i) {
    pointers[i] = first + i * step;
  }
}

// Fills the table for `length` output pixels of a row, starting at (y, x), with taps `stride`
// pointers apart. row_of(y) is the first value of input row y; the input has H rows of W pixels of
// C values.
template <typename T, typename RowOf>
void locate_taps(
    const ConvWindow& w,
    int64_t H,
    int64_t W,
    int64_t C,
    int64_t y,
    int64_t x,
    int64_t length,
    const T* zeros,
    const RowOf& row_of,
    const T** pointers,
    int64_t stride
) {
  for (int64_t s = 0; s < w.S; ++s) {
    const int64_t x0 = x * w.step_x + w.first_x + s * w.dilation_x, room = W - x0;
    const int64_t begin = x0 < 0 ? std::min(ceil_div(-x0, w.step_x), length) : 0;
    const int64_t end = std::clamp<int64_t>(room > 0 ? ceil_div(room, w.step_x) : 0, begin, length);
    for (int64_t r = 0; r < w.R; ++r) {
      const T** tap = pointers + (r * w.S + s) * stride;
      const int64_t y0 = y * w.step_y + w.first_y + r * w.dilation_y;
      if (y0 < 0 || y0 >= H) {
        fill_pointers(tap, length, zeros, 0);
        continue;
      }
      fill_pointers(tap, begin, zeros, 0);
      const T* first = row_of(y0) + (x0 + begin * w.step_x) * C;
      fill_pointers(tap + begin, end - begin, first, w.step_x * C);
      fill_pointers(tap + end, length - end, zeros, 0);
    }
  }
}

}  // namespace fastvision
