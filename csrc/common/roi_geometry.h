// Reads a roi: its image, its level in the pyramid, and its two axes.
#pragma once

#include "common/roi_axis.h"

namespace fastvision {

// Why the CPU refuses a roi. On CUDA such a roi gives zeros, since refusing would wait for the
// device.
enum class RoiFault { none, batch_index, samples };

template <typename Axis>
struct Roi {
  int level;
  int image;
  RoiFault fault;
  Axis y;
  Axis x;
};

// -1 for a roi of negative area, which has none.
template <typename A>
FASTVISION_HOST_DEVICE inline int level_of(const RoiArgs& args, const A* roi) {
  if (args.num_levels == 1) {
    return 0;
  }
  const A size = sqrt(rounded_multiply(rounded_add(roi[3], -roi[1]), rounded_add(roi[4], -roi[2])));
  const A relative = log2(size / static_cast<A>(args.canonical_scale));
  const A level =
      floor(rounded_add(rounded_add(static_cast<A>(args.canonical_level), relative), A(1e-6))) -
      static_cast<A>(args.min_level);
  if (isnan(level)) {
    return -1;
  }
  return level > 0 ? static_cast<int>(at_most(level, static_cast<A>(args.num_levels - 1))) : 0;
}

// Written so that NaN is refused.
template <typename A>
FASTVISION_HOST_DEVICE inline bool has_image(const RoiArgs& args, A index) {
  return args.N > 0 && index >= 0 && index < static_cast<A>(args.N);
}

// The axes are empty where the roi gives zeros; its level and image are in range in any case.
template <typename Axis>
FASTVISION_HOST_DEVICE inline Roi<Axis> read_roi(const RoiArgs& args, int64_t k) {
  using A = typename Axis::Value;
  const A* p = static_cast<const A*>(args.rois) + 5 * k;
  A roi[5];
  bool finite = true;
  for (int i = 0; i < 5; ++i) {
    roi[i] = p[i];
    finite = finite && isfinite(roi[i]);
  }
  const bool in_batch = has_image(args, roi[0]);
  const int level = finite && in_batch ? level_of(args, roi) : -1;
  const bool usable = level >= 0;
  Roi<Axis> result;
  result.level = usable ? level : 0;
  result.image = usable ? static_cast<int>(roi[0]) : 0;
  const RoiLevel& map = args.levels[result.level];
  result.y = Axis::make(args, roi[2], roi[4], map.spatial_scale, args.PH, map.H);
  result.x = Axis::make(args, roi[1], roi[3], map.spatial_scale, args.PW, map.W);
  result.fault = RoiFault::none;
  if (!in_batch) {
    result.fault = RoiFault::batch_index;
  } else if (
      usable && map.H > 0 && map.W > 0 && isfinite(result.y.start) && isfinite(result.x.start) &&
      (result.y.too_fine() || result.x.too_fine())
  ) {
    result.fault = RoiFault::samples;
  }
  if (!usable) {
    result.y.clear();
    result.x.clear();
  }
  return result;
}

}  // namespace fastvision
