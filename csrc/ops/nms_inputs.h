// Checks the arguments of the NMS ops and converts them for the kernels.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

#include "common/result_memory.h"
#include "common/torch.h"
#include "ops/nms.h"

namespace fastvision {

template <typename T>
using torch_scalar_t = std::conditional_t<
    std::is_same_v<T, half_t>,
    torch::headeronly::Half,
    std::conditional_t<std::is_same_v<T, bfloat16_t>, torch::headeronly::BFloat16, T>>;

inline void check_shapes(
    const Tensor& boxes,
    const Tensor& scores,
    const std::optional<Tensor>& idxs,
    int64_t dim,
    int64_t columns = 4
) {
  check_dim(boxes, dim, "boxes");
  check_dim(scores, dim - 1, "scores");
  STD_TORCH_CHECK(
      boxes.size(dim - 1) == columns,
      "boxes must have ",
      columns,
      " columns, got ",
      boxes.size(dim - 1)
  );
  STD_TORCH_CHECK(
      scores.scalar_type() == boxes.scalar_type(), "scores must have the type of boxes"
  );
  if (idxs) {
    check_dim(*idxs, dim - 1, "idxs");
    STD_TORCH_CHECK(idxs->scalar_type() == ScalarType::Long, "idxs must be int64");
  }
  int64_t count = 1;
  for (int64_t i = 0; i < dim - 1; ++i) {
    STD_TORCH_CHECK(scores.size(i) == boxes.size(i), "scores must be as many as boxes");
    STD_TORCH_CHECK(!idxs || idxs->size(i) == boxes.size(i), "idxs must be as many as boxes");
    count *= boxes.size(i);
  }
  STD_TORCH_CHECK(count <= std::numeric_limits<int32_t>::max(), "boxes must be fewer than 2**31");
}

inline Tensor as_contiguous(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// torch::stable::empty goes through the dispatcher, which takes half of a call with few boxes.
inline Tensor empty_indices(const std::vector<int64_t>& sizes) {
  const int64_t columns = sizes.back();
  const auto strides =
      sizes.size() == 2 ? std::vector<int64_t>{columns, 1} : std::vector<int64_t>{1};
  return empty_strided(
      sizes,
      strides,
      ScalarType::Long,
      sizeof(int64_t),
      torch::stable::Device(torch::headeronly::DeviceType::CPU)
  );
}

// NmsArgs without results; owns the memory behind its pointers.
struct NmsInputs {
  Tensor boxes, scores;
  std::optional<Tensor> idxs;
  NmsArgs args{};

  NmsInputs(
      const Tensor& boxes_in,
      const Tensor& scores_in,
      const std::optional<Tensor>& idxs_in,
      double iou_threshold
  )
      : boxes(as_contiguous(boxes_in)), scores(as_contiguous(scores_in)) {
    if (idxs_in) {
      idxs = as_contiguous(*idxs_in);
      args.idxs = idxs->const_data_ptr<int64_t>();
    }
    args.boxes = boxes.const_data_ptr();
    args.scores = scores.const_data_ptr();
    args.B = boxes.dim() == 3 ? boxes.size(0) : 1;
    args.N = boxes.size(-2);
    args.iou_threshold = iou_threshold;
  }

  // the threshold is compared in the scores' type, as in torch
  template <typename T>
  void set_score_threshold(std::optional<double> threshold) {
    args.has_score_threshold = threshold.has_value();
    args.score_threshold = static_cast<torch_scalar_t<T>>(threshold.value_or(0));
  }
};

// The number of boxes that an image may keep; without a limit, all of them.
inline int64_t most_kept(const NmsArgs& args, std::optional<int64_t> max_output) {
  STD_TORCH_CHECK(
      max_output.value_or(0) >= 0, "max_output must not be negative, got ", max_output.value_or(0)
  );
  return max_output && *max_output < args.N ? *max_output : args.N;
}

}  // namespace fastvision
