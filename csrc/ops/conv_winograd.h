// Contract of 3x3 convolutions of stride 1 by F(2x2, 3x3) (Lavin and Gray, Fast Algorithms for
// Convolutional Neural Networks, 2016): 16 multiplications where the sum over taps needs 36.
//
// A tile is 2x2 output pixels and the 4x4 input pixels they depend on. In each of 16 positions the
// transformed inputs of many tiles are multiplied with a [C, K] matrix of transformed weights,
// which is a 1x1 convolution of conv.h. Errors stay below twice those of the plain sum; larger
// tiles, which multiply less, have ten times those. An infinite input makes NaN where a plain sum
// is infinite.
#pragma once

#include <cstdint>

#include "ops/conv.h"

namespace fastvision {

constexpr int kWinogradPositions = 16;

struct WinogradInput {
  const float* const* pixels;  // [tiles][16] channel 0 of the tile's input pixels
  float* transformed;          // [16][tiles][C]
  int64_t tiles, C;
};

struct WinogradOutput {
  const float* products;  // [16][tiles][stride]
  int64_t stride;         // whole vectors
  float* const* outputs;  // [tiles][4] channel 0 of the output pixels, null outside of the map
  const float* const* residuals;  // [tiles][4] likewise, or null
  const float* bias;              // [stride]
  int64_t tiles;
  int64_t channel, channels;  // the first of these in the maps, and how many there are
  Activation activation;
  double negative_slope;
};

FASTVISION_DECLARE_CPU(void, winograd_input, const WinogradInput&)
FASTVISION_DECLARE_CPU(void, winograd_output, const WinogradOutput&)

}  // namespace fastvision
