// Contract of the kernels for losses from the overlap of boxes one by one: 1 - generalized,
// distance or complete IoU, and their gradients.
//
// Arithmetic in the order of torchvision's formulas, without fused multiply-adds. Boxes that only
// touch have no intersection and no gradient by it.
#pragma once

#include "ops/box_iou.h"

namespace fastvision {

// Boxes [begin, end); args.format is xyxy. `grad`: that of each loss.
#define FASTVISION_DECLARE_BOX_IOU_LOSS(A)                                         \
  FASTVISION_DECLARE_CPU(                                                          \
      void, box_iou_loss, const BoxIouArgs&, A* losses, int64_t begin, int64_t end \
  )                                                                                \
  FASTVISION_DECLARE_CPU(                                                          \
      void,                                                                        \
      box_iou_loss_backward,                                                       \
      const BoxIouArgs&,                                                           \
      const A* grad,                                                               \
      A* grad1,                                                                    \
      A* grad2,                                                                    \
      int64_t begin,                                                               \
      int64_t end                                                                  \
  )
FASTVISION_DECLARE_BOX_IOU_LOSS(float)
FASTVISION_DECLARE_BOX_IOU_LOSS(double)
#undef FASTVISION_DECLARE_BOX_IOU_LOSS

}  // namespace fastvision
