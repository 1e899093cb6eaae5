// 3x3 convolutions by Winograd's algorithm.
#include <algorithm>
#include <numeric>

#include "ops/conv_winograd_run.h"

namespace fastvision {
namespace {

WinogradLayout layout_of(int64_t C, int64_t K, int64_t stride) {
  return {C, K, stride == 2 ? WinogradForm::kStrided : WinogradForm::kThree, 1};
}

// weight [K, C, 3, 3], or [C, K, 3, 3] if it is to be turned: of the convolution that gives the
// gradient of the input
Tensor conv_winograd_pack(
    const Tensor& weight, const std::optional<Tensor>& bias, bool is_turned, int64_t stride
) {
  STD_TORCH_CHECK(
      weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3,
      "weight must have the shape [K, C, 3, 3]"
  );
  STD_TORCH_CHECK(stride == 1 || stride == 2, "stride must be 1 or 2, got ", stride);
  const int64_t K = weight.size(is_turned ? 1 : 0), C = weight.size(is_turned ? 0 : 1);
  const int64_t outer = weight.size(1) * kWinogradTaps;
  std::vector<int64_t> taps(kWinogradTaps);
  std::iota(taps.begin(), taps.end(), int64_t{0});
  if (is_turned) {
    std::reverse(taps.begin(), taps.end());
  }
  return pack_winograd(
      weight,
      bias,
      layout_of(C, K, stride),
      is_turned ? kWinogradTaps : outer,
      is_turned ? outer : kWinogradTaps,
      {taps}
  );
}

Tensor convolve(
    const Tensor& input,
    const Tensor& packed,
    const std::optional<Tensor>& residual,
    const Tensor& options,
    bool in_place
) {
  const ConvOptions o = ConvOptions::read(options);
  STD_TORCH_CHECK(
      o.R == 3 && o.S == 3 && o.groups == 1 && o.stride_x == o.stride_y &&
          (o.stride_y == 1 || o.stride_y == 2) && std::max(o.dilation_y, o.dilation_x) == 1,
      "the kernel must be 3x3 of dilation and groups 1, and the stride 1 or 2"
  );
  check_dim(input, 4, "input");
  const int64_t OH = extent(input.size(2), o.top, o.bottom, o.R, 1, o.stride_y);
  const int64_t OW = extent(input.size(3), o.left, o.right, o.S, 1, o.stride_x);
  STD_TORCH_CHECK(OH > 0 && OW > 0, "the kernel does not fit into the padded input");
  const WinogradLayout layout = layout_of(input.size(1), o.K, o.stride_y);
  check_winograd(input, packed, layout);
  const float* weights = static_cast<const float*>(packed.const_data_ptr());
  const ConvPhase phase{o.window(), weights + layout.all.bias_size(), OH, OW, 1, 1, 0, 0};
  return run_winograd(input, packed, residual, o, layout, {phase}, OH, OW, in_place);
}

void conv_winograd_in_place(
    const Tensor& input, const Tensor& packed, const Tensor& residual, const Tensor& options
) {
  convolve(input, packed, residual, options, true);
}

}  // namespace

Tensor conv_winograd(
    const Tensor& input,
    const Tensor& packed,
    const std::optional<Tensor>& residual,
    const Tensor& options
) {
  return convolve(input, packed, residual, options, false);
}

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("conv_winograd_pack", FASTVISION_BOX(&conv_winograd_pack));
  m.impl("conv_winograd", FASTVISION_BOX(&conv_winograd));
  m.impl("conv_winograd_", FASTVISION_BOX(&conv_winograd_in_place));
}

}  // namespace fastvision
