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
  void* values;            // [N, C, positions], or [N, positions, C] if channels_last
  const int64_t* indices;  // as the values
  void* plane;             // [N, C, pixels], or [N, pixels, C]
  bool channels_last;
  int64_t C, positions, pixels;
};

// A group is a plane, or the planes of a cache line of channels if channels_last.
static inline int64_t max_unpool2d_channels(const MaxUnpoolArgs& args, int64_t element_size) {
  const int64_t line = 64 / element_size;
  return !args.channels_last ? 1 : args.C < line ? args.C : line;
}

// The kernels process groups [begin, end) and return whether all indices are in the plane.
//   max_unpool2d:           plane = 0, then plane[index] = value
//   max_unpool2d_backward:  value = plane[index] if unpooling kept it, otherwise 0; scratch: a byte
//                           per pixel and channel of a group
//   max_pool2d_backward:    plane = 0, then plane[index] += value; scratch: a float per pixel and
//                           channel of a group for 16-bit types
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
