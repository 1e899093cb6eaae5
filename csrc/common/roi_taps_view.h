// The taps of RoI ops, sparse axis matrices, as kernels see them: plain data.
#pragma once

#include <cstdint>

namespace fastvision {

template <typename A>
struct Tap {
  int32_t pixel;  // along the axis
  A weight;
};

struct RoiFootprint {
  int32_t level;
  int32_t image;
  int32_t y_begin, y_end, x_begin, x_end;  // pixels touched; empty where the roi gives zeros
  int64_t taps;                            // where its taps begin
};

template <typename A>
struct RoiTapsView {
  const RoiFootprint* rois;  // [K]
  const int32_t* bins;  // [K, PH + 1 + PW + 1] begin of each bin's taps from the roi's first: y, x
  const Tap<A>* taps;
};

}  // namespace fastvision
