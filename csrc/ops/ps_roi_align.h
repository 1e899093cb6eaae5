// PSRoIAlign (Light-Head R-CNN, section 3.2) as the RoI engine takes an op.
#pragma once

#include "common/roi_axis.h"
#include "common/roi_op.h"
#include "ops/roi.h"

namespace fastvision {

struct PSRoIAlign {
  template <typename A>
  using Axis = BilinearAxis<A>;
  using Reduction = WeightedSum;
  using Channels = PositionSensitive;
};

FASTVISION_DECLARE_ROI_LAUNCHERS(PSRoIAlign)  // in cuda/ps_roi_align.cu

}  // namespace fastvision
