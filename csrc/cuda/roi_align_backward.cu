#include "cuda/roi_backward.cuh"
#include "ops/roi_align.h"

namespace fastvision {

template void launch_roi_backward<RoIAlign, float>(const RoiArgs&, CUstream_st*);
template void launch_roi_backward<RoIAlign, double>(const RoiArgs&, CUstream_st*);
template void launch_roi_backward<RoIAlign, half_t>(const RoiArgs&, CUstream_st*);
template void launch_roi_backward<RoIAlign, bfloat16_t>(const RoiArgs&, CUstream_st*);

}  // namespace fastvision
