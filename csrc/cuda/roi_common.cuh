// What the GPU kernels of RoI ops share: reductions, loads and stores of several channels at once,
// and launch sizes.
#pragma once

#include <cstdint>

#include "common/cuda.cuh"
#include "common/roi_geometry.h"
#include "common/roi_op.h"
#include "common/scalar.h"
#include "ops/roi.h"

namespace fastvision {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Reduces one channel over a bin's pixels, one add() each. weight() is what a pixel is added with,
// by its taps on both axes.
template <typename Reduction, typename A>
struct Accumulator;

template <typename A>
struct Accumulator<WeightedSum, A> {
  A value = 0;

  __device__ static A weight(const Tap<A>& y, const Tap<A>& x) { return y.weight * x.weight; }
  __device__ void add(A pixel, A weight) { value += weight * pixel; }
};

// kWidth channels of a thread: side by side and moved as one, or kStride lanes apart (any C and
// alignment) and moved one by one.
template <typename T, int kWidth, bool kVector>
struct ChannelGroup {
  struct alignas(sizeof(T) * kWidth) Values {
    T v[kWidth];
  };

  int first;
  int stride;
  int C;

  // `group` counts from 0 the threads that share a pixel's channels, `lane` is within its `lanes`
  __device__ ChannelGroup(int group, int lane, int lanes, int C)
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

  template <typename Sum>
  __device__ void store(T* pixel, const Sum (&sum)[kWidth]) const {
    Values values;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      values.v[i] = narrow<T>(sum[i].value);
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

  template <typename Sum, typename Weight>
  __device__ static void add(Sum (&sum)[kWidth], const Values& values, Weight weight) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      sum[i].add(widen(values.v[i]), weight);
    }
  }
};

// Where a bin of a channel of a roi is in the output.
__device__ inline int64_t place_of(const RoiArgs& args, int64_t k, int64_t c, int64_t bin) {
  const int64_t bins = args.PH * args.PW;
  return args.channels_last ? (k * bins + bin) * args.C + c : (k * args.C + c) * bins + bin;
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
    throw std::runtime_error("RoI op: too large for a CUDA grid");
  }
  return dim3(static_cast<unsigned>(blocks));
}

// Can packs of kWidth channels be moved as one?
template <typename T, int kWidth>
inline bool vectors_fit(const RoiArgs& args) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(args.pooled);
  for (int level = 0; level < args.num_levels; ++level) {
    bits |= reinterpret_cast<uintptr_t>(args.levels[level].features);
  }
  return args.C % kWidth == 0 && bits % (kWidth * sizeof(T)) == 0;
}

}  // namespace
}  // namespace fastvision
