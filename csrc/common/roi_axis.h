// Axis rules of the RoI ops: which pixels a bin of a roi takes along one axis, and with which
// weights. One text for the CPU's tables and for GPU threads, which round alike.
#pragma once

#include <math.h>

#include <cstdint>

#include "common/roi_args.h"
#include "common/roi_taps_view.h"

namespace fastvision {

// rounded after each operation: the compiler must not fuse what decides on validity and floor
#ifdef __CUDA_ARCH__
__device__ inline float rounded_add(float a, float b) { return __fadd_rn(a, b); }
__device__ inline double rounded_add(double a, double b) { return __dadd_rn(a, b); }
__device__ inline float rounded_multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double rounded_multiply(double a, double b) { return __dmul_rn(a, b); }
#else  // compiled with -ffp-contract=off
template <typename A>
FASTVISION_HOST_DEVICE inline A rounded_add(A a, A b) {
  return a + b;
}
template <typename A>
FASTVISION_HOST_DEVICE inline A rounded_multiply(A a, A b) {
  return a * b;
}
#endif

// The limit for NaN.
template <typename A>
FASTVISION_HOST_DEVICE inline A at_least(A x, A limit) {
#ifdef __CUDA_ARCH__
  return fmax(x, limit);
#else
  return x > limit ? x : limit;
#endif
}
template <typename A>
FASTVISION_HOST_DEVICE inline A at_most(A x, A limit) {
#ifdef __CUDA_ARCH__
  return fmin(x, limit);
#else
  return x < limit ? x : limit;
#endif
}

// Adds a tap to the `count` of a bin and gives their number. Neighbouring samples share pixels: a
// pixel is among the last two, or new.
template <typename A>
FASTVISION_HOST_DEVICE inline int append_tap(Tap<A>* taps, int count, int pixel, A weight) {
  for (int i = count - 1; i >= 0 && i >= count - 2; --i) {
    if (taps[i].pixel == pixel) {
      taps[i].weight += weight;
      return count;
    }
  }
  taps[count] = {pixel, weight};
  return count + 1;
}

// Of the two pixels around a position inside the map, -1 counted as 0, the lower one and the weight
// of the next: 0 at the last pixel, which has none.
template <typename A>
struct PixelBelow {
  int pixel;
  A fraction;
};
template <typename A>
FASTVISION_HOST_DEVICE inline PixelBelow<A> pixel_below(A position, int extent) {
  position = at_least(position, A(0));
  const int last = extent - 1;
  const int below = static_cast<int>(position);
  const int pixel = below < last ? below : last;
  return {pixel, pixel == last ? A(0) : position - static_cast<A>(pixel)};
}

constexpr int kMaxSamples = 1 << 20;  // per bin and axis; more can only come from a nonsensical box

// RoIAlign: the mean of bilinear samples, `grid` per bin at equal distances (Mask R-CNN, section
// 3). Positions are computed in the order of operations of torchvision.
template <typename A>
struct BilinearAxis {
  using Value = A;

  A start;  // in feature coordinates
  A bin_size;
  A grid;       // samples per bin
  int samples;  // the same, or 0 where the roi gives zeros
  int bins;
  int extent;  // pixels of the map

  FASTVISION_HOST_DEVICE static BilinearAxis make(
      const RoiArgs& args, A low, A high, double spatial_scale, int64_t bins, int64_t extent
  ) {
    const A scale = static_cast<A>(spatial_scale);
    const A offset = args.aligned ? A(0.5) : A(0);
    const A start = rounded_add(rounded_multiply(low, scale), -offset);
    const A size = rounded_add(rounded_add(rounded_multiply(high, scale), -offset), -start);
    return from(args, start, args.aligned ? size : at_least(size, A(1)), bins, extent);
  }

  // Around 0.
  FASTVISION_HOST_DEVICE static BilinearAxis centred(
      const RoiArgs& args, A size, double spatial_scale, int64_t bins, int64_t extent
  ) {
    size = rounded_multiply(size, static_cast<A>(spatial_scale));
    size = args.aligned ? size : at_least(size, A(1));
    return from(args, -size / 2, size, bins, extent);
  }

  FASTVISION_HOST_DEVICE static BilinearAxis from(
      const RoiArgs& args, A start, A size, int64_t bins, int64_t extent
  ) {
    BilinearAxis axis;
    axis.start = start;
    axis.bin_size = size / static_cast<A>(bins);
    axis.grid = args.sampling_ratio > 0 ? static_cast<A>(args.sampling_ratio)
                                        : at_least(static_cast<A>(ceil(axis.bin_size)), A(0));
    axis.samples = extent > 0 && !axis.too_fine() ? static_cast<int>(axis.grid) : 0;
    axis.bins = static_cast<int>(bins);
    axis.extent = static_cast<int>(extent);
    return axis;
  }

  FASTVISION_HOST_DEVICE bool too_fine() const { return !(grid <= kMaxSamples); }
  FASTVISION_HOST_DEVICE bool empty() const { return samples == 0; }
  FASTVISION_HOST_DEVICE void clear() { samples = 0; }

  // What the weights of a bin's taps are to be divided by.
  FASTVISION_HOST_DEVICE A divisor(int) const { return grid; }

  FASTVISION_HOST_DEVICE A bin_start(int bin) const {
    return rounded_add(start, rounded_multiply(static_cast<A>(bin), bin_size));
  }
  // The position of a sample of the bin that starts there.
  FASTVISION_HOST_DEVICE A sample(A bin_begin, A index) const {
    return rounded_add(bin_begin, rounded_multiply(index + A(0.5), bin_size) / grid);
  }
  FASTVISION_HOST_DEVICE bool has(A position) const {
    return position >= -1 && position <= static_cast<A>(extent);
  }

  // Can a sample touch a pixel of [low, high]? May be true where none does.
  FASTVISION_HOST_DEVICE bool reaches(int low, int high) const {
    const A end = start + bin_size * static_cast<A>(bins);
    const A slack = 2 + rounding();
    return samples > 0 && at_most(start, end) - slack <= high &&
           at_least(start, end) + slack >= low;
  }

  // Calls f(pixel, weight) for the taps of a bin's samples by ascending position, weights not yet
  // divided and none of them 0. Samples that cannot touch [low, high] are left out.
  template <typename F>
  FASTVISION_DEVICE void for_each_tap(int bin, int low, int high, F f) const {
    const A bin_begin = bin_start(bin);
    int begin = 0;
    int end = samples;
    if (samples > 8) {
      // a superset, since the exact positions are rounded; a NaN leaves everything in
      const A per_pixel = grid / fabs(bin_size);
      const A origin = bin_size < 0 ? bin_begin + bin_size : bin_begin;
      const A slack = 2 + rounding() * per_pixel;
      const A from = (static_cast<A>(low) - 1 - origin) * per_pixel - slack;
      const A to = (static_cast<A>(high) + 1 - origin) * per_pixel + slack;
      begin = from > 0 ? static_cast<int>(at_most(from, grid)) : 0;
      end = to < grid ? static_cast<int>(at_least(to, A(0))) : samples;
    }
    for (int i = begin; i < end; ++i) {
      const A index = static_cast<A>(bin_size < 0 ? samples - 1 - i : i);
      const A position = sample(bin_begin, index);
      if (!has(position)) {
        continue;
      }
      const PixelBelow<A> below = pixel_below(position, extent);
      const int pixel = below.pixel;
      const A fraction = below.fraction;
#ifdef __CUDA_ARCH__
#pragma unroll 1  // f once in the code, for its registers
      for (int side = 0; side < 2; ++side) {
        const A weight = side == 0 ? A(1) - fraction : fraction;
        if (weight > 0) {
          f(pixel + side, weight);
        }
      }
#else
      f(pixel, A(1) - fraction);
      if (fraction > 0) {
        f(pixel + 1, fraction);
      }
#endif
    }
  }

  // Sizes of tables of taps: of one bin at most, of all bins as they lie in this roi, and of all
  // bins of any roi.
  FASTVISION_HOST_DEVICE int64_t most_per_bin() const { return 2 * static_cast<int64_t>(samples); }
  int64_t most() const {
    // neighbouring samples merge: a bin touches few distinct pixels
    const int64_t span = static_cast<int64_t>(at_most<A>(fabs(bin_size), A(1e9))) + 4;
    int64_t per_bin = most_per_bin();
    per_bin = span < per_bin ? span : per_bin;
    return bins * (extent < per_bin ? extent : per_bin);
  }
  static int64_t most(const RoiArgs& args, int64_t bins, int64_t extent) {
    const int64_t merged = extent + 3 * bins;
    if (args.sampling_ratio <= 0) {
      return merged;
    }
    const int64_t ratio = args.sampling_ratio < kMaxSamples ? args.sampling_ratio : kMaxSamples;
    return 2 * ratio * bins < merged ? 2 * ratio * bins : merged;
  }

  // Pixels that a bin can share with the one before it: three, and those that rounding takes a
  // sample past.
  FASTVISION_HOST_DEVICE int overlap() const {
    return static_cast<int>(at_most(3 + rounding(), A(kMaxSamples)));
  }
  // The bin's place among all bins by ascending pixels.
  FASTVISION_HOST_DEVICE int rank(int bin) const { return bin_size < 0 ? bins - 1 - bin : bin; }

 private:
  // how far rounding can move a sample, in pixels
  FASTVISION_HOST_DEVICE A rounding() const {
    return 8 * epsilon<A>() * (fabs(start) + fabs(bin_size) * static_cast<A>(bins));
  }
};

// The whole pixels that a bin touches (Fast R-CNN, section 2.1), in the order of operations of
// torchvision, for RoIPool or PSRoIPool. Their weights are 1; with kMean a bin is divided by their
// number. Then, as in torchvision, a roi ends before its last pixel, and the map likewise.
template <typename A, bool kMean>
struct WholePixelAxis {
  using Value = A;

  A start;  // first pixel
  A bin_size;
  int bins;
  int extent;  // pixels of the map
  bool none;   // the roi gives zeros

  FASTVISION_HOST_DEVICE static WholePixelAxis make(
      const RoiArgs&, A low, A high, double spatial_scale, int64_t bins, int64_t extent
  ) {
    const A scale = static_cast<A>(spatial_scale);
    const A first = round(rounded_multiply(low, scale));
    const A last = round(rounded_multiply(high, scale));
    WholePixelAxis axis;
    axis.start = in_32_bits(first);
    const int64_t size =
        static_cast<int64_t>(in_32_bits(last)) - static_cast<int64_t>(axis.start) + (kMean ? 0 : 1);
    axis.bin_size = static_cast<A>(size > 1 ? size : 1) / static_cast<A>(bins);
    axis.bins = static_cast<int>(bins);
    axis.extent = static_cast<int>(extent);
    axis.none = extent == 0 || !isfinite(first) || !isfinite(last);
    return axis;
  }

  FASTVISION_HOST_DEVICE bool too_fine() const { return false; }
  FASTVISION_HOST_DEVICE bool empty() const { return none; }
  FASTVISION_HOST_DEVICE void clear() { none = true; }
  FASTVISION_HOST_DEVICE A divisor(int bin) const {
    return kMean ? static_cast<A>(end(bin) - begin(bin)) : A(1);
  }

  // The pixels of a bin, [begin, end), clipped to the map.
  FASTVISION_HOST_DEVICE int begin(int bin) const {
    return clipped(static_cast<A>(floor(rounded_multiply(static_cast<A>(bin), bin_size))));
  }
  FASTVISION_HOST_DEVICE int end(int bin) const {
    const A next = static_cast<A>(static_cast<int64_t>(bin) + 1);
    return clipped(static_cast<A>(ceil(rounded_multiply(next, bin_size))));
  }

  FASTVISION_HOST_DEVICE bool reaches(int low, int high) const {
    return begin(0) <= high && end(bins - 1) > low;
  }

  // A bin that no bin with that pixel comes before; those with it are close behind.
  FASTVISION_HOST_DEVICE int first_bin(int pixel) const {
    const A guess = (static_cast<A>(pixel) - start) / bin_size - 2;
    int bin = static_cast<int>(at_most(at_least(guess, A(0)), static_cast<A>(bins - 1)));
    bin = bin < bins ? bin : bins - 1;  // where rounding took bins - 1 up
    while (bin > 0 && end(bin - 1) > pixel) {
      --bin;
    }
    return bin;
  }

  template <typename F>
  FASTVISION_DEVICE void for_each_tap(int bin, int low, int high, F f) const {
    const int first = begin(bin) > low ? begin(bin) : low;
    const int last = end(bin) - 1 < high ? end(bin) - 1 : high;
    for (int pixel = first; pixel <= last; ++pixel) {
      f(pixel, A(1));
    }
  }

  FASTVISION_HOST_DEVICE int64_t most_per_bin() const {
    // a bin of less than two pixels touches three at most
    const int64_t span = static_cast<int64_t>(bin_size) + 3;
    return extent < span ? extent : span;
  }
  int64_t most() const { return bins * most_per_bin(); }
  static int64_t most(const RoiArgs&, int64_t bins, int64_t extent) { return extent + bins; }
  FASTVISION_HOST_DEVICE int overlap() const { return 1; }
  FASTVISION_HOST_DEVICE int rank(int bin) const { return bin; }

 private:
  // A coordinate further out than 2**31 pixels counts as that.
  FASTVISION_HOST_DEVICE static A in_32_bits(A x) {
    return at_most(at_least(x, A(-2147483648.0)), A(2147483648.0));
  }
  FASTVISION_HOST_DEVICE int clipped(A offset) const {
    const int64_t pixel = static_cast<int64_t>(start) + static_cast<int64_t>(offset);
    const int limit = kMean ? extent - 1 : extent;
    return static_cast<int>(none || pixel < 0 ? 0 : pixel > limit ? limit : pixel);
  }
};

template <typename A>
using CellAxis = WholePixelAxis<A, false>;
template <typename A>
using MeanCellAxis = WholePixelAxis<A, true>;

}  // namespace fastvision
