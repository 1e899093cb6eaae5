// Stands in for CUB's header of this name.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace cub {

struct DeviceRadixSort {
  template <typename Key, typename Value, typename Count>
  static cudaError_t SortPairs(
      void* temporary,
      size_t& temporary_bytes,
      const Key* keys_in,
      Key* keys_out,
      const Value* values_in,
      Value* values_out,
      Count count,
      int begin_bit,
      int end_bit,
      cudaStream_t
  ) {
    if (temporary == nullptr) {
      temporary_bytes = 1;
      return cudaSuccess;
    }
    constexpr int kBits = sizeof(Key) * 8;
    // shifted in two steps: a shift by all bits is undefined
    const Key above = end_bit < kBits ? static_cast<Key>(~Key{0} << end_bit) : Key{0};
    const auto digits = [&](Count i) { return (keys_in[i] & ~above) >> begin_bit; };
    std::vector<Count> order(count);
    std::iota(order.begin(), order.end(), Count{0});
    std::stable_sort(order.begin(), order.end(), [&](Count a, Count b) {
      return digits(a) < digits(b);
    });
    for (Count i = 0; i < count; ++i) {
      keys_out[i] = keys_in[order[i]];
      values_out[i] = values_in[order[i]];
    }
    return cudaSuccess;
  }
};

}  // namespace cub
