// Contract of the linear layer of a few rows, whose time is that of reading the weight once.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/isa.h"

namespace fastvision {

constexpr int64_t kMostLinearRows = 3;  // more make better use of packed weights
constexpr int64_t kLinearStreams = 4;   // outputs whose weights are read side by side

// output[r][o] = activation(sum over i of input[r][i] weight[o][i] + bias[o])
template <typename T>
struct LinearArgs {
  const T* input;   // [rows, features], 1 to kMostLinearRows rows
  const T* weight;  // [outputs, features]
  const T* bias;    // [outputs], or null
  T* output;        // [rows, outputs]
  int64_t rows, features, outputs;
  Activation activation;
  double negative_slope;
};

// Outputs [begin, end) of all rows; `begin` is a multiple of kLinearStreams.
#define FASTVISION_DECLARE_LINEAR(T) \
  FASTVISION_DECLARE_CPU(void, linear, const LinearArgs<T>&, int64_t begin, int64_t end)
FASTVISION_DECLARE_LINEAR(float)
FASTVISION_DECLARE_LINEAR(double)
#undef FASTVISION_DECLARE_LINEAR

}  // namespace fastvision
