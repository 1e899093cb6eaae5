// Contract of the soft-NMS kernels: instead of removing the boxes that overlap with the best one,
// their scores decay, and the search goes on with the best of the others.
//
// The intersection over union is that of ops/nms.h. A score of NaN comes first and stays; equal
// scores are ordered by index. Boxes with a score below min_score leave.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/isa.h"

namespace fastvision {

// The boxes of one class, by ascending index.
template <typename T>
struct SoftNmsSegment {
  const T* boxes;   // [n, 4] (x1, y1, x2, y2)
  T* scores;        // [n] 0 or more, or NaN; result: the decayed ones of the kept boxes
  uint8_t* kept;    // [n] result: 1 or 0
  char* workspace;  // soft_nms_bytes<T>(n), aligned to 64 bytes
  int64_t n;        // below 2^31
  // a score is multiplied by 1 - IoU if IoU > iou_threshold, or by exp(exponent IoU^2) if gaussian
  bool gaussian;
  double iou_threshold;  // compared in double, so not rounded to float
  T exponent;
  T min_score;
};

// Arrays are padded to the widest register of any CPU level.
template <typename T>
static constexpr int64_t soft_nms_stride(int64_t n) {
  constexpr int64_t lanes = 64 / sizeof(T);
  return (n + lanes - 1) / lanes * lanes;
}

template <typename T>
static constexpr size_t soft_nms_bytes(int64_t n) {
  return soft_nms_stride<T>(n) * (6 * sizeof(T) + sizeof(int32_t));
}

FASTVISION_DECLARE_CPU(void, soft_nms_float, const SoftNmsSegment<float>&)
FASTVISION_DECLARE_CPU(void, soft_nms_double, const SoftNmsSegment<double>&)

}  // namespace fastvision
