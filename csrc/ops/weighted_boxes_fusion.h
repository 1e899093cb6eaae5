// Contract of the kernel for weighted boxes fusion: clusters of the boxes of one class.
//
// Boxes are visited by decreasing score. Each joins the cluster whose fused box has the largest IoU
// with it (the first of several), if that is above the threshold, or else begins a cluster. A fused
// box is the mean of its boxes weighted by their scores; the first box as long as it is alone or
// the sum of scores is not positive.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastvision {

template <typename A>
struct FusionArgs {
  const A* boxes;   // [N, 4] (x1, y1, x2, y2), by class and descending score
  const A* scores;  // [N]
  double iou_threshold;
  bool maximum;     // of the scores, instead of their mean
  A* fused;         // [N, 4] of the clusters of each class, from its first box on
  A* fused_scores;  // [N]
  int64_t* counts;  // [N] boxes of the cluster; 0 where there is none
};

// Numbers of A that a class of n boxes needs as scratch memory.
static constexpr int64_t fusion_scratch(int64_t n) { return 10 * (n + 16); }

// The class that has boxes [begin, end).
#define FASTVISION_DECLARE_FUSION(A)                                                 \
  FASTVISION_DECLARE_CPU(                                                            \
      void, fuse_boxes, const FusionArgs<A>&, int64_t begin, int64_t end, A* scratch \
  )
FASTVISION_DECLARE_FUSION(float)
FASTVISION_DECLARE_FUSION(double)
#undef FASTVISION_DECLARE_FUSION

}  // namespace fastvision
