// Contract of the kernels for the overlap of every rotated box of one set with every box of
// another, and its gradient. The geometry is in common/rotated_box.h.
//
// 0 for an empty box (an area below kMinRotatedArea) or one whose center or angle is not finite,
// NaN for one whose area is NaN.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastvision {

constexpr double kMinRotatedArea = 1e-14;  // or volume
// derivatives by center, width, height and angle in radians
constexpr int kRotatedTerms = 5;
constexpr int kSolidTerms = 7;  // with a depth

// What the arrays of a set of boxes hold. `measure` is the area, or the volume of solid boxes,
// which stand upright on the plane. The extents are half of the upright box around it, below 0 if
// it is empty.
enum class RotatedArray {
  cx,
  cy,
  width,
  height,
  cos,
  sin,
  measure,
  extent_x,
  extent_y,
  bottom,
  top
};
constexpr int kRotatedArrays = 9;
constexpr int kSolidArrays = 11;

// Boxes as a structure of arrays, `step` numbers apart.
template <typename A>
struct RotatedSet {
  const A* first;
  int64_t step;

  FASTVISION_NO_COPY const A* operator[](RotatedArray array) const {
    return first + static_cast<int64_t>(array) * step;
  }
};

template <typename A>
struct RotatedArgs {
  RotatedSet<A> boxes1, boxes2;
  int64_t M;
};

struct RotatedTile {
  int64_t row, row_end, column, column_end;
};

// output, grad [N, M]. The backward adds the terms of the tile's rows to rows [N, kRotatedTerms]
// and of its columns to columns [M, kRotatedTerms], in the order of rows or columns.
#define FASTVISION_DECLARE_BOX_IOU_ROTATED(A)                                     \
  FASTVISION_DECLARE_CPU(                                                         \
      void, box_iou_rotated, A* output, const RotatedArgs<A>&, const RotatedTile& \
  )                                                                               \
  FASTVISION_DECLARE_CPU(                                                         \
      void,                                                                       \
      box_iou_rotated_backward,                                                   \
      const A* grad,                                                              \
      const RotatedArgs<A>&,                                                      \
      const RotatedTile&,                                                         \
      A* rows,                                                                    \
      A* columns                                                                  \
  )
FASTVISION_DECLARE_BOX_IOU_ROTATED(float)
FASTVISION_DECLARE_BOX_IOU_ROTATED(double)
#undef FASTVISION_DECLARE_BOX_IOU_ROTATED

}  // namespace fastvision
