#include "cpu/nms_rotated_segment.h"

namespace fastvision::FASTVISION_ISA {

void nms_rotated_segment(const RotatedSegment<float>& segment) { run<false>(segment); }
void nms_rotated_segment(const RotatedSegment<double>& segment) { run<false>(segment); }

}  // namespace fastvision::FASTVISION_ISA
