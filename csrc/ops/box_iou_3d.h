// Contract of the kernels for the overlap of every solid box of one set with every box of another,
// and its gradient: boxes that stand upright on the plane and turn in it. 0 for an empty box (a
// side that is not positive, a volume below kMinRotatedArea), NaN for one whose volume is NaN.
#pragma once

#include "ops/box_iou_rotated.h"

namespace fastvision {

// as those of box_iou_rotated, with kSolidTerms terms
#define FASTVISION_DECLARE_BOX_IOU_3D(A)                                                         \
  FASTVISION_DECLARE_CPU(void, box_iou_3d, A* output, const RotatedArgs<A>&, const RotatedTile&) \
  FASTVISION_DECLARE_CPU(                                                                        \
      void,                                                                                      \
      box_iou_3d_backward,                                                                       \
      const A* grad,                                                                             \
      const RotatedArgs<A>&,                                                                     \
      const RotatedTile&,                                                                        \
      A* rows,                                                                                   \
      A* columns                                                                                 \
  )
FASTVISION_DECLARE_BOX_IOU_3D(float)
FASTVISION_DECLARE_BOX_IOU_3D(double)
#undef FASTVISION_DECLARE_BOX_IOU_3D

}  // namespace fastvision
