// Overlap of every rotated box of one set with every box of another, and its gradient.
#include "cpu/box_iou_rotated_pairs.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename A>
inline A sum_of(vector_t<A> v) {
  A sum = 0;
  for (int i = 0; i < lanes_v<A>; ++i) {
    sum += v[i];
  }
  return sum;
}

template <typename A>
void backward(
    const A* grad,
    const RotatedArgs<A>& args,
    const RotatedTile& tile,
    A* row_terms,
    A* column_terms
) {
  constexpr int lanes = lanes_v<A>;
  using V = vector_t<A>;
  int32_t near[kColumns + lanes];
  for (int64_t first = tile.column; first < tile.column_end; first += kColumns) {
    const int64_t left = tile.column_end - first, count = left < kColumns ? left : kColumns;
    const RotatedSet<A> columns{args.boxes2.first + first, args.boxes2.step};
    A* of_columns = column_terms + first * kRotatedTerms;
    for (int64_t row = tile.row; row < tile.row_end; ++row) {
      const A* from = grad + row * args.M + first;
      const int64_t found = find_near<false, A>(args.boxes1, row, columns, count, near, nullptr);
      const RotatedVector<A> first_box = repeated<false>(args.boxes1, row);
      const RotatedBox<V>& a = first_box.box;
      V sums[kRotatedTerms] = {};
      for (int64_t i = 0; i < found; i += lanes) {
        const int some = found - i < lanes ? static_cast<int>(found - i) : lanes;
        V g{};
        for (int lane = 0; lane < some; ++lane) {
          g[lane] = from[near[i + lane]];
        }
        const RotatedVector<A> second_box = gathered<false>(columns, near + i);
        const RotatedBox<V>& b = second_box.box;
        const BoxInFrame<V> f = seen_from(a, b);
        const V inter = intersection_area(f);
        AreaGradient<V> of_a, of_b;
        intersection_gradient(a, b, f, inter, of_a, of_b);
        const V all = first_box.measure + second_box.measure - inter;
        const V iou = inter / all;
        const V by_area = -g * iou / all, by_inter = g / all - by_area;
        sums[0] += by_inter * of_a.cx;
        sums[1] += by_inter * of_a.cy;
        sums[2] += by_inter * of_a.width + by_area * a.height;
        sums[3] += by_inter * of_a.height + by_area * a.width;
        sums[4] += by_inter * of_a.angle;
        const V terms[kRotatedTerms] = {
            by_inter * of_b.cx,
            by_inter * of_b.cy,
            by_inter * of_b.width + by_area * b.height,
            by_inter * of_b.height + by_area * b.width,
            by_inter * of_b.angle
        };
        for (int k = 0; k < kRotatedTerms; ++k) {
          for (int lane = 0; lane < some; ++lane) {
            of_columns[near[i + lane] * kRotatedTerms + k] += terms[k][lane];
          }
        }
      }
      for (int k = 0; k < kRotatedTerms; ++k) {
        row_terms[row * kRotatedTerms + k] += sum_of<A>(sums[k]);
      }
    }
  }
}

}  // namespace

#define FASTVISION_DEFINE_BOX_IOU_ROTATED(A)                                                  \
  void box_iou_rotated(A* output, const RotatedArgs<A>& args, const RotatedTile& tile) {      \
    forward<false>(output, args, tile);                                                       \
  }                                                                                           \
  void box_iou_rotated_backward(                                                              \
      const A* grad, const RotatedArgs<A>& args, const RotatedTile& tile, A* rows, A* columns \
  ) {                                                                                         \
    backward<A>(grad, args, tile, rows, columns);                                             \
  }
FASTVISION_DEFINE_BOX_IOU_ROTATED(float)
FASTVISION_DEFINE_BOX_IOU_ROTATED(double)
#undef FASTVISION_DEFINE_BOX_IOU_ROTATED

}  // namespace fastvision::FASTVISION_ISA
