// RoIAlign of rotated boxes on the GPU.
#include "cuda/roi_samples.cuh"

namespace fastvision {

FASTVISION_DEFINE_ROI_SAMPLES(RoIAlignRotated)

}  // namespace fastvision
