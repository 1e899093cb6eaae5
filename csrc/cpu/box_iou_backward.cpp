// Gradients of the overlap of every box of one set with every box of another.
#include "cpu/box_iou_pairs.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename A>
struct Terms {
  using V = vector_t<A>;
  V x1{}, y1{}, x2{}, y2{}, area{}, angle{};
};

// Adds the gradients of a pair's overlap to the terms of both boxes. Gradients of areas and angles
// are converted to coordinates later, once per box instead of once per pair.
template <BoxIouKind kind, typename A>
inline void backward(
    const BoxVector<kind, A>& a,
    const BoxVector<kind, A>& b,
    vector_t<A> eps,
    vector_t<A> g,
    Terms<A>& da,
    Terms<A>& db
) {
  using V = vector_t<A>;
  const V zero{}, one = broadcast(A(1));
  const V wide = min(a.x2, b.x2) - max(a.x1, b.x1), high = min(a.y2, b.y2) - max(a.y1, b.y1);
  const V w = not_negative(wide), h = not_negative(high);
  const V inter = w * h, all = a.area + b.area - inter;
  const V iou = inter / all;
  V by_all = -g * iou / all;
  V by_inter = g / all;
  if constexpr (kind != BoxIouKind::iou) {
    const V outer_wide = max(a.x2, b.x2) - min(a.x1, b.x1);
    const V outer_high = max(a.y2, b.y2) - min(a.y1, b.y1);
    const V W = not_negative(outer_wide), H = not_negative(outer_high);
    V by_width, by_height;
    if constexpr (kind == BoxIouKind::generalized) {
      // iou - 1 + all / area
      const V area = W * H;
      const V by_area = -g * (all / area) / area;
      by_all += g / area;
      by_width = by_area * H;
      by_height = by_area * W;
    } else {
      const V diagonal = W * W + H * H + eps;
      const V dx = a.cx - b.cx, dy = a.cy - b.cy;
      const V share = g / diagonal;
      const V by_diagonal = share * ((dx * dx + dy * dy) / diagonal);
      by_width = by_diagonal * 2 * W;
      by_height = by_diagonal * 2 * H;
      // a centre moves by half as much as a side
      const V by_dx = -share * dx, by_dy = -share * dy;
      da.x1 += by_dx;
      da.x2 += by_dx;
      da.y1 += by_dy;
      da.y2 += by_dy;
      db.x1 -= by_dx;
      db.x2 -= by_dx;
      db.y1 -= by_dy;
      db.y2 -= by_dy;
      if constexpr (kind == BoxIouKind::complete) {
        const V difference = a.angle - b.angle;
        const V v = broadcast(BoxConstants<A>::aspect) * (difference * difference);
        const V alpha = v / (one - iou + v + eps);  // a constant to the gradient
        const V by_angle = -g * alpha * broadcast(2 * BoxConstants<A>::aspect) * difference;
        da.angle += by_angle;
        db.angle -= by_angle;
      }
    }
    by_width = outer_wide > zero ? by_width : zero;
    by_height = outer_high > zero ? by_height : zero;
    give(db.x2, da.x2, a.x2, b.x2, by_width);
    give(da.x1, db.x1, a.x1, b.x1, -by_width);
    give(db.y2, da.y2, a.y2, b.y2, by_height);
    give(da.y1, db.y1, a.y1, b.y1, -by_height);
  }
  by_inter -= by_all;
  da.area += by_all;
  db.area += by_all;
  const V by_w = wide > zero ? by_inter * h : zero, by_h = high > zero ? by_inter * w : zero;
  give(da.x2, db.x2, a.x2, b.x2, by_w);
  give(db.x1, da.x1, a.x1, b.x1, -by_w);
  give(da.y2, db.y2, a.y2, b.y2, by_h);
  give(db.y1, da.y1, a.y1, b.y1, -by_h);
}

template <typename A>
inline A sum_of(vector_t<A> v) {
  A sum = 0;
  for (int i = 0; i < lanes_v<A>; ++i) {
    sum += v[i];
  }
  return sum;
}

// Adds the first `count` lanes; the others belong to no box.
template <typename A>
inline void add_first(Terms<A>& sum, const Terms<A>& terms, int count) {
  vector_t<A> lane;
  for (int i = 0; i < lanes_v<A>; ++i) {
    lane[i] = static_cast<A>(i);
  }
  const auto is_box = lane < broadcast(static_cast<A>(count));
  const vector_t<A> zero{};
  sum.x1 += is_box ? terms.x1 : zero;
  sum.y1 += is_box ? terms.y1 : zero;
  sum.x2 += is_box ? terms.x2 : zero;
  sum.y2 += is_box ? terms.y2 : zero;
  sum.area += is_box ? terms.area : zero;
  sum.angle += is_box ? terms.angle : zero;
}

template <typename A>
struct ColumnTerms {
  alignas(64) A x1[kColumns], y1[kColumns], x2[kColumns], y2[kColumns], area[kColumns];
  alignas(64) A angle[kColumns];

  Terms<A> get(int64_t j) const {
    return {
        load(x1 + j), load(y1 + j), load(x2 + j), load(y2 + j), load(area + j), load(angle + j)
    };
  }
  void put(int64_t j, const Terms<A>& t) {
    store(x1 + j, t.x1);
    store(y1 + j, t.y1);
    store(x2 + j, t.x2);
    store(y2 + j, t.y2);
    store(area + j, t.area);
    store(angle + j, t.angle);
  }
};

template <BoxIouKind kind, typename T, typename A>
void rows_by_columns(
    const BoxIouArgs& args,
    const Boxes<A, kColumns>& columns,
    int64_t count,  // of columns
    const BoxIouTile& tile,
    const A* grad,  // at the first of the columns
    A* row_terms,
    ColumnTerms<A>& column_terms
) {
  constexpr int64_t lanes = lanes_v<A>;
  const vector_t<A> eps = broadcast(static_cast<A>(args.eps));
  Boxes<A, kRows> rows;
  for (int64_t first = tile.row; first < tile.row_end; first += kRows) {
    const int64_t left = tile.row_end - first, of_rows = left < kRows ? left : kRows;
    take_apart<T, A>(static_cast<const T*>(args.boxes1) + 4 * first, of_rows, args, rows);
    for (int64_t i = 0; i < of_rows; ++i) {
      const auto a = BoxVector<kind, A>::repeated(rows, i);
      const A* from = grad + (first + i) * args.M;
      Terms<A> da;
      for (int64_t j = 0; j < count; j += lanes) {
        const bool whole = j + lanes <= count;
        const auto b = BoxVector<kind, A>::several(columns, j);
        const auto g = whole ? load(from + j) : load_partial(from + j, static_cast<int>(count - j));
        Terms<A> db = column_terms.get(j);
        if (whole) {
          backward<kind, A>(a, b, eps, g, da, db);
        } else {
          Terms<A> some;
          backward<kind, A>(a, b, eps, g, some, db);
          add_first(da, some, static_cast<int>(count - j));
        }
        column_terms.put(j, db);
      }
      A* to = row_terms + (first + i) * kBoxIouTerms;
      to[0] += sum_of<A>(da.x1);
      to[1] += sum_of<A>(da.y1);
      to[2] += sum_of<A>(da.x2);
      to[3] += sum_of<A>(da.y2);
      to[4] += sum_of<A>(da.area);
      to[5] += sum_of<A>(da.angle);
    }
  }
}

template <typename T, typename A>
void run(const A* grad, const BoxIouArgs& args, const BoxIouTile& tile, A* rows, A* columns) {
  Boxes<A, kColumns> boxes;
  for (int64_t first = tile.column; first < tile.column_end; first += kColumns) {
    const int64_t left = tile.column_end - first, count = left < kColumns ? left : kColumns;
    take_apart<T, A>(static_cast<const T*>(args.boxes2) + 4 * first, count, args, boxes);
    ColumnTerms<A> terms{};
    with_kind(args.kind, [&](auto kind) {
      rows_by_columns<decltype(kind)::value, T, A>(
          args, boxes, count, tile, grad + first, rows, terms
      );
    });
    A* to = columns + first * kBoxIouTerms;
    for (int64_t j = 0; j < count; ++j, to += kBoxIouTerms) {
      to[0] = terms.x1[j];
      to[1] = terms.y1[j];
      to[2] = terms.x2[j];
      to[3] = terms.y2[j];
      to[4] = terms.area[j];
      to[5] = terms.angle[j];
    }
  }
}

// The gradient of a box's coordinates in its format from the sums of its terms.
template <typename A>
inline void by_coordinates(const A* box, const A* terms, const BoxIouArgs& args, A* grad) {
  const A dx1 = terms[0], dy1 = terms[1], dx2 = terms[2], dy2 = terms[3];
  A width = box[2], height = box[3];
  if (args.format == BoxFormat::xyxy) {
    width = box[2] - box[0];
    height = box[3] - box[1];
  }
  A by_width = terms[4] * height, by_height = terms[4] * width;
  const A square = width * width + height * height;
  if (args.kind == BoxIouKind::complete && square > 0) {
    by_width += terms[5] * (height / square);
    by_height -= terms[5] * (width / square);
  }
  if (args.format == BoxFormat::xyxy) {
    grad[0] = dx1 - by_width;
    grad[1] = dy1 - by_height;
    grad[2] = dx2 + by_width;
    grad[3] = dy2 + by_height;
    return;
  }
  grad[0] = dx1 + dx2;
  grad[1] = dy1 + dy2;
  const bool centered = args.format == BoxFormat::cxcywh;
  grad[2] = by_width + (centered ? (dx2 - dx1) / 2 : dx2);
  grad[3] = by_height + (centered ? (dy2 - dy1) / 2 : dy2);
}

template <typename T, typename A>
void finish(
    const T* boxes,
    A* grad,
    int64_t count,
    const BoxIouArgs& args,
    const A* terms,
    int64_t parts,
    int64_t stride
) {
  for (int64_t first = 0; first < count; first += kRows) {
    const int64_t some = count - first < kRows ? count - first : kRows;
    A buffer[4 * kRows];
    const A* box = widen(boxes + 4 * first, 4 * some, buffer);
    for (int64_t i = first; i < first + some; ++i, box += 4) {
      A sums[kBoxIouTerms] = {};
      for (int64_t part = 0; part < parts; ++part) {
        const A* of_part = terms + part * stride + i * kBoxIouTerms;
        for (int k = 0; k < kBoxIouTerms; ++k) {
          sums[k] += of_part[k];
        }
      }
      by_coordinates(box, sums, args, grad + 4 * i);
    }
  }
}

}  // namespace

#define FASTVISION_DEFINE_BOX_IOU_BACKWARD(T, A)                                                   \
  void box_iou_backward(                                                                           \
      const T*, const A* grad, const BoxIouArgs& args, const BoxIouTile& tile, A* rows, A* columns \
  ) {                                                                                              \
    run<T, A>(grad, args, tile, rows, columns);                                                    \
  }                                                                                                \
  void box_iou_terms(                                                                              \
      const T* boxes,                                                                              \
      A* grad,                                                                                     \
      int64_t count,                                                                               \
      const BoxIouArgs& args,                                                                      \
      const A* terms,                                                                              \
      int64_t parts,                                                                               \
      int64_t stride                                                                               \
  ) {                                                                                              \
    finish<T, A>(boxes, grad, count, args, terms, parts, stride);                                  \
  }
FASTVISION_DEFINE_BOX_IOU_BACKWARD(float, float)
FASTVISION_DEFINE_BOX_IOU_BACKWARD(half_t, float)
FASTVISION_DEFINE_BOX_IOU_BACKWARD(bfloat16_t, float)
FASTVISION_DEFINE_BOX_IOU_BACKWARD(double, double)
#undef FASTVISION_DEFINE_BOX_IOU_BACKWARD

}  // namespace fastvision::FASTVISION_ISA
