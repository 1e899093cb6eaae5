// Allocates the results of ops as ordinary torch tensors.
#pragma once

#include <cstdint>
#include <vector>

#include "common/torch.h"

namespace fastvision {

// An uninitialised tensor of this type and device. Throws an error that names the size if there is
// not enough memory.
Tensor empty_strided(
    const std::vector<int64_t>& sizes,
    const std::vector<int64_t>& strides,
    ScalarType type,
    int64_t element_size,
    const torch::stable::Device& device
);

// The same with the type and device of `like`.
Tensor empty_result(
    const Tensor& like, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides
);

// The first touch of fresh memory costs a page fault and clearing the page, which takes as long as
// RoIAlign's arithmetic (docs/design/roi-measurements.md). A huge page replaces 512 such faults.
// Only a hint; of no use for blocks below kLeastHugeBytes, which malloc reuses.
void ask_for_huge_pages(void* memory, int64_t bytes);

constexpr int64_t kLeastHugeBytes = int64_t{4} << 20;

// Whether results of so many bytes are better written past the caches: from there, what reads them
// next would hardly get them, and lines that are written would have to be read first.
inline bool is_streamed(int64_t bytes) { return bytes >= int64_t{8} << 20; }

}  // namespace fastvision
