// Contract of the NMS kernels: greedy non-maximum suppression of B images at once, exact per class.
//
// Order: scores descending, NaN first, ties by index ascending (torch.sort, stable). A box is
// dropped when an earlier kept box of its class has IoU > threshold with it. The IoU is computed in
// float for 16-bit and float boxes and in double for double ones, without fused multiply-adds, as
//   inter / (area_i + area_j - inter),   area = (x2 - x1) * (y2 - y1),
// so a NaN IoU (NaN or infinite boxes, 0/0) never suppresses.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/isa.h"

namespace fastvision {

struct NmsArgs {
  const void* boxes;    // [B, N, 4] (x1, y1, x2, y2), contiguous
  const void* scores;   // [B, N], of the boxes' type, contiguous
  const int64_t* idxs;  // [B, N] class of each box, or null: all of one class
  int64_t B;
  int64_t N;
  double iou_threshold;  // compared with the IoU as it is (CPU) or rounded to float (CUDA)
  bool has_score_threshold;
  double score_threshold;  // only boxes with score > this take part (a NaN score does not)
  int64_t max_output;
  int64_t* indices;  // [B, max_output] kept boxes by falling score, the rest filled with -1
  int64_t* counts;   // [B] how many were kept
};

}  // namespace fastvision
