// Contract of the weight gradient of a 3x3 convolution with stride 1, the transpose of F(4x4, 3x3)
// (conv_winograd.h): 36 multiplications per tile where the direct sum needs 144.
//
// With y = A^T [(G w G^T) * (B^T x B)] A, the gradient of w is G^T S G, where S is the sum over
// tiles of (B^T x B) * (A dy A^T). In each of 36 positions that sum is a [C, K] matrix product.
// Vectors of input channels and blocks of output channels are stored one after the other, with
// their tiles next to each other.
#pragma once

#include <cstdint>

#include "ops/conv_winograd.h"

namespace fastvision {

struct WinogradGradients {
  const float* const* pixels;  // [tiles][4][4] channel 0 of the gradient's pixels
  float* transformed;          // [6][6], positions `plane` apart: [blocks][tiles][channels]
  int64_t plane;
  int64_t block;  // channels of a block, whole vectors; the last one has what is left
  int64_t room;   // tiles of a block
  int64_t first;  // first tile in the block
  int64_t tiles, K;
};

// sums += inputs^T gradients, of one position and block
struct WinogradProducts {
  const float* inputs;     // [vectors of C][tiles][lanes]
  const float* gradients;  // [tiles][channels]
  float* sums;             // [C][channels]
  int64_t tiles, C;
  int64_t channels;  // of the block, whole vectors
  bool are_first;    // whether there are no sums yet
};

// Input channels [c_begin, c_end) of a block.
struct WinogradSums {
  const float* sums;  // [6][6], positions `plane` apart: [C][channels]
  int64_t plane;
  int64_t channels;  // of the block, whole vectors
  float* weights;    // [K][C][3][3] from the block's first filter on
  int64_t c_begin, c_end, C;
  int64_t K;  // filters of the block
};

FASTVISION_DECLARE_CPU(void, winograd_gradients, const WinogradGradients&)
FASTVISION_DECLARE_CPU(void, winograd_products, const WinogradProducts&)
FASTVISION_DECLARE_CPU(void, winograd_weights, const WinogradSums&)

}  // namespace fastvision
