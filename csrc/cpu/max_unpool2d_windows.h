// Windows of a plane that hold one index each: their indices as offsets, checked, and the rows and
// columns of the plane that belong to a window. For files of csrc/cpu.
#pragma once

#include <type_traits>

#include "common/simd_lanes.h"
#include "ops/max_unpool2d.h"

namespace fastvision::FASTVISION_ISA {
namespace {

struct Span {
  int64_t first, end;
};

// Rows (axis 0) or columns of the plane from the first of window i to the first of the next.
inline Span band(const MaxUnpoolArgs& args, int axis, int64_t i) {
  const int64_t size = axis == 0 ? args.PH : args.PW;
  const int64_t windows = axis == 0 ? args.H : args.W;
  const int64_t first = i * args.stride[axis] - args.padding[axis];
  const int64_t next = first + args.stride[axis];
  const int64_t zero = 0;
  return {i == 0 ? 0 : max(first, zero), i == windows - 1 ? size : min(max(next, zero), size)};
}

// `count` indices minus a base
template <bool kPartial>
FASTVISION_INLINED inline uint64_v subtract(const int64_t* indices, uint64_t base, int count) {
  if constexpr (kPartial) {
    const int n = max(min(count, lanes_v<double>), 0);
    const int64_v valid = places_from<double>(0, 1) < n;
    const auto* bits = reinterpret_cast<const double*>(indices);
    return ((uint64_v)load_partial(bits, n) - base) & (uint64_v)valid;
  } else {
    uint64_v v;
    memcpy(&v, indices, sizeof v);
    return v - base;
  }
}

// The same in lanes of A; `high` collects all bits.
template <bool kPartial, typename A>
FASTVISION_INLINED inline unsigned_places_t<A> subtract(
    const int64_t* indices, uint64_t base, int count, uint64_v& high
) {
  const uint64_v first = subtract<kPartial>(indices, base, count);
  if constexpr (sizeof(A) == 8) {
    high |= first;
    return first;
  } else {
    constexpr int half = lanes_v<double>;
    uint64_v second{};
    if (!kPartial || count > half) {
      second = subtract<kPartial>(indices + half, base, count - half);
    }
    high |= first | second;
    return even_lanes((uint32_v)first, (uint32_v)second);
  }
}

// Turns indices into offsets from the first row of a window, and checks that they are in it.
template <typename A>
class Offsets {
 public:
  explicit Offsets(const MaxUnpoolArgs& args)
      : window_(args.window[0]),
        stride_(args.stride[0]),
        padding_(args.padding[0]),
        height_(args.PH),
        row_(args.PW),
        width_(Lanes{} + static_cast<lane_t<A>>(args.PW)),
        last_(Lanes{} + static_cast<lane_t<A>>(args.window[1] - 1)) {}

  // for the windows of row h of the values
  void begin_row(int64_t h) {
    const int64_t top = h * stride_ - padding_;
    const int64_t first = top < 0 ? -top : 0;
    base_ = static_cast<uint64_t>(top * row_);
    hidden_ = static_cast<lane_t<A>>(first * row_);
    rows_ = min(window_, height_ - top) - first;
  }

  // -1 in lanes from `count` on, if kPartial; `left`: first columns of the windows
  template <bool kPartial>
  FASTVISION_INLINED places_t<A> take(const int64_t* indices, places_t<A> left, int count) {
    const Lanes offsets = subtract<kPartial, A>(indices, base_, count, high_);
    Lanes column = offsets - hidden_;
    for (int64_t row = 1; row < rows_; ++row) {
      column = (places_t<A>)column >= (places_t<A>)width_ ? column - width_ : column;
    }
    const Lanes tap = column - (Lanes)left;
    const Lanes negative = column | (width_ - 1 - column) | tap | (last_ - tap);
    if constexpr (kPartial) {
      const places_t<A> valid = places_from<A>(0, 1) < static_cast<lane_t<A>>(count);
      negative_ |= negative & (Lanes)valid;
      return (places_t<A>)offsets | ~valid;
    } else {
      negative_ |= negative;
      return (places_t<A>)offsets;
    }
  }

  // whether all indices were in their windows
  bool inside() const {
    return movemask((int64_v)(high_ >> 31 != 0)) == 0 && movemask((places_t<A>)negative_ < 0) == 0;
  }

 private:
  using Lanes = unsigned_places_t<A>;  // signed overflow is not defined

  int64_t window_, stride_, padding_, height_, row_;
  Lanes width_, last_;
  uint64_t base_ = 0;
  lane_t<A> hidden_ = 0;
  int64_t rows_ = 0;
  uint64_v high_{};   // all offsets: the upper 33 bits are zero
  Lanes negative_{};  // the highest bit is set if any index was outside
};

// Which pixel of its 2x2 pixels an index is, checked.
template <typename A>
class Quads {
 public:
  struct Place {
    places_t<A> odd;     // 1 in the second column, 0 in the first
    places_t<A> below;   // as the result of a comparison
    places_t<A> offset;  // from the first pixel; -1 in lanes from `count` on, if kPartial
  };

  explicit Quads(const MaxUnpoolArgs& args) : width_(Lanes{} + static_cast<lane_t<A>>(args.PW)) {}

  // for windows side by side, the first at `base`
  template <bool kPartial>
  FASTVISION_INLINED Place take(const int64_t* indices, int64_t base, int count) {
    const Lanes offset = subtract<kPartial, A>(indices, static_cast<uint64_t>(base), count, high_);
    return place<kPartial>(offset - (Lanes)places_from<A>(0, 2), places_from<A>(0, 1), count);
  }

  // For two rows of `count` windows, each in a half of the lanes.
  FASTVISION_INLINED Place
  take_two(const int64_t* indices, int64_t first_base, int64_t second_base, int count) {
    const uint64_v first = subtract<true>(indices, first_base, count);
    const uint64_v second = subtract<true>(indices + count, second_base, count);
    high_ |= first | second;
    const places_t<A> column = places_from<A>(0, 1) & (lanes_v<A> / 2 - 1);
    const Lanes offset = even_lanes((uint32_v)first, (uint32_v)second);
    return place<true>(offset - (Lanes)(2 * column), column, count);
  }

  bool inside() const {
    return movemask((int64_v)(high_ >> 31 != 0)) == 0 && movemask(outside_ > 1) == 0;
  }

 private:
  using Lanes = unsigned_places_t<A>;

  // `offset`: from the first pixels of the windows
  template <bool kPartial>
  FASTVISION_INLINED Place place(Lanes offset, places_t<A> column, int count) {
    const places_t<A> valid = column < static_cast<lane_t<A>>(count);
    if constexpr (kPartial) {
      offset |= (Lanes)~valid;
    }
    const places_t<A> below = (places_t<A>)offset >= (places_t<A>)width_;
    const Lanes odd = below ? offset - width_ : offset;
    outside_ |= kPartial ? odd & (Lanes)valid : odd;
    return {(places_t<A>)odd, below, (places_t<A>)offset};
  }

  Lanes width_;
  uint64_v high_{};  // all offsets: the upper 33 bits are zero
  Lanes outside_{};  // all columns: only the lowest bit may be set
};

// Calls work(first, partial, lanes) for vectors of a row; the last one begins early instead of
// being partial, if the row is long enough.
template <typename A, typename Work>
inline void for_row(int64_t count, const Work& work) {
  constexpr int lanes = lanes_v<A>;
  if (count < lanes) {
    work(int64_t{0}, std::true_type{}, static_cast<int>(count));
    return;
  }
  for (int64_t i = 0; i < count; i += lanes) {
    work(min(i, count - lanes), std::false_type{}, lanes);
  }
}

// A row of values.
struct Row {
  int64_t item, plane, h;
};

inline Row next_row(const Row& row, int64_t H) {
  const bool last = row.h + 1 == H;
  return {row.item + 1, row.plane + last, last ? 0 : row.h + 1};
}

// Calls work(item, plane, h) for rows of values.
template <typename Work>
inline void for_items(int64_t H, int64_t begin, int64_t end, const Work& work) {
  Row row = {begin, begin / H, begin % H};
  for (; row.item < end; row = next_row(row, H)) {
    work(row.item, row.plane, row.h);
  }
}

template <typename T>
inline T* plane_row(const MaxUnpoolArgs& args, int64_t plane, int64_t y) {
  const int64_t channels = args.channels_last ? args.C : 1;
  return static_cast<T*>(args.plane) + (plane * args.pixels + y * args.PW) * channels;
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
