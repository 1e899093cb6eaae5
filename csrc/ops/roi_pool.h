// RoIPool (Fast R-CNN, section 2.1) as the RoI engine takes an op.
#pragma once

#include "common/roi_axis.h"
#include "common/roi_op.h"
#include "ops/roi.h"

namespace fastvision {

struct RoIPool {
  template <typename A>
  using Axis = CellAxis<A>;
  using Reduction = Maximum;
  using Channels = AllChannels;
};

FASTVISION_DECLARE_ROI_LAUNCHERS(RoIPool)  // in cuda/roi_pool.cu

}  // namespace fastvision
