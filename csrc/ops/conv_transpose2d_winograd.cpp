// Transposed convolutions by Winograd's algorithm: those whose phases have 2x2 or 3x3 taps.
#include "ops/conv_transposed.h"
#include "ops/conv_winograd_run.h"

namespace fastvision {
namespace {

constexpr int64_t kMostPhases = 64;

// Checks that all phases have as many taps, 2x2 or 3x3.
WinogradForm form_of(int64_t R, int64_t S, int64_t stride_y, int64_t stride_x) {
  STD_TORCH_CHECK(
      std::min(stride_y, stride_x) > 0 && std::max(stride_y, stride_x) <= kMostPhases &&
          stride_y * stride_x <= kMostPhases,
      "the stride must be positive and have at most ",
      kMostPhases,
      " phases"
  );
  if (R == 2 * stride_y && S == 2 * stride_x) {
    return WinogradForm::kPair;
  }
  STD_TORCH_CHECK(
      R == 3 * stride_y && S == 3 * stride_x, "the kernel must be two or three times the stride"
  );
  return WinogradForm::kThree;
}

// weight [C, K, R, S]
Tensor conv_transpose2d_winograd_pack(
    const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride_y, int64_t stride_x
) {
  check_dim(weight, 4, "weight");
  const int64_t C = weight.size(0), K = weight.size(1), R = weight.size(2), S = weight.size(3);
  const WinogradLayout layout(C, K, form_of(R, S, stride_y, stride_x), stride_y * stride_x);
  const TransposedFilter filter{1, C, K, R, S, {stride_y, stride_x}, {1, 1}};
  std::vector<std::vector<int64_t>> taps;
  filter.for_each_phase([&](int64_t, const PhaseAxis& rows, int64_t, const PhaseAxis& columns) {
    taps.push_back(filter.taps(rows, columns));
  });
  return pack_winograd(weight, bias, layout, R * S, K * R * S, taps);
}

}  // namespace

Tensor conv_transpose2d_winograd(
    const Tensor& input,
    const Tensor& packed,
    const std::optional<Tensor>& residual,
    const Tensor& options
) {
  const ConvOptions o = ConvOptions::read(options);
  const WinogradForm form = form_of(o.R, o.S, o.stride_y, o.stride_x);
  STD_TORCH_CHECK(
      o.groups == 1 && std::max(o.dilation_y, o.dilation_x) == 1, "dilation and groups must be 1"
  );
  const TransposedSize size(input, o);
  const int64_t C = input.size(1);
  const WinogradLayout layout(C, o.K, form, o.stride_y * o.stride_x);
  check_winograd(input, packed, layout);
  const float* weights =
      static_cast<const float*>(packed.const_data_ptr()) + layout.all.bias_size();
  std::vector<ConvPhase> phases;
  TransposedFilter::of(C, o).for_each_phase(
      [&](int64_t y, const PhaseAxis& rows, int64_t x, const PhaseAxis& columns) {
        phases.push_back(transposed_phase(o, size, y, rows, x, columns, weights));
        weights += layout.phase_size();
      }
  );
  return run_winograd(input, packed, residual, o, layout, phases, size.H, size.W, false);
}

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("conv_transpose2d_winograd_pack", FASTVISION_BOX(&conv_transpose2d_winograd_pack));
  m.impl("conv_transpose2d_winograd", FASTVISION_BOX(&conv_transpose2d_winograd));
}

}  // namespace fastvision
