// Contract of the kernels that follow the indices of max pooling between a plane of pixels and the
// values that belong to some of them: max unpooling, its gradient, and the gradient of max pooling.
//
// Indices are those of pixels in a plane. Unpooling goes through the values in row-major order, so
// the last one with an index is kept. Values with an index outside of the plane are left out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/isa.h"
#include "common/scalar.h"
#include "ops/max_quads.h"

namespace fastvision {

struct MaxUnpoolArgs {
  void* values;            // [N, C, H, W], or [N, H, W, C] if channels_last
  const int64_t* indices;  // as the values
  void* plane;             // [N, C, PH, PW], or [N, PH, PW, C]
  bool channels_last;
  bool stream;                      // the plane is written past the caches
  int64_t C, H, W, PH, PW, pixels;  // pixels: PH * PW
  int64_t group;  // planes that a kernel works on at a time; 1 unless channels_last
  // windows of the plane, vertically and horizontally, that may hold the index of one value each
  int64_t window[2], stride[2], padding[2];
};

static inline bool max_unpool2d_in_quads(const MaxUnpoolArgs& args) {
  return are_quads({args.PH, args.PW}, {args.H, args.W}, args.window, args.stride, args.padding);
}

// The kernels return false, and leave the rest undone, if an index is not where it has to be.
//
// Groups [begin, end) of N * ceil(C / group); indices have to be in the plane.
//   max_unpool2d:           plane = 0, then plane[index] = value
//   max_unpool2d_backward:  value = plane[index] if unpooling kept it, otherwise 0; scratch: a byte
//                           per pixel of a group
//   max_pool2d_backward:    plane = 0, then plane[index] += value; scratch: a float per pixel of a
//                           group for 16-bit types
// Rows [begin, end) of the N * C * H of values, or N * H if channels_last, and the rows of the
// plane from the first of their windows to the first of the next; indices have to be in the
// windows, each of which has a pixel. Windows do not overlap and are 2x2 pixels (see
// max_unpool2d_in_quads) unless channels_last.
//   max_unpool2d_spread:    plane = 0, then plane[index] = value
//   max_unpool2d_collect:   value = plane[index]; all windows are inside of the plane
// The first pointer selects the type and is not read; uint16_t stands for all types of 16 bits.
#define FASTVISION_DECLARE_MAX_UNPOOL(NAME, T)                                              \
  FASTVISION_DECLARE_CPU(                                                                   \
      bool, NAME, const T*, const MaxUnpoolArgs&, int64_t begin, int64_t end, void* scratch \
  )
#define FASTVISION_DECLARE_MAX_UNPOOL_TYPE(T)             \
  FASTVISION_DECLARE_MAX_UNPOOL(max_unpool2d, T)          \
  FASTVISION_DECLARE_MAX_UNPOOL(max_unpool2d_backward, T) \
  FASTVISION_DECLARE_MAX_UNPOOL(max_pool2d_backward, T)
FASTVISION_DECLARE_MAX_UNPOOL_TYPE(float)
FASTVISION_DECLARE_MAX_UNPOOL_TYPE(double)
FASTVISION_DECLARE_MAX_UNPOOL_TYPE(half_t)
FASTVISION_DECLARE_MAX_UNPOOL_TYPE(bfloat16_t)
#undef FASTVISION_DECLARE_MAX_UNPOOL_TYPE
#define FASTVISION_DECLARE_MAX_UNPOOL_BITS(T)                                      \
  FASTVISION_DECLARE_CPU(                                                          \
      bool, max_unpool2d_spread, const T*, const MaxUnpoolArgs&, int64_t, int64_t  \
  )                                                                                \
  FASTVISION_DECLARE_CPU(                                                          \
      bool, max_unpool2d_collect, const T*, const MaxUnpoolArgs&, int64_t, int64_t \
  )
FASTVISION_DECLARE_MAX_UNPOOL_BITS(float)
FASTVISION_DECLARE_MAX_UNPOOL_BITS(double)
FASTVISION_DECLARE_MAX_UNPOOL_BITS(uint16_t)
#undef FASTVISION_DECLARE_MAX_UNPOOL_BITS
#undef FASTVISION_DECLARE_MAX_UNPOOL

}  // namespace fastvision
