// Contract of the kernels for masks as bits: 64 pixels a word, and intersections as counts of bits.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastvision {

// The words around what a mask has set, ends exclusive; all 0 for an empty mask.
struct MaskExtent {
  int64_t pixels;  // set in the mask
  int64_t top, bottom, left, right;
};

struct MaskBits {
  int64_t H, W;
  int64_t row_words;    // of 64 pixels, the last one filled up with zeros
  uint64_t* words;      // [N, H, row_words]
  MaskExtent* extents;  // [N]
};

// Masks [begin, end) of pixels [N, H, W], a byte each, that are set unless 0.
FASTVISION_DECLARE_CPU(
    void, pack_masks, const MaskBits&, const uint8_t* pixels, int64_t begin, int64_t end
)

// The number of pixels that are set in mask i of `a` and in mask j of `b`, of the same size.
FASTVISION_DECLARE_CPU(
    int64_t, mask_intersection, const MaskBits& a, int64_t i, const MaskBits& b, int64_t j
)

}  // namespace fastvision
