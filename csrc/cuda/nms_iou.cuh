// Whether a box covers another: IoU > threshold, rounded as specified in ops/nms.h.
#pragma once

#include <cmath>
#include <limits>

#include "cuda/nms_buffers.cuh"

namespace fastvision {
namespace {

// Computes `inter / area > t` for the rounded quotient, mostly without division. Rounding is
// monotonic: if inter < round(t * area), then inter < t * area, and the quotient does not round
// above t; if inter > round(above * area), where above is the next number after t, then it does.
template <typename A>
struct Threshold {
  A t;
  A quick;  // t, or NaN if the shortcuts do not hold (t < 0)
  A above;
};

template <typename A>
Threshold<A> round_threshold(double threshold) {
  A t = static_cast<A>(threshold);
  if (static_cast<double>(t) > threshold) {  // a float above the threshold is above t
    t = std::nextafter(t, -std::numeric_limits<A>::infinity());
  }
  const A nan = std::numeric_limits<A>::quiet_NaN();
  if (!(t >= 0)) {
    return {t, nan, nan};
  }
  return {t, t, std::nextafter(t, std::numeric_limits<A>::infinity())};
}

// products that must not be contracted with a later addition
__device__ float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ double multiply(double a, double b) { return __dmul_rn(a, b); }

template <typename A>
__device__ A area_of(const Box<A>& box) {
  return multiply(box.x2 - box.x1, box.y2 - box.y1);
}

template <typename A>
__device__ bool covers(
    const Box<A>& a, A area_a, const Box<A>& b, A area_b, const Threshold<A>& threshold
) {
  const A width = max(min(a.x2, b.x2) - max(a.x1, b.x1), A(0));
  const A height = max(min(a.y2, b.y2) - max(a.y1, b.y1), A(0));
  const A inter = multiply(width, height);
  const A area = area_a + area_b - inter;
  if (inter < multiply(threshold.quick, area)) {
    return false;
  }
  if (area > A(0) && inter > multiply(threshold.above, area)) {
    return true;
  }
  return inter / area > threshold.t;
}

}  // namespace
}  // namespace fastvision
