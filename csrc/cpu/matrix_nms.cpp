// Matrix NMS: two passes over the pairs of a class, of which none is stored.
#include "ops/matrix_nms.h"

#include "common/simd_math.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// Calls visit(i, iou) for vectors of boxes better than `j`, as far as any box of a vector overlaps
// with it. The IoU is 0 for boxes that do not, or are not better.
template <typename T, typename Visit>
inline void visit_better(const MatrixNmsArgs<T>& args, int64_t j, const Visit& visit) {
  using V = vector_t<T>;
  constexpr int lanes = lanes_v<T>;
  const V x1 = broadcast(args.x1[j]), y1 = broadcast(args.y1[j]);
  const V x2 = broadcast(args.x2[j]), y2 = broadcast(args.y2[j]);
  const V area = broadcast(args.area[j]);
  for (int64_t i = args.begins[j]; i < j; i += lanes) {
    const V width = min(load(args.x2 + i), x2) - max(load(args.x1 + i), x1);
    const V height = min(load(args.y2 + i), y2) - max(load(args.y1 + i), y1);
    const V inter = max(width, V{}) * max(height, V{});
    if (movemask(inter > V{}) == 0) {
      continue;
    }
    V iou = inter / (load(args.area + i) + area - inter);
    iou = iou > V{} ? iou : V{};
    for (int lane = (int)(j - i); lane < lanes; ++lane) {
      iou[lane] = 0;
    }
    visit(i, iou);
  }
}

template <typename T>
T maximum(vector_t<T> v) {
  T result = v[0];
  for (int lane = 1; lane < lanes_v<T>; ++lane) {
    result = v[lane] > result ? v[lane] : result;
  }
  return result;
}

template <typename T>
void compensate(const MatrixNmsArgs<T>& args, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; ++j) {
    vector_t<T> highest{};
    visit_better(args, j, [&](int64_t, vector_t<T> iou) { highest = max(iou, highest); });
    args.compensation[j] = maximum<T>(highest);
  }
}

template <typename T, bool gaussian>
void decay(const MatrixNmsArgs<T>& args, int64_t begin, int64_t end) {
  using V = vector_t<T>;
  for (int64_t j = begin; j < end; ++j) {
    // negated quotients, or the exponents that remain of them without -sigma
    V highest = V{} + (gaussian ? T(0) : T(-1));
    visit_better(args, j, [&](int64_t i, V iou) {
      const V c = load(args.compensation + i);
      // otherwise the quotient is 1 or more
      const auto decays = iou > c;
      if (movemask(decays) != 0) {
        const V value = gaussian ? iou * iou - c * c : -((T(1) - iou) / (T(1) - c));
        highest = decays ? max(value, highest) : highest;
      }
    });
    const T value = maximum<T>(highest);
    args.decay[j] = gaussian ? exp(V{} - args.sigma * value)[0] : -value;
  }
}

template <typename T>
void decay(const MatrixNmsArgs<T>& args, int64_t begin, int64_t end) {
  args.gaussian ? decay<T, true>(args, begin, end) : decay<T, false>(args, begin, end);
}

}  // namespace

void matrix_nms_compensate(const MatrixNmsArgs<float>& args, int64_t begin, int64_t end) {
  compensate(args, begin, end);
}
void matrix_nms_compensate(const MatrixNmsArgs<double>& args, int64_t begin, int64_t end) {
  compensate(args, begin, end);
}
void matrix_nms_decay(const MatrixNmsArgs<float>& args, int64_t begin, int64_t end) {
  decay(args, begin, end);
}
void matrix_nms_decay(const MatrixNmsArgs<double>& args, int64_t begin, int64_t end) {
  decay(args, begin, end);
}

}  // namespace fastvision::FASTVISION_ISA
