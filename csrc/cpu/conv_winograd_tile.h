// The points of F(4x4, 3x3), and how a tile is transformed; lanes are channels.
#pragma once

#include "common/simd.h"
#include "ops/conv_winograd.h"

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int kLanes = lanes_v<float>;
constexpr int kLine = kVectorBytes < 64 ? 64 / kVectorBytes : 1;  // vectors of a cache line
constexpr int kIn = kWinogradInputs, kOut = kWinogradOutputs;

constexpr double kNear = 0.625, kFar = 1.5;  // the points other than 0 and infinity
constexpr float kA = kNear, kB = kFar, kA2 = kNear * kNear, kB2 = kFar * kFar;
constexpr float kA3 = kNear * kNear * kNear, kB3 = kFar * kFar * kFar;
constexpr float kSum = kNear * kNear + kFar * kFar, kProduct = kNear * kNear * kFar * kFar;

inline float_v add_scaled(float_v x, float factor, float_v y) {
  return multiply_add(y, broadcast(factor), x);
}

// T d T^T of a tile d of kFrom x kFrom vectors, to kTo x kTo vectors; `transform` computes T d of a
// column. Takes kVectors side by side, to use a whole cache line at once.
template <int kFrom, int kTo, int kVectors, typename Transform, typename Load, typename Store>
inline void transform_tile(Transform transform, Load load_value, Store store_value) {
  float_v rows[kTo][kVectors][kFrom];  // transformed columns
  for (int x = 0; x < kFrom; ++x) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      float_v column[kFrom], v[kTo];
#pragma GCC unroll 6
      for (int y = 0; y < kFrom; ++y) {
        column[y] = load_value(y * kFrom + x, j);
      }
      transform(column, v);
#pragma GCC unroll 6
      for (int y = 0; y < kTo; ++y) {
        rows[y][j][x] = v[y];
      }
    }
  }
  for (int y = 0; y < kTo; ++y) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      float_v v[kTo];
      transform(rows[y][j], v);
#pragma GCC unroll 6
      for (int x = 0; x < kTo; ++x) {
        store_value(y * kTo + x, j, v[x]);
      }
    }
  }
}

// Adds the products of kRows values, value(i), and kVectors of weights.
template <int kRows, int kVectors, typename Value>
inline void add_products(float_v (&sums)[kRows][kVectors], Value value, const float* weights) {
  float_v w[kVectors];
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    w[j] = load(weights + j * kLanes);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    const float_v x = broadcast(value(i));
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      sums[i][j] = multiply_add(x, w[j], sums[i][j]);
    }
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
