// Contract of the matrix NMS kernels: scores decay by all better boxes of their class at once.
//
// With o[i, j] the IoU of ops/nms.h, where NaN counts as 0, and c[i] the largest o[k, i] of any k
// better than i, the score of j is multiplied by the least f(o[i, j]) / f(c[i]) of any i better
// than j, or by 1 if that is less. f(x) is 1 - x or exp(-sigma x^2).
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastvision {

// Boxes by class, and within a class by descending score. There is room to read one register more
// behind the last box.
template <typename T>
struct MatrixNmsArgs {
  const T* x1;  // [N], as are the others
  const T* y1;
  const T* x2;
  const T* y2;
  const T* area;
  const int32_t* begins;  // where the class of each box begins
  T* compensation;        // c, which the first pass writes
  T* decay;               // factors of the scores, which the second pass writes
  bool gaussian;
  T sigma;
};

// Boxes [begin, end) of a pass. The second starts when the first has ended for all boxes.
FASTVISION_DECLARE_CPU(
    void, matrix_nms_compensate, const MatrixNmsArgs<float>&, int64_t begin, int64_t end
)
FASTVISION_DECLARE_CPU(
    void, matrix_nms_compensate, const MatrixNmsArgs<double>&, int64_t begin, int64_t end
)
FASTVISION_DECLARE_CPU(
    void, matrix_nms_decay, const MatrixNmsArgs<float>&, int64_t begin, int64_t end
)
FASTVISION_DECLARE_CPU(
    void, matrix_nms_decay, const MatrixNmsArgs<double>&, int64_t begin, int64_t end
)

}  // namespace fastvision
