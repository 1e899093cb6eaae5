#ifdef USE_CUDA
#include "common/cuda_stream.h"
#include "ops/nms_inputs.h"

namespace fastvision {
namespace {

// NMS of a batch, queued on the current stream; the caller has checked the shapes.
void queue_nms_cuda(
    NmsInputs& inputs,
    std::optional<double> score_threshold,
    const Tensor& indices,  // [B, max_output] or [max_output]
    const Tensor& counts    // [B]
) {
  NmsArgs& args = inputs.args;
  args.max_output = indices.size(-1);
  args.indices = indices.mutable_data_ptr<int64_t>();
  args.counts = counts.mutable_data_ptr<int64_t>();
  const int64_t chunk = nms_chunk(args.B, args.N);
  const cudaStream_t stream = current_cuda_stream(inputs.boxes.get_device_index());
  FASTVISION_DISPATCH_FLOATING(inputs.boxes.scalar_type(), "boxes", [&] {
    inputs.set_score_threshold<scalar_t>(score_threshold);
    const auto bytes = static_cast<int64_t>(nms_workspace_bytes<scalar_t>(args, chunk));
    const Tensor workspace = torch::stable::new_empty(inputs.boxes, {bytes}, ScalarType::Byte);
    launch_nms<scalar_t>(args, chunk, workspace.mutable_data_ptr(), stream);
  });
}

void check_inputs(
    const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs, int64_t dim
) {
  check_shapes(boxes, scores, idxs, dim);
  STD_TORCH_CHECK(scores.device() == boxes.device(), "scores must be on the device of boxes");
  STD_TORCH_CHECK(!idxs || idxs->device() == boxes.device(), "idxs must be on the device of boxes");
}

std::tuple<Tensor, Tensor> nms_padded_cuda(
    const Tensor& boxes,
    const Tensor& scores,
    const std::optional<Tensor>& idxs,
    double iou_threshold,
    std::optional<double> score_threshold,
    int64_t max_output
) {
  check_inputs(boxes, scores, idxs, 3);
  STD_TORCH_CHECK(max_output >= 0, "max_output must not be negative, got ", max_output);
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  const int64_t B = boxes.size(0);
  Tensor indices = torch::stable::new_empty(boxes, {B, max_output}, ScalarType::Long);
  Tensor counts = torch::stable::new_empty(boxes, {B}, ScalarType::Long);
  NmsInputs inputs(boxes, scores, idxs, iou_threshold);
  queue_nms_cuda(inputs, score_threshold, indices, counts);
  return {indices, counts};
}

Tensor nms_cuda(
    const Tensor& boxes,
    const Tensor& scores,
    const std::optional<Tensor>& idxs,
    double iou_threshold,
    std::optional<double> score_threshold,
    std::optional<int64_t> max_output
) {
  check_inputs(boxes, scores, idxs, 2);
  const torch::stable::accelerator::DeviceGuard guard(boxes.get_device_index());
  NmsInputs inputs(boxes, scores, idxs, iou_threshold);
  const int64_t most = most_kept(inputs.args, max_output);
  Tensor indices = torch::stable::new_empty(boxes, {most}, ScalarType::Long);
  const Tensor counts = torch::stable::new_empty(boxes, {1}, ScalarType::Long);
  queue_nms_cuda(inputs, score_threshold, indices, counts);
  // the only synchronization: the size of the result is known on the device only
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
