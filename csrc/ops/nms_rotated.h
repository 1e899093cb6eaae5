// Contract of the CPU kernels for NMS of rotated boxes, flat or solid: as in ops/nms.h, with the
// overlap of box_iou_rotated or box_iou_3d [box that suppresses, box that is suppressed].
#pragma once

#include "ops/box_iou_rotated.h"

namespace fastvision {

// The boxes of one class by descending score.
template <typename A>
struct RotatedSegment {
  A* boxes;       // arrays as in RotatedSet; overwritten
  int64_t step;   // rotated_step(n)
  uint8_t* kept;  // [n] result: 1 or 0
  int64_t n;
  int64_t max_output;  // maximum number of kept boxes
  double iou_threshold;
};

// So that vectors can be loaded from any box on.
static constexpr int64_t rotated_step(int64_t n) { return n + 16; }

FASTVISION_DECLARE_CPU(void, nms_rotated_segment, const RotatedSegment<float>&)
FASTVISION_DECLARE_CPU(void, nms_rotated_segment, const RotatedSegment<double>&)
FASTVISION_DECLARE_CPU(void, nms_3d_segment, const RotatedSegment<float>&)
FASTVISION_DECLARE_CPU(void, nms_3d_segment, const RotatedSegment<double>&)

}  // namespace fastvision
