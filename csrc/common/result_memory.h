// Memory of the results of ops: torch's own, so that a result is a tensor like any other.
#pragma once

#include <vector>

#include "common/torch.h"

namespace fastvision {

// A tensor of that type and device with undefined values; an error that names the size where there
// is no memory for it.
Tensor empty_strided(
    const std::vector<int64_t>& sizes,
    const std::vector<int64_t>& strides,
    ScalarType type,
    int64_t element_size,
    const torch::stable::Device& device
);

// The same, of the type and on the device of `like`.
Tensor empty_result(
    const Tensor& like, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides
);

}  // namespace fastvision
