#include "ops/nms_rotated_boxes.h"

namespace fastvision {

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("nms_3d", FASTVISION_BOX(&suppress_rotated<true>));
}

}  // namespace fastvision
