// Thresholds in the type they are compared in.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/isa.h"

namespace fastvision {

// The largest number of the second argument's type that is not above the threshold: for an x of
// this type, x > threshold is x > that.
FASTVISION_NO_COPY double round_down(double threshold, double) { return threshold; }
FASTVISION_NO_COPY float round_down(double threshold, float) {
  const float nearest = static_cast<float>(threshold);
  if (!(static_cast<double>(nearest) > threshold)) {
    return nearest;
  }
  int32_t bits;
  memcpy(&bits, &nearest, sizeof bits);
  bits += nearest > 0 ? -1 : 1;  // the next value towards -infinity
  float below;
  memcpy(&below, &bits, sizeof below);
  return below;
}

}  // namespace fastvision
