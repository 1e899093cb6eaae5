// PSRoIAlign and PSRoIPool on the CPU: sums over a position-sensitive map.
#include "cpu/roi_sensitive.h"

namespace fastvision::FASTVISION_ISA {

#define FASTVISION_DEFINE_ROI(T, A)                           \
  void roi_forward(                                           \
      RoiKernel<T, WeightedSum, PositionSensitive>,           \
      const RoiArgs& args,                                    \
      const RoiTapsView<A>& taps,                             \
      const RoiForwardTask& task,                             \
      A* scratch                                              \
  ) {                                                         \
    if (args.channels_last) {                                 \
      sensitive_forward_last<T>(args, taps, task);            \
    } else {                                                  \
      sensitive_forward_planar<T>(args, taps, task, scratch); \
    }                                                         \
  }                                                           \
  void roi_backward(                                          \
      RoiKernel<T, WeightedSum, PositionSensitive>,           \
      const RoiArgs& args,                                    \
      const RoiTapsView<A>& taps,                             \
      const RoiBackwardTask& task,                            \
      A* scratch                                              \
  ) {                                                         \
    sensitive_backward<T>(args, taps, task, scratch);         \
  }
FASTVISION_DEFINE_ROI(float, float)
FASTVISION_DEFINE_ROI(double, double)
FASTVISION_DEFINE_ROI(half_t, float)
FASTVISION_DEFINE_ROI(bfloat16_t, float)

}  // namespace fastvision::FASTVISION_ISA
