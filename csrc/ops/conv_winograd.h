// Contract of convolutions by Winograd's algorithm (Lavin and Gray, Fast Algorithms for
// Convolutional Neural Networks, 2016). For 4x4 output pixels of a 3x3 window, where direct
// convolution needs 144 multiplications, F(4x4, 3x3) needs 36 with stride 1, and F(4, 2) with
// F(4, 1) 81 with stride 2. For a 2x2 window, a phase of a transposed convolution, F(4x4, 2x2)
// needs 25 instead of 64.
//
// With a 3x3 window and stride 1, a tile has 4x4 output pixels and the 6x6 input pixels they depend
// on. In each of 36 positions the transformed inputs of many tiles are multiplied by a [C, K]
// matrix of transformed weights, which is a 1x1 convolution of conv.h. The polynomials are
// evaluated at 0, 5/8, -5/8, 3/2, -3/2 and infinity, which limits errors to about twice those of
// direct sums; the usual points 0, 1, -1, 2, -2 and infinity more than double them again. Sums over
// many channels are split, which makes up for it. Every output of a tile depends on all its inputs,
// so a NaN makes the whole tile NaN.
//
// With stride 2, a tile has 9x9 input pixels. Two taps meet every second row, which F(4, 2)
// transforms, with the points 5/16, -5/16, 21/16, -21/16 and infinity; one tap meets the others,
// which F(4, 1) transforms, with the same points but infinity: a filter without a linear term is
// zero there. In both directions this makes four kinds of pixels. They are input channels of their
// own and share the 25 positions and the transform of the outputs. Positions at infinity lack
// kinds.
//
// With a 2x2 window, a tile has 5x5 input pixels, all of the kind that two taps meet twice.
#pragma once

#include <cstdint>

#include "ops/conv.h"

namespace fastvision {

constexpr int kWinogradOutputs = 4;  // pixels along a side of a tile
constexpr int kWinogradInputs = 6;   // with a 3x3 window and stride 1
constexpr int kWinogradTaps = 9;     // at most
constexpr int kWinogradPositions = kWinogradInputs * kWinogradInputs;
constexpr int kWinogradPixels = kWinogradOutputs * kWinogradOutputs;
// Values between the weights of two positions: a cache line, or all would map to a few cache sets.
constexpr int kWinogradGap = 16;
constexpr int kStridedInputs = 9;  // with stride 2
constexpr int kPairInputs = 5;     // with a 2x2 window
constexpr int kMostInputPixels = kStridedInputs * kStridedInputs;
constexpr int kPointsOfTwo = 5, kPointsOfOne = 4;  // of F(4, 2) and F(4, 1)

enum class WinogradForm {
  kThree,    // 3x3 taps
  kStrided,  // 3x3 taps, stride 2
  kPair,     // 2x2 taps
};

// Kinds of pixels by the taps that meet their row and their column, in the order of their channels.
enum WinogradKind { kOneTwo, kTwoTwo, kTwoOne, kOneOne, kWinogradKinds };

// The kinds [first, first + count) that a position multiplies.
struct WinogradKinds {
  int first, count;
};

constexpr WinogradKinds kinds_of(WinogradForm form, int position) {
  if (form != WinogradForm::kStrided) {
    return {0, 1};
  }
  const bool far_row = position / kPointsOfTwo == kPointsOfTwo - 1;
  const bool far_column = position % kPointsOfTwo == kPointsOfTwo - 1;
  const int first = far_row ? kTwoTwo : kOneTwo;
  const int last = far_column ? kTwoTwo : far_row ? kTwoOne : kOneOne;
  return {first, last + 1 - first};
}

constexpr int positions_of(WinogradForm form) {
  return form == WinogradForm::kThree ? kWinogradPositions : kPointsOfTwo * kPointsOfTwo;
}

// Values that a tile has per input channel in each position.
constexpr int all_kinds(WinogradForm form) {
  return form == WinogradForm::kStrided ? kWinogradKinds : 1;
}

// Kinds of all positions.
constexpr int kinds_in_all(WinogradForm form) {
  int kinds = 0;
  for (int i = 0; i < positions_of(form); ++i) {
    kinds += kinds_of(form, i).count;
  }
  return kinds;
}

// A block of filters, transformed. Each position has [channels of the pass / width] blocks of
// [kinds][C][width], and kWinogradGap.
struct WinogradFilters {
  const float* filters;     // of the block's first channel
  int64_t filter, channel;  // values from a filter, and from an input channel, to the next
  const int64_t* taps;      // [3][3] or [2][2] offsets within a filter
  WinogradForm form;
  float* transformed;   // of the pass
  int64_t pass, begin;  // output channels of the pass, and before this block
  int64_t width, count, C;
};

struct WinogradInput {
  const float* const* pixels;  // [tiles] channel 0 of the input pixels [6][6], [9][9] or [5][5]
  float* transformed;          // [6][6] or [5][5], positions `plane` apart
  int64_t plane;
  int64_t tile, vector;  // values from a tile, and from a vector of channels, to the next
  int64_t tiles, C;
  WinogradForm form;
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
  WinogradForm form;
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
  WinogradForm form;
  bool is_streamed;  // past the caches, since outputs begin at cache lines and have whole ones
  Activation activation;
  double negative_slope;
};

FASTVISION_DECLARE_CPU(void, winograd_filters, const WinogradFilters&)
FASTVISION_DECLARE_CPU(void, winograd_input, const WinogradInput&)
FASTVISION_DECLARE_CPU(void, winograd_multiply, const WinogradFactors&)
FASTVISION_DECLARE_CPU(void, winograd_output, const WinogradOutput&)

}  // namespace fastvision
