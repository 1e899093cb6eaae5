// Contract of the kernels of max pooling with indices, forward and backward.
//
// An index is row * W + column in the input's plane. Of equal maxima the first in row-major order
// counts; a NaN replaces any number and an earlier NaN, as in torch. Each window has a pixel.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/scalar.h"
#include "ops/max_quads.h"

namespace fastvision {

struct MaxPoolArgs {
  const void* input;  // [N, C, H, W], or [N, H, W, C] if channels_last
  void* output;       // [N, C, OH, OW], or [N, OH, OW, C]
  int64_t* indices;   // as the output
  bool channels_last;
  int64_t C, H, W, OH, OW;
  // vertical and horizontal; a window spans less than 2^31 pixels of a plane
  int64_t kernel[2], stride[2], padding[2], dilation[2];
};

static inline bool max_pool2d_in_quads(const MaxPoolArgs& args) {
  return args.dilation[0] == 1 && args.dilation[1] == 1 &&
         are_quads({args.H, args.W}, {args.OH, args.OW}, args.kernel, args.stride, args.padding);
}

// Columns of an output row, rounded up to whole vectors of any level.
static inline int64_t max_pool2d_columns(const MaxPoolArgs& args) {
  return (args.OW + 15) / 16 * 16;
}

// Phases of the stride in which there are taps.
static inline int64_t max_pool2d_phases(const MaxPoolArgs& args) {
  const int64_t span = args.dilation[1] * (args.kernel[1] - 1) + 1;
  return span < args.stride[1] ? span : args.stride[1];
}

// Columns of a phase that precede those of the last tap.
static inline int64_t max_pool2d_steps(const MaxPoolArgs& args) {
  return args.dilation[1] * (args.kernel[1] - 1) / args.stride[1];
}

// Elements of scratch, contiguous only: one input row by phases of the stride, then the maxima and
// places of an output row, then an input row in the type of arithmetic.
static inline int64_t max_pool2d_scratch(const MaxPoolArgs& args) {
  const int64_t columns = max_pool2d_columns(args);
  return max_pool2d_phases(args) * (columns + max_pool2d_steps(args)) + 3 * columns +
         (args.W + 15) / 16 * 16;
}

// Output rows [begin, end) of N * C * OH, or output pixels of N * OH * OW if channels_last. The
// first pointer selects the type and is not read.
#define FASTVISION_DECLARE_MAX_POOL(T, A)                                                    \
  FASTVISION_DECLARE_CPU(                                                                    \
      void, max_pool2d, const T*, const MaxPoolArgs&, int64_t begin, int64_t end, A* scratch \
  )
FASTVISION_DECLARE_MAX_POOL(float, float)
FASTVISION_DECLARE_MAX_POOL(double, double)
FASTVISION_DECLARE_MAX_POOL(half_t, float)
FASTVISION_DECLARE_MAX_POOL(bfloat16_t, float)
#undef FASTVISION_DECLARE_MAX_POOL

}  // namespace fastvision
