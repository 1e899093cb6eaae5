#include "cpu/nms_rotated_segment.h"

namespace fastvision::FASTVISION_ISA {

void nms_3d_segment(const RotatedSegment<float>& segment) { run<true>(segment); }
void nms_3d_segment(const RotatedSegment<double>& segment) { run<true>(segment); }

}  // namespace fastvision::FASTVISION_ISA
