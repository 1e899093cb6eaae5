// Overlap of every box of one set with every box of another.
#include "ops/box_iou.h"

#include "cpu/box_iou_pairs.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// in the order of torchvision's operations
template <BoxIouKind kind, typename A>
inline vector_t<A> overlap(
    const BoxVector<kind, A>& a, const BoxVector<kind, A>& b, vector_t<A> eps
) {
  using V = vector_t<A>;
  const V inter = not_negative(min(a.x2, b.x2) - max(a.x1, b.x1)) *
                  not_negative(min(a.y2, b.y2) - max(a.y1, b.y1));
  const V all = a.area + b.area - inter;
  const V iou = inter / all;
  if constexpr (kind == BoxIouKind::iou) {
    return iou;
  } else {
    // of the smallest box around both
    const V width = not_negative(max(a.x2, b.x2) - min(a.x1, b.x1));
    const V height = not_negative(max(a.y2, b.y2) - min(a.y1, b.y1));
    if constexpr (kind == BoxIouKind::generalized) {
      const V area = width * height;
      return iou - (area - all) / area;
    } else {
      const V diagonal = width * width + height * height + eps;
      const V dx = a.cx - b.cx, dy = a.cy - b.cy;
      const V distance = iou - (dx * dx + dy * dy) / diagonal;
      if constexpr (kind == BoxIouKind::distance) {
        return distance;
      } else {
        const V difference = a.angle - b.angle;
        const V v = broadcast(BoxConstants<A>::aspect) * (difference * difference);
        const V alpha = v / (broadcast(A(1)) - iou + v + eps);
        return distance - alpha * v;
      }
    }
  }
}

inline void store_as(float* p, float_v v) { store(p, v); }
inline void store_as(double* p, double_v v) { store(p, v); }
inline void store_as(float* p, double_v v) {
  typedef float narrow_v __attribute__((vector_size(kVectorBytes / 2)));
  const narrow_v narrow = __builtin_convertvector(v, narrow_v);
  memcpy(p, &narrow, sizeof narrow);
}

template <BoxIouKind kind, typename T, typename O, typename A>
void rows_by_columns(
    const BoxIouArgs& args,
    const Boxes<A, kColumns>& columns,
    int64_t count,  // of columns
    int64_t row,
    int64_t row_end,
    O* output  // at the first of the columns
) {
  constexpr int64_t lanes = lanes_v<A>;
  const vector_t<A> eps = broadcast(static_cast<A>(args.eps));
  Boxes<A, kRows> rows;
  for (int64_t first = row; first < row_end; first += kRows) {
    const int64_t of_rows = row_end - first < kRows ? row_end - first : kRows;
    take_apart<T, A>(static_cast<const T*>(args.boxes1) + 4 * first, of_rows, args, rows);
    for (int64_t i = 0; i < of_rows; ++i) {
      const auto a = BoxVector<kind, A>::repeated(rows, i);
      O* to = output + (first + i) * args.M;
      int64_t j = 0;
      for (; j + lanes <= count; j += lanes) {
        store_as(to + j, overlap<kind, A>(a, BoxVector<kind, A>::several(columns, j), eps));
      }
      if (j < count) {
        O last[lanes];
        store_as(last, overlap<kind, A>(a, BoxVector<kind, A>::several(columns, j), eps));
        memcpy(to + j, last, (count - j) * sizeof(O));
      }
    }
  }
}

template <typename T, typename O>
void run(O* output, const BoxIouArgs& args, const BoxIouTile& tile) {
  using A = accumulate_t<T>;
  Boxes<A, kColumns> columns;
  for (int64_t first = tile.column; first < tile.column_end; first += kColumns) {
    const int64_t left = tile.column_end - first, count = left < kColumns ? left : kColumns;
    take_apart<T, A>(static_cast<const T*>(args.boxes2) + 4 * first, count, args, columns);
    with_kind(args.kind, [&](auto kind) {
      rows_by_columns<decltype(kind)::value, T, O, A>(
          args, columns, count, tile.row, tile.row_end, output + first
      );
    });
  }
}

}  // namespace

#define FASTVISION_DEFINE_BOX_IOU(T, O)                                               \
  void box_iou(const T*, O* output, const BoxIouArgs& args, const BoxIouTile& tile) { \
    run<T>(output, args, tile);                                                       \
  }
FASTVISION_DEFINE_BOX_IOU(float, float)
FASTVISION_DEFINE_BOX_IOU(half_t, float)
FASTVISION_DEFINE_BOX_IOU(bfloat16_t, float)
FASTVISION_DEFINE_BOX_IOU(double, float)
FASTVISION_DEFINE_BOX_IOU(double, double)
#undef FASTVISION_DEFINE_BOX_IOU

}  // namespace fastvision::FASTVISION_ISA
