// The gradient of max unpooling for indices in windows that do not overlap: each row of the plane
// is read once and in order.
#include "common/prefetch.h"
#include "cpu/max_unpool2d_windows.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename T>
bool collect_pixels(const MaxUnpoolArgs& args, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const int64_t C = args.C, W = args.W, PW = args.PW, stride = args.stride[1];
  const int64_t height = args.window[0], width = args.window[1];
  Offsets<A> offsets(args);
  for_items(args.H, begin, end, [&](int64_t item, int64_t image, int64_t h) {
    const T* rows = plane_row<const T>(args, image, h * args.stride[0]);
    offsets.begin_row(h);
    for (int64_t w = 0; w < W; ++w) {
      const int64_t first = w * stride;
      const int64_t* indices = args.indices + (item * W + w) * C;
      T* values = static_cast<T*>(args.values) + (item * W + w) * C;
      const places_t<A> left = places_from<A>(first, 0);
      for_vectors<A>(C, [&](int64_t c, auto partial, int count) FASTVISION_INLINED {
        constexpr bool kPartial = decltype(partial)::value;
        const places_t<A> place = offsets.template take<kPartial>(indices + c, left, count);
        vector_t<A> value{};
        for (int64_t y = 0; y < height; ++y) {
          for (int64_t x = first; x < first + width; ++x) {
            const auto pixel = load_lanes<kPartial>(rows + (y * PW + x) * C + c, count);
            value = place == static_cast<lane_t<A>>(y * PW + x) ? pixel : value;
          }
        }
        store_lanes<kPartial>(values + c, value, count);
      });
    }
  });
  return offsets.inside();
}

// Rows [begin, end) of windows of 2x2 pixels, two of them at a time; returns where it ended.
template <typename T, typename A>
int64_t collect_two_rows(const MaxUnpoolArgs& args, int64_t begin, int64_t end, Quads<A>& quads) {
  const int64_t PW = args.PW;
  const int W = static_cast<int>(args.W);
  Row row = {begin, begin / args.H, begin % args.H};
  while (row.item + 1 < end) {
    const Row second = next_row(row, args.H);
    const T* top = plane_row<const T>(args, row.plane, 2 * row.h);
    const T* second_top = plane_row<const T>(args, second.plane, 2 * second.h);
    const int64_t at = row.item * args.W;
    const auto place = quads.take_two(args.indices + at, 2 * row.h * PW, 2 * second.h * PW, W);
    const vector_t<A> above =
        pick_of_pairs(load_partial(top, 2 * W), load_partial(second_top, 2 * W), place.odd);
    const vector_t<A> below = pick_of_pairs(
        load_partial(top + PW, 2 * W), load_partial(second_top + PW, 2 * W), place.odd
    );
    const vector_t<A> value = place.below ? below : above;
    T* values = static_cast<T*>(args.values) + at;
    store_partial(values, value, W);
    store_partial(values + W, swap_halves(value), W);
    row = next_row(second, args.H);
  }
  return row.item;
}

// windows of 2x2 pixels
template <typename T>
bool collect_planes(const MaxUnpoolArgs& args, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  constexpr int lanes = lanes_v<A>;
  const int64_t W = args.W, PW = args.PW;
  Quads<A> quads(args);
  if constexpr (sizeof(A) == 4) {
    if (W <= lanes / 2) {
      begin = collect_two_rows<T>(args, begin, end, quads);
    }
  }
  for_items(args.H, begin, end, [&](int64_t item, int64_t plane, int64_t h) {
    const T* top = plane_row<const T>(args, plane, 2 * h);
    const int64_t* indices = args.indices + item * W;
    T* values = static_cast<T*>(args.values) + item * W;
    prefetch_ahead(top, 2 * PW * static_cast<int64_t>(sizeof(T)));
    prefetch_ahead(indices, W * static_cast<int64_t>(sizeof(int64_t)));
    for_row<A>(W, [&](int64_t w, auto partial, int count) FASTVISION_INLINED {
      constexpr bool kPartial = decltype(partial)::value;
      const int first = min(2 * count, lanes), rest = 2 * count - first;
      const auto place = quads.template take<kPartial>(indices + w, 2 * h * PW + 2 * w, count);
      const T *upper = top + 2 * w, *lower = upper + PW;
      const vector_t<A> above = pick_of_pairs(
          load_lanes<kPartial>(upper, first), load_lanes<kPartial>(upper + first, rest), place.odd
      );
      const vector_t<A> below = pick_of_pairs(
          load_lanes<kPartial>(lower, first), load_lanes<kPartial>(lower + first, rest), place.odd
      );
      store_lanes<kPartial>(values + w, place.below ? below : above, count);
    });
  });
  return quads.inside();
}

}  // namespace

#define FASTVISION_DEFINE_COLLECT(T)                                                           \
  bool max_unpool2d_collect(const T*, const MaxUnpoolArgs& args, int64_t begin, int64_t end) { \
    return args.channels_last ? collect_pixels<T>(args, begin, end)                            \
                              : collect_planes<T>(args, begin, end);                           \
  }
FASTVISION_DEFINE_COLLECT(float)
FASTVISION_DEFINE_COLLECT(double)
FASTVISION_DEFINE_COLLECT(uint16_t)
#undef FASTVISION_DEFINE_COLLECT

}  // namespace fastvision::FASTVISION_ISA
