// Contract of 3x3 convolutions by Winograd's algorithm (Lavin and Gray, Fast Algorithms for
// Convolutional Neural Networks, 2016). For 4x4 output pixels, where direct convolution needs 144
// multiplications, F(4x4, 3x3) needs 36 with stride 1, and F(4, 2) with F(4, 1) 81 with stride 2.
//
// With stride 1, a tile has 4x4 output pixels and the 6x6 input pixels they depend on. In each of
// 36 positions the transformed inputs of many tiles are multiplied by a [C, K] matrix of
// transformed weights, which is a 1x1 convolution of conv.h. The polynomials are evaluated at 0,
// 5/8, -5/8, 3/2, -3/2 and infinity, which limits errors to about twice those of direct
// convolution; the usual points 0, 1, -1, 2, -2 and infinity more than double them again. Every
// output of a tile depends on all its inputs, so a NaN makes the whole tile NaN.
//
// With stride 2, a tile has 9x9 input pixels. Two taps meet every second row, which F(4, 2)
// transforms, with the points 1/2, -1/2, 3/2, -3/2 and infinity; one tap meets the others, which
// F(4, 1) transforms, with the same points but infinity: a filter without a linear term is zero
// there. In both directions this makes four kinds of pixels. They are input channels of their own
// and share the 25 positions and the transform of the outputs. Positions at infinity lack kinds.
#pragma once

#include <cstdint>

#include "ops/conv.h"

namespace fastvision {

constexpr int kWinogradOutputs = 4;  // pixels along a side of a tile
constexpr int kWinogradInputs = 6;
constexpr int kWinogradTaps = 9;
constexpr int kWinogradPositions = kWinogradInputs * kWinogradInputs;
constexpr int kWinogradPixels = kWinogradOutputs * kWinogradOutputs;
// Values between the weights of two positions: a cache line, or all would map to a few cache sets.
constexpr int kWinogradGap = 16;
constexpr int kStridedInputs = 9;  // with stride 2
constexpr int kStridedPoints = 5, kFinitePoints = 4;
constexpr int kStridedPositions = kStridedPoints * kStridedPoints;
constexpr int kMostInputPixels = kStridedInputs * kStridedInputs;

// Kinds of pixels by the taps that meet their row and their column, in the order of their channels.
enum WinogradKind { kOneTwo, kTwoTwo, kTwoOne, kOneOne, kWinogradKinds };

// The kinds [first, first + count) that a position multiplies.
struct WinogradKinds {
  int first, count;
};

constexpr WinogradKinds kinds_of(bool is_strided, int position) {
  if (!is_strided) {
    return {0, 1};
  }
  const bool far_row = position / kStridedPoints == kStridedPoints - 1;
  const bool far_column = position % kStridedPoints == kStridedPoints - 1;
  const int first = far_row ? kTwoTwo : kOneTwo;
  const int last = far_column ? kTwoTwo : far_row ? kTwoOne : kOneOne;
  return {first, last + 1 - first};
}

constexpr int positions_of(bool is_strided) {
  return is_strided ? kStridedPositions : kWinogradPositions;
}

// Kinds of all positions.
constexpr int kinds_in_all(bool is_strided) {
  int kinds = 0;
  for (int i = 0; i < positions_of(is_strided); ++i) {
    kinds += kinds_of(is_strided, i).count;
  }
  return kinds;
}

// A block of filters, transformed. Each position has [channels of the pass / width] blocks of
// [kinds][C][width], and kWinogradGap.
struct WinogradFilters {
  const float* filters;     // [count][C][3][3]
  int64_t filter, channel;  // values from a filter, and from an input channel, to the next
  bool is_turned;           // whether to read the taps backwards
  bool is_strided;
  float* transformed;   // of the pass
  int64_t pass, begin;  // output channels of the pass, and before this block
  int64_t width, count, C;
};

struct WinogradInput {
  const float* const* pixels;  // [tiles][6][6] channel 0 of the tile's input pixels, or [9][9]
  float* transformed;          // [6][6] or [5][5], positions `plane` apart
  int64_t plane;
  int64_t tile, vector;  // values from a tile, and from a vector of channels, to the next
  int64_t tiles, C;
};

// In each position [tiles][kinds][C] times [kinds][C][channels].
struct WinogradFactors {
  const float* inputs;  // [tiles][all kinds][C], positions `input_plane` apart
  int64_t input_plane;
  const float* weights;  // by positions [block of channels][kinds][C][channels of the block], and
                         // kWinogradGap
  float* products;       // [tiles][channels], positions `plane` apart
  int64_t plane;
  int64_t tiles, C;
  int64_t channels;  // of the output, whole vectors
  bool is_strided;
  bool far_weights;  // not yet in the L2 cache
};

struct WinogradOutput {
  const float* products;  // [6][6][tiles][stride] or [5][5], positions `plane` apart
  int64_t plane, stride;
  float* const* outputs;  // [tiles][4][4] channel 0 of the output pixels, null outside the map
  const float* const* residuals;  // [tiles][4][4] channel 0 of the residual pixels, or null
  const float* bias;              // [channels], in whole vectors
  int64_t tiles;
  int64_t channel, channels;  // first channel in the maps, number of channels
  bool is_strided;
  bool is_streamed;  // past the caches, since outputs begin at cache lines and have whole ones
  Activation activation;
  double negative_slope;
};

FASTVISION_DECLARE_CPU(void, winograd_filters, const WinogradFilters&)
FASTVISION_DECLARE_CPU(void, winograd_input, const WinogradInput&)
FASTVISION_DECLARE_CPU(void, winograd_strided_input, const WinogradInput&)
FASTVISION_DECLARE_CPU(void, winograd_multiply, const WinogradFactors&)
FASTVISION_DECLARE_CPU(void, winograd_output, const WinogradOutput&)

}  // namespace fastvision
