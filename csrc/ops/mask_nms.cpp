#include <algorithm>

#include "ops/class_order.h"
#include "ops/mask_iou_packed.h"

namespace fastvision {
namespace {

// Whether two masks of these sizes could have an IoU above the threshold. Division rounds
// monotonically, so this bound is never below the computed IoU.
bool may_cover(int64_t pixels1, int64_t pixels2, double threshold) {
  if (threshold < 0) {
    return true;
  }
  const auto less = static_cast<double>(std::min(pixels1, pixels2));
  const auto more = static_cast<double>(std::max(pixels1, pixels2));
  return less > 0 && less / more > threshold;
}

// Marks the kept masks of a class, of which `order` has the indices by descending score.
void suppress(
    const PackedMasks& masks,
    const SortItem* order,
    int64_t n,
    double threshold,
    uint8_t* kept  // by index
) {
  std::vector<int64_t> winners;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t mask = order[i].index;
    const bool dropped = std::any_of(winners.begin(), winners.end(), [&](int64_t winner) {
      return may_cover(masks.pixels(winner), masks.pixels(mask), threshold) &&
             overlap(masks, winner, masks, mask) > threshold;
    });
    kept[mask] = !dropped;
    if (!dropped) {
      winners.push_back(mask);
    }
  }
}

Tensor mask_nms(
    const Tensor& masks,
    const Tensor& scores,
    const std::optional<Tensor>& idxs,
    double iou_threshold
) {
  const PackedMasks packed(masks, "masks");
  const int64_t N = masks.size(0);
  check_dim(scores, 1, "scores");
  STD_TORCH_CHECK(scores.size(0) == N, "scores must be as many as masks");
  STD_TORCH_CHECK(N <= std::numeric_limits<int32_t>::max(), "masks must be fewer than 2**31");
  std::optional<Tensor> classes;
  if (idxs) {
    check_dim(*idxs, 1, "idxs");
    STD_TORCH_CHECK(idxs->scalar_type() == ScalarType::Long, "idxs must be int64");
    STD_TORCH_CHECK(idxs->size(0) == N, "idxs must be as many as masks");
    classes = as_contiguous(*idxs);
  }
  const Tensor dense_scores = as_contiguous(scores);
  NmsArgs args{};
  args.scores = dense_scores.const_data_ptr();
  args.idxs = classes ? classes->const_data_ptr<int64_t>() : nullptr;
  args.N = N;
  std::optional<Tensor> indices;
  FASTVISION_DISPATCH_FLOATING(scores.scalar_type(), "scores", [&] {
    CallMemory memory;
    SortItem* items = memory.take<SortItem>(2 * N);
    uint8_t* kept = memory.take<uint8_t>(N);
    SortItem* by_class = order_by_class<scalar_t>(args, items, true);
    const std::vector<int64_t> begins = class_begins(by_class, N);
    parallel_chunks(static_cast<int64_t>(begins.size()) - 1, 1, [&] {
      return [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          suppress(packed, by_class + begins[i], begins[i + 1] - begins[i], iou_threshold, kept);
        }
      };
    });
    const auto* values = static_cast<const torch_scalar_t<scalar_t>*>(args.scores);
    int64_t count = 0;
    for (int64_t i = 0; i < N; ++i) {
      if (kept[i]) {
        const auto score = static_cast<accumulate_t<scalar_t>>(values[i]);
        items[count++] = {score_key(score), static_cast<int32_t>(i)};
      }
    }
    const SortItem* ranked = stable_sort(items, items + N, count);
    indices = empty_indices({count});
    int64_t* out = indices->mutable_data_ptr<int64_t>();
    for (int64_t i = 0; i < count; ++i) {
      out[i] = ranked[i].index;
    }
  });
  return *indices;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) { m.impl("mask_nms", FASTVISION_BOX(&mask_nms)); }

}  // namespace fastvision
