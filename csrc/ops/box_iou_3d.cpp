#include "ops/box_iou_3d.h"

#include "ops/box_iou_rotated_engine.h"

namespace fastvision {
namespace {

Tensor box_iou_3d(const Tensor& boxes1, const Tensor& boxes2) {
  return rotated_overlaps<true>(
      boxes1, boxes2, [](auto* output, const auto& args, const RotatedTile& tile) {
        FASTVISION_CALL(box_iou_3d, output, args, tile);
      }
  );
}

std::tuple<Tensor, Tensor> box_iou_3d_backward(
    const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2
) {
  return rotated_gradients<true>(
      grad,
      boxes1,
      boxes2,
      [](const auto* g, const auto& args, const RotatedTile& tile, auto* rows, auto* columns) {
        FASTVISION_CALL(box_iou_3d_backward, g, args, tile, rows, columns);
      }
  );
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("box_iou_3d", FASTVISION_BOX(&box_iou_3d));
  m.impl("box_iou_3d_backward", FASTVISION_BOX(&box_iou_3d_backward));
}

}  // namespace fastvision
