#include "ops/conv_depthwise.h"

#ifdef USE_CUDA
#include <algorithm>

#include "common/cuda_stream.h"
#include "common/memory_format.h"
#include "common/torch.h"

namespace fastvision {
namespace {

const float* channel_values(const std::optional<Tensor>& x, int64_t C, const char* name) {
  if (!x.has_value()) {
    return nullptr;
  }
  STD_TORCH_CHECK(
      x->scalar_type() == ScalarType::Float && x->numel() == C && x->is_contiguous() &&
          x->is_cuda(),
      name,
      " must be a contiguous float32 value per channel"
  );
  return static_cast<const float*>(x->const_data_ptr());
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// `weight` is [taps, taps, C], `padding` is left, right, top, bottom; images are channels_last.
Tensor conv_depthwise(
    const Tensor& input,
    const Tensor& weight,
    const std::optional<Tensor>& scale,
    const std::optional<Tensor>& shift,
    const std::optional<Tensor>& residual,
    std::vector<int64_t> stride,
    std::vector<int64_t> padding,
    int64_t activation,
    double negative_slope
) {
  check_dim(input, 4, "input");
  check_dim(weight, 3, "weight");
  STD_TORCH_CHECK(
      stride.size() == 2 && padding.size() == 4, "stride needs 2 numbers, padding needs 4"
  );
  STD_TORCH_CHECK(activation >= 0 && activation < kActivations, "unknown activation ", activation);
  const ScalarType dtype = input.scalar_type();
  const int64_t N = input.size(0), C = input.size(1), H = input.size(2), W = input.size(3);
  const int64_t taps = weight.size(0);
  STD_TORCH_CHECK(
      (taps == 3 || taps == 5 || taps == 7) && weight.size(1) == taps && weight.size(2) == C &&
          weight.scalar_type() == dtype && weight.is_contiguous() && weight.is_cuda(),
      "weight must be [3, 3, C], [5, 5, C] or [7, 7, C], contiguous and of input's dtype"
  );
  STD_TORCH_CHECK(
      stride[0] == stride[1] && (stride[0] == 1 || stride[0] == 2), "stride must be 1 or 2"
  );
  const int64_t OH = (H + padding[2] + padding[3] - taps) / stride[0] + 1;
  const int64_t OW = (W + padding[0] + padding[1] - taps) / stride[0] + 1;
  STD_TORCH_CHECK(
      H + padding[2] + padding[3] >= taps && W + padding[0] + padding[1] >= taps,
      "the kernel does not fit into the padded input"
  );
  const int64_t limit = INT32_MAX / 4;
  STD_TORCH_CHECK(
      std::max({N, C, H, W, OH, OW}) < limit && std::max(padding[0], padding[2]) < limit,
      "a size is too large"
  );
  STD_TORCH_CHECK(has_channels_last_strides(input), "input must be channels_last");
  Tensor output = empty_in_format(input, N, C, OH, OW, true);
  if (output.numel() == 0) {
    return output;
  }
  DepthwiseArgs args{};
  if (residual.has_value()) {
    STD_TORCH_CHECK(
        residual->dim() == 4 && residual->size(0) == N && residual->size(1) == C &&
            residual->size(2) == OH && residual->size(3) == OW &&
            residual->scalar_type() == dtype && has_channels_last_strides(*residual),
        "residual must have the shape, dtype and format of the result"
    );
    args.residual = residual->const_data_ptr();
  }
  args.input = input.const_data_ptr();
  args.weight = weight.const_data_ptr();
  args.output = output.mutable_data_ptr();
  STD_TORCH_CHECK(
      C * static_cast<int64_t>(input.element_size()) % 16 == 0 && is_aligned(args.input) &&
          is_aligned(args.weight) && is_aligned(args.residual) && is_aligned(args.output),
      "channels and addresses must be multiples of 16 bytes"
  );
  args.scale = channel_values(scale, C, "scale");
  args.shift = channel_values(shift, C, "shift");
  args.N = static_cast<int>(N);
  args.C = static_cast<int>(C);
  args.H = static_cast<int>(H);
  args.W = static_cast<int>(W);
  args.OH = static_cast<int>(OH);
  args.OW = static_cast<int>(OW);
  args.taps = static_cast<int>(taps);
  args.stride = static_cast<int>(stride[0]);
  args.pad_top = static_cast<int>(padding[2]);
  args.pad_left = static_cast<int>(padding[0]);
  args.activation = static_cast<Activation>(activation);
  args.negative_slope = static_cast<float>(negative_slope);

  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const cudaStream_t stream = current_cuda_stream(input.get_device_index());
  switch (dtype) {
    case ScalarType::Float:
      launch_conv_depthwise<float>(args, stream);
      break;
    case ScalarType::Half:
      launch_conv_depthwise<half_t>(args, stream);
      break;
    case ScalarType::BFloat16:
      launch_conv_depthwise<bfloat16_t>(args, stream);
      break;
    default:
      STD_TORCH_CHECK(false, "input must be float16, bfloat16 or float32");
  }
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CUDA, m) {
  m.impl("conv_depthwise", FASTVISION_BOX(&conv_depthwise));
}

}  // namespace fastvision
#endif
