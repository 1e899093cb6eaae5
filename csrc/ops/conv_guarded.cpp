// The ops with packed weights, for a caller that has packed them before: they run only if the
// weights are still those that were packed. One op instead of two saves a part of a small
// convolution's time.
#include "ops/conv_engine.h"
#include "ops/fingerprint_of.h"

namespace fastvision {
namespace {

template <PackedConv* run>
Tensor guarded(
    const Tensor& input,
    const Tensor& packed,
    const std::optional<Tensor>& residual,
    const Tensor& options,
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    const std::optional<Tensor>& bn_weight,
    const std::optional<Tensor>& bn_bias,
    const std::optional<Tensor>& running_mean,
    const std::optional<Tensor>& running_var
) {
  const ConvGuard guard = ConvGuard::read(options);
  STD_TORCH_CHECK(
      input.dim() == 4 && input.size(1) == guard.channels,
      "input must have ",
      guard.channels,
      " channels"
  );
  const std::optional<Tensor> weights[] = {
      weight, bias, bn_weight, bn_bias, running_mean, running_var
  };
  STD_TORCH_CHECK(
      guard.fingerprint >= 0 && fingerprint_of(weights, 6) == guard.fingerprint,
      "the weights have changed since they were packed"
  );
  return run(input, packed, residual, options);
}

// Without normalization and residual: five arguments less.
template <PackedConv* run>
Tensor guarded_alone(
    const Tensor& input,
    const Tensor& packed,
    const Tensor& options,
    const Tensor& weight,
    const std::optional<Tensor>& bias
) {
  const std::optional<Tensor> none;
  return guarded<run>(input, packed, none, options, weight, bias, none, none, none, none);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("conv_packed_guarded", FASTVISION_BOX(&guarded<conv_packed>));
  m.impl("conv_winograd_guarded", FASTVISION_BOX(&guarded<conv_winograd>));
  m.impl("conv_transpose2d_packed_guarded", FASTVISION_BOX(&guarded<conv_transpose2d_packed>));
  m.impl("conv_transpose2d_winograd_guarded", FASTVISION_BOX(&guarded<conv_transpose2d_winograd>));
  m.impl("conv_transpose2d_alone_guarded", FASTVISION_BOX(&guarded_alone<conv_transpose2d_packed>));
}

}  // namespace fastvision
