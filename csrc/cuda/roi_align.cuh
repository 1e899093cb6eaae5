// What RoIAlign's forward and backward share on the GPU: the geometry of a roi and its taps, and
// loads and stores of several channels at once.
#pragma once

#include <math.h>

#include <cstdint>

#include "common/cuda.cuh"
#include "common/scalar.h"
#include "ops/roi_align.h"

namespace fastvision {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxSamples = 1 << 20;  // per bin and axis; more can only come from a nonsensical box

// rounded after each operation: the compiler must not fuse what decides on validity and floor
__device__ inline float add(float a, float b) { return __fadd_rn(a, b); }
__device__ inline double add(double a, double b) { return __dadd_rn(a, b); }
__device__ inline float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double multiply(double a, double b) { return __dmul_rn(a, b); }

// kWidth channels of a thread: side by side and moved as one, or kStride lanes apart (any C and
// alignment) and moved one by one.
template <typename T, int kWidth, bool kVector>
struct Channels {
  using A = accumulate_t<T>;
  struct alignas(sizeof(T) * kWidth) Values {
    T v[kWidth];
  };

  int first;
  int stride;
  int C;

  // `group` counts from 0 the threads that share a pixel's channels, `lane` is within its `lanes`
  __device__ Channels(int group, int lane, int lanes, int C)
      : first(group * lanes * kWidth + (kVector ? lane * kWidth : lane)), stride(lanes), C(C) {}

  __device__ bool empty() const { return first >= C; }

  __device__ Values load(const T* pixel) const {
    if constexpr (kVector) {
      return *reinterpret_cast<const Values*>(pixel + first);
    } else {
      Values values;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const int c = first + i * stride;
        values.v[i] = c < C ? pixel[c] : T{};
      }
      return values;
    }
  }

  __device__ void store(T* pixel, const A (&sum)[kWidth]) const {
    Values values;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      values.v[i] = narrow<T>(sum[i]);
    }
    if constexpr (kVector) {
      *reinterpret_cast<Values*>(pixel + first) = values;
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const int c = first + i * stride;
        if (c < C) {
          pixel[c] = values.v[i];
        }
      }
    }
  }

  __device__ static void multiply_add(A (&sum)[kWidth], A weight, const Values& values) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      sum[i] += weight * widen(values.v[i]);
    }
  }
};

// One axis of a roi, in feature coordinates.
template <typename A>
struct Axis {
  A start;
  A bin_size;
  A grid;       // samples per bin
  int samples;  // the same, or 0 where the roi gives zeros
  int bins;
  int extent;  // pixels of the map

  // how far rounding can move a sample, in pixels
  __device__ A rounding() const {
    constexpr A epsilon = sizeof(A) == 4 ? A(1.2e-7) : A(2.3e-16);
    return 8 * epsilon * (fabs(start) + fabs(bin_size) * static_cast<A>(bins));
  }

  // Can a sample touch a pixel of [low, high]? May be true where none does.
  __device__ bool reaches(int low, int high) const {
    const A end = start + bin_size * static_cast<A>(bins);
    const A slack = 2 + rounding();
    return samples > 0 && fmin(start, end) - slack <= high && fmax(start, end) + slack >= low;
  }

  // Calls f(pixel, weight) for the taps of a bin's samples by ascending position, weights not yet
  // divided by the number of samples and none of them 0. Samples that cannot touch [low, high] are
  // left out.
  template <typename F>
  __device__ void for_each_tap(int bin, int low, int high, F f) const {
    const A bin_start = add(start, multiply(static_cast<A>(bin), bin_size));
    int begin = 0;
    int end = samples;
    if (samples > 8) {
      // a superset, since the exact positions are rounded; a NaN leaves everything in
      const A per_pixel = grid / fabs(bin_size);
      const A origin = bin_size < 0 ? bin_start + bin_size : bin_start;
      const A slack = 2 + rounding() * per_pixel;
      const A from = (static_cast<A>(low) - 1 - origin) * per_pixel - slack;
      const A to = (static_cast<A>(high) + 1 - origin) * per_pixel + slack;
      begin = from > 0 ? static_cast<int>(fmin(from, grid)) : 0;
      end = to < grid ? static_cast<int>(fmax(to, A(0))) : samples;
    }
    for (int i = begin; i < end; ++i) {
      const A index = static_cast<A>(bin_size < 0 ? samples - 1 - i : i);
      A position = add(bin_start, multiply(index + A(0.5), bin_size) / grid);
      if (!(position >= -1 && position <= static_cast<A>(extent))) {
        continue;
      }
      position = fmax(position, A(0));
      const int below = static_cast<int>(position);
      const int pixel = below < extent - 1 ? below : extent - 1;
      const A fraction = pixel == extent - 1 ? A(0) : position - static_cast<A>(pixel);
#pragma unroll 1
      for (int side = 0; side < 2; ++side) {
        const A weight = side == 0 ? A(1) - fraction : fraction;
        if (weight > 0) {
          f(pixel + side, weight);
        }
      }
    }
  }
};

template <typename A>
struct Roi {
  int level;
  int image;
  Axis<A> y;
  Axis<A> x;
};

// -1 for a roi of negative area, which has none.
template <typename A>
__device__ inline int level_of(const RoIAlignArgs& args, const A* roi) {
  if (args.num_levels == 1) {
    return 0;
  }
  const A size = sqrt(multiply(add(roi[3], -roi[1]), add(roi[4], -roi[2])));
  const A relative = log2(size / static_cast<A>(args.canonical_scale));
  const A level = floor(add(add(static_cast<A>(args.canonical_level), relative), A(1e-6))) -
                  static_cast<A>(args.min_level);
  if (isnan(level)) {
    return -1;
  }
  return level > 0 ? static_cast<int>(fmin(level, static_cast<A>(args.num_levels - 1))) : 0;
}

template <typename A>
__device__ inline Axis<A> axis_of(
    const RoIAlignArgs& args, A low, A high, double spatial_scale, int64_t bins, int64_t extent
) {
  const A scale = static_cast<A>(spatial_scale);
  const A offset = args.aligned ? A(0.5) : A(0);
  Axis<A> axis;
  axis.start = add(multiply(low, scale), -offset);
  A size = add(add(multiply(high, scale), -offset), -axis.start);
  if (!args.aligned) {
    size = fmax(size, A(1));
  }
  axis.bin_size = size / static_cast<A>(bins);
  axis.grid = args.sampling_ratio > 0 ? static_cast<A>(args.sampling_ratio)
                                      : fmax(ceil(axis.bin_size), A(0));
  axis.samples = extent > 0 && axis.grid <= kMaxSamples ? static_cast<int>(axis.grid) : 0;
  axis.bins = static_cast<int>(bins);
  axis.extent = static_cast<int>(extent);
  return axis;
}

// Without samples where it gives zeros; its level and image are in range in any case.
template <typename A>
__device__ inline Roi<A> read_roi(const RoIAlignArgs& args, int64_t k) {
  const A* p = static_cast<const A*>(args.rois) + 5 * k;
  A roi[5];
  bool usable = true;
#pragma unroll
  for (int i = 0; i < 5; ++i) {
    roi[i] = p[i];
    usable = usable && isfinite(roi[i]);
  }
  // without images every index is out of range, -0.5 too
  usable = usable && args.N > 0 && roi[0] > -1 && roi[0] < static_cast<A>(args.N);
  const int level = usable ? level_of(args, roi) : -1;
  usable = level >= 0;
  Roi<A> result;
  result.level = usable ? level : 0;
  result.image = usable ? static_cast<int>(roi[0]) : 0;
  const RoIAlignLevel& map = args.levels[result.level];
  result.y = axis_of(args, roi[2], roi[4], map.spatial_scale, args.PH, map.H);
  result.x = axis_of(args, roi[1], roi[3], map.spatial_scale, args.PW, map.W);
  if (!usable) {
    result.y.samples = result.x.samples = 0;
  }
  return result;
}

// The smallest power of two from `low` to `high` that is at least n, or `high`.
__host__ __device__ inline int power_of_two(int64_t n, int low, int high) {
  int power = low;
  while (power < n && power < high) {
    power *= 2;
  }
  return power;
}

inline dim3 grid_of(int64_t blocks) {
  if (blocks > INT32_MAX) {
    throw std::runtime_error("roi_align: too large for a CUDA grid");
  }
  return dim3(static_cast<unsigned>(blocks));
}

// Can packs of kWidth channels be moved as one?
template <typename T, int kWidth>
inline bool vectors_fit(const RoIAlignArgs& args) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(args.pooled);
  for (int level = 0; level < args.num_levels; ++level) {
    bits |= reinterpret_cast<uintptr_t>(args.levels[level].features);
  }
  return args.C % kWidth == 0 && bits % (kWidth * sizeof(T)) == 0;
}

}  // namespace
}  // namespace fastvision
