// What the CPU kernels of RoI ops share: the taps of a roi's bins, and channels taken in vectors.
#pragma once

#include "common/roi_taps_view.h"
#include "common/simd_lanes.h"
#include "ops/roi.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename A>
struct Range {
  const Tap<A>* begin;
  const Tap<A>* end;
};

template <typename A>
inline bool is_empty(Range<A> range) {
  return range.begin == range.end;
}

// The taps of one bin of a roi.
template <typename A>
struct RoiBins {
  const int32_t* bins;
  const Tap<A>* taps;
  int64_t PH;

  RoiBins(const RoiArgs& args, const RoiTapsView<A>& view, int64_t roi)
      : bins(view.bins + roi * (args.PH + args.PW + 2)),
        taps(view.taps + view.rois[roi].taps),
        PH(args.PH) {}
  Range<A> y(int64_t bin) const { return {taps + bins[bin], taps + bins[bin + 1]}; }
  Range<A> x(int64_t bin) const { return {taps + bins[PH + 1 + bin], taps + bins[PH + 2 + bin]}; }
};

// The part of a bin's taps, which ascend, in [low, high).
template <typename A>
inline Range<A> clip(Range<A> range, int64_t low, int64_t high) {
  while (range.begin < range.end && range.begin->pixel < low) {
    ++range.begin;
  }
  while (range.begin < range.end && range.end[-1].pixel >= high) {
    --range.end;
  }
  return range;
}

// Runs f<vectors, partial>(channel, lanes of the last vector) over [begin, end) in the widest
// pieces, of at most kMost vectors: 8, or 4 where each has more than one accumulator.
template <typename A, int kMost = 8, typename F>
inline void for_channel_pieces(int64_t begin, int64_t end, const F& f) {
  constexpr int lanes = lanes_v<A>;
  int64_t c = begin;
  if constexpr (kMost == 8) {
    for (; c + 8 * lanes <= end; c += 8 * lanes) {
      f.template operator()<8, false>(c, lanes);
    }
  }
  for (; c + 4 * lanes <= end; c += 4 * lanes) {
    f.template operator()<4, false>(c, lanes);
  }
  if (c + 2 * lanes <= end) {
    f.template operator()<2, false>(c, lanes);
    c += 2 * lanes;
  }
  if (c + lanes <= end) {
    f.template operator()<1, false>(c, lanes);
    c += lanes;
  }
  if (c < end) {
    f.template operator()<1, true>(c, static_cast<int>(end - c));
  }
}

inline bool touches(const RoiFootprint& roi, const RoiBackwardTask& task) {
  return roi.y_begin < task.y_end && roi.y_end > task.y_begin && roi.x_begin < task.x_end &&
         roi.x_end > task.x_begin;
}

// Writes n finished sums in the gradient's type.
template <typename T, typename A>
inline void write(const A* sums, T* out, int64_t n) {
  constexpr int lanes = lanes_v<A>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    store(out + i, load(sums + i));
  }
  if (i < n) {
    store_partial(
        out + i, load_partial(sums + i, static_cast<int>(n - i)), static_cast<int>(n - i)
    );
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
