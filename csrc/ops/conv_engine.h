// Splits a convolution into tasks, fills their tables of pointers, and runs the kernels of conv.h.
#pragma once

#include <vector>

#include "common/torch.h"
#include "ops/conv.h"
#include "ops/conv_taps.h"

namespace fastvision {

// A batch of maps in memory, [N, C, H, W] or [N, H, W, C] if channels_last.
struct ConvImage {
  void* data;
  int64_t N, C, H, W;
  bool channels_last;
};

// A dense grid of pixels under one window: all of a convolution's output, or one phase of a
// transposed convolution's. Grid pixel (y, x) is output pixel (y * out_step + out_first), each per
// axis.
struct ConvPhase : ConvWindow {
  const void* packed;
  int64_t grid_h, grid_w;
  int64_t out_step_y, out_step_x, out_first_y, out_first_x;
};

struct ConvPlan {
  ScalarType dtype;  // of input, residual and output
  ConvImage input, output;
  const void* residual;  // in the output's shape and format, or null
  int64_t groups;
  std::vector<ConvPhase> phases;
  Activation activation;
  double negative_slope;
};

// How the current CPU level packs weights, which then are of `dtype`: float32 or float64.
ConvPacking conv_packing(ScalarType dtype, int64_t groups, int64_t C, int64_t K, int64_t taps);

// Writes weights [groups][K][C][taps] and the bias [groups][K], or null, into their places.
template <typename T>
void pack_conv(const ConvPacking& p, const T* weight, const T* bias, T* packed);

// A new tensor of `size` numbers that pack(weight, bias or null, packed) writes, all three pointers
// to float or to double; the bias has a value for each of `channels`.
template <typename Pack>
Tensor pack_weight(
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    int64_t channels,
    int64_t size,
    const Pack& pack
) {
  const ScalarType dtype = weight.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Double, "weight must be float32 or float64"
  );
  const Tensor from = torch::stable::contiguous(weight);
  std::optional<Tensor> shift;
  if (bias.has_value()) {
    STD_TORCH_CHECK(
        bias->scalar_type() == dtype && bias->numel() == channels,
        "bias must have a value per channel, in the weight's dtype"
    );
    shift = torch::stable::contiguous(*bias);
  }
  Tensor packed = torch::stable::new_empty(weight, {size});
  const auto run = [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    pack(
        static_cast<const T*>(from.const_data_ptr()),
        shift ? static_cast<const T*>(shift->const_data_ptr()) : nullptr,
        static_cast<T*>(packed.mutable_data_ptr())
    );
  };
  dtype == ScalarType::Double ? run((double*)nullptr) : run((float*)nullptr);
  return packed;
}

// The residual, if there is one, in the result's memory format; refused if it does not fit.
std::optional<Tensor> residual_of(
    const std::optional<Tensor>& residual, const Tensor& output, bool channels_last
);

void run_conv(const ConvPlan& plan);

// The numbers that a convolution's op takes, int64[14] in this order; the slope is a double's bits.
struct ConvOptions {
  int64_t K, R, S;
  int64_t stride_y, stride_x;
  int64_t left, right, top, bottom;  // padding
  int64_t dilation_y, dilation_x;
  int64_t groups;
  int64_t activation;
  double negative_slope;

  ConvWindow window() const {
    return {R, S, stride_y, stride_x, -top, -left, dilation_y, dilation_x};
  }

  // One tensor, since each argument costs a good part of a microsecond on its way here.
  static ConvOptions read(const Tensor& options);
};

}  // namespace fastvision
