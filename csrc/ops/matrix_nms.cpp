#include "ops/matrix_nms.h"

#include <algorithm>
#include <limits>

#include "common/parallel.h"
#include "ops/class_order.h"

namespace fastvision {
namespace {

constexpr int64_t kRows = 64;  // boxes of a thread at a time: waking it for fewer does not pay

template <typename scalar_t>
void decay_scores(const NmsArgs& args, bool gaussian, double sigma, void* result) {
  using T = accumulate_t<scalar_t>;
  constexpr int64_t kMargin = 64 / sizeof(T);  // that a register may read behind the last box
  const int64_t N = args.N;
  CallMemory memory;
  SortItem* items = memory.take<SortItem>(2 * N);
  const SortItem* order = order_by_class<scalar_t>(args, items, true);
  T* arrays[7];  // x1, y1, x2, y2, area, compensation, decay
  for (T*& array : arrays) {
    array = memory.take<T>(N + kMargin);
    std::fill_n(array + N, kMargin, T(0));
  }
  int32_t* begins = memory.take<int32_t>(N);
  const auto* boxes = static_cast<const torch_scalar_t<scalar_t>*>(args.boxes);
  for (int64_t i = 0; i < N; ++i) {
    const auto* box = boxes + 4 * static_cast<int64_t>(order[i].index);
    for (int k = 0; k < 4; ++k) {
      arrays[k][i] = static_cast<T>(box[k]);
    }
    arrays[4][i] = (arrays[2][i] - arrays[0][i]) * (arrays[3][i] - arrays[1][i]);
    const bool same = i > 0 && order[i].key == order[i - 1].key;
    begins[i] = same ? begins[i - 1] : static_cast<int32_t>(i);
  }
  MatrixNmsArgs<T> problem{
      arrays[0],
      arrays[1],
      arrays[2],
      arrays[3],
      arrays[4],
      begins,
      arrays[5],
      arrays[6],
      gaussian,
      T(0)
  };
  // finite, since infinity times an excess of 0 is NaN
  problem.sigma = static_cast<T>(std::min<double>(sigma, std::numeric_limits<T>::max()));
  parallel_chunks(N, kRows, [&] {
    return [&](int64_t begin, int64_t end) {
      FASTVISION_CALL(matrix_nms_compensate, problem, begin, end);
    };
  });
  parallel_chunks(N, kRows, [&] {
    return
        [&](int64_t begin, int64_t end) { FASTVISION_CALL(matrix_nms_decay, problem, begin, end); };
  });
  const auto* scores = static_cast<const torch_scalar_t<scalar_t>*>(args.scores);
  auto* decayed = static_cast<torch_scalar_t<scalar_t>*>(result);
  for (int64_t i = 0; i < N; ++i) {
    const int32_t index = order[i].index;
    const T score = static_cast<T>(scores[index]) * problem.decay[i];
    decayed[index] = static_cast<torch_scalar_t<scalar_t>>(score);
  }
}

Tensor matrix_nms(
    const Tensor& boxes,
    const Tensor& scores,
    const std::optional<Tensor>& idxs,
    bool gaussian,
    double sigma
) {
  check_shapes(boxes, scores, idxs, 2);
  STD_TORCH_CHECK(sigma > 0, "sigma must be above 0, got ", sigma);
  const NmsInputs inputs(boxes, scores, idxs, 0);
  Tensor decayed = empty_result(boxes, {inputs.args.N}, {1});
  FASTVISION_DISPATCH_FLOATING(boxes.scalar_type(), "boxes", [&] {
    decay_scores<scalar_t>(inputs.args, gaussian, sigma, decayed.mutable_data_ptr());
  });
  return decayed;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) { m.impl("matrix_nms", FASTVISION_BOX(&matrix_nms)); }

}  // namespace fastvision
