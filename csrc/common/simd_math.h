// Exponential and logarithms of the vectors of simd.h, for files of csrc/cpu. Coefficients that are
// no Taylor series were fitted to the least largest relative error.
#pragma once

#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// c0 + c1 x + c2 x^2 + ...
template <typename A>
inline vector_t<A> polynomial(vector_t<A>, A c0) {
  return broadcast(c0);
}
template <typename A, typename... Rest>
inline vector_t<A> polynomial(vector_t<A> x, A c0, Rest... rest) {
  return multiply_add(x, polynomial<A>(x, A(rest)...), broadcast(c0));
}

inline float_v absolute(float_v x) { return (float_v)((int32_v)x & 0x7fffffff); }
inline double_v absolute(double_v x) { return (double_v)((int64_v)x & 0x7fffffffffffffff); }

// e^x: within 3e-7 (float) or 1e-14 (double) relative; 0 where that is below the least normal
// number, and for x above 88 (709) no more than the result there
inline float_v exp(float_v x) {
  constexpr float kLeast = -87.33f, kMost = 88.0f;
  constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  float_v clamped = x < kLeast ? broadcast(kLeast) : x;  // NaN stays
  clamped = clamped > kMost ? broadcast(kMost) : clamped;
  const float_v shifted = multiply_add(clamped, broadcast(0x1.715476p+0f), broadcast(kRound));
  const float_v n = shifted - kRound;
  float_v r = multiply_add(n, broadcast(-0x1.62e400p-1f), clamped);
  r = multiply_add(n, broadcast(-0x1.7f7d1cp-20f), r);
  const float_v p = polynomial(
      r, 1.0f, 1.0f, 0.49999994f, 0.16666520f, 0.041668393f, 0.0083687808f, 0.0013814467f
  );
  const float_v scale = (float_v)(((int32_v)shifted + 127) << 23);
  const float_v result = p * scale;  // NaN times anything stays NaN
  return (float_v)((int32_v)result & ~(x < kLeast));
}

inline double_v exp(double_v x) {
  constexpr double kLeast = -708.0, kMost = 709.0;
  constexpr double kRound = 0x1.8p52;
  double_v clamped = x < kLeast ? broadcast(kLeast) : x;
  clamped = clamped > kMost ? broadcast(kMost) : clamped;
  const double_v shifted =
      multiply_add(clamped, broadcast(0x1.71547652b82fep+0), broadcast(kRound));
  const double_v n = shifted - kRound;
  double_v r = multiply_add(n, broadcast(-0x1.62e42fefa0000p-1), clamped);
  r = multiply_add(n, broadcast(-0x1.cf79abc9e3b3ap-40), r);
  const double_v p = polynomial(
      r,
      1.0,
      1.0,
      1.0 / 2,
      1.0 / 6,
      1.0 / 24,
      1.0 / 120,
      1.0 / 720,
      1.0 / 5040,
      1.0 / 40320,
      1.0 / 362880,
      1.0 / 3628800,
      1.0 / 39916800,
      1.0 / 479001600
  );
  const double_v scale = (double_v)(((int64_v)shifted + 1023) << 52);
  const double_v result = p * scale;
  return (double_v)((int64_v)result & ~(x < kLeast));
}

// 2 atanh(s) / s from s^2, for s^2 <= 1/9
inline double_v atanh_series(double_v square) {
  return polynomial(
      square,
      2.0,
      2.0 / 3,
      2.0 / 5,
      2.0 / 7,
      2.0 / 9,
      2.0 / 11,
      2.0 / 13,
      2.0 / 15,
      2.0 / 17,
      2.0 / 19,
      2.0 / 21,
      2.0 / 23,
      2.0 / 25,
      2.0 / 27,
      2.0 / 29
  );
}

// log(1 + x) for x in [0, 1]: within 2e-7 or 1e-14 relative
inline float_v log1p(float_v x) {
  const float_v q = polynomial(
      x,
      -0.49999648f,
      0.33321324f,
      -0.24857163f,
      0.19153653f,
      -0.13753799f,
      0.079204500f,
      -0.030065769f,
      0.0053648185f
  );
  return multiply_add(x * x, q, x);
}

inline double_v log1p(double_v x) {
  const double_v s = x / (x + 2.0);
  return s * atanh_series(s * s);
}

// log(x): -infinity below the least normal number, NaN of what is negative
inline float_v log(float_v x) {
  const int32_v bits = (int32_v)x;
  // the exponent for which the mantissa is in [sqrt(1/2), sqrt(2))
  const int32_v exponent = (bits - 0x3f3504f3) >> 23;
  const float_v mantissa = (float_v)(bits - (exponent << 23));
  const float_v s = (mantissa - 1.0f) / (mantissa + 1.0f);
  const float_v n = __builtin_convertvector(exponent, float_v);
  const float_v series = polynomial(s * s, 2.0f, 2.0f / 3, 2.0f / 5, 2.0f / 7, 2.0f / 9);
  const float_v result = multiply_add(n, broadcast(0x1.62e430p-1f), s * series);
  const float_v special = x >= 0.0f ? float_v{} - __builtin_inff() : float_v{} + __builtin_nanf("");
  return x >= 0x1p-126f ? result : special;
}

inline double_v log(double_v x) {
  const int64_v bits = (int64_v)x;
  const int64_v exponent = (bits - 0x3fe6a09e667f3bcd) >> 52;
  const double_v mantissa = (double_v)(bits - (exponent << 52));
  const double_v s = (mantissa - 1.0) / (mantissa + 1.0);
  const double_v n = __builtin_convertvector(exponent, double_v);
  const double_v result = multiply_add(n, broadcast(0x1.62e42fefa39efp-1), s * atanh_series(s * s));
  const double_v special = x >= 0.0 ? double_v{} - __builtin_inf() : double_v{} + __builtin_nan("");
  return x >= 0x1p-1022 ? result : special;
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
