// Contract of the RoIAlign kernels, forward and backward, over one feature map or a pyramid of them.
//
// An axis of a roi is a short list of taps per bin: the validity test, the clamping and the bilinear
// weights of a sample are all per axis, so RoIAlign is  out = A * F * B^T  with sparse A and B
// (Mask R-CNN, section 3). Sample positions are computed in float (double for double features) in
// the order of operations of torchvision, without fused multiply-adds.
//
// Semantics beyond torchvision: a roi with a non-finite coordinate gives zeros, a batch index that is
// out of range gives zeros on CUDA and is refused on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/isa.h"

struct CUstream_st;  // *cudaStream_t

namespace fastvision {

constexpr int kMaxLevels = 8;

struct RoIAlignLevel {
  void* features;  // [N, C, H, W], or [N, H, W, C] if channels_last; input (forward) or gradient (backward)
  int64_t H;
  int64_t W;
  double spatial_scale;
};

struct RoIAlignArgs {
  RoIAlignLevel levels[kMaxLevels];
  int num_levels;
  const void* rois;  // [K, 5] (batch, x1, y1, x2, y2), float, or double for double features
  void* pooled;      // [K, C, PH, PW], or [K, PH, PW, C] if channels_last; output or its gradient
  int64_t N;
  int64_t C;
  int64_t K;
  int64_t PH;
  int64_t PW;
  int64_t sampling_ratio;  // <= 0: adaptive, ceil(roi size / bins) samples per bin
  bool aligned;
  bool channels_last;
  // level of a roi (FPN, equation 1): floor(canonical_level + log2(sqrt(area) / canonical_scale) + 1e-6),
  // clamped to [min_level, min_level + num_levels), less min_level; not used when num_levels is 1
  double canonical_scale;
  double canonical_level;
  int64_t min_level;
};

// CUDA, of float, double, half_t and bfloat16_t. All pointers are to device memory; nothing is waited
// for. The output, in backward the maps of all levels, is written in full; it must not be empty.
template <typename T>
void launch_roi_align_forward(const RoIAlignArgs& args, CUstream_st* stream);
template <typename T>
void launch_roi_align_backward(const RoIAlignArgs& args, CUstream_st* stream);

}  // namespace fastvision
