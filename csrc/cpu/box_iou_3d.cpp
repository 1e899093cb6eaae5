// Overlap of every solid box of one set with every box of another, and its gradient.
#include "ops/box_iou_3d.h"

#include "cpu/box_iou_rotated_gradient.h"

namespace fastvision::FASTVISION_ISA {

#define FASTVISION_DEFINE_BOX_IOU_3D(A)                                                       \
  void box_iou_3d(A* output, const RotatedArgs<A>& args, const RotatedTile& tile) {           \
    forward<true>(output, args, tile);                                                        \
  }                                                                                           \
  void box_iou_3d_backward(                                                                   \
      const A* grad, const RotatedArgs<A>& args, const RotatedTile& tile, A* rows, A* columns \
  ) {                                                                                         \
    backward<true>(grad, args, tile, rows, columns);                                          \
  }
FASTVISION_DEFINE_BOX_IOU_3D(float)
FASTVISION_DEFINE_BOX_IOU_3D(double)
#undef FASTVISION_DEFINE_BOX_IOU_3D

}  // namespace fastvision::FASTVISION_ISA
