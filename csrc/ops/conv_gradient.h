// Contract of the weight gradient of a convolution: for each tap a matrix product, the sum over
// pixels of the tap's input pixel times the output's gradient.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastvision {

constexpr int64_t kConvGradientChannels = 8;  // channels of a strip

// Evenly spaced input pixels.
template <typename T>
struct ConvPixels {
  const T* first;  // channel 0
  int64_t count, step;
};

// A run of output pixels and the input pixels they read. The input pixels are copied, a few
// channels at a time, into a contiguous strip: at the maps' strides they would map to few sets of
// the L1 cache.
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
  int64_t k_begin, k_end;  // output channels to compute, whole vectors
};

FASTVISION_DECLARE_CPU(void, conv_gradient_tile, const ConvGradientTile<float>&)
FASTVISION_DECLARE_CPU(void, conv_gradient_tile, const ConvGradientTile<double>&)

}  // namespace fastvision
