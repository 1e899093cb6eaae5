// Contract of the kernels of activation(batch_norm(input) + residual), forward and backward.
//
// Both memory formats are a list of items: planes of one channel each (NCHW), or rows that hold all
// channels (channels_last). Sums over a channel are made of partial results, one per block of
// items, whose size depends on the shape alone: the result is the same for any number of threads.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/isa.h"
#include "common/scalar.h"

namespace fastvision {

struct BatchNormReluArgs {
  bool planes;     // items are planes [N * C, length], else rows [items, C] with length C
  int64_t C;       // channels
  int64_t length;  // elements of an item
  int64_t items;   //
  int64_t block;   // items of a partial result; for planes the C of an image
  Activation activation;
  double negative_slope;
  // [items, length] of the type of storage; null where a kernel has no use for it
  const void* input;
  const void* residual;
  const void* output;
  const void* grad;
  void* result;
  // [C] of the type of arithmetic, padded to whole vectors:
  //   z = (x - mean) * scale + shift + residual
  //   gradient of the input = dz * scale + (x - mean) * slope + offset
  const void* mean;
  const void* scale;
  const void* shift;
  const void* slope;
  const void* offset;
  double* partials;  // [items / block, 2, C]
};

// elements to which arrays over channels are padded
constexpr int64_t kBatchNormPadding = 16;

// All kernels handle items [begin, end); statistics and sums of rows are of one block, and
// `scratch` has room for 3 padded arrays over channels there.
//   statistics: mean and sum of squared deviations of a block and channel, to partials
//   forward:    result = activation(z)
//   sums:       sums of dz and of dz * (x - mean), to partials; dz = grad * activation'(z), where
//               the activation's derivative comes from the output if there is one. With a result,
//               dz is written there
//   backward:   result = gradient of the input
// The first pointer gives the type of storage and is not read.
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
