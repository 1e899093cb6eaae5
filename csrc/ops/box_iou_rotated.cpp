#include "ops/box_iou_rotated_memory.h"

namespace fastvision {
namespace {

Tensor box_iou_rotated(const Tensor& boxes1, const Tensor& boxes2) {
  return rotated_overlaps<false>(
      boxes1, boxes2, [](auto* output, const auto& args, const RotatedTile& tile) {
        FASTVISION_CALL(box_iou_rotated, output, args, tile);
      }
  );
}

// The sum of `parts` terms of each of `count` boxes, in order; by degrees.
template <typename A>
void sum_parts(const A* terms, int64_t parts, int64_t count, A* grad) {
  for (int64_t i = 0; i < count * kRotatedTerms; ++i) {
    A sum = 0;
    for (int64_t part = 0; part < parts; ++part) {
      sum += terms[part * count * kRotatedTerms + i];
    }
    const bool is_angle = i % kRotatedTerms == kRotatedTerms - 1;
    grad[i] = is_angle ? sum * static_cast<A>(kRadians) : sum;
  }
}

// Gradients of the boxes in float, or in double for double boxes; [B, N, 5] and [B, M, 5] if they
// are batched.
std::tuple<Tensor, Tensor> box_iou_rotated_backward(
    const Tensor& grad_output, const Tensor& boxes1, const Tensor& boxes2
) {
  const BoxPairs pairs(boxes1, boxes2, 5);
  const bool wide = boxes1.scalar_type() == ScalarType::Double;
  pairs.check_gradient(grad_output, wide);
  const Tensor grad = torch::stable::contiguous(grad_output);
  const int64_t B = pairs.B, N = pairs.N, M = pairs.M;
  Tensor grad1 = pairs.empty_gradient(N, wide), grad2 = pairs.empty_gradient(M, wide);
  FASTVISION_DISPATCH_FLOATING(boxes1.scalar_type(), "boxes1", [&] {
    using A = accumulate_t<scalar_t>;
    const RotatedPairs<false, scalar_t> boxes(pairs);
    const auto* g = static_cast<const A*>(grad.const_data_ptr());
    const PairParts parts(pairs);
    const int64_t of_rows = N * kRotatedTerms, of_columns = M * kRotatedTerms;
    // the terms of rows for each part of the columns, and the reverse
    const std::unique_ptr<A[]> rows(new A[B * parts.columns * of_rows]());
    const std::unique_ptr<A[]> columns(new A[B * parts.rows * of_columns]());
    parts.run<RotatedTile>(
        pairs,
        kRotatedSerialPairs,
        [&](int64_t image, int64_t row, int64_t column, const RotatedTile& tile) {
          FASTVISION_CALL(
              box_iou_rotated_backward,
              g + image * N * M,
              boxes.of_image(image),
              tile,
              rows.get() + (image * parts.columns + column) * of_rows,
              columns.get() + (image * parts.rows + row) * of_columns
          );
        }
    );
    auto* to1 = static_cast<A*>(grad1.mutable_data_ptr());
    auto* to2 = static_cast<A*>(grad2.mutable_data_ptr());
    for (int64_t image = 0; image < B; ++image) {
      sum_parts(
          rows.get() + image * parts.columns * of_rows, parts.columns, N, to1 + image * of_rows
      );
      sum_parts(
          columns.get() + image * parts.rows * of_columns, parts.rows, M, to2 + image * of_columns
      );
    }
  });
  return {grad1, grad2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("box_iou_rotated", FASTVISION_BOX(&box_iou_rotated));
  m.impl("box_iou_rotated_backward", FASTVISION_BOX(&box_iou_rotated_backward));
}

}  // namespace fastvision
