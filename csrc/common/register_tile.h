// The tile of sums that fills the registers in a product of matrices, but for a row of the one
// factor and one value of the other.
#pragma once

#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {

constexpr int kTileRows = 6;
constexpr int kTileVectors = kVectorBytes == 64 ? 4 : 2;

}  // namespace fastvision::FASTVISION_ISA
