// Contract of the kernels for the overlap of every box of one set with every box of another:
// intersection over union (IoU), generalized, distance or complete IoU, and their gradients.
//
// Arithmetic is in float, or in double for double boxes, in the order of torchvision's formulas and
// without fused multiply-adds. Where a coordinate is NaN the result is NaN.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/scalar.h"

namespace fastvision {

enum class BoxIouKind : int64_t { iou, generalized, distance, complete };
constexpr int64_t kBoxIouKinds = 4;

enum class BoxFormat : int64_t { xyxy, xywh, cxcywh };
constexpr int64_t kBoxFormats = 3;

// What the gradients of a box are made of, before they are those of its coordinates in the format:
// the derivatives by x1, y1, x2, y2, the area and the angle of the diagonal (complete IoU).
constexpr int kBoxIouTerms = 6;

struct BoxIouArgs {
  const void* boxes1;  // [N, 4]
  const void* boxes2;  // [M, 4]
  int64_t M;
  BoxIouKind kind;
  BoxFormat format;
  double eps;
};

// Boxes [row, row_end) of boxes1 and [column, column_end) of boxes2.
struct BoxIouTile {
  int64_t row, row_end, column, column_end;
};

// output [N, M]: the tile of it. Double boxes may have results in float.
#define FASTVISION_DECLARE_BOX_IOU(T, O)                                            \
  FASTVISION_DECLARE_CPU(                                                           \
      void, box_iou, const T*, O* output, const BoxIouArgs& args, const BoxIouTile& \
  )
FASTVISION_DECLARE_BOX_IOU(float, float)
FASTVISION_DECLARE_BOX_IOU(half_t, float)
FASTVISION_DECLARE_BOX_IOU(bfloat16_t, float)
FASTVISION_DECLARE_BOX_IOU(double, float)
FASTVISION_DECLARE_BOX_IOU(double, double)
#undef FASTVISION_DECLARE_BOX_IOU

// grad [N, M]. Adds the terms of the tile's rows to rows [N, kBoxIouTerms] and writes those of its
// columns to columns [M, kBoxIouTerms], summed in the order of rows or columns.
// box_iou_terms: grad [count, 4] of boxes [count, 4], from `parts` partial sums of their terms that
// are `stride` apart.
#define FASTVISION_DECLARE_BOX_IOU_BACKWARD(T, A) \
  FASTVISION_DECLARE_CPU(                         \
      void,                                       \
      box_iou_backward,                           \
      const T*,                                   \
      const A* grad,                              \
      const BoxIouArgs&,                          \
      const BoxIouTile&,                          \
      A* rows,                                    \
      A* columns                                  \
  )                                               \
  FASTVISION_DECLARE_CPU(                         \
      void,                                       \
      box_iou_terms,                              \
      const T* boxes,                             \
      A* grad,                                    \
      int64_t count,                              \
      const BoxIouArgs&,                          \
      const A* terms,                             \
      int64_t parts,                              \
      int64_t stride                              \
  )
FASTVISION_DECLARE_BOX_IOU_BACKWARD(float, float)
FASTVISION_DECLARE_BOX_IOU_BACKWARD(half_t, float)
FASTVISION_DECLARE_BOX_IOU_BACKWARD(bfloat16_t, float)
FASTVISION_DECLARE_BOX_IOU_BACKWARD(double, double)
#undef FASTVISION_DECLARE_BOX_IOU_BACKWARD

}  // namespace fastvision
