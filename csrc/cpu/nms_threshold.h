// The threshold of an intersection over union, in the type of the IoU.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/simd_types.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// iou > threshold, with iou in T, is iou > the largest T not above the threshold
inline double round_down(double threshold, double) { return threshold; }
inline float round_down(double threshold, float) {
  const float nearest = (float)threshold;
  if ((double)nearest <= threshold) {
    return nearest;
  }
  int32_t bits;
  memcpy(&bits, &nearest, sizeof bits);
  bits += nearest > 0 ? -1 : 1;  // the next value towards -infinity
  float below;
  memcpy(&below, &bits, sizeof below);
  return below;
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
