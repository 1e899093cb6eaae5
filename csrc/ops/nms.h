// Contract of the NMS kernels: greedy non-maximum suppression of B images, exact per class.
//
// An image keeps max_output boxes at most, and no kernel searches a class for more.
//
// Order: scores descending, NaN first, ties by index ascending (torch.sort, stable). A box is
// suppressed if an earlier kept box of its class has IoU > threshold with it. The IoU is computed
// in float for 16-bit and float boxes, in double for double ones, without fused multiply-adds:
//   inter / (area_i + area_j - inter),   area = (x2 - x1) * (y2 - y1),
// so a NaN IoU (non-finite boxes, 0/0) never suppresses.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/isa.h"

struct CUstream_st;  // cudaStream_t points to one

namespace fastvision {

struct NmsArgs {
  const void* boxes;    // [B, N, 4] (x1, y1, x2, y2), contiguous
  const void* scores;   // [B, N] of the boxes' type, contiguous
  const int64_t* idxs;  // [B, N] class of each box, or null for a single class
  int64_t B;
  int64_t N;
  double iou_threshold;  // compared in double, so not rounded to float
  bool has_score_threshold;
  double score_threshold;  // only boxes with score > this take part (a NaN score does not)
  int64_t max_output;
  int64_t* indices;  // [B, max_output] kept boxes by descending score, padded with -1
  int64_t* counts;   // [B] number of kept boxes
};

// The boxes of one image and class, for the CPU kernels.
template <typename T>
struct NmsSegment {
  const T* boxes;   // [n, 4] by descending score; other kinds of boxes have other columns
  uint8_t* kept;    // [n] result: 1 or 0
  int32_t* match;   // [n] result, unless null: the first kept box that suppresses each, or itself
  char* workspace;  // nms_segment_bytes<T>(n, match != nullptr) for corners, aligned to 64 bytes
  int64_t n;        // below 2^31
  int64_t max_output;  // maximum number of kept boxes
  double iou_threshold;
};

// Kept boxes are stored in blocks of one register's lanes. A block belongs to a cell of a grid, and
// at most one block per cell is not full. There are at most 2^24 cells, which float can count.
static constexpr int64_t nms_max_cells(int64_t n) {
  return (n < (1 << 28) ? n : (1 << 28) - 16) / 16 + 1;
}
static constexpr int64_t nms_max_blocks(int64_t n, int64_t lanes) {
  const int64_t blocks = nms_max_cells(n) + n / lanes;
  return n < blocks ? n : blocks;
}

// Workspace of a segment, large enough for the registers of every CPU level.
template <typename T>
static constexpr size_t nms_segment_bytes(int64_t n, bool matches) {
  size_t most = 0;
  for (int64_t lanes = 16 / sizeof(T); lanes <= int64_t(64 / sizeof(T)); lanes *= 2) {
    const size_t block = 5 * lanes * sizeof(T) + (2 + (matches ? lanes : 0)) * sizeof(int32_t);
    const size_t bytes = nms_max_blocks(n, lanes) * block;
    most = bytes > most ? bytes : most;
  }
  return most + nms_max_cells(n) * sizeof(int32_t);
}

FASTVISION_DECLARE_CPU(void, nms_segment_float, const NmsSegment<float>&)
FASTVISION_DECLARE_CPU(void, nms_segment_double, const NmsSegment<double>&)

// CUDA: all pointers of NmsArgs are to device memory, and B * N is below 2^31. T is the boxes'
// type: float, double, half_t or bfloat16_t. Nothing synchronizes, and no memory is allocated.

// Segments (the boxes of one class in one image) are processed in pieces of this many boxes, a
// power of two from 64 to 4096; the workspace holds about chunk / 8 bytes per box.
int64_t nms_chunk(int64_t B, int64_t N);

// Bytes of device memory that launch_nms needs, aligned to 256.
template <typename T>
size_t nms_workspace_bytes(const NmsArgs& args, int64_t chunk);

template <typename T>
void launch_nms(const NmsArgs& args, int64_t chunk, void* workspace, CUstream_st* stream);

}  // namespace fastvision
