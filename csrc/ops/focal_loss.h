// Contract of the focal loss kernels: sigmoid and softmax, over one tensor of logits or the levels
// of a detector's head. One pass computes the loss and, on request, its gradient.
//
// Targets are floating-point, one per logit, or int64 labels, one per row of K logits.
// Sigmoid: a label in [0, K) is the class, -1 is background, and below -1 the row is ignored.
// Softmax: a label in [0, K) is the class, and rows labelled ignore_index are ignored. Any other
// label is an error on the CPU and gives NaN on CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/focal.h"
#include "common/isa.h"
#include "common/scalar.h"

struct CUstream_st;  // *cudaStream_t

namespace fastvision {

constexpr int kMaxFocalLevels = 8;

struct FocalLevel {
  const void* inputs;   // [rows, K]
  const void* targets;  // [rows, K] of the inputs' type, or [rows] int64
  void* losses;         // [rows, K] (softmax: [rows]), or null to compute the sum
  void* grads;          // [rows, K] or null; multiplied by grad_scale
  int64_t rows;
};

struct FocalArgs {
  FocalLevel levels[kMaxFocalLevels];
  int num_levels;
  int64_t K;  // 1 if targets are floating-point: the loss is elementwise
  bool labels;
  double alpha;  // weight of positives, 1 - alpha of negatives; negative disables them
  double gamma;
  double grad_scale;
  const void* class_weights;  // softmax: [K] of the compute type, or null
  int64_t ignore_index;       // softmax
};

// One worker's task for the CPU kernels: rows of one level.
struct FocalTask {
  int level;
  int64_t begin, end;
};
struct FocalResult {
  double sum;
  int64_t bad_row;  // first row with an invalid label, or -1
};

static inline int64_t focal_scratch(int64_t K) { return (K + 15) / 16 * 16; }

// The first pointer selects the tensors' type and is not read. `scratch` has focal_scratch(K)
// elements.
#define FASTVISION_DECLARE_FOCAL_LOSS(T, A)                                             \
  FASTVISION_DECLARE_CPU(                                                               \
      FocalResult, sigmoid_focal_loss, const T*, const FocalArgs&, const FocalTask&     \
  )                                                                                     \
  FASTVISION_DECLARE_CPU(                                                               \
      FocalResult, softmax_focal_loss, const T*, const FocalArgs&, const FocalTask&, A* \
  )                                                                                     \
  FASTVISION_DECLARE_CPU(void, focal_loss_scale, T* grads, int64_t count, double factor)
FASTVISION_DECLARE_FOCAL_LOSS(float, float)
FASTVISION_DECLARE_FOCAL_LOSS(double, double)
FASTVISION_DECLARE_FOCAL_LOSS(half_t, float)
FASTVISION_DECLARE_FOCAL_LOSS(bfloat16_t, float)
#undef FASTVISION_DECLARE_FOCAL_LOSS

// CUDA, for float, double, half_t and bfloat16_t. All pointers are to device memory, and nothing
// synchronizes. Levels may be empty. If `total` is not null, the sum is written there in the
// compute type; sums have a fixed order.
size_t focal_loss_workspace_bytes();
template <typename T>
void launch_sigmoid_focal_loss(
    const FocalArgs& args, void* total, void* workspace, CUstream_st* stream
);
template <typename T>
void launch_softmax_focal_loss(
    const FocalArgs& args, void* total, void* workspace, CUstream_st* stream
);
// In place: grads[i] *= factor * scale, where factor points to one value of the compute type. The
// gradients are not touched if the product is 1.
template <typename T>
void launch_focal_loss_scale(
    void* grads, int64_t count, const void* factor, double scale, CUstream_st* stream
);

}  // namespace fastvision
