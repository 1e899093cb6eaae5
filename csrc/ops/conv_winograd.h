// Contract of 3x3 convolutions of stride 1 by F(4x4, 3x3) (Lavin and Gray, Fast Algorithms for
// Convolutional Neural Networks, 2016): 36 multiplications where the sum over taps needs 144.
//
// A tile is 4x4 output pixels and the 6x6 input pixels they depend on. In each of 36 positions the
// transformed inputs of many tiles are multiplied with a [C, K] matrix of transformed weights,
// which is a 1x1 convolution of conv.h. The polynomials are evaluated at 0, 5/8, -5/8, 3/2, -3/2
// and infinity, which keeps errors at about twice the plain sum's; the usual 0, 1, -1, 2, -2
// and infinity more than doubles them again. What one pixel of a tile depends on reaches all of
// them: NaN makes all of the tile NaN.
#pragma once

#include <cstdint>

#include "ops/conv.h"

namespace fastvision {

constexpr int kWinogradOutputs = 4;  // pixels along a side of a tile
constexpr int kWinogradInputs = 6;
constexpr int kWinogradTaps = 9;
constexpr int kWinogradPositions = kWinogradInputs * kWinogradInputs;
constexpr int kWinogradPixels = kWinogradOutputs * kWinogradOutputs;

struct WinogradFilters {
  const float* filters;  // [count][C][3][3]
  float* transformed;    // [6][6][C][width], the positions `plane` apart
  int64_t plane, width;
  int64_t count, C;
};

struct WinogradInput {
  const float* const* pixels;  // [tiles][6][6] channel 0 of the tile's input pixels
  float* transformed;          // [6][6][tiles][C], the positions `plane` apart
  int64_t plane;
  int64_t tiles, C;
};

struct WinogradOutput {
  const float* products;  // [6][6][tiles][stride], the positions `plane` apart
  int64_t plane, stride;
  float* const* outputs;  // [tiles][4][4] channel 0 of the output pixels, null outside of the map
  const float* const* residuals;  // [tiles][4][4] likewise, or null
  const float* bias;              // [channels], in whole vectors
  int64_t tiles;
  int64_t channel, channels;  // the first of these in the maps, and how many there are
  Activation activation;
  double negative_slope;
};

FASTVISION_DECLARE_CPU(void, winograd_filters, const WinogradFilters&)
FASTVISION_DECLARE_CPU(void, winograd_input, const WinogradInput&)
FASTVISION_DECLARE_CPU(void, winograd_output, const WinogradOutput&)

}  // namespace fastvision
