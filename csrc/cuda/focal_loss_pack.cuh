// 16 bytes of consecutive values, loaded and stored at once.
#pragma once

#include <cstdint>

#include "common/cuda.cuh"

namespace fastvision {
namespace {

template <typename T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T values[size];
};

// Loads `count` values, possibly fewer than a pack; the rest are `fill`.
template <typename T>
__device__ Pack<T> load_pack(const T* p, int count, bool aligned, T fill) {
  Pack<T> pack;
  if (aligned && count == Pack<T>::size) {
    return *reinterpret_cast<const Pack<T>*>(p);
  }
#pragma unroll
  for (int j = 0; j < Pack<T>::size; ++j) {
    pack.values[j] = j < count ? p[j] : fill;
  }
  return pack;
}

template <typename T>
__device__ void store_pack(T* p, const Pack<T>& pack, int count, bool aligned) {
  if (aligned && count == Pack<T>::size) {
    *reinterpret_cast<Pack<T>*>(p) = pack;
    return;
  }
#pragma unroll
  for (int j = 0; j < Pack<T>::size; ++j) {
    if (j < count) {
      p[j] = pack.values[j];
    }
  }
}

inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace
}  // namespace fastvision
