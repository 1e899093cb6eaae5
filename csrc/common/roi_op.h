// A RoI op is three choices: an axis rule (roi_axis.h), a reduction and a channel map. The kernels
// take the last two as template parameters, the CPU's through the tag RoiKernel.
#pragma once

#include "common/isa.h"
#include "common/roi_args.h"

namespace fastvision {

// The sum of a bin's pixels times their weights; kernels implement it as
// Accumulator<WeightedSum, ...>.
struct WeightedSum {};

// The largest of a bin's pixels, and where it is: the first such in a row-major order. As in
// torchvision, pixels count that are more than the lowest finite float, so never a NaN; without one
// that is the result, and the gradient goes nowhere. A bin without pixels gives 0.
struct Maximum {};

// The mean or the largest of a bin's bilinear samples, one by one (roi_samples.h); of the largest
// its number in the bin, the first such. Samples count as pixels do in Maximum; one outside the map
// is 0, without a gradient. A bin without samples gives 0.
struct MeanSample {};
struct LargestSample {};

// Output channel c is pooled from channel c of the features in every bin.
struct AllChannels {
  // every bin reads the same channels, so a kernel may share their pixels among bins
  static constexpr bool kSharedByBins = true;

  // channels of the output, and of the features by those of the output
  FASTVISION_HOST_DEVICE FASTVISION_NO_COPY static int64_t pooled(const RoiArgs& args) {
    return args.C;
  }
  FASTVISION_NO_COPY static int64_t features(const RoiArgs&, int64_t pooled) { return pooled; }
};

// Output channel c of bin (i, j) is pooled from channel (c * PH + i) * PW + j (R-FCN, equation 1).
struct PositionSensitive {
  static constexpr bool kSharedByBins = false;

  FASTVISION_HOST_DEVICE FASTVISION_NO_COPY static int64_t pooled(const RoiArgs& args) {
    return args.C / (args.PH * args.PW);
  }
  FASTVISION_NO_COPY static int64_t features(const RoiArgs& args, int64_t pooled) {
    return pooled * args.PH * args.PW;
  }
};

template <typename T, typename Reduction, typename Channels>
struct RoiKernel {};

// In NCHW, a kernel copies planes with up to that many pixels for each roi that reads them, so that
// the channels of a pixel are side by side.
template <typename Reduction, typename Channels>
inline constexpr int64_t kCopiedPerRoi = 0;
template <>
inline constexpr int64_t kCopiedPerRoi<WeightedSum, PositionSensitive> = 16;
template <>
inline constexpr int64_t kCopiedPerRoi<Maximum, AllChannels> = 128;

}  // namespace fastvision
