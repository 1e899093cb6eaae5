// Pixels of the tiles that Winograd's algorithm divides maps into.
#pragma once

#include <cstdint>

namespace fastvision {

// [N, H, W, C]
template <typename T>
struct WinogradMaps {
  T* data;
  int64_t H, W, C;

  // pointers to kSide x kSide pixels from (y, x) on, or to `outside` beyond the map
  template <int kSide>
  void locate(
      int64_t n,
      int64_t y,
      int64_t x,
      T* outside,
      T** pixels,
      int64_t step_y = 1,
      int64_t step_x = 1
  ) const {
    for (int64_t i = y; i < y + kSide * step_y; i += step_y) {
      for (int64_t j = x; j < x + kSide * step_x; j += step_x) {
        const bool inside = i >= 0 && i < H && j >= 0 && j < W;
        *pixels++ = inside ? data + ((n * H + i) * W + j) * C : outside;
      }
    }
  }
};

}  // namespace fastvision
