// Arc tangent for the vectors of simd.h, for files of csrc/cpu.
#pragma once

#include "common/simd_math.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// (atan(x) / x - 1) / x^2 as a function of x^2 <= tan(pi / 8)^2, with the least maximum error
inline float_v atan_series(float_v square) {
  constexpr float kCoefficients[] = {
      -0.33333306880f, 0.19998182384f, -0.14239520496f, 0.10569738024f, -0.06026070970f
  };
  return polynomial(square, kCoefficients);
}

inline double_v atan_series(double_v square) {
  constexpr double kCoefficients[] = {
      -0.3333333333333312,
      0.19999999999940837,
      -0.14285714279244968,
      0.11111110744657099,
      -0.09090896801472813,
      0.07692045194561481,
      -0.06662950246036792,
      0.05846866752275139,
      -0.05035049795312439,
      0.03796390316111083,
      -0.017803896394812564
  };
  return polynomial(square, kCoefficients);
}

// Propagates NaN; pi / 2 for infinity.
template <typename A>
inline vector_t<A> atan_of(vector_t<A> x) {
  using V = vector_t<A>;
  const A kHalfPi = static_cast<A>(1.5707963267948966), kTan = static_cast<A>(0.41421356237309503);
  const V one = broadcast(A(1)), zero{};
  const V size = x < zero ? -x : x;
  const auto inverted = size > one;
  V t = inverted ? one / size : size;
  // atan(t) = pi / 4 + atan((t - 1) / (t + 1))
  const auto large = t > broadcast(kTan);
  t = large ? (t - one) / (t + one) : t;
  const V square = t * t;
  V angle = multiply_add(t * square, atan_series(square), t);
  angle = large ? broadcast(kHalfPi / 2) + angle : angle;
  angle = inverted ? broadcast(kHalfPi) - angle : angle;
  return x < zero ? -angle : angle;
}
inline float_v atan(float_v x) { return atan_of<float>(x); }
inline double_v atan(double_v x) { return atan_of<double>(x); }

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
