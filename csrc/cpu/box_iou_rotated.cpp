// Overlap of every rotated box of one set with every box of another, and its gradient.
#include "cpu/box_iou_rotated_gradient.h"

namespace fastvision::FASTVISION_ISA {

#define FASTVISION_DEFINE_BOX_IOU_ROTATED(A)                                                  \
  void box_iou_rotated(A* output, const RotatedArgs<A>& args, const RotatedTile& tile) {      \
    forward<false>(output, args, tile);                                                       \
  }                                                                                           \
  void box_iou_rotated_backward(                                                              \
      const A* grad, const RotatedArgs<A>& args, const RotatedTile& tile, A* rows, A* columns \
  ) {                                                                                         \
    backward<false>(grad, args, tile, rows, columns);                                         \
  }
FASTVISION_DEFINE_BOX_IOU_ROTATED(float)
FASTVISION_DEFINE_BOX_IOU_ROTATED(double)
#undef FASTVISION_DEFINE_BOX_IOU_ROTATED

}  // namespace fastvision::FASTVISION_ISA
