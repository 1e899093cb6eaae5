#include "ops/weighted_boxes_fusion.h"

#include <vector>

#include "common/parallel.h"
#include "common/result_memory.h"
#include "common/scratch.h"
#include "common/torch.h"

namespace fastvision {
namespace {

constexpr int64_t kParallelMin = 2048;  // boxes below which waking threads does not pay

template <typename A>
void fuse(const FusionArgs<A>& args, const int64_t* labels, int64_t N) {
  std::vector<int64_t> begins;  // of classes, and the end
  for (int64_t i = 0; i < N; ++i) {
    if (i == 0 || labels[i] != labels[i - 1]) {
      begins.push_back(i);
    }
  }
  const int64_t classes = begins.size();
  begins.push_back(N);
  parallel_chunks(classes, N < kParallelMin ? classes : 1, [&] {
    return [&, scratch = Scratch<A>()](int64_t first, int64_t last) mutable {
      for (int64_t i = first; i < last; ++i) {
        A* memory = scratch.get(fusion_scratch(begins[i + 1] - begins[i]));
        FASTVISION_CALL(fuse_boxes, args, begins[i], begins[i + 1], memory);
      }
    };
  });
}

// boxes [N, 4] by class and descending score, in float or double. Returns the fused boxes [N, 4],
// their scores [N] and how many boxes each is of, 0 where there is none.
std::tuple<Tensor, Tensor, Tensor> weighted_boxes_fusion(
    const Tensor& boxes_in,
    const Tensor& scores_in,
    const Tensor& labels_in,
    double iou_threshold,
    bool maximum
) {
  check_dim(boxes_in, 2, "boxes");
  check_dim(scores_in, 1, "scores");
  check_dim(labels_in, 1, "labels");
  const int64_t N = boxes_in.size(0);
  const ScalarType type = boxes_in.scalar_type();
  STD_TORCH_CHECK(boxes_in.size(1) == 4, "boxes must have 4 columns, got ", boxes_in.size(1));
  STD_TORCH_CHECK(
      scores_in.size(0) == N && scores_in.scalar_type() == type,
      "scores must be as many as boxes, of their type"
  );
  STD_TORCH_CHECK(
      labels_in.size(0) == N && labels_in.scalar_type() == ScalarType::Long,
      "labels must be as many as boxes, of type int64"
  );
  const Tensor boxes = torch::stable::contiguous(boxes_in);
  const Tensor scores = torch::stable::contiguous(scores_in);
  const Tensor labels = torch::stable::contiguous(labels_in);
  Tensor fused = empty_result(boxes, {N, 4}, {4, 1});
  Tensor fused_scores = empty_result(boxes, {N}, {1});
  Tensor counts = empty_result(labels, {N}, {1});
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    const FusionArgs<A> args{
        boxes.const_data_ptr<A>(),
        scores.const_data_ptr<A>(),
        iou_threshold,
        maximum,
        fused.mutable_data_ptr<A>(),
        fused_scores.mutable_data_ptr<A>(),
        counts.mutable_data_ptr<int64_t>()
    };
    fuse(args, labels.const_data_ptr<int64_t>(), N);
  };
  if (type == ScalarType::Float) {
    run(0.0f);
  } else if (type == ScalarType::Double) {
    run(0.0);
  } else {
    STD_TORCH_CHECK(false, "boxes must be float32 or float64");
  }
  return {fused, fused_scores, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("weighted_boxes_fusion", FASTVISION_BOX(&weighted_boxes_fusion));
}

}  // namespace fastvision
