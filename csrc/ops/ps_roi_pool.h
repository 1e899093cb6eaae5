// PSRoIPool (R-FCN, equation 1) as the RoI engine takes an op.
#pragma once

#include "common/roi_axis.h"
#include "common/roi_op.h"
#include "ops/roi.h"

namespace fastvision {

struct PSRoIPool {
  template <typename A>
  using Axis = MeanCellAxis<A>;
  using Reduction = WeightedSum;
  using Channels = PositionSensitive;
};

FASTVISION_DECLARE_ROI_LAUNCHERS(PSRoIPool)  // in cuda/ps_roi_pool.cu

}  // namespace fastvision
