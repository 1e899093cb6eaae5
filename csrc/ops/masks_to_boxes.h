// Contract of the kernel for the smallest box around the nonzero values of a mask.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastvision {

struct MaskArgs {
  const uint8_t* masks;  // [N, H, W] values of `bytes` bytes each, rows without gaps
  int64_t H, W;
  int64_t mask_step, row_step;  // bytes
  int bytes;                    // 1, 2, 4 or 8
  bool is_signed_zero;          // whether the highest bit alone is a zero: floating-point values
  float* boxes;                 // [N, 4] x1, y1, x2, y2
};

// Masks [begin, end).
FASTVISION_DECLARE_CPU(void, masks_to_boxes, const MaskArgs&, int64_t begin, int64_t end)

}  // namespace fastvision
