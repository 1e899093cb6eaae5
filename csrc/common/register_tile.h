// The register tile of a matrix product: as large as fits the registers, next to a row of one
// factor and a value of the other.
#pragma once

#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {

constexpr int kTileRows = 6;
constexpr int kTileVectors = kVectorBytes == 64 ? 4 : 2;

}  // namespace fastvision::FASTVISION_ISA
