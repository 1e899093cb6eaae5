// Vectors of one register's width for the CPU kernels, on the compiler's vector extensions.
#pragma once

#include <cstdint>
#if defined(FASTVISION_EMULATE_AVX512)
// 64-byte vectors in plain code, to test the widest level on a CPU without it
#elif defined(__AVX512F__)
#define FASTVISION_AVX512
#include <immintrin.h>
#elif defined(__AVX2__)
#define FASTVISION_AVX2
#include <immintrin.h>
#endif

#include "common/scalar.h"

namespace fastvision::FASTVISION_ISA {
namespace {

#if defined(FASTVISION_AVX512) || defined(FASTVISION_EMULATE_AVX512)
constexpr int kVectorBytes = 64;
#elif defined(FASTVISION_AVX2)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef float float_v __attribute__((vector_size(kVectorBytes)));
typedef double double_v __attribute__((vector_size(kVectorBytes)));
typedef int32_t int32_v __attribute__((vector_size(kVectorBytes)));
typedef int64_t int64_v __attribute__((vector_size(kVectorBytes)));
typedef uint32_t uint32_v __attribute__((vector_size(kVectorBytes)));
typedef uint64_t uint64_v __attribute__((vector_size(kVectorBytes)));
typedef int32_t int32_half_v __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t uint16_half_v __attribute__((vector_size(kVectorBytes / 2)));

template <typename T>
struct simd;
template <>
struct simd<float> {
  using vector = float_v;
  using mask = int32_v;  // result of a comparison: -1 or 0 per lane
  static constexpr int lanes = kVectorBytes / 4;
};
template <>
struct simd<double> {
  using vector = double_v;
  using mask = int64_v;
  static constexpr int lanes = kVectorBytes / 8;
};
template <typename T>
using vector_t = typename simd<T>::vector;
template <typename T>
constexpr int lanes_v = simd<T>::lanes;

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
