// Pairs of rotated boxes, flat or solid (kSolid: with a bottom and a top). Most pairs are apart: a
// first pass over a row finds those whose upright boxes meet, and the geometry runs on vectors of
// them.
#pragma once

#include "common/rotated_box.h"
#include "common/simd_math.h"
#include "ops/box_iou_rotated.h"

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

// As many boxes as a vector has lanes.
template <typename A>
struct RotatedVector {
  RotatedBox<vector_t<A>> box;
  vector_t<A> measure, bottom, top;
};

template <bool kSolid, typename A, typename Get>
inline RotatedVector<A> collected(const RotatedSet<A>& set, const Get& get) {
  using R = RotatedArray;
  RotatedVector<A> v{
      {get(set[R::cx]),
       get(set[R::cy]),
       get(set[R::width]),
       get(set[R::height]),
       get(set[R::cos]),
       get(set[R::sin])},
      get(set[R::measure]),
      {},
      {}
  };
  if constexpr (kSolid) {
    v.bottom = get(set[R::bottom]);
    v.top = get(set[R::top]);
  }
  return v;
}

// the box i, in all lanes
template <bool kSolid, typename A>
inline RotatedVector<A> repeated(const RotatedSet<A>& set, int64_t i) {
  return collected<kSolid>(set, [i](const A* from) { return broadcast(from[i]); });
}

// boxes from anywhere
template <bool kSolid, typename A>
inline RotatedVector<A> gathered(const RotatedSet<A>& set, const int32_t* at) {
  return collected<kSolid>(set, [at](const A* from) {
    vector_t<A> v;
    for (int i = 0; i < lanes_v<A>; ++i) {
      v[i] = from[at[i]];
    }
    return v;
  });
}

template <bool kSolid, typename A>
inline vector_t<A> intersection_over_union(const RotatedVector<A>& a, const RotatedVector<A>& b) {
  using V = vector_t<A>;
  V inter = intersection_area(a.box, b.box);
  if constexpr (kSolid) {
    const V zero{};
    inter = inter * max(min(a.top, b.top) - max(a.bottom, b.bottom), zero);
    inter = inter - inter == zero ? inter : zero;
  }
  return inter / (a.measure + b.measure - inter);
}

// The upright box around box i, in all lanes.
template <typename A>
struct UprightVector {
  vector_t<A> cx, cy, extent_x, extent_y, bottom, top;
};

template <bool kSolid, typename A>
inline UprightVector<A> upright(const RotatedSet<A>& set, int64_t i) {
  using R = RotatedArray;
  const auto of = [&set, i](R array) { return broadcast(set[array][i]); };
  UprightVector<A> v{of(R::cx), of(R::cy), of(R::extent_x), of(R::extent_y), {}, {}};
  if constexpr (kSolid) {
    v.bottom = of(R::bottom);
    v.top = of(R::top);
  }
  return v;
}

// Whether it meets those around the boxes that `get` loads.
template <bool kSolid, typename A, typename Get>
inline auto meets(const UprightVector<A>& a, const RotatedSet<A>& others, const Get& get) {
  using R = RotatedArray;
  const auto dx = absolute(get(others[R::cx]) - a.cx), dy = absolute(get(others[R::cy]) - a.cy);
  auto result =
      (dx <= get(others[R::extent_x]) + a.extent_x) & (dy <= get(others[R::extent_y]) + a.extent_y);
  if constexpr (kSolid) {
    result &= (get(others[R::bottom]) <= a.top) & (a.bottom <= get(others[R::top]));
  }
  return result;
}

// Appends the lanes of `mask` to `near`, as j plus the lane; returns how many it then has.
template <typename M>
inline int64_t append(M mask, int64_t j, int some, int32_t* near, int64_t found) {
  for (uint32_t bits = movemask(mask); bits != 0; bits &= bits - 1) {
    const int lane = __builtin_ctz(bits);
    if (lane < some) {
      near[found++] = static_cast<int32_t>(j + lane);
    }
  }
  return found;
}

// Repeats the last of `near`, so that they fill vectors.
template <typename A>
inline void fill_up(int32_t* near, int64_t found) {
  for (int i = 0; found > 0 && i < lanes_v<A>; ++i) {
    near[found + i] = near[found - 1];
  }
}

// Writes what pairs that are apart have, 0 or NaN, to the whole row of output, and fills `near`
// with the columns j of the others; returns how many.
template <bool kSolid, typename A>
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
  const A measure = rows[RotatedArray::measure][row];
  const A* measures = columns[RotatedArray::measure];
  if (measure != measure) {
    for (int64_t j = 0; output != nullptr && j < count; ++j) {
      output[j] = measures[j] < static_cast<A>(kMinRotatedArea) ? A(0) : Limits<A>::nan;
    }
    return 0;
  }
  const UprightVector<A> a = upright<kSolid>(rows, row);
  const V zero{};
  const bool empty = measure < static_cast<A>(kMinRotatedArea);
  int64_t found = 0;
  for (int64_t j = 0; j < count; j += lanes) {
    const int some = count - j < lanes ? static_cast<int>(count - j) : lanes;
    const auto get = [some, j](const A* p) {
      return some == lanes ? load(p + j) : load_partial(p + j, some);
    };
    if (output != nullptr) {
      const V other = get(measures);
      const V blank = empty ? zero : (other == other ? zero : broadcast(Limits<A>::nan));
      if (some == lanes) {
        store(output + j, blank);
      } else {
        store_partial(output + j, blank, some);
      }
    }
    found = append(meets<kSolid>(a, columns, get), j, some, near, found);
  }
  fill_up<A>(near, found);
  return found;
}

template <bool kSolid, typename A>
inline void forward(A* output, const RotatedArgs<A>& args, const RotatedTile& tile) {
  constexpr int lanes = lanes_v<A>;
  using V = vector_t<A>;
  int32_t near[kColumns + lanes];
  for (int64_t first = tile.column; first < tile.column_end; first += kColumns) {
    const int64_t left = tile.column_end - first, count = left < kColumns ? left : kColumns;
    const RotatedSet<A> columns{args.boxes2.first + first, args.boxes2.step};
    for (int64_t row = tile.row; row < tile.row_end; ++row) {
      A* to = output + row * args.M + first;
      const int64_t found = find_near<kSolid>(args.boxes1, row, columns, count, near, to);
      const RotatedVector<A> a = repeated<kSolid>(args.boxes1, row);
      for (int64_t i = 0; i < found; i += lanes) {
        const V iou = intersection_over_union<kSolid>(a, gathered<kSolid>(columns, near + i));
        for (int lane = 0; lane < lanes && i + lane < found; ++lane) {
          to[near[i + lane]] = iou[lane];
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
