// Gradient of the overlaps of rotated boxes, flat or solid.
#pragma once

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

// What of the gradient of min(a, b) is a's: half of it if they are equal, as in torch.
template <typename V>
inline V share_of_minimum(V a, V b) {
  const V zero{}, one = zero + 1;
  return a < b ? one : (a == b ? one / 2 : zero);
}

// Derivatives of pairs' overlaps, each times the pair's gradient, in the order of a box's numbers.
template <typename A, int kTerms>
struct PairTerms {
  vector_t<A> of_a[kTerms], of_b[kTerms];
};

// Those of flat boxes: center, width, height, angle.
template <typename A>
inline PairTerms<A, kRotatedTerms> pair_terms(
    const RotatedVector<A>& first, const RotatedVector<A>& second, vector_t<A> g
) {
  using V = vector_t<A>;
  const RotatedBox<V>&a = first.box, &b = second.box;
  const BoxInFrame<V> f = seen_from(a, b);
  const V inter = intersection_area(f), zero{};
  AreaGradient<V> of_a, of_b;
  intersection_gradient(a, b, f, inter, of_a, of_b);
  const V all = first.measure + second.measure - inter;
  const V iou = inter / all;
  const V by_area = -g * iou / all, by_inter = inter > zero ? g / all - by_area : zero;
  return {
      {by_inter * of_a.cx,
       by_inter * of_a.cy,
       by_inter * of_a.width + by_area * a.height,
       by_inter * of_a.height + by_area * a.width,
       by_inter * of_a.angle},
      {by_inter * of_b.cx,
       by_inter * of_b.cy,
       by_inter * of_b.width + by_area * b.height,
       by_inter * of_b.height + by_area * b.width,
       by_inter * of_b.angle}
  };
}

// Those of solid boxes: center, width, height, depth, angle.
template <typename A>
inline PairTerms<A, kSolidTerms> solid_terms(
    const RotatedVector<A>& first, const RotatedVector<A>& second, vector_t<A> g
) {
  using V = vector_t<A>;
  const RotatedBox<V>&a = first.box, &b = second.box;
  const BoxInFrame<V> f = seen_from(a, b);
  const V area = intersection_area(f), zero{};
  AreaGradient<V> of_a, of_b;
  intersection_gradient(a, b, f, area, of_a, of_b);
  const V top = share_of_minimum(first.top, second.top);
  const V bottom = share_of_minimum(-first.bottom, -second.bottom);
  const V depth = max(min(first.top, second.top) - max(first.bottom, second.bottom), zero);
  const V inter = area * depth;
  const V all = first.measure + second.measure - inter;
  const V iou = inter / all;
  const V by_volume = -g * iou / all, by_inter = area > zero ? g / all - by_volume : zero;
  const V by_area = by_inter * depth, by_depth = depth > zero ? by_inter * area : zero;
  const V sized_a = by_volume * first.measure, sized_b = by_volume * second.measure;
  return {
      {by_area * of_a.cx,
       by_area * of_a.cy,
       by_depth * (top - bottom),
       by_area * of_a.width + sized_a / a.width,
       by_area * of_a.height + sized_a / a.height,
       by_depth * (top + bottom) / 2 + by_volume * a.width * a.height,
       by_area * of_a.angle},
      {by_area * of_b.cx,
       by_area * of_b.cy,
       by_depth * (bottom - top),
       by_area * of_b.width + sized_b / b.width,
       by_area * of_b.height + sized_b / b.height,
       by_depth * (2 - top - bottom) / 2 + by_volume * b.width * b.height,
       by_area * of_b.angle}
  };
}

template <bool kSolid, typename A>
inline void backward(
    const A* grad,
    const RotatedArgs<A>& args,
    const RotatedTile& tile,
    A* row_terms,
    A* column_terms
) {
  constexpr int lanes = lanes_v<A>, kTerms = kSolid ? kSolidTerms : kRotatedTerms;
  using V = vector_t<A>;
  int32_t near[kColumns + lanes];
  for (int64_t first = tile.column; first < tile.column_end; first += kColumns) {
    const int64_t left = tile.column_end - first, count = left < kColumns ? left : kColumns;
    const RotatedSet<A> columns{args.boxes2.first + first, args.boxes2.step};
    A* of_columns = column_terms + first * kTerms;
    for (int64_t row = tile.row; row < tile.row_end; ++row) {
      const A* from = grad + row * args.M + first;
      const int64_t found = find_near<kSolid, A>(args.boxes1, row, columns, count, near, nullptr);
      const RotatedVector<A> a = repeated<kSolid>(args.boxes1, row);
      V sums[kTerms] = {};
      for (int64_t i = 0; i < found; i += lanes) {
        const int some = found - i < lanes ? static_cast<int>(found - i) : lanes;
        V g{};
        for (int lane = 0; lane < some; ++lane) {
          g[lane] = from[near[i + lane]];
        }
        const RotatedVector<A> b = gathered<kSolid>(columns, near + i);
        PairTerms<A, kTerms> terms;
        if constexpr (kSolid) {
          terms = solid_terms(a, b, g);
        } else {
          terms = pair_terms(a, b, g);
        }
        for (int k = 0; k < kTerms; ++k) {
          sums[k] += terms.of_a[k];
          for (int lane = 0; lane < some; ++lane) {
            of_columns[near[i + lane] * kTerms + k] += terms.of_b[k][lane];
          }
        }
      }
      for (int k = 0; k < kTerms; ++k) {
        row_terms[row * kTerms + k] += sum_of<A>(sums[k]);
      }
    }
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
