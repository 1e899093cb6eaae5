// RoIAlign's sparse axis matrices as the CPU kernels see them: plain data.
#pragma once

#include <cstdint>

namespace fastvision {

template <typename A>
struct Tap {
  int32_t index;  // pixel along the axis
  A weight;       // sum of the bilinear weights of the bin's samples at it, over their number
};

struct RoiFootprint {
  int32_t level;
  int32_t image;
  int32_t y_begin, y_end, x_begin, x_end;  // pixels touched; empty where the roi gives zeros
  int64_t taps;                            // where its taps begin
};

// What the kernels see: plain pointers.
template <typename A>
struct RoiTapsView {
  const RoiFootprint* rois;  // [K]
  const int32_t*
      bins;  // [K, PH + 1 + PW + 1] begin of each bin's taps, from the roi's first; y, then x
  const Tap<A>* taps;
};

}  // namespace fastvision
