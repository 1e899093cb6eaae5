// The taps of a roi's bins, built once per CTA in shared memory: pixels and weights per axis,
// neighbouring samples merged, so a bin of G x G samples costs about (G + 1)^2 taps and not 4 G^2.
#pragma once

#include <algorithm>

#include "cuda/roi_common.cuh"

namespace fastvision {
namespace {

constexpr int kMaxTableBytes = 24 << 10;  // taps of a roi that need more are computed at each use

template <typename A>
struct BinTaps {
  const Tap<A>* taps;
  int count;
};

struct TapRange {
  int begin;
  int count;
};

// The taps of all bins of an axis, in shared memory.
template <typename Axis>
struct AxisTable {
  using A = typename Axis::Value;

  Tap<A>* taps;
  TapRange* ranges;  // [bins]
  bool by_pixel;  // a bin's taps begin at its first pixel, and `stride` more for each bin before it
  int stride;
  bool fits;

  __device__ AxisTable(const Axis& axis, Tap<A>* taps, TapRange* ranges, int capacity)
      : taps(taps), ranges(ranges) {
    const int64_t most = axis.most_per_bin();
    by_pixel = most * axis.bins > capacity;
    stride = by_pixel ? axis.overlap() : static_cast<int>(most);
    fits = !by_pixel || axis.extent + static_cast<int64_t>(stride) * axis.bins <= capacity;
  }

  __device__ void fill(const Axis& axis, int bin) const {
    Tap<A>* bin_taps = taps + axis.rank(bin) * stride;
    int count = 0;
    axis.for_each_tap(bin, 0, axis.extent - 1, [&](int pixel, A weight) {
      if (count == 0 && by_pixel) {
        bin_taps += pixel;
      }
      count = append_tap(bin_taps, count, pixel, weight);
    });
    const A scale = A(1) / axis.divisor(bin);
    for (int i = 0; i < count; ++i) {
      bin_taps[i].weight *= scale;
    }
    ranges[bin] = {static_cast<int>(bin_taps - taps), count};
  }

  __device__ BinTaps<A> operator[](int bin) const {
    return {taps + ranges[bin].begin, ranges[bin].count};
  }
};

// The shared memory of the tables.
struct TablePlan {
  int capacity_y;  // taps
  int capacity_x;
  size_t bytes;  // 0: without tables
};

// Large enough for any roi, or as large as it may be.
template <typename Axis>
TablePlan plan_tables(const RoiArgs& args) {
  using A = typename Axis::Value;
  int64_t H = 0;
  int64_t W = 0;
  for (int level = 0; level < args.num_levels; ++level) {
    H = std::max(H, args.levels[level].H);
    W = std::max(W, args.levels[level].W);
  }
  TablePlan plan{};
  const int64_t range_bytes = (args.PH + args.PW) * sizeof(TapRange);
  if (range_bytes > kMaxTableBytes / 2) {
    return plan;
  }
  const int64_t half = (kMaxTableBytes - range_bytes) / 2 / sizeof(Tap<A>);
  plan.capacity_y = static_cast<int>(std::min(half, Axis::most(args, args.PH, H)));
  plan.capacity_x = static_cast<int>(std::min(half, Axis::most(args, args.PW, W)));
  plan.bytes = (plan.capacity_y + plan.capacity_x) * sizeof(Tap<A>) + range_bytes;
  return plan;
}

template <typename Axis>
struct RoiTable {
  using A = typename Axis::Value;

  AxisTable<Axis> y;
  AxisTable<Axis> x;
  bool fits;

  // memory: taps of y and x, ranges of y and x
  __device__ RoiTable(const Roi<Axis>& roi, const TablePlan& plan, unsigned char* memory)
      : RoiTable(roi, plan, reinterpret_cast<Tap<A>*>(memory)) {}

 private:
  __device__ RoiTable(const Roi<Axis>& roi, const TablePlan& plan, Tap<A>* taps)
      : RoiTable(
            roi, plan, taps, reinterpret_cast<TapRange*>(taps + (plan.capacity_y + plan.capacity_x))
        ) {}

  __device__ RoiTable(const Roi<Axis>& roi, const TablePlan& plan, Tap<A>* taps, TapRange* ranges)
      : y(roi.y, taps, ranges, plan.capacity_y),
        x(roi.x, taps + plan.capacity_y, ranges + roi.y.bins, plan.capacity_x) {
    fits = plan.bytes > 0 && y.fits && x.fits;
    if (fits) {
      for (int i = threadIdx.x; i < roi.y.bins + roi.x.bins; i += kThreads) {
        const bool is_y = i < roi.y.bins;
        const AxisTable<Axis> table = is_y ? y : x;
        const Axis axis = is_y ? roi.y : roi.x;
        table.fill(axis, is_y ? i : i - roi.y.bins);
      }
    }
    __syncthreads();
  }
};

// Calls f(y, x) for the taps of a bin on both axes, one by one, without a table.
template <typename Axis, typename F>
__device__ void for_each_tap(const Roi<Axis>& roi, int ph, int pw, F f) {
  using A = typename Axis::Value;
  roi.y.for_each_tap(ph, 0, roi.y.extent - 1, [&](int y, A y_weight) {
    roi.x.for_each_tap(pw, 0, roi.x.extent - 1, [&](int x, A x_weight) {
      f(Tap<A>{y, y_weight / roi.y.divisor(ph)}, Tap<A>{x, x_weight / roi.x.divisor(pw)});
    });
  });
}

}  // namespace
}  // namespace fastvision
