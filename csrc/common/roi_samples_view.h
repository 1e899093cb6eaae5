// Samples of a bin as the CPU's kernels of RoI ops get them: plain data.
#pragma once

#include <cstdint>

namespace fastvision {

// Some samples of a bin, in their order, and their taps one after the other.
template <typename A>
struct SampleBlock {
  static constexpr int kSamples = 64;

  int samples;
  bool first;                   // of the bin
  bool last;                    // of the bin
  A bin_samples;                // of the whole bin
  int32_t index[kSamples];      // in the bin, or -1 of one outside the map, which has no taps
  int32_t end[kSamples];        // of the sample's taps
  int64_t pixel[4 * kSamples];  // y * W + x; in the backward y and x are counted from the tile's
  A weight[4 * kSamples];
};

}  // namespace fastvision
