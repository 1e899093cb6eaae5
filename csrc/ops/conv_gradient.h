// Contract of the gradient of a convolution's weight: for each tap a product of matrices, the sum
// over pixels of the input pixel of that tap times the gradient of the result.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastvision {

constexpr int64_t kConvGradientChannels = 8;  // values of an input pixel in a strip

// Pixels of the input, evenly spaced in memory.
template <typename T>
struct ConvPixels {
  const T* first;  // channel 0
  int64_t count, step;
};

// A stretch of pixels of the result, and what they read of the input. A few channels at a time, the
// input pixels are copied into a strip, one behind the other, since addresses as far apart as those
// in the maps would share few sets of the first-level cache.
template <typename T>
struct ConvGradientTile {
  const ConvPixels<T>* runs;
  int64_t run_count;
  T* strip;                // [input pixels][kConvGradientChannels]
  const T* const* inputs;  // [taps][pixels] into the strip
  const T* gradients;      // [pixels][K]
  T* packed;               // scratch for [blocks of vectors][pixels][vectors of the block]
  T* sums;                 // [taps][C][K], added to
  int64_t pixels, taps, C;
  int64_t K;               // whole vectors
  int64_t k_begin, k_end;  // the channels of the result to do, whole vectors
};

FASTVISION_DECLARE_CPU(void, conv_gradient_tile, const ConvGradientTile<float>&)
FASTVISION_DECLARE_CPU(void, conv_gradient_tile, const ConvGradientTile<double>&)

}  // namespace fastvision
