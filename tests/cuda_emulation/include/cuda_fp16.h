// Stands in for CUDA's header of this name: conversions only.
#pragma once

#include "../device.h"

struct __half {
  unsigned short bits;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half x) { return cuda_emulation::bit_cast<_Float16>(x.bits); }
inline __half __float2half_rn(float x) {
  return {cuda_emulation::bit_cast<unsigned short>(static_cast<_Float16>(x))};
}
