// Memory of large results on the CPU, used again when a result of about that size was freed. The
// first touch of fresh memory costs a fault per page and a page to clear, which took as long as
// RoIAlign's arithmetic (docs/architecture.md has the figures).
#pragma once

#include <vector>

#include "common/torch.h"

namespace fastvision {

// A tensor of the type and on the device of `like` with undefined values. If it is large and on the
// CPU, its memory is kept for the next one when it is freed.
Tensor empty_result(
    const Tensor& like, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides
);

}  // namespace fastvision
