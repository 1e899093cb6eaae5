// RoIAlign on the CPU: sums over all channels.
#include "cpu/roi_backward.h"
#include "cpu/roi_forward.h"

namespace fastvision::FASTVISION_ISA {

#define FASTVISION_DEFINE_ROI(T, A)                                  \
  void roi_forward(                                                  \
      RoiKernel<T, WeightedSum, AllChannels>,                        \
      const RoiArgs& args,                                           \
      const RoiTapsView<A>& taps,                                    \
      const RoiForwardTask& task,                                    \
      A* scratch                                                     \
  ) {                                                                \
    forward<WeightedSum, AllChannels, T>(args, taps, task, scratch); \
  }                                                                  \
  void roi_backward(                                                 \
      RoiKernel<T, WeightedSum, AllChannels>,                        \
      const RoiArgs& args,                                           \
      const RoiTapsView<A>& taps,                                    \
      const RoiBackwardTask& task,                                   \
      A* scratch                                                     \
  ) {                                                                \
    backward<AllChannels, T>(args, taps, task, scratch);             \
  }
FASTVISION_DEFINE_ROI(float, float)
FASTVISION_DEFINE_ROI(double, double)
FASTVISION_DEFINE_ROI(half_t, float)
FASTVISION_DEFINE_ROI(bfloat16_t, float)

}  // namespace fastvision::FASTVISION_ISA
