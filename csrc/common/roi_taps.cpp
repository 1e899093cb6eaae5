#include "common/roi_taps.h"

#include <algorithm>
#include <limits>

#include "common/parallel.h"

namespace fastvision {
namespace {

constexpr int64_t kChunk = 64;  // rois per task

template <typename Axis>
bool is_empty(const Roi<Axis>& roi) {
  return roi.y.empty() || roi.x.empty();
}

// Writes the taps of all bins, ascending in each bin, from `begin` on and the bins + 1 offsets;
// returns the end.
template <typename Axis, typename A>
int32_t fill_axis(
    const Axis axis, Tap<A>* taps, int32_t begin, int32_t* offsets, int32_t* first, int32_t* last
) {
  int32_t n = begin;
  int32_t lowest = std::numeric_limits<int32_t>::max();
  int32_t highest = -1;
  for (int bin = 0; bin < axis.bins; ++bin) {
    offsets[bin] = n;
    Tap<A>* bin_taps = taps + n;
    int count = 0;
    axis.for_each_tap(bin, 0, axis.extent - 1, [&](int pixel, A weight) {
      count = append_tap(bin_taps, count, pixel, weight);
    });
    const A divisor = axis.divisor(bin);
    // one loop: the divisions alone would be vectorized, at a loss for lists as short as these
    for (int i = 0; i < count; ++i) {
      bin_taps[i].weight /= divisor;
      lowest = std::min(lowest, bin_taps[i].pixel);
      highest = std::max(highest, bin_taps[i].pixel);
    }
    n += count;
  }
  offsets[axis.bins] = n;
  *first = highest < 0 ? 0 : lowest;
  *last = highest + 1;
  return n;
}

}  // namespace

template <typename Axis>
RoiTaps<Axis>::RoiTaps(const RoiArgs& args) : rois_(args.K) {
  const int64_t bins_per_roi = args.PH + args.PW + 2;
  bins_.resize(args.K * bins_per_roi);
  int64_t total = 0;
  for (int64_t k = 0; k < args.K; ++k) {
    const Roi<Axis> roi = read_roi<Axis>(args, k);
    if (roi.fault != RoiFault::none) {
      bad_roi = k;
      fault = roi.fault;
      return;
    }
    rois_[k].level = roi.level;
    rois_[k].image = roi.image;
    rois_[k].taps = total;
    total += is_empty(roi) ? 0 : roi.y.most() + roi.x.most();
  }
  taps_.resize(total);
  parallel_chunks(args.K, kChunk, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        Roi<Axis> roi = read_roi<Axis>(args, k);
        if (is_empty(roi)) {
          roi.y.clear();
          roi.x.clear();
        }
        RoiFootprint& footprint = rois_[k];
        Tap<A>* taps = taps_.data() + footprint.taps;
        int32_t* bins = bins_.data() + k * bins_per_roi;
        const int32_t n = fill_axis(roi.y, taps, 0, bins, &footprint.y_begin, &footprint.y_end);
        fill_axis(roi.x, taps, n, bins + args.PH + 1, &footprint.x_begin, &footprint.x_end);
      }
    };
  });
}

template class RoiTaps<BilinearAxis<float>>;
template class RoiTaps<BilinearAxis<double>>;
template class RoiTaps<CellAxis<float>>;
template class RoiTaps<CellAxis<double>>;
template class RoiTaps<MeanCellAxis<float>>;
template class RoiTaps<MeanCellAxis<double>>;

}  // namespace fastvision
