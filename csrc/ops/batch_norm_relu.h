// Contract of the kernels of activation(batch_norm(input) + residual), forward and backward.
//
// Both memory formats are a list of items: planes of one channel each (NCHW), or rows with all
// channels (channels_last). A sum over a channel adds up partial results, one per block of items.
// The size of a block only depends on the shape, so the number of threads does not change results.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/isa.h"
#include "common/scalar.h"

namespace fastvision {

struct BatchNormReluArgs {
  bool planes;     // items are planes [N * C, length], otherwise rows [items, C] with length C
  int64_t C;       // channels
  int64_t length;  // elements per item
  int64_t items;   //
  int64_t block;   // items per partial result; for planes the C of an image
  Activation activation;
  double negative_slope;
  // [items, length] of the storage type; null if a kernel does not use it
  const void* input;
  const void* residual;
  const void* output;
  const void* grad;
  void* result;
  // [C] of the compute type, padded to whole vectors:
  //   z = (x - mean) * scale + shift + residual
  //   gradient of the input = dz * scale + (x - mean) * slope + offset
  const void* mean;
  const void* scale;
  const void* shift;
  const void* slope;
  const void* offset;
  double* partials;  // [items / block, 2, C]
};

// per-channel arrays are padded to a multiple of this
constexpr int64_t kBatchNormPadding = 16;

// All kernels process items [begin, end). For statistics and sums of rows these are one block, and
// `scratch` has room for 3 padded per-channel arrays.
//   statistics: mean and sum of squared deviations per block and channel, to partials
//   forward:    result = activation(z)
//   sums:       sums of dz and of dz * (x - mean), to partials; dz = grad * activation'(z). If
//               output is not null, it determines the derivative. If result is not null, dz is
//               written there
//   backward:   result = gradient of the input
// The first pointer selects the storage type and is not read.
#define FASTVISION_DECLARE_BATCH_NORM(NAME, T, A) \
  FASTVISION_DECLARE_CPU(                         \
      void,                                       \
      batch_norm_relu_##NAME,                     \
      const T*,                                   \
      const BatchNormReluArgs&,                   \
      int64_t begin,                              \
      int64_t end,                                \
      A* scratch                                  \
  )
#define FASTVISION_DECLARE_BATCH_NORM_RELU(T, A)  \
  FASTVISION_DECLARE_BATCH_NORM(statistics, T, A) \
  FASTVISION_DECLARE_BATCH_NORM(forward, T, A)    \
  FASTVISION_DECLARE_BATCH_NORM(sums, T, A)       \
  FASTVISION_DECLARE_BATCH_NORM(backward, T, A)
FASTVISION_DECLARE_BATCH_NORM_RELU(float, float)
FASTVISION_DECLARE_BATCH_NORM_RELU(double, double)
FASTVISION_DECLARE_BATCH_NORM_RELU(half_t, float)
FASTVISION_DECLARE_BATCH_NORM_RELU(bfloat16_t, float)
#undef FASTVISION_DECLARE_BATCH_NORM_RELU
#undef FASTVISION_DECLARE_BATCH_NORM

}  // namespace fastvision
