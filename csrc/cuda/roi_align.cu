#include "cuda/roi_forward.cuh"
#include "ops/roi_align.h"

namespace fastvision {

template void launch_roi_forward<RoIAlign, float>(const RoiArgs&, CUstream_st*);
template void launch_roi_forward<RoIAlign, double>(const RoiArgs&, CUstream_st*);
template void launch_roi_forward<RoIAlign, half_t>(const RoiArgs&, CUstream_st*);
template void launch_roi_forward<RoIAlign, bfloat16_t>(const RoiArgs&, CUstream_st*);

}  // namespace fastvision
