// Radix sort of key-value pairs, the only call into CUB.
#pragma once

#include <cub/device/device_radix_sort.cuh>

#include <cstdint>

#include "common/cuda.cuh"

namespace fastvision {
namespace {

// With a null workspace, only computes the bytes it needs.
size_t sort_pairs(
    void* workspace,
    size_t bytes,
    const uint64_t* keys,
    uint64_t* sorted_keys,
    const uint32_t* values,
    uint32_t* sorted_values,
    uint32_t count,
    int bits,
    cudaStream_t stream
) {
  check_cuda(
      cub::DeviceRadixSort::SortPairs(
          workspace, bytes, keys, sorted_keys, values, sorted_values, count, 0, bits, stream
      ),
      "radix sort"
  );
  return bytes;
}

}  // namespace
}  // namespace fastvision
