#include "ops/box_iou_rotated_engine.h"

namespace fastvision {
namespace {

Tensor box_iou_rotated(const Tensor& boxes1, const Tensor& boxes2) {
  return rotated_overlaps<false>(
      boxes1, boxes2, [](auto* output, const auto& args, const RotatedTile& tile) {
        FASTVISION_CALL(box_iou_rotated, output, args, tile);
      }
  );
}

std::tuple<Tensor, Tensor> box_iou_rotated_backward(
    const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2
) {
  return rotated_gradients<false>(
      grad,
      boxes1,
      boxes2,
      [](const auto* g, const auto& args, const RotatedTile& tile, auto* rows, auto* columns) {
        FASTVISION_CALL(box_iou_rotated_backward, g, args, tile, rows, columns);
      }
  );
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("box_iou_rotated", FASTVISION_BOX(&box_iou_rotated));
  m.impl("box_iou_rotated_backward", FASTVISION_BOX(&box_iou_rotated_backward));
}

}  // namespace fastvision
