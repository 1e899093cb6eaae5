// Contract of 3x3 convolutions with stride 1 by F(4x4, 3x3) (Lavin and Gray, Fast Algorithms for
// Convolutional Neural Networks, 2016): 36 multiplications where direct convolution needs 144.
//
// A tile has 4x4 output pixels and the 6x6 input pixels they depend on. In each of 36 positions the
// transformed inputs of many tiles are multiplied by a [C, K] matrix of transformed weights, which
// is a 1x1 convolution of conv.h. The polynomials are evaluated at 0, 5/8, -5/8, 3/2, -3/2 and
// infinity, which limits errors to about twice those of direct convolution; the usual points 0, 1,
// -1, 2, -2 and infinity more than double them again. Every output of a tile depends on all its
// inputs, so a NaN makes the whole tile NaN.
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
  const float* filters;     // [count][C][3][3]
  int64_t filter, channel;  // values from a filter, and from an input channel, to the next
  bool is_turned;           // whether to read the taps backwards
  float* transformed;       // [6][6][C][width], positions `plane` apart
  int64_t plane, width;
  int64_t count, C;
};

struct WinogradInput {
  const float* const* pixels;  // [tiles][6][6] channel 0 of the tile's input pixels
  float* transformed;          // [6][6], positions `plane` apart
  int64_t plane;
  int64_t tile, vector;  // values from a tile, and from a vector of channels, to the next
  int64_t tiles, C;
};

// In each position [tiles][C] times [C][channels].
struct WinogradFactors {
  const float* inputs;  // [6][6][tiles][C], positions `input_plane` apart
  int64_t input_plane;
  const float* weights;  // [6][6][block of channels][C][channels of the block]
  float* products;       // [6][6][tiles][channels], positions `plane` apart
  int64_t plane;
  int64_t tiles, C;
  int64_t channels;  // of the output, whole vectors
  bool far_weights;  // not yet in the L2 cache
};

struct WinogradOutput {
  const float* products;  // [6][6][tiles][stride], positions `plane` apart
  int64_t plane, stride;
  float* const* outputs;  // [tiles][4][4] channel 0 of the output pixels, null outside the map
  const float* const* residuals;  // [tiles][4][4] channel 0 of the residual pixels, or null
  const float* bias;              // [channels], in whole vectors
  int64_t tiles;
  int64_t channel, channels;  // first channel in the maps, number of channels
  bool is_streamed;  // past the caches, since outputs begin at cache lines and have whole ones
  Activation activation;
  double negative_slope;
};

FASTVISION_DECLARE_CPU(void, winograd_filters, const WinogradFilters&)
FASTVISION_DECLARE_CPU(void, winograd_input, const WinogradInput&)
FASTVISION_DECLARE_CPU(void, winograd_multiply, const WinogradFactors&)
FASTVISION_DECLARE_CPU(void, winograd_output, const WinogradOutput&)

}  // namespace fastvision
