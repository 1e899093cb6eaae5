// One hash of the values, types and layouts of several tensors.
#pragma once

#include <cstdint>
#include <optional>

#include "common/torch.h"

namespace fastvision {

// Non-negative, or -1 if a tensor has gaps or overlapping elements. All are on the CPU.
int64_t fingerprint_of(const std::optional<Tensor>* tensors, int64_t count);

}  // namespace fastvision
