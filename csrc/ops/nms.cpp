#include "ops/nms.h"

#include <algorithm>

#include "ops/nms_suppression.h"

namespace fastvision {
namespace {

Tensor nms(
    const Tensor& boxes,
    const Tensor& scores,
    const std::optional<Tensor>& idxs,
    double iou_threshold,
    std::optional<double> score_threshold,
    std::optional<int64_t> max_output
) {
  check_shapes(boxes, scores, idxs, 2);
  NmsInputs inputs(boxes, scores, idxs, iou_threshold);
  return kept_indices<UprightBoxes>(inputs, score_threshold, max_output);
}

std::tuple<Tensor, Tensor> nms_match(
    const Tensor& boxes,
    const Tensor& scores,
    const std::optional<Tensor>& idxs,
    double iou_threshold
) {
  check_shapes(boxes, scores, idxs, 2);
  NmsInputs inputs(boxes, scores, idxs, iou_threshold);
  NmsArgs& args = inputs.args;
  args.max_output = args.N;
  std::optional<Tensor> indices;
  Tensor match = empty_indices({args.N});
  FASTVISION_DISPATCH_FLOATING(boxes.scalar_type(), "boxes", [&] {
    const Suppression<scalar_t> suppression(args, true);
    const int64_t count = suppression.kept(0);
    indices = empty_indices({count});
    suppression.write(0, count, indices->mutable_data_ptr<int64_t>());
    suppression.write_match(match.mutable_data_ptr<int64_t>());
  });
  return {*indices, match};
}

std::tuple<Tensor, Tensor> nms_padded(
    const Tensor& boxes,
    const Tensor& scores,
    const std::optional<Tensor>& idxs,
    double iou_threshold,
    std::optional<double> score_threshold,
    int64_t max_output
) {
  check_shapes(boxes, scores, idxs, 3);
  STD_TORCH_CHECK(max_output >= 0, "max_output must not be negative, got ", max_output);
  Tensor indices = empty_indices({boxes.size(0), max_output});
  Tensor counts = empty_indices({boxes.size(0)});
  NmsInputs inputs(boxes, scores, idxs, iou_threshold);
  NmsArgs& args = inputs.args;
  args.max_output = max_output;
  args.indices = indices.mutable_data_ptr<int64_t>();
  args.counts = counts.mutable_data_ptr<int64_t>();
  FASTVISION_DISPATCH_FLOATING(boxes.scalar_type(), "boxes", [&] {
    inputs.set_score_threshold<scalar_t>(score_threshold);
    const Suppression<scalar_t> suppression(args);
    for (int64_t image = 0; image < args.B; ++image) {
      const int64_t count = suppression.kept(image);
      int64_t* row = args.indices + image * max_output;
      suppression.write(image, count, row);
      std::fill(row + count, row + max_output, -1);
      args.counts[image] = count;
    }
  });
  return {indices, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("nms", FASTVISION_BOX(&nms));
  m.impl("nms_match", FASTVISION_BOX(&nms_match));
  m.impl("nms_padded", FASTVISION_BOX(&nms_padded));
}

}  // namespace fastvision
