// RoIPool on the CPU: maxima over all channels.
#include "cpu/roi_maximum.h"
#include "cpu/roi_maximum_backward.h"

namespace fastvision::FASTVISION_ISA {

#define FASTVISION_DEFINE_ROI(T, A)                         \
  void roi_forward(                                         \
      RoiKernel<T, Maximum, AllChannels>,                   \
      const RoiArgs& args,                                  \
      const RoiTapsView<A>& taps,                           \
      const RoiForwardTask& task,                           \
      A* scratch                                            \
  ) {                                                       \
    if (args.argmax == nullptr) {                           \
      maximum_forward<false, T>(args, taps, task, scratch); \
    } else {                                                \
      maximum_forward<true, T>(args, taps, task, scratch);  \
    }                                                       \
  }                                                         \
  void roi_backward(                                        \
      RoiKernel<T, Maximum, AllChannels>,                   \
      const RoiArgs& args,                                  \
      const RoiTapsView<A>& taps,                           \
      const RoiBackwardTask& task,                          \
      A* scratch                                            \
  ) {                                                       \
    maximum_backward<T>(args, taps, task, scratch);         \
  }
FASTVISION_DEFINE_ROI(float, float)
FASTVISION_DEFINE_ROI(double, double)
FASTVISION_DEFINE_ROI(half_t, float)
FASTVISION_DEFINE_ROI(bfloat16_t, float)

}  // namespace fastvision::FASTVISION_ISA
