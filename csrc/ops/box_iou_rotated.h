// Contract of the kernels for the overlap of every rotated box of one set with every box of
// another, and its gradient. The geometry is in common/rotated_box.h.
//
// 0 for an empty box (an area below kMinRotatedArea) or one whose center or angle is not finite,
// NaN for one whose area is NaN.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastvision {

constexpr double kMinRotatedArea = 1e-14;
constexpr int kRotatedTerms = 5;  // derivatives by center, width, height and angle in radians

// Boxes as a structure of arrays [count].
template <typename A>
struct RotatedSet {
  const A *cx, *cy, *width, *height, *cos, *sin, *area;
  const A *extent_x, *extent_y;  // half of the upright box around it; below 0 if it is empty
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
