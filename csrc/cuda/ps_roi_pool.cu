#include "cuda/roi_sensitive.cuh"
#include "ops/ps_roi_pool.h"

namespace fastvision {

FASTVISION_DEFINE_SENSITIVE(PSRoIPool)

}  // namespace fastvision
