// What device code calls: thread coordinates, barriers, warp collectives, atomics, intrinsics.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __constant__ static
// one copy for all threads of the only block that runs; the section lets the scheduler spoil it
#define __shared__ static __attribute__((section("cuda_shared")))
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __grid_constant__

constexpr int warpSize = cuda_emulation::kWarpSize;

// barriers and fences

inline void __syncthreads() { cuda_emulation::block_barrier(false); }
inline int __syncthreads_count(int predicate) {
  return cuda_emulation::block_barrier(predicate != 0).nonzero;
}
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) > 0; }
inline int __syncthreads_and(int predicate) {
  const cuda_emulation::BarrierResult result = cuda_emulation::block_barrier(predicate != 0);
  return result.nonzero == result.arrived;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// warp collectives

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  cuda_emulation::warp_exchange(mask, "__syncwarp", 0);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* posted = cuda_emulation::warp_exchange(mask, "__ballot_sync", predicate != 0);
  unsigned result = 0;
  for (int lane = 0; lane < warpSize; ++lane) {
    result |= static_cast<unsigned>(posted[lane]) << lane;
  }
  return result;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

namespace cuda_emulation {

template <typename T>
T shuffle(unsigned mask, const char* operation, T value, unsigned source) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const uint64_t* posted = warp_exchange(mask, operation, bits);
  if ((mask >> source & 1) == 0) {
    fail("a shuffle reads from a lane outside its mask");
  }
  std::memcpy(&value, &posted[source], sizeof value);
  return value;
}

// where a shuffle reads from: `wanted`, or the own lane if that is outside [first, first + width)
inline unsigned within(int wanted, int first, int width) {
  return wanted >= first && wanted < first + width ? wanted : lane();
}

}  // namespace cuda_emulation

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  const int first = cuda_emulation::lane() / width * width;
  return cuda_emulation::shuffle(mask, "__shfl_sync", value, first + source % width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int lane = cuda_emulation::lane();
  const unsigned source = cuda_emulation::within(lane - int(delta), lane / width * width, width);
  return cuda_emulation::shuffle(mask, "__shfl_up_sync", value, source);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int lane = cuda_emulation::lane();
  const unsigned source = cuda_emulation::within(lane + int(delta), lane / width * width, width);
  return cuda_emulation::shuffle(mask, "__shfl_down_sync", value, source);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize) {
  const int lane = cuda_emulation::lane();
  const unsigned source = cuda_emulation::within(lane ^ bits, lane / width * width, width);
  return cuda_emulation::shuffle(mask, "__shfl_xor_sync", value, source);
}

// atomics: fibers give way only where they wait, so every plain update is one

namespace cuda_emulation {
template <typename T>
struct same {  // keeps a parameter out of template argument deduction
  using type = T;
};
template <typename T>
using same_t = typename same<T>::type;
}  // namespace cuda_emulation

#define CUDA_EMULATION_ATOMIC(name, expression)         \
  template <typename T>                                 \
  T name(T* address, cuda_emulation::same_t<T> value) { \
    const T old = *address;                             \
    *address = (expression);                            \
    return old;                                         \
  }
CUDA_EMULATION_ATOMIC(atomicAdd, old + value)
CUDA_EMULATION_ATOMIC(atomicMin, value < old ? value : old)
CUDA_EMULATION_ATOMIC(atomicMax, value > old ? value : old)
CUDA_EMULATION_ATOMIC(atomicOr, old | value)
CUDA_EMULATION_ATOMIC(atomicAnd, old& value)
CUDA_EMULATION_ATOMIC(atomicExch, value)
#undef CUDA_EMULATION_ATOMIC
template <typename T>
T atomicCAS(T* address, cuda_emulation::same_t<T> expected, cuda_emulation::same_t<T> value) {
  const T old = *address;
  if (old == expected) {
    *address = value;
  }
  return old;
}

// integer and floating-point intrinsics

template <typename T>
T __ldg(const T* p) {
  return *p;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(x); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(x); }

// CUDA's min and max leave NaN out
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
#define CUDA_EMULATION_MIN_MAX(type)                        \
  inline type min(type a, type b) { return b < a ? b : a; } \
  inline type max(type a, type b) { return a < b ? b : a; }
CUDA_EMULATION_MIN_MAX(int)
CUDA_EMULATION_MIN_MAX(unsigned)
CUDA_EMULATION_MIN_MAX(long)
CUDA_EMULATION_MIN_MAX(unsigned long)
CUDA_EMULATION_MIN_MAX(long long)
CUDA_EMULATION_MIN_MAX(unsigned long long)
#undef CUDA_EMULATION_MIN_MAX

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }

namespace cuda_emulation {
template <typename To, typename From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace cuda_emulation
inline unsigned __float_as_uint(float x) { return cuda_emulation::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return cuda_emulation::bit_cast<float>(x); }
inline int __float_as_int(float x) { return cuda_emulation::bit_cast<int>(x); }
inline float __int_as_float(int x) { return cuda_emulation::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_emulation::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_emulation::bit_cast<double>(x); }

// vector types

#define CUDA_EMULATION_VECTORS(scalar, name, bytes)                               \
  struct alignas(2 * bytes) name##2 { scalar x, y; };                             \
  struct alignas(4 * bytes > 16 ? 16 : 4 * bytes) name##4 { scalar x, y, z, w; }; \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }            \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
CUDA_EMULATION_VECTORS(float, float, 4)
CUDA_EMULATION_VECTORS(int, int, 4)
CUDA_EMULATION_VECTORS(unsigned, uint, 4)
CUDA_EMULATION_VECTORS(unsigned short, ushort, 2)
CUDA_EMULATION_VECTORS(double, double, 8)
#undef CUDA_EMULATION_VECTORS
