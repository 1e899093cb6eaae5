// Overlap of every rotated box of one set with every box of another, and its gradient. Most pairs
// are apart: a first pass over a row finds those whose upright boxes meet, and the geometry runs on
// vectors of them.
#include "ops/box_iou_rotated.h"

#include "common/rotated_box.h"
#include "common/simd_math.h"

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int64_t kColumns = 512;  // that are searched at a time

template <typename A>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float nan = __builtin_nanf("");
};
template <>
struct Limits<double> {
  static constexpr double nan = __builtin_nan("");
};

// the box i, in all lanes
template <typename A>
inline RotatedBox<vector_t<A>> repeated(const RotatedSet<A>& set, int64_t i) {
  return {
      broadcast(set.cx[i]),
      broadcast(set.cy[i]),
      broadcast(set.width[i]),
      broadcast(set.height[i]),
      broadcast(set.cos[i]),
      broadcast(set.sin[i])
  };
}

// As many boxes as a vector has lanes, from anywhere.
template <typename A>
inline vector_t<A> gather(const A* from, const int32_t* at) {
  vector_t<A> v;
  for (int i = 0; i < lanes_v<A>; ++i) {
    v[i] = from[at[i]];
  }
  return v;
}
template <typename A>
inline RotatedBox<vector_t<A>> gathered(const RotatedSet<A>& set, const int32_t* at) {
  return {
      gather(set.cx, at),
      gather(set.cy, at),
      gather(set.width, at),
      gather(set.height, at),
      gather(set.cos, at),
      gather(set.sin, at)
  };
}

template <typename A>
inline RotatedSet<A> advanced(const RotatedSet<A>& s, int64_t by) {
  return {
      s.cx + by,
      s.cy + by,
      s.width + by,
      s.height + by,
      s.cos + by,
      s.sin + by,
      s.area + by,
      s.extent_x + by,
      s.extent_y + by
  };
}

// Writes what pairs that are apart have, 0 or NaN, to the whole row of output, and fills `near`
// with the columns j of the others; returns how many.
template <typename A>
inline int64_t find_near(
    const RotatedSet<A>& rows,
    int64_t row,
    const RotatedSet<A>& columns,
    int64_t count,
    int32_t* near,  // [count + lanes]
    A* output       // [count], or null
) {
  constexpr int lanes = lanes_v<A>;
  using V = vector_t<A>;
  const A area = rows.area[row];
  if (area != area) {
    for (int64_t j = 0; output != nullptr && j < count; ++j) {
      output[j] = columns.area[j] < static_cast<A>(kMinRotatedArea) ? A(0) : Limits<A>::nan;
    }
    return 0;
  }
  const V cx = broadcast(rows.cx[row]), cy = broadcast(rows.cy[row]);
  const V x = broadcast(rows.extent_x[row]), y = broadcast(rows.extent_y[row]), zero{};
  const bool empty = area < static_cast<A>(kMinRotatedArea);
  int64_t found = 0;
  for (int64_t j = 0; j < count; j += lanes) {
    const int some = count - j < lanes ? static_cast<int>(count - j) : lanes;
    const auto get = [some, j](const A* p) {
      return some == lanes ? load(p + j) : load_partial(p + j, some);
    };
    const V other = get(columns.area);
    if (output != nullptr) {
      const V blank = empty ? zero : (other == other ? zero : broadcast(Limits<A>::nan));
      if (some == lanes) {
        store(output + j, blank);
      } else {
        store_partial(output + j, blank, some);
      }
    }
    const V dx = absolute(get(columns.cx) - cx), dy = absolute(get(columns.cy) - cy);
    const auto meets = (dx <= get(columns.extent_x) + x) & (dy <= get(columns.extent_y) + y);
    for (uint32_t bits = movemask(meets); bits != 0; bits &= bits - 1) {
      const int lane = __builtin_ctz(bits);
      if (lane < some) {
        near[found++] = static_cast<int32_t>(j + lane);
      }
    }
  }
  for (int i = 0; found > 0 && i < lanes; ++i) {
    near[found + i] = near[found - 1];
  }
  return found;
}

template <typename A>
void forward(A* output, const RotatedArgs<A>& args, const RotatedTile& tile) {
  constexpr int lanes = lanes_v<A>;
  using V = vector_t<A>;
  int32_t near[kColumns + lanes];
  for (int64_t first = tile.column; first < tile.column_end; first += kColumns) {
    const int64_t left = tile.column_end - first, count = left < kColumns ? left : kColumns;
    const RotatedSet<A> columns = advanced(args.boxes2, first);
    for (int64_t row = tile.row; row < tile.row_end; ++row) {
      A* to = output + row * args.M + first;
      const int64_t found = find_near(args.boxes1, row, columns, count, near, to);
      const RotatedBox<V> a = repeated(args.boxes1, row);
      const V area = broadcast(args.boxes1.area[row]);
      for (int64_t i = 0; i < found; i += lanes) {
        const V inter = intersection_area(a, gathered(columns, near + i));
        const V iou = inter / (area + gather(columns.area, near + i) - inter);
        for (int lane = 0; lane < lanes && i + lane < found; ++lane) {
          to[near[i + lane]] = iou[lane];
        }
      }
    }
  }
}

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
    const RotatedSet<A> columns = advanced(args.boxes2, first);
    A* of_columns = column_terms + first * kRotatedTerms;
    for (int64_t row = tile.row; row < tile.row_end; ++row) {
      const A* from = grad + row * args.M + first;
      const int64_t found = find_near<A>(args.boxes1, row, columns, count, near, nullptr);
      const RotatedBox<V> a = repeated(args.boxes1, row);
      const V area = broadcast(args.boxes1.area[row]);
      V sums[kRotatedTerms] = {};
      for (int64_t i = 0; i < found; i += lanes) {
        const int some = found - i < lanes ? static_cast<int>(found - i) : lanes;
        V g{};
        for (int lane = 0; lane < some; ++lane) {
          g[lane] = from[near[i + lane]];
        }
        const RotatedBox<V> b = gathered(columns, near + i);
        const BoxInFrame<V> f = seen_from(a, b);
        const V inter = intersection_area(f);
        AreaGradient<V> of_a, of_b;
        intersection_gradient(a, b, f, inter, of_a, of_b);
        const V all = area + gather(columns.area, near + i) - inter;
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
    forward<A>(output, args, tile);                                                           \
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
