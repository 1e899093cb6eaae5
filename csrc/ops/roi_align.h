// RoIAlign (Mask R-CNN, section 3) as the RoI engine takes an op.
#pragma once

#include "common/roi_axis.h"
#include "common/roi_op.h"

namespace fastvision {

struct RoIAlign {
  template <typename A>
  using Axis = BilinearAxis<A>;
  using Reduction = WeightedSum;
  using Channels = AllChannels;
};

}  // namespace fastvision
