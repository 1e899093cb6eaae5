// Windows of 2x2 pixels, which max pooling and unpooling have faster kernels for.
#pragma once

#include <cstdint>

namespace fastvision {

// Whether the windows are 2x2 pixels side by side, all inside of the plane. Of both axes: pixels of
// the plane, number of windows, and their size, stride and padding.
static inline bool are_quads(
    const int64_t (&sizes)[2],
    const int64_t (&counts)[2],
    const int64_t (&window)[2],
    const int64_t (&stride)[2],
    const int64_t (&padding)[2]
) {
  for (int axis = 0; axis < 2; ++axis) {
    if (window[axis] != 2 || padding[axis] != 0 || counts[axis] > sizes[axis] / 2 ||
        (stride[axis] != 2 && counts[axis] > 1)) {
      return false;
    }
  }
  return true;
}

}  // namespace fastvision
