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

struct CUstream_st;  // cudaStream_t points to one

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

// ---- CUDA: every pointer of NmsArgs is on the device, B * N is below 2^31. T is the boxes' type:
// float, double, half_t or bfloat16_t. Nothing waits for the device and no memory is allocated.

// Segments (the boxes of one class in one image) are processed in pieces of this many boxes, a
// power of two from 64 to 4096; the workspace holds about chunk / 8 bytes per box.
int64_t nms_chunk(int64_t B, int64_t N);

// Bytes of device memory that launch_nms needs, aligned to 256.
template <typename T>
size_t nms_workspace_bytes(const NmsArgs& args, int64_t chunk);

template <typename T>
void launch_nms(const NmsArgs& args, int64_t chunk, void* workspace, CUstream_st* stream);

}  // namespace fastvision
