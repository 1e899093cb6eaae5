// Contract of the RoIAlign kernels, forward and backward, over one feature map or a pyramid of
// them.
//
// An axis of a roi is a short list of taps per bin: the validity test, the clamping and the
// bilinear weights of a sample are all per axis, so RoIAlign is  out = A * F * B^T  with sparse A
// and B (Mask R-CNN, section 3). Sample positions are computed in float (double for double
// features) in the order of operations of torchvision, without fused multiply-adds.
//
// Semantics beyond torchvision: a roi with a non-finite coordinate gives zeros, a batch index that
// is out of range gives zeros on CUDA and is refused on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/isa.h"
#include "common/scalar.h"

struct CUstream_st;  // *cudaStream_t

namespace fastvision {

constexpr int kMaxLevels = 8;

struct RoIAlignLevel {
  void* features;  // [N, C, H, W], or [N, H, W, C] if channels_last; input (forward) or gradient
                   // (backward)
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
  // level of a roi (FPN, equation 1): floor(canonical_level + log2(sqrt(area) / canonical_scale) +
  // 1e-6), clamped to [min_level, min_level + num_levels), less min_level; not used when num_levels
  // is 1
  double canonical_scale;
  double canonical_level;
  int64_t min_level;
};

template <typename A>
struct RoiTapsView;  // common/roi_taps_view.h

// One worker's piece of the CPU forward: some rois, some channels.
struct RoIAlignForwardTask {
  const int32_t* order;  // [K] rois in the order of work: neighbours share cache lines
  int64_t begin, end;    // positions in it
  int64_t c_begin, c_end;
};

// One worker's piece of the CPU backward: a tile of one gradient map, summed over its rois in
// order, so the result does not depend on the number of threads.
struct RoIAlignBackwardTask {
  const int32_t* rois;  // [count] rois of that level and image, ascending
  int64_t count;
  int level;
  int64_t image;
  int64_t y_begin, y_end, x_begin, x_end, c_begin, c_end;
};

// Scratch of a worker in elements of the accumulation type; channels of a task in the NCHW format
// are at most kChannelsPlanar.
constexpr int64_t kChannelsPlanar = 16;
constexpr int64_t kBinsPerBatch = 256;  // pooled rows are handled until that many bins are together
static inline int64_t roi_align_batch_rows(const RoIAlignArgs& args) {
  const int64_t rows = args.PW >= kBinsPerBatch ? 1 : kBinsPerBatch / args.PW;
  return rows < args.PH ? rows : args.PH;
}
static inline int64_t roi_align_padded(int64_t n) { return (n + 31) / 16 * 16; }
static inline int64_t roi_align_scratch(const RoIAlignArgs& args, int64_t width) {
  return (roi_align_padded(width) + roi_align_padded(roi_align_batch_rows(args) * args.PW)) *
         kChannelsPlanar;
}

// The pooled maps and the features are of the type of the first pointer, which is not read.
#define FASTVISION_DECLARE_ROI_ALIGN(T, A) \
  FASTVISION_DECLARE_CPU(                  \
      void,                                \
      roi_align_forward,                   \
      const T*,                            \
      const RoIAlignArgs&,                 \
      const RoiTapsView<A>&,               \
      const RoIAlignForwardTask&,          \
      A* scratch                           \
  )                                        \
  FASTVISION_DECLARE_CPU(                  \
      void,                                \
      roi_align_backward,                  \
      const T*,                            \
      const RoIAlignArgs&,                 \
      const RoiTapsView<A>&,               \
      const RoIAlignBackwardTask&,         \
      A* scratch                           \
  )
FASTVISION_DECLARE_ROI_ALIGN(float, float)
FASTVISION_DECLARE_ROI_ALIGN(double, double)
FASTVISION_DECLARE_ROI_ALIGN(half_t, float)
FASTVISION_DECLARE_ROI_ALIGN(bfloat16_t, float)
#undef FASTVISION_DECLARE_ROI_ALIGN

// CUDA, of float, double, half_t and bfloat16_t. All pointers are to device memory; nothing is
// waited for. The output, in backward the maps of all levels, is written in full; it must not be
// empty.
template <typename T>
void launch_roi_align_forward(const RoIAlignArgs& args, CUstream_st* stream);
template <typename T>
void launch_roi_align_backward(const RoIAlignArgs& args, CUstream_st* stream);

}  // namespace fastvision
