// The two memory formats of a batch of maps [N, C, H, W]: contiguous (NCHW) and channels_last
// (NHWC).
#pragma once

#include <optional>

#include "common/result_memory.h"
#include "common/torch.h"

namespace fastvision {

using torch::headeronly::MemoryFormat;

// channels vary fastest, ignoring dimensions of size 1
inline bool has_channels_last_strides(const Tensor& x) {
  if (x.dim() != 4) {
    return false;
  }
  const int64_t C = x.size(1), H = x.size(2), W = x.size(3);
  const int64_t expected[4] = {H * W * C, 1, W * C, C};
  for (int dim = 0; dim < 4; ++dim) {
    if (x.size(dim) != 1 && x.stride(dim) != expected[dim]) {
      return false;
    }
  }
  return true;
}

// false if both formats describe the strides
inline bool is_channels_last(const Tensor& x) {
  return !x.is_contiguous() && has_channels_last_strides(x);
}

inline MemoryFormat format_of(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor in_format(const Tensor& x, bool channels_last) {
  if (channels_last ? is_channels_last(x) : x.is_contiguous()) {
    return x;
  }
  return torch::stable::contiguous(x, format_of(channels_last));
}

inline Tensor empty_in_format(
    const Tensor& like, int64_t N, int64_t C, int64_t H, int64_t W, bool channels_last
) {
  const std::vector<int64_t> strides = channels_last ? std::vector<int64_t>{C * H * W, 1, W * C, C}
                                                     : std::vector<int64_t>{C * H * W, H * W, W, 1};
  return empty_result(like, {N, C, H, W}, strides);
}

}  // namespace fastvision
