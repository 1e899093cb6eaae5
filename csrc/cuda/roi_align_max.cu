// The largest sample of each bin of RoIAlign on the GPU.
#include "cuda/roi_samples.cuh"

namespace fastvision {

FASTVISION_DEFINE_ROI_SAMPLES(RoIAlignMax)

}  // namespace fastvision
