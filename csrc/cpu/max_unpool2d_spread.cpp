// Max unpooling and the gradient of max pooling for indices in windows that do not overlap: each
// row of the plane is written once and in order.
#include "cpu/max_unpool2d_windows.h"

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int64_t kClaim = 8192;  // bytes of the plane to clear at a time

// channels_last: a value goes to its pixel, and zeros to all others from the first of its window to
// the first of the next.
template <typename T>
bool spread_to_pixels(const MaxUnpoolArgs& args, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const int64_t C = args.C, W = args.W, PW = args.PW;
  Offsets<A> offsets(args);
  for_items(args.H, begin, end, [&](int64_t item, int64_t image, int64_t h) {
    const int64_t top = h * args.stride[0] - args.padding[0];
    const Span rows = band(args, 0, h);
    T* const plane = plane_row<T>(args, image, 0);
    offsets.begin_row(h);
    for (int64_t w = 0; w < W; ++w) {
      const Span columns = band(args, 1, w);
      const int64_t* indices = args.indices + (item * W + w) * C;
      const T* values = static_cast<const T*>(args.values) + (item * W + w) * C;
      const places_t<A> left = places_from<A>(w * args.stride[1] - args.padding[1], 0);
      for_vectors<A>(C, [&](int64_t c, auto partial, int count) FASTVISION_INLINED {
        constexpr bool kPartial = decltype(partial)::value;
        const places_t<A> place = offsets.template take<kPartial>(indices + c, left, count);
        const vector_t<A> value = load_lanes<kPartial>(values + c, count);
        for (int64_t y = rows.first; y < rows.end; ++y) {
          for (int64_t x = columns.first; x < columns.end; ++x) {
            const auto wanted = static_cast<lane_t<A>>((y - top) * PW + x);
            T* pixel = plane + (y * PW + x) * C + c;
            store_lanes<kPartial>(pixel, place == wanted ? value : vector_t<A>{}, count);
          }
        }
      });
    }
  });
  return offsets.inside();
}

// The values of windows of 2x2 pixels as the pixels of their row 0 or 1, in two vectors.
template <typename A>
struct Pairs {
  vector_t<A> first, second;
};

template <typename A>
FASTVISION_INLINED inline Pairs<A> pairs_of_row(
    const typename Quads<A>::Place& place, vector_t<A> value, lane_t<A> row
) {
  const vector_t<A> zero{};
  const vector_t<A> even = place.offset == row ? value : zero;
  const vector_t<A> odd = place.offset == row + 1 ? value : zero;
  return {lower_pairs(even, odd), upper_pairs(even, odd)};
}

// Clears rows of the plane some time before they are written: the fastest way to get their lines
// into the cache.
template <typename T>
class Claim {
 public:
  Claim(const MaxUnpoolArgs& args, int64_t begin, int64_t end)
      : args_(args),
        next_(begin),
        end_(end),
        items_(kClaim / (2 * args.PW * static_cast<int64_t>(sizeof(T))) + 2) {}

  // for rows up to `last` of the values
  void reach(int64_t last) {
    if (last >= next_) {
      const int64_t next = min(next_ + items_, end_);
      T* const first = start(next_);
      memset(first, 0, (start(next) - first) * sizeof(T));
      next_ = next;
    }
  }

 private:
  T* start(int64_t item) const { return plane_row<T>(args_, item / args_.H, 2 * (item % args_.H)); }

  const MaxUnpoolArgs& args_;
  int64_t next_, end_, items_;
};

// Rows [begin, end), two of them at a time; returns where it ended.
template <typename T, typename A>
int64_t spread_two_rows(
    const MaxUnpoolArgs& args, int64_t begin, int64_t end, Quads<A>& quads, Claim<T>& claim
) {
  const int64_t PW = args.PW;
  const int W = static_cast<int>(args.W);
  Row row = {begin, begin / args.H, begin % args.H};
  while (row.item + 1 < end) {
    const Row second = next_row(row, args.H);
    claim.reach(second.item);
    T* const top = plane_row<T>(args, row.plane, 2 * row.h);
    T* const second_top = plane_row<T>(args, second.plane, 2 * second.h);
    const int64_t at = row.item * args.W;
    const auto place = quads.take_two(args.indices + at, 2 * row.h * PW, 2 * second.h * PW, W);
    const T* values = static_cast<const T*>(args.values) + at;
    const vector_t<A> value = lower_halves(load_partial(values, W), load_partial(values + W, W));
    for (int64_t y = 0; y < 2; ++y) {
      const Pairs<A> pairs = pairs_of_row<A>(place, value, static_cast<lane_t<A>>(y * PW));
      store_partial(top + y * PW, pairs.first, 2 * W);
      store_partial(second_top + y * PW, pairs.second, 2 * W);
    }
    row = next_row(second, args.H);
  }
  return row.item;
}

// A vector of values in windows side by side, the first of them in row h.
template <bool kPartial, bool kStream, typename T, typename A>
FASTVISION_INLINED inline void spread_vector(
    const MaxUnpoolArgs& args, Quads<A>& quads, int64_t at, int64_t base, int count, T* top
) {
  const auto place = quads.template take<kPartial>(args.indices + at, base, count);
  const vector_t<A> value = load_lanes<kPartial>(static_cast<const T*>(args.values) + at, count);
  for (int64_t y = 0; y < 2; ++y) {
    const Pairs<A> pairs = pairs_of_row<A>(place, value, static_cast<lane_t<A>>(y * args.PW));
    T* to = top + y * args.PW;
    const int first = min(2 * count, lanes_v<A>);
    if constexpr (kStream) {
      stream(to, pairs.first);
      stream(to + first, pairs.second);
    } else {
      store_lanes<kPartial>(to, pairs.first, first);
      store_lanes<kPartial>(to + first, pairs.second, 2 * count - first);
    }
  }
}

// The same in contiguous planes, for windows of 2x2 pixels inside of the plane.
template <typename T>
bool spread_to_quads(const MaxUnpoolArgs& args, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  constexpr int lanes = lanes_v<A>;
  const int64_t W = args.W, PW = args.PW;
  Quads<A> quads(args);
  const bool aligned = reinterpret_cast<uintptr_t>(args.plane) % kVectorBytes == 0;
  if (args.stream && aligned && W % lanes == 0 && PW == 2 * W && args.PH == 2 * args.H) {
    for_items(args.H, begin, end, [&](int64_t item, int64_t plane, int64_t h) {
      T* const top = plane_row<T>(args, plane, 2 * h);
      for (int64_t w = 0; w < W; w += lanes) {
        const int64_t at = item * W + w, base = 2 * h * PW + 2 * w;
        spread_vector<false, true, T, A>(args, quads, at, base, lanes, top + 2 * w);
      }
    });
    end_streams();
    return quads.inside();
  }
  Claim<T> claim(args, begin, end);
  if constexpr (sizeof(A) == 4) {
    if (W <= lanes / 2) {
      begin = spread_two_rows(args, begin, end, quads, claim);
    }
  }
  for_items(args.H, begin, end, [&](int64_t item, int64_t plane, int64_t h) {
    claim.reach(item);
    T* const top = plane_row<T>(args, plane, 2 * h);
    for_row<A>(W, [&](int64_t w, auto partial, int count) FASTVISION_INLINED {
      constexpr bool kPartial = decltype(partial)::value;
      const int64_t at = item * W + w, base = 2 * h * PW + 2 * w;
      spread_vector<kPartial, false, T, A>(args, quads, at, base, count, top + 2 * w);
    });
  });
  return quads.inside();
}

}  // namespace

#define FASTVISION_DEFINE_SPREAD(T)                                                           \
  bool max_unpool2d_spread(const T*, const MaxUnpoolArgs& args, int64_t begin, int64_t end) { \
    return args.channels_last ? spread_to_pixels<T>(args, begin, end)                         \
                              : spread_to_quads<T>(args, begin, end);                         \
  }
FASTVISION_DEFINE_SPREAD(float)
FASTVISION_DEFINE_SPREAD(double)
FASTVISION_DEFINE_SPREAD(uint16_t)
#undef FASTVISION_DEFINE_SPREAD

}  // namespace fastvision::FASTVISION_ISA
