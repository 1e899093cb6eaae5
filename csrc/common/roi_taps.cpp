#include "common/roi_taps.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/parallel.h"

namespace fastvision {
namespace {

constexpr double kMaxGrid = 1 << 20;

// One axis of a roi, in feature coordinates.
template <typename A>
struct Axis {
  A start;
  A bin_size;
  int64_t grid;  // samples per bin
  int64_t bins;
  int64_t extent;

  int64_t capacity() const {
    // neighbouring samples merge: a bin touches few distinct pixels
    const int64_t span = static_cast<int64_t>(std::min<A>(std::abs(bin_size), 1e9)) + 4;
    return bins * std::min({2 * grid, span, extent});
  }

  // Writes the taps of all bins, ascending in each bin, from `begin` on and the bins + 1 offsets;
  // returns the end.
  int32_t fill(Tap<A>* taps, int32_t begin, int32_t* offsets, int32_t* first, int32_t* last) const {
    int32_t n = begin;
    int32_t lowest = std::numeric_limits<int32_t>::max();
    int32_t highest = -1;
    for (int64_t bin = 0; bin < bins; ++bin) {
      const int32_t bin_begin = n;
      offsets[bin] = n;
      const A bin_start = start + static_cast<A>(bin) * bin_size;
      int64_t sample = 0;
      int64_t sample_end = grid;
      if (grid > 16 && bin_size > 0) {  // most samples of a huge roi lie outside the map
        const double step = static_cast<double>(bin_size) / grid;
        const double low = std::floor((-1.0 - bin_start) / step) - 2;
        const double high = std::ceil((extent - bin_start) / step) + 2;
        sample = static_cast<int64_t>(std::clamp<double>(low, 0, grid));
        sample_end = static_cast<int64_t>(std::clamp<double>(high, 0, grid));
      }
      for (; sample < sample_end; ++sample) {
        const A index = static_cast<A>(bin_size < 0 ? grid - 1 - sample : sample);
        A position = bin_start + (index + A(0.5)) * bin_size / static_cast<A>(grid);
        if (!(position >= -1 && position <= static_cast<A>(extent))) {
          continue;
        }
        position = std::max(position, A(0));
        const int32_t low = std::min<int64_t>(static_cast<int64_t>(position), extent - 1);
        const A fraction = low == extent - 1 ? A(0) : position - static_cast<A>(low);
        n = add(taps, bin_begin, n, low, A(1) - fraction);
        if (fraction > 0) {
          n = add(taps, bin_begin, n, low + 1, fraction);
        }
      }
      for (int32_t i = bin_begin; i < n; ++i) {
        taps[i].weight /= static_cast<A>(grid);
        lowest = std::min(lowest, taps[i].index);
        highest = std::max(highest, taps[i].index);
      }
    }
    offsets[bins] = n;
    *first = highest < 0 ? 0 : lowest;
    *last = highest + 1;
    return n;
  }

 private:
  // A pixel is among the last two of its bin, or new.
  static int32_t add(Tap<A>* taps, int32_t begin, int32_t n, int32_t index, A weight) {
    for (int32_t i = n - 1; i >= begin && i >= n - 2; --i) {
      if (taps[i].index == index) {
        taps[i].weight += weight;
        return n;
      }
    }
    taps[n] = {index, weight};
    return n + 1;
  }
};

template <typename A>
int32_t level_of(const RoIAlignArgs& args, const A* roi) {
  if (args.num_levels == 1) {
    return 0;
  }
  const A size = std::sqrt((roi[3] - roi[1]) * (roi[4] - roi[2]));
  const A level = std::floor(
      static_cast<A>(args.canonical_level) +
      std::log2(size / static_cast<A>(args.canonical_scale)) + static_cast<A>(1e-6)
  );
  if (std::isnan(level)) {  // a negative area
    return -1;
  }
  const A index = level - static_cast<A>(args.min_level);
  return static_cast<int32_t>(std::clamp(index, A(0), static_cast<A>(args.num_levels - 1)));
}

enum class Refused { no, batch_index, grid };

// The axes of a roi; without bins where it gives zeros.
template <typename A>
Refused axes_of(
    const RoIAlignArgs& args, const A* roi, RoiFootprint* footprint, Axis<A>* y, Axis<A>* x
) {
  *footprint = {0, 0, 0, 0, 0, 0, 0};
  *y = {0, 0, 0, args.PH, 0};
  *x = {0, 0, 0, args.PW, 0};
  // written so that NaN is refused; without images every index is out of range, -0.5 too
  if (!(roi[0] > -1 && roi[0] < static_cast<A>(args.N)) || args.N == 0) {
    return Refused::batch_index;
  }
  footprint->image = static_cast<int32_t>(roi[0]);
  const int32_t level = level_of(args, roi);
  if (level < 0 || !(std::isfinite(roi[1]) && std::isfinite(roi[2]) && std::isfinite(roi[3]) &&
                     std::isfinite(roi[4]))) {
    return Refused::no;
  }
  footprint->level = level;
  const RoIAlignLevel& map = args.levels[level];
  if (map.H == 0 || map.W == 0) {
    return Refused::no;
  }
  const A scale = static_cast<A>(map.spatial_scale);
  const A offset = args.aligned ? A(0.5) : A(0);
  const A x1 = roi[1] * scale - offset;
  const A y1 = roi[2] * scale - offset;
  A width = roi[3] * scale - offset - x1;
  A height = roi[4] * scale - offset - y1;
  if (!args.aligned) {
    width = std::max(width, A(1));
    height = std::max(height, A(1));
  }
  if (!(std::isfinite(x1) && std::isfinite(y1)) || std::isnan(width) || std::isnan(height)) {
    return Refused::no;  // overflow of the scaled coordinates
  }
  const auto axis = [&](A start, A size, int64_t bins, int64_t extent) {
    const A bin_size = size / static_cast<A>(bins);
    const A grid =
        args.sampling_ratio > 0 ? static_cast<A>(args.sampling_ratio) : std::ceil(bin_size);
    return std::make_pair(Axis<A>{start, bin_size, 0, bins, extent}, grid);
  };
  auto [y_axis, y_grid] = axis(y1, height, args.PH, map.H);
  auto [x_axis, x_grid] = axis(x1, width, args.PW, map.W);
  if (!(y_grid <= A(kMaxGrid) && x_grid <= A(kMaxGrid))) {
    return Refused::grid;
  }
  if (y_grid >= 1 && x_grid >= 1) {
    y_axis.grid = static_cast<int64_t>(y_grid);
    x_axis.grid = static_cast<int64_t>(x_grid);
  }
  *y = y_axis;
  *x = x_axis;
  return Refused::no;
}

constexpr int64_t kChunk = 64;  // rois per task

}  // namespace

template <typename A>
RoiTaps<A>::RoiTaps(const RoIAlignArgs& args) : rois_(args.K) {
  const A* rois = static_cast<const A*>(args.rois);
  const int64_t bins_per_roi = args.PH + args.PW + 2;
  bins_.resize(args.K * bins_per_roi);
  Axis<A> y, x;
  int64_t total = 0;
  for (int64_t k = 0; k < args.K; ++k) {
    const Refused refused = axes_of(args, rois + 5 * k, &rois_[k], &y, &x);
    if (refused != Refused::no) {
      bad_roi = k;
      bad_grid = refused == Refused::grid;
      return;
    }
    rois_[k].taps = total;
    total += y.capacity() + x.capacity();
  }
  taps_.resize(total);
  parallel_chunks(args.K, kChunk, [&] {
    return [&](int64_t begin, int64_t end) {
      Axis<A> y, x;
      for (int64_t k = begin; k < end; ++k) {
        RoiFootprint roi;
        axes_of(args, rois + 5 * k, &roi, &y, &x);
        roi.taps = rois_[k].taps;
        Tap<A>* taps = taps_.data() + roi.taps;
        int32_t* bins = bins_.data() + k * bins_per_roi;
        const int32_t n = y.fill(taps, 0, bins, &roi.y_begin, &roi.y_end);
        x.fill(taps, n, bins + args.PH + 1, &roi.x_begin, &roi.x_end);
        rois_[k] = roi;
      }
    };
  });
}

template class RoiTaps<float>;
template class RoiTaps<double>;

}  // namespace fastvision
