#include "cuda/roi_sensitive.cuh"
#include "ops/ps_roi_align.h"

namespace fastvision {

FASTVISION_DEFINE_SENSITIVE(PSRoIAlign)

}  // namespace fastvision
