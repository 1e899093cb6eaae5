// Math functions for common/focal.h, per compute type.
#pragma once

#include <cmath>

#include "common/cuda.cuh"

namespace fastvision {
namespace {

template <typename A>
struct Math;

template <>
struct Math<float> {
  static constexpr float largest = 3.402823466e38f;

  __device__ static float abs(float x) { return fabsf(x); }
  __device__ static float at_least_zero(float x) { return x < 0 ? 0.0f : x; }
  // The approximations are within 2 ulps; rounding the argument makes the exponential's relative
  // error about 6e-8 |x|.
  __device__ static float exp(float x) {
    x *= 1.442695041f;
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
  }
  __device__ static float exp_capped(float x) { return exp(x); }
  __device__ static float log(float x) { return logf(x); }
  __device__ static float reciprocal(float x) {  // for x in [1, 2]
#ifdef __CUDA_ARCH__
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1 / x;
#endif
  }
  __device__ static float log1p(float x) {  // for x in [0, 1], relative error at most 2e-7
    float q = 0.0053648185f;
    q = fmaf(q, x, -0.030065769f);
    q = fmaf(q, x, 0.079204500f);
    q = fmaf(q, x, -0.13753799f);
    q = fmaf(q, x, 0.19153653f);
    q = fmaf(q, x, -0.24857163f);
    q = fmaf(q, x, 0.33321324f);
    q = fmaf(q, x, -0.49999648f);
    return fmaf(x * x, q, x);
  }
};

template <>
struct Math<double> {
  static constexpr double largest = 1.7976931348623157e308;

  __device__ static double abs(double x) { return fabs(x); }
  __device__ static double at_least_zero(double x) { return x < 0 ? 0.0 : x; }
  __device__ static double exp(double x) { return ::exp(x); }
  __device__ static double exp_capped(double x) { return ::exp(x); }
  __device__ static double log(double x) { return ::log(x); }
  __device__ static double log1p(double x) { return ::log1p(x); }
  __device__ static double reciprocal(double x) { return 1 / x; }
};

}  // namespace
}  // namespace fastvision
