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

// in cuda/roi_pool.cu
template <>
void launch_roi_forward<RoIPool, float>(const RoiArgs& args, CUstream_st* stream);
template <>
void launch_roi_forward<RoIPool, double>(const RoiArgs& args, CUstream_st* stream);
template <>
void launch_roi_forward<RoIPool, half_t>(const RoiArgs& args, CUstream_st* stream);
template <>
void launch_roi_forward<RoIPool, bfloat16_t>(const RoiArgs& args, CUstream_st* stream);
template <>
void launch_roi_backward<RoIPool, float>(const RoiArgs& args, CUstream_st* stream);
template <>
void launch_roi_backward<RoIPool, double>(const RoiArgs& args, CUstream_st* stream);
template <>
void launch_roi_backward<RoIPool, half_t>(const RoiArgs& args, CUstream_st* stream);
template <>
void launch_roi_backward<RoIPool, bfloat16_t>(const RoiArgs& args, CUstream_st* stream);

}  // namespace fastvision
