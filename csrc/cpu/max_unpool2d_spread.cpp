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

// The same in contiguous planes, for windows of 2x2 pixels inside of the plane.
template <typename T>
bool spread_to_quads(const MaxUnpoolArgs& args, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  constexpr int lanes = lanes_v<A>;
  const int64_t H = args.H, W = args.W, PH = args.PH, PW = args.PW;
  const lane_t<A> below = static_cast<lane_t<A>>(PW);
  Quads<A> quads(args);
  int64_t claimed = begin;
  for_items(H, begin, end, [&](int64_t item, int64_t plane, int64_t h) {
    T* const top = plane_row<T>(args, plane, 2 * h);
    if (item == claimed) {
      // clearing is the fastest way to get lines into the cache that are about to be written
      const int64_t ahead = smaller(smaller(kClaim / (2 * PW * sizeof(T)) + 1, H - h), end - item);
      const int64_t last = h + ahead == H ? PH : 2 * (h + ahead);
      memset(top, 0, (last - 2 * h) * PW * sizeof(T));
      claimed = item + ahead;
    }
    const int64_t* indices = args.indices + item * W;
    const T* values = static_cast<const T*>(args.values) + item * W;
    for_row<A>(W, [&](int64_t w, auto partial, int count) FASTVISION_INLINED {
      constexpr bool kPartial = decltype(partial)::value;
      const auto place = quads.template take<kPartial>(indices + w, 2 * h * PW + 2 * w, count);
      const vector_t<A> value = load_lanes<kPartial>(values + w, count), zero{};
      const auto put = [&](T* to, lane_t<A> row) FASTVISION_INLINED {
        const vector_t<A> even = place.offset == row ? value : zero;
        const vector_t<A> odd = place.offset == row + 1 ? value : zero;
        const int first = static_cast<int>(smaller(2 * count, lanes));
        store_lanes<kPartial>(to, lower_pairs(even, odd), first);
        store_lanes<kPartial>(to + first, upper_pairs(even, odd), 2 * count - first);
      };
      put(top + 2 * w, 0);
      put(top + 2 * w + PW, below);
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
