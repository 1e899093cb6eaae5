// Arguments of the RoI kernels, on the CPU and on CUDA: plain data.
#pragma once

#include <cstdint>

// Marks what CPU code and GPU threads share.
#if defined(__CUDACC__) || defined(FASTVISION_CUDA_EMULATION)
#define FASTVISION_DEVICE __device__  // where it calls a lambda of the device
#define FASTVISION_HOST_DEVICE __host__ __device__
#else
#define FASTVISION_DEVICE
#define FASTVISION_HOST_DEVICE
#endif

namespace fastvision {

// Distance from 1 to the next number, and a little more.
template <typename A>
FASTVISION_HOST_DEVICE constexpr A epsilon() {
  return sizeof(A) == 4 ? A(1.2e-7) : A(2.3e-16);
}

constexpr int kMaxLevels = 8;

struct RoiLevel {
  void* features;  // [N, C, H, W], or [N, H, W, C] if channels_last; input (forward) or gradient
                   // (backward)
  int64_t H;
  int64_t W;
  double spatial_scale;
};

struct RoiArgs {
  RoiLevel levels[kMaxLevels];
  int num_levels;
  const void* rois;  // [K, 5] (batch, x1, y1, x2, y2), float, or double for double features; if
                     // rotated [K, 6] (batch, centre x and y, width, height, degrees)
  void* pooled;      // [K, C, PH, PW], or [K, PH, PW, C] if channels_last; output or its gradient
  // as pooled, of an op with a maximum: its pixel y * W + x, or its sample's number in the bin, or
  // -1; null in a forward that nobody differentiates
  int32_t* argmax;
  int64_t N;
  int64_t C;
  int64_t K;
  int64_t PH;
  int64_t PW;
  int64_t sampling_ratio;  // <= 0: adaptive, ceil(roi size / bins) samples per bin
  bool aligned;
  bool rotated;
  bool clockwise;  // the angles of rotated rois
  bool channels_last;
  bool copied;  // though channels_last, the levels are [N, C, H, W]: for a kernel to copy
  // level of a roi (FPN, equation 1): floor(canonical_level + log2(sqrt(area) / canonical_scale) +
  // 1e-6), clamped to [min_level, min_level + num_levels), less min_level; not used when num_levels
  // is 1
  double canonical_scale;
  double canonical_level;
  int64_t min_level;
};

}  // namespace fastvision
