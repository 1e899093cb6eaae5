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

namespace fastvision {

struct MaxUnpoolArgs {
  void* values;            // [N, C, H, W], or [N, H, W, C] if channels_last
  const int64_t* indices;  // as the values
  void* plane;             // [N, C, pixels], or [N, pixels, C]
  bool channels_last;
  int64_t C, H, W, pixels;
  int64_t group;  // planes that a kernel works on at a time; 1 unless channels_last
  // backward of unpooling: width of the plane, and tiles of it that may have one index each
  int64_t row, tile[2];
};

// The kernels process groups [begin, end) of N * ceil(C / group). They return false, and leave the
// rest undone, if an index is not in the plane.
//   max_unpool2d:           plane = 0, then plane[index] = value
//   max_unpool2d_backward:  value = plane[index] if unpooling kept it, otherwise 0; scratch: a byte
//                           per pixel of a group
//   max_pool2d_backward:    plane = 0, then plane[index] += value; scratch: a float per pixel of a
//                           group for 16-bit types
// The first pointer selects the type and is not read.
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
#undef FASTVISION_DECLARE_MAX_UNPOOL

}  // namespace fastvision
