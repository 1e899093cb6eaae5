// Copies of whole maps between the memory formats, by the kernels of conv.h.
#pragma once

#include "common/torch.h"

namespace fastvision {

// `x` [N, C, H, W], float32 or float64, itself if it is channels_last, else a copy that is.
Tensor in_channels_last(const Tensor& x);

// Writes `from`, float32 and channels_last, to `to`, which is contiguous.
void copy_to_contiguous(const Tensor& from, Tensor& to);

}  // namespace fastvision
