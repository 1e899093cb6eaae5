// NMS of rotated boxes on the CPU: what nms_suppression.h asks of a kind of boxes.
#pragma once

#include "ops/box_iou_rotated_engine.h"
#include "ops/nms_rotated.h"
#include "ops/nms_suppression.h"

namespace fastvision {

template <bool kSolid>
struct RotatedBoxes {
  static constexpr int columns = rotated_columns(kSolid);

  template <typename T>
  static int64_t bytes(int64_t n, bool /* matches, which only corners have */) {
    return rotated_arrays(kSolid) * rotated_step(n) * sizeof(T);
  }

  template <typename T>
  static void run(const NmsSegment<T>& s) {
    T* memory = reinterpret_cast<T*>(s.workspace);
    const int64_t step = rotated_step(s.n);
    std::fill_n(memory, rotated_arrays(kSolid) * step, T(0));
    write_rotated<kSolid>(s.boxes, s.n, memory, step);
    const RotatedSegment<T> segment{memory, step, s.kept, s.n, s.max_output, s.iou_threshold};
    if constexpr (kSolid) {
      FASTVISION_CALL(nms_3d_segment, segment);
    } else {
      FASTVISION_CALL(nms_rotated_segment, segment);
    }
  }
};

// Indices of the kept boxes.
template <bool kSolid>
Tensor suppress_rotated(
    const Tensor& boxes,
    const Tensor& scores,
    const std::optional<Tensor>& idxs,
    double iou_threshold
) {
  check_shapes(boxes, scores, idxs, 2, rotated_columns(kSolid));
  NmsInputs inputs(boxes, scores, idxs, iou_threshold);
  return kept_indices<RotatedBoxes<kSolid>>(inputs);
}

}  // namespace fastvision
