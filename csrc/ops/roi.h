// Contract of the RoI kernels, forward and backward, over one feature map or a pyramid of them.
//
// An axis of a roi is a short list of taps per bin, pixels and weights, since validity, clamping
// and interpolation all go by axis. With them a RoI op is  out = A * F * B^T  with sparse A and B.
//
// Semantics beyond torchvision: a roi with a non-finite coordinate gives zeros, a batch index that
// is out of range gives zeros on CUDA and is refused on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/isa.h"
#include "common/roi_args.h"
#include "common/roi_op.h"
#include "common/scalar.h"

struct CUstream_st;  // *cudaStream_t

namespace fastvision {

template <typename A>
struct RoiTapsView;  // common/roi_taps_view.h

// One worker's piece of the CPU forward: some rois, some channels of the output.
struct RoiForwardTask {
  const int32_t* order;  // [K] rois in the order of work: neighbours share cache lines
  int64_t begin, end;    // positions in it
  int64_t c_begin, c_end;
  int64_t bin_begin, bin_end;  // ph * PW + pw; all bins, unless they differ in channels
};

// One worker's piece of the CPU backward: a tile of one gradient map, summed over its rois in
// order, so the result does not depend on the number of threads.
struct RoiBackwardTask {
  const int32_t* rois;  // [count] rois of that level and image, ascending
  int64_t count;
  int level;
  int64_t image;
  int64_t y_begin, y_end, x_begin, x_end;
  int64_t c_begin, c_end;      // of the output, which is of the map unless bins differ in channels
  int64_t bin_begin, bin_end;  // as in the forward
};

// Scratch of a worker in elements of the accumulation type; channels of a task in the NCHW format
// are at most kChannelsPlanar.
constexpr int64_t kChannelsPlanar = 16;
constexpr int64_t kMaximumChannelsLast = 16;   // of a task of a maximum's backward: a cache line
constexpr int64_t kMaxCopiedPixels = 1 << 16;  // of planes, see kCopiedPerRoi
constexpr int64_t kCopiedVectors = 2;          // of planes whose maxima are taken together
static inline bool copy_pays(int64_t rois, int64_t pixels, int64_t copied_per_roi) {
  return pixels <= kMaxCopiedPixels && pixels <= rois * copied_per_roi;
}
constexpr int64_t kBinsPerBatch = 256;  // pooled rows are handled until that many bins are together
static inline int64_t roi_batch_rows(const RoiArgs& args) {
  const int64_t rows = args.PW >= kBinsPerBatch ? 1 : kBinsPerBatch / args.PW;
  return rows < args.PH ? rows : args.PH;
}
static inline int64_t roi_padded(int64_t n) { return (n + 31) / 16 * 16; }
static inline int64_t roi_scratch(const RoiArgs& args, int64_t width) {
  const int64_t planes = args.argmax == nullptr ? 1 : 2;  // of values, of positions
  return (roi_padded(width) + roi_padded(roi_batch_rows(args) * args.PW)) * kChannelsPlanar *
         planes;
}

// The CPU kernels, for a reduction and a channel map; T is what the maps and the output are of, A
// what is computed in. The axis rule is in the taps.
#define FASTVISION_DECLARE_ROI(Reduction, Channels, T, A) \
  FASTVISION_DECLARE_CPU(                                 \
      void,                                               \
      roi_forward,                                        \
      RoiKernel<T, Reduction, Channels>,                  \
      const RoiArgs&,                                     \
      const RoiTapsView<A>&,                              \
      const RoiForwardTask&,                              \
      A* scratch                                          \
  )                                                       \
  FASTVISION_DECLARE_CPU(                                 \
      void,                                               \
      roi_backward,                                       \
      RoiKernel<T, Reduction, Channels>,                  \
      const RoiArgs&,                                     \
      const RoiTapsView<A>&,                              \
      const RoiBackwardTask&,                             \
      A* scratch                                          \
  )
FASTVISION_DECLARE_ROI(WeightedSum, AllChannels, float, float)
FASTVISION_DECLARE_ROI(WeightedSum, AllChannels, double, double)
FASTVISION_DECLARE_ROI(WeightedSum, AllChannels, half_t, float)
FASTVISION_DECLARE_ROI(WeightedSum, AllChannels, bfloat16_t, float)
FASTVISION_DECLARE_ROI(Maximum, AllChannels, float, float)
FASTVISION_DECLARE_ROI(Maximum, AllChannels, double, double)
FASTVISION_DECLARE_ROI(Maximum, AllChannels, half_t, float)
FASTVISION_DECLARE_ROI(Maximum, AllChannels, bfloat16_t, float)
FASTVISION_DECLARE_ROI(WeightedSum, PositionSensitive, float, float)
FASTVISION_DECLARE_ROI(WeightedSum, PositionSensitive, double, double)
FASTVISION_DECLARE_ROI(WeightedSum, PositionSensitive, half_t, float)
FASTVISION_DECLARE_ROI(WeightedSum, PositionSensitive, bfloat16_t, float)
#undef FASTVISION_DECLARE_ROI

// CUDA, of an op as ops/roi_align.h describes one, and of float, double, half_t and bfloat16_t. All
// pointers are to device memory; nothing is waited for. The output, in backward the maps of all
// levels, is written in full; it must not be empty.
template <typename Op, typename T>
void launch_roi_forward(const RoiArgs& args, CUstream_st* stream);
template <typename Op, typename T>
void launch_roi_backward(const RoiArgs& args, CUstream_st* stream);

// Of an op with launchers of its own.
#define FASTVISION_DECLARE_ROI_LAUNCHERS_OF_TYPE(Op, T)                     \
  template <>                                                               \
  void launch_roi_forward<Op, T>(const RoiArgs& args, CUstream_st* stream); \
  template <>                                                               \
  void launch_roi_backward<Op, T>(const RoiArgs& args, CUstream_st* stream);
#define FASTVISION_DECLARE_ROI_LAUNCHERS(Op)           \
  FASTVISION_DECLARE_ROI_LAUNCHERS_OF_TYPE(Op, float)  \
  FASTVISION_DECLARE_ROI_LAUNCHERS_OF_TYPE(Op, double) \
  FASTVISION_DECLARE_ROI_LAUNCHERS_OF_TYPE(Op, half_t) \
  FASTVISION_DECLARE_ROI_LAUNCHERS_OF_TYPE(Op, bfloat16_t)

}  // namespace fastvision
