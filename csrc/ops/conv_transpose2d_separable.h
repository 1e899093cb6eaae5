// Contract of transposed convolution with a per-channel separable filter:
// w[c, c, y, x] = scale[c] rows[y] columns[x]. Bilinear upsampling by any factor is an example
// (Long et al. 2015, section 3.3). Along an axis, output u = o + padding reads input u / stride - t
// with tap u % stride + t stride, so the zeros between the pixels are never touched.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/activation.h"
#include "common/isa.h"
#include "common/scalar.h"

namespace fastvision {

template <typename A>
struct SeparableAxis {
  const A* taps;  // [size]
  int64_t size;
  int64_t stride;
  int64_t padding;

  // Number of taps of outputs with u % stride == r. Taps are not padded with zeros, since those
  // would turn non-finite inputs into NaN.
  int64_t count(int64_t r) const { return r < size ? (size - r - 1) / stride + 1 : 0; }
  int64_t most() const { return (size - 1) / stride + 1; }
};

template <typename A>
struct SeparableArgs {
  const void* input;     // [N, C, H, W], or [N, H, W, C] if channels_last
  const void* residual;  // like output, or null
  void* output;          // [N, C, OH, OW] or [N, OH, OW, C]
  const A* scale;        // [C]
  const A* shift;        // [C], or null
  SeparableAxis<A> y;
  SeparableAxis<A> x;
  int64_t N;
  int64_t C;
  int64_t H;
  int64_t W;
  int64_t OH;
  int64_t OW;
  bool channels_last;
  Activation activation;
  A negative_slope;
};

// One worker's task: a rectangle of a plane (NCHW) or of an image (channels_last).
struct SeparableTask {
  int64_t plane;
  int64_t y_begin, y_end;
  int64_t q_begin,
      q_end;  // input columns; q stands for outputs q stride - padding and the stride - 1 after it
};

// Scratch of a worker in elements: one row each of input, shift and sums, and as many stretched
// rows as an output has taps. Vectors may be read and written past the end of each.
constexpr int64_t kSeparableSlack = 16;
template <typename A>
static inline int64_t separable_row(const SeparableArgs<A>& args, int64_t q_count) {
  return q_count * args.x.stride * (args.channels_last ? args.C : 1) + kSeparableSlack;
}
template <typename A>
static inline int64_t separable_input_row(const SeparableArgs<A>& args, int64_t q_count) {
  return (q_count + args.x.most() - 1) * (args.channels_last ? args.C : 1) + kSeparableSlack;
}
template <typename A>
static inline int64_t separable_scratch(const SeparableArgs<A>& args, int64_t q_count) {
  return separable_input_row(args, q_count) + (args.y.most() + 2) * separable_row(args, q_count);
}

// The first pointer selects the type of input, residual and output, and is not read.
#define FASTVISION_DECLARE_SEPARABLE(T, A) \
  FASTVISION_DECLARE_CPU(                  \
      void,                                \
      conv_transpose2d_separable,          \
      const T*,                            \
      const SeparableArgs<A>&,             \
      const SeparableTask&,                \
      A* scratch                           \
  )
FASTVISION_DECLARE_SEPARABLE(float, float)
FASTVISION_DECLARE_SEPARABLE(double, double)
FASTVISION_DECLARE_SEPARABLE(half_t, float)
FASTVISION_DECLARE_SEPARABLE(bfloat16_t, float)
#undef FASTVISION_DECLARE_SEPARABLE

}  // namespace fastvision
