// Single values, handled as a vector's lanes are. For files of csrc/cpu.
#pragma once

#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// a * b + c, rounded as in a lane
inline float multiply_add(float a, float b, float c) {
#if defined(FASTVISION_AVX512) || defined(FASTVISION_AVX2)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline double multiply_add(double a, double b, double c) {
#if defined(FASTVISION_AVX512) || defined(FASTVISION_AVX2)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// of any storage type, as in load and store
inline float value_of(const float* p) { return *p; }
inline double value_of(const double* p) { return *p; }
template <typename T>
inline float value_of(const T* p) {
  return load_partial(p, 1)[0];
}
inline void store_value(float* p, float x) { *p = x; }
inline void store_value(double* p, double x) { *p = x; }
template <typename T>
inline void store_value(T* p, float x) {
  store_partial(p, broadcast(x), 1);
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
