// Exponential and logarithms for the vectors of simd.h, for files of csrc/cpu. Coefficients other
// than Taylor series minimise the maximum relative error.
#pragma once

#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// c[0] + c[1] x + ... + c[n - 1] x^(n - 1) by Estrin's scheme, since the latency of dependent
// operations limits these functions. `powers` are x, x^2, x^4, x^8.
template <int n, typename A, typename V>
inline V polynomial(const V (&powers)[4], const A* c) {
  if constexpr (n == 1) {
    return broadcast(c[0]);
  } else {
    // six coefficients need no x^4: the chain of dependent operations is as long
    constexpr int level = n > 8 ? 3 : n > 6 ? 2 : n > 2 ? 1 : 0;
    constexpr int half = 1 << level;
    const V high = polynomial<n - half>(powers, c + half);
    return multiply_add(powers[level], high, polynomial<half>(powers, c));
  }
}
template <typename V, typename A, int n>
inline V polynomial(V x, const A (&c)[n]) {
  static_assert(n <= 16);
  const V x2 = x * x;
  const V x4 = x2 * x2;
  const V powers[4] = {x, x2, x4, x4 * x4};
  return polynomial<n>(powers, c);
}

// max(x, low), propagating NaN
#if defined(FASTVISION_AVX2)
inline float_v at_least(float_v x, float low) {
  return (float_v)_mm256_max_ps((__m256)broadcast(low), (__m256)x);
}
inline double_v at_least(double_v x, double low) {
  return (double_v)_mm256_max_pd((__m256d)broadcast(low), (__m256d)x);
}
#else
template <typename V, typename A>
inline V at_least(V x, A low) {
  return x < low ? V{} + low : x;
}
#endif

inline float_v absolute(float_v x) { return (float_v)((int32_v)x & 0x7fffffff); }
inline double_v absolute(double_v x) { return (double_v)((int64_v)x & 0x7fffffffffffffff); }

// e^x for x <= 88 (double: 709). Relative error at most 3e-7 (double: 1e-14); 0 instead of
// subnormal results
inline float_v exp(float_v x) {
  // adding it leaves the nearest integer plus the exponent bias in the low bits
  constexpr float kRound = 0x1.8p23f + 127;
  constexpr float kLeast = -88.1f;  // its scale is 0
  constexpr float kCoefficients[] = {
      1.0f, 1.0f, 0.49999994f, 0.16666520f, 0.041668393f, 0.0083687808f, 0.0013814467f
  };
  x = at_least(x, kLeast);
  const float_v shifted = multiply_add(x, broadcast(0x1.715476p+0f), broadcast(kRound));
  const float_v n = shifted - kRound;
  float_v r = multiply_add(n, broadcast(-0x1.62e400p-1f), x);
  r = multiply_add(n, broadcast(-0x1.7f7d1cp-20f), r);
  const float_v scale = (float_v)((uint32_v)shifted << 23);
  return polynomial(r, kCoefficients) * scale;  // propagates NaN
}

// The same for x >= -87, where e^x is normal, with fewer operations. Relative error at most 2e-7 +
// 2e-8 |x|, or 2e-7 + 7e-8 |x| if multiply_add rounds twice
inline float_v exp_of_normal(float_v x) {
  constexpr float kRound = 0x1.8p23f;
  constexpr float kCoefficients[] = {
      1.0f, 0.69314700f, 0.24022247f, 0.055507109f, 0.0096712923f, 0.0013269535f
  };
  const float_v log2_e = broadcast(0x1.715476p+0f);
  const float_v shifted = multiply_add(x, log2_e, broadcast(kRound));
  const float_v power = polynomial(multiply_add(x, log2_e, kRound - shifted), kCoefficients);
  return (float_v)((uint32_v)power + ((uint32_v)shifted << 23));  // adds to the exponent
}

inline double_v exp(double_v x) {
  constexpr double kRound = 0x1.8p52 + 1023;
  constexpr double kLeast = -709.1;
  constexpr double kCoefficients[] = {
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
  };
  x = at_least(x, kLeast);
  const double_v shifted = multiply_add(x, broadcast(0x1.71547652b82fep+0), broadcast(kRound));
  const double_v n = shifted - kRound;
  double_v r = multiply_add(n, broadcast(-0x1.62e42fefa0000p-1), x);
  r = multiply_add(n, broadcast(-0x1.cf79abc9e3b3ap-40), r);
  const double_v scale = (double_v)((uint64_v)shifted << 52);
  return polynomial(r, kCoefficients) * scale;
}

// 2 atanh(s) / s as a function of s^2 <= 1/9
inline double_v atanh_series(double_v square) {
  constexpr double kCoefficients[] = {
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
  };
  return polynomial(square, kCoefficients);
}

// log(1 + x) for x in [0, 1]. Relative error at most 2e-7 (double: 1e-14)
inline float_v log1p(float_v x) {
  constexpr float kCoefficients[] = {
      -0.49999648f,
      0.33321324f,
      -0.24857163f,
      0.19153653f,
      -0.13753799f,
      0.079204500f,
      -0.030065769f,
      0.0053648185f
  };
  return multiply_add(x * x, polynomial(x, kCoefficients), x);
}

inline double_v log1p(double_v x) {
  const double_v s = x / (x + 2.0);
  return s * atanh_series(s * s);
}

// log(x): -infinity for subnormal x, NaN for negative x
inline float_v log(float_v x) {
  // unsigned, since the difference wraps around for negative x
  const uint32_v bits = (uint32_v)x;
  // the exponent for which the mantissa is in [sqrt(1/2), sqrt(2))
  const int32_v exponent = (int32_v)(bits - 0x3f3504f3u) >> 23;
  const float_v mantissa = (float_v)(bits - ((uint32_v)exponent << 23));
  const float_v s = (mantissa - 1.0f) / (mantissa + 1.0f);
  const float_v n = __builtin_convertvector(exponent, float_v);
  constexpr float kCoefficients[] = {2.0f, 2.0f / 3, 2.0f / 5, 2.0f / 7, 2.0f / 9};
  const float_v series = polynomial(s * s, kCoefficients);
  const float_v result = multiply_add(n, broadcast(0x1.62e430p-1f), s * series);
  const float_v special = x >= 0.0f ? float_v{} - __builtin_inff() : float_v{} + __builtin_nanf("");
  return x >= 0x1p-126f ? result : special;
}

inline double_v log(double_v x) {
  const uint64_v bits = (uint64_v)x;
  const int64_v exponent = (int64_v)(bits - 0x3fe6a09e667f3bcdu) >> 52;
  const double_v mantissa = (double_v)(bits - ((uint64_v)exponent << 52));
  const double_v s = (mantissa - 1.0) / (mantissa + 1.0);
  const double_v n = __builtin_convertvector(exponent, double_v);
  const double_v result = multiply_add(n, broadcast(0x1.62e42fefa39efp-1), s * atanh_series(s * s));
  const double_v special = x >= 0.0 ? double_v{} - __builtin_inf() : double_v{} + __builtin_nan("");
  return x >= 0x1p-1022 ? result : special;
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
