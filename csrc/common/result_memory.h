// Allocates the results of ops as ordinary torch tensors.
#pragma once

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

// Whether results of so many bytes are better written past the caches: from there, what reads them
// next would hardly get them, and lines that are written would have to be read first.
inline bool is_streamed(int64_t bytes) { return bytes >= int64_t{8} << 20; }

}  // namespace fastvision
