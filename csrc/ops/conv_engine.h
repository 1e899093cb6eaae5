// Splits a convolution into tasks, fills their tables of pointers, and runs the kernels of conv.h.
#pragma once

#include <vector>

#include "common/torch.h"
#include "ops/conv.h"

namespace fastvision {

// A batch of maps in memory, [N, C, H, W] or [N, H, W, C] if channels_last.
struct ConvImage {
  void* data;
  int64_t N, C, H, W;
  bool channels_last;
};

// A dense grid of output pixels with one set of taps: all of a convolution's output, or one phase
// of a transposed convolution's. Grid pixel (y, x) is output pixel (y * out_step + out_first) and
// its tap (r, s) reads input pixel (y * step + first + r * dilation), each per axis.
struct ConvPhase {
  const void* packed;
  int64_t R, S;
  int64_t grid_h, grid_w;
  int64_t step_y, step_x, first_y, first_x, dilation_y, dilation_x;
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

// What the current CPU level packs for; `dtype` is that of the packed weights, float32 or float64.
ConvPacking conv_packing(ScalarType dtype, int64_t groups, int64_t C, int64_t K, int64_t taps);

// Writes weights [groups][K][C][taps] and the bias [groups][K], or null, into their places.
template <typename T>
void pack_conv(const ConvPacking& p, const T* weight, const T* bias, T* packed);

void run_conv(const ConvPlan& plan);

}  // namespace fastvision
