// Contract of the kernels of RoI ops that take bilinear samples one by one, common/roi_samples.h:
// roi_align with the maximum, roi_align_rotated. Otherwise as in ops/roi.h.
#pragma once

#include "common/roi_samples_view.h"
#include "ops/roi.h"

namespace fastvision {

struct RoIAlignMax {
  using Reduction = LargestSample;
  using Channels = AllChannels;
};
struct RoIAlignRotated {
  using Reduction = MeanSample;
  using Channels = AllChannels;
};
FASTVISION_DECLARE_ROI_LAUNCHERS(RoIAlignMax)      // in cuda/roi_align_max.cu
FASTVISION_DECLARE_ROI_LAUNCHERS(RoIAlignRotated)  // in cuda/roi_align_rotated.cu

// The channels of one pixel or bin are padded to that many in scratch memory.
constexpr int64_t kSampleLanes = 16;
static inline int64_t sample_padded(int64_t channels) {
  return (channels + kSampleLanes - 1) / kSampleLanes * kSampleLanes;
}

// The CPU kernels, in channels_last only. The forward adds a block of a bin's samples to what
// `scratch`, of 2 * sample_padded(C), has of the bin, and with the last block writes the bin.
// The backward adds `channels` of a bin's gradient to a tile [cells, sample_padded(channels)];
// `scratch` is of 2 * sample_padded(channels). Then roi_samples_write gives a row of it its type.
#define FASTVISION_DECLARE_ROI_SAMPLES(Reduction, T, A) \
  FASTVISION_DECLARE_CPU(                               \
      void,                                             \
      roi_samples_forward,                              \
      RoiKernel<T, Reduction, AllChannels>,             \
      const SampleBlock<A>&,                            \
      const T* image,     /* [H, W, C] */               \
      const T* image_end, /* of the whole tensor */     \
      int64_t C,                                        \
      T* pooled,       /* [C] */                        \
      int32_t* argmax, /* [C], or null */               \
      A* scratch                                        \
  )                                                     \
  FASTVISION_DECLARE_CPU(                               \
      void,                                             \
      roi_samples_backward,                             \
      RoiKernel<T, Reduction, AllChannels>,             \
      const SampleBlock<A>&,                            \
      const T* grad,         /* [channels] */           \
      const int32_t* argmax, /* [channels], or null */  \
      int64_t channels,                                 \
      A* tile,                                          \
      A* scratch                                        \
  )
#define FASTVISION_DECLARE_ROI_TILES(T, A)               \
  FASTVISION_DECLARE_ROI_SAMPLES(MeanSample, T, A)       \
  FASTVISION_DECLARE_ROI_SAMPLES(LargestSample, T, A)    \
  FASTVISION_DECLARE_CPU(                                \
      void,                                              \
      roi_samples_write,                                 \
      const A* tile,                                     \
      T* grad,                                           \
      int64_t cells,                                     \
      int64_t channels,                                  \
      int64_t stride /* of a pixel's channels in grad */ \
  )
FASTVISION_DECLARE_ROI_TILES(float, float)
FASTVISION_DECLARE_ROI_TILES(double, double)
FASTVISION_DECLARE_ROI_TILES(half_t, float)
FASTVISION_DECLARE_ROI_TILES(bfloat16_t, float)
#undef FASTVISION_DECLARE_ROI_SAMPLES
#undef FASTVISION_DECLARE_ROI_TILES

}  // namespace fastvision
