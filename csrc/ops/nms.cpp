#include "ops/nms.h"

#include "common/torch.h"

#ifdef USE_CUDA
#include <limits>

#include "common/cuda_stream.h"

namespace fastvision {
namespace {

// NMS of a batch, queued on the current stream; the caller has checked that the shapes fit.
void queue_nms_cuda(
    const Tensor& boxes,                // [B, N, 4] or [N, 4]
    const Tensor& scores,               // [B, N] or [N]
    const std::optional<Tensor>& idxs,  // like scores
    double iou_threshold,
    std::optional<double> score_threshold,
    const Tensor& indices,  // [B, max_output] or [max_output]
    const Tensor& counts    // [B]
) {
  const int64_t B = counts.size(0);
  const int64_t N = scores.size(-1);
  STD_TORCH_CHECK(
      B < std::numeric_limits<int32_t>::max() && B * N < std::numeric_limits<int32_t>::max(),
      "nms takes fewer than 2^31 - 1 boxes at a time on CUDA, got ",
      B,
      " x ",
      N
  );
  const Tensor boxes_in = torch::stable::contiguous(boxes);
  const Tensor scores_in = torch::stable::contiguous(scores);
  std::optional<Tensor> idxs_in;
  if (idxs) {
    idxs_in = torch::stable::contiguous(*idxs);
  }
  NmsArgs args{};
  args.boxes = boxes_in.const_data_ptr();
  args.scores = scores_in.const_data_ptr();
  args.idxs = idxs_in ? static_cast<const int64_t*>(idxs_in->const_data_ptr()) : nullptr;
  args.B = B;
  args.N = N;
  args.iou_threshold = iou_threshold;
  args.has_score_threshold = score_threshold.has_value();
  args.score_threshold = score_threshold.value_or(0);
  args.max_output = indices.size(-1);
  args.indices = static_cast<int64_t*>(indices.mutable_data_ptr());
  args.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  const int64_t chunk = nms_chunk(B, N);
  const cudaStream_t stream = current_cuda_stream(boxes.get_device_index());
  FASTVISION_DISPATCH_FLOATING(boxes.scalar_type(), "boxes", [&] {
    const auto bytes = static_cast<int64_t>(nms_workspace_bytes<scalar_t>(args, chunk));
    const Tensor workspace = torch::stable::new_empty(boxes, {bytes}, ScalarType::Byte);
    launch_nms<scalar_t>(args, chunk, workspace.mutable_data_ptr(), stream);
  });
}

void check_nms_cuda(
    const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs, int64_t dim
) {
  check_dim(boxes, dim, "boxes");
  check_dim(scores, dim - 1, "scores");
  STD_TORCH_CHECK(boxes.size(dim - 1) == 4, "boxes must have 4 columns");
  STD_TORCH_CHECK(
      scores.scalar_type() == boxes.scalar_type(), "scores must have the type of boxes"
  );
  STD_TORCH_CHECK(scores.device() == boxes.device(), "scores must be on the device of boxes");
  if (idxs) {
    check_dim(*idxs, dim - 1, "idxs");
    STD_TORCH_CHECK(idxs->scalar_type() == ScalarType::Long, "idxs must be int64");
    STD_TORCH_CHECK(idxs->device() == boxes.device(), "idxs must be on the device of boxes");
  }
  for (int64_t d = 0; d < dim - 1; ++d) {
    STD_TORCH_CHECK(scores.size(d) == boxes.size(d), "scores must match boxes in size");
    STD_TORCH_CHECK(!idxs || idxs->size(d) == boxes.size(d), "idxs must match boxes in size");
  }
}

std::tuple<Tensor, Tensor> nms_padded_cuda(
    Tensor boxes,
    Tensor scores,
    std::optional<Tensor> idxs,
    double iou_threshold,
    std::optional<double> score_threshold,
    int64_t max_output
) {
  check_nms_cuda(boxes, scores, idxs, 3);
  STD_TORCH_CHECK(max_output >= 0, "max_output must not be negative, got ", max_output);
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const int64_t B = boxes.size(0);
  Tensor indices = torch::stable::new_empty(boxes, {B, max_output}, ScalarType::Long);
  Tensor counts = torch::stable::new_empty(boxes, {B}, ScalarType::Long);
  queue_nms_cuda(boxes, scores, idxs, iou_threshold, score_threshold, indices, counts);
  return {indices, counts};
}

Tensor nms_cuda(Tensor boxes, Tensor scores, std::optional<Tensor> idxs, double iou_threshold) {
  check_nms_cuda(boxes, scores, idxs, 2);
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  Tensor indices = torch::stable::new_empty(boxes, {boxes.size(0)}, ScalarType::Long);
  const Tensor counts = torch::stable::new_empty(boxes, {1}, ScalarType::Long);
  queue_nms_cuda(boxes, scores, idxs, iou_threshold, std::nullopt, indices, counts);
  // the size of the result is only known on the device: the one place that waits for it
  const cudaStream_t stream = current_cuda_stream(boxes.get_device_index());
  int64_t count = 0;
  cudaError_t error = cudaMemcpyAsync(
      &count, counts.const_data_ptr(), sizeof count, cudaMemcpyDeviceToHost, stream
  );
  if (error == cudaSuccess) {
    error = cudaStreamSynchronize(stream);
  }
  STD_TORCH_CHECK(error == cudaSuccess, "nms: ", cudaGetErrorString(error));
  return torch::stable::narrow(indices, 0, 0, count);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CUDA, m) {
  m.impl("nms", FASTVISION_BOX(&nms_cuda));
  m.impl("nms_padded", FASTVISION_BOX(&nms_padded_cuda));
}

}  // namespace fastvision
#endif
