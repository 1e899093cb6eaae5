// Contract of the CUDA kernel for depthwise convolution with scale, shift, residual and activation.
// Other convolutions run on cuDNN, cuBLAS or Triton (fastvision/ops/conv/gpu.py).
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/scalar.h"

struct CUstream_st;  // cudaStream_t points to one

namespace fastvision {

// Square kernels of 3, 5 or 7 taps per axis, stride 1 or 2, no dilation. C is a multiple of 16
// bytes, and all pointers to the storage type are aligned to 16 bytes.
struct DepthwiseArgs {
  const void* input;     // [N, H, W, C]
  const void* weight;    // [taps, taps, C]
  const float* scale;    // [C], or null
  const float* shift;    // [C], or null
  const void* residual;  // like output, or null
  void* output;          // [N, OH, OW, C]
  int N;
  int C;
  int H;
  int W;
  int OH;
  int OW;
  int taps;
  int stride;
  int pad_top;
  int pad_left;
  Activation activation;
  float negative_slope;
};

// output = activation(conv(input, weight) * scale + shift + residual), computed in float and
// rounded once, for float, half_t and bfloat16_t. The output must not be empty.
template <typename T>
void launch_conv_depthwise(const DepthwiseArgs& args, CUstream_st* stream);

}  // namespace fastvision
