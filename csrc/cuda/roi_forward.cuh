// Forward of the RoI ops on the GPU: a CTA tables the taps of its roi, then threads go over
// channels (channels_last) or over bins (NCHW).
#pragma once

#include <algorithm>

#include "cuda/roi_common.cuh"
#include "cuda/roi_table.cuh"

namespace fastvision {
namespace {

constexpr int kInFlight = 4;           // taps loaded before the first is used
constexpr int kChannelsPerBlock = 64;  // NCHW
constexpr int kPlanes = 4;             // NCHW: channels that a warp handles at once
constexpr int kPatchBytes = 4 << 10;   // NCHW: a warp's copy of the roi's pixels

// How the work is cut into blocks, and the shared memory of a block.
struct ForwardPlan {
  int lanes;  // channels_last: threads that share a pixel's channels
  int slabs;  // pieces of the channels
  int parts;  // channels_last: pieces of the bins
  TablePlan table;
};

template <typename Sum, typename T, int kWidth, bool kVector>
__device__ void reduce_taps(
    Sum (&sum)[kWidth],
    const BinTaps<accumulate_t<T>>& ys,
    const BinTaps<accumulate_t<T>>& xs,
    const ChannelGroup<T, kWidth, kVector>& channels,
    const T* image,
    int64_t row
) {
  using A = accumulate_t<T>;
  using Group = ChannelGroup<T, kWidth, kVector>;
  const int taps = ys.count * xs.count;
  int i = 0;
  int j = 0;
  for (int tap = 0; tap < taps; tap += kInFlight) {
    typename Group::Values values[kInFlight];
    decltype(Sum::weight(Tap<A>{}, Tap<A>{})) weights[kInFlight];
#pragma unroll
    for (int q = 0; q < kInFlight; ++q) {
      if (tap + q < taps) {
        const Tap<A> y = ys.taps[i];
        const Tap<A> x = xs.taps[j];
        weights[q] = Sum::weight(y, x);
        values[q] =
            channels.load(image + y.pixel * row + static_cast<int64_t>(x.pixel) * channels.C);
        if (++j == xs.count) {
          j = 0;
          ++i;
        }
      }
    }
#pragma unroll
    for (int q = 0; q < kInFlight; ++q) {
      if (tap + q < taps) {
        Group::add(sum, values[q], weights[q]);
      }
    }
  }
}

template <typename Op, typename T, bool kVector>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2) roi_channels_last_kernel(
    const __grid_constant__ RoiArgs args, const __grid_constant__ ForwardPlan plan
) {
  using A = accumulate_t<T>;
  using Axis = typename Op::template Axis<A>;
  using Sum = Accumulator<typename Op::Reduction, A>;
  static_assert(Op::Channels::kSharedByBins, "a thread takes all bins from its own channels");
  constexpr int kWidth = kVector ? 16 / sizeof(T) : 4;
  FASTVISION_DYNAMIC_SHARED(memory);

  const int part = blockIdx.x % plan.parts;
  const int slab = blockIdx.x / plan.parts % plan.slabs;
  const int64_t k = blockIdx.x / plan.parts / plan.slabs;
  const Roi<Axis> roi = read_roi<Axis>(args, k);
  const RoiTable<Axis> table(roi, plan.table, memory);

  const int C = static_cast<int>(args.C);
  const ChannelGroup<T, kWidth, kVector> channels(slab, threadIdx.x % plan.lanes, plan.lanes, C);
  if (channels.empty()) {
    return;
  }
  const int64_t row = static_cast<int64_t>(roi.x.extent) * C;
  const T* image =
      static_cast<const T*>(args.levels[roi.level].features) + roi.image * (roi.y.extent * row);
  const int PW = static_cast<int>(args.PW);
  const int bins = static_cast<int>(args.PH) * PW;
  T* pooled = static_cast<T*>(args.pooled) + k * bins * C;
  const int groups = kThreads / plan.lanes;
  const int first = part * groups + threadIdx.x / plan.lanes;
  const int step = plan.parts * groups;
  if (table.fits) {
    for (int bin = first; bin < bins; bin += step) {
      const int ph = bin / PW;
      Sum sum[kWidth];
      reduce_taps(sum, table.y[ph], table.x[bin - ph * PW], channels, image, row);
      channels.store(pooled + static_cast<int64_t>(bin) * C, sum);
    }
  } else {
    const Roi<Axis> axes = read_roi<Axis>(args, k);  // again: not kept in registers until here
    for (int bin = first; bin < bins; bin += step) {
      const int ph = bin / PW;
      Sum sum[kWidth];
      for_each_tap(axes, ph, bin - ph * PW, [&](const Tap<A>& y, const Tap<A>& x) {
        const auto pixel = channels.load(image + y.pixel * row + static_cast<int64_t>(x.pixel) * C);
        channels.add(sum, pixel, Sum::weight(y, x));
      });
      channels.store(pooled + static_cast<int64_t>(bin) * C, sum);
    }
  }
}

// A few channels of a map, or of a warp's copy of its part from (y_begin, x_begin) on.
template <typename Op, typename T, typename Offset>
struct Planes {
  using A = accumulate_t<T>;
  using Axis = typename Op::template Axis<A>;
  using Sum = Accumulator<typename Op::Reduction, A>;

  const T* corner;
  int y_begin;
  int x_begin;
  Offset row;
  Offset plane;
  int count;

  __device__ void add(Sum (&sum)[kPlanes], const Tap<A>& y, const Tap<A>& x) const {
    const auto weight = Sum::weight(y, x);
    const T* pixel = corner + ((y.pixel - y_begin) * row + (x.pixel - x_begin));
#pragma unroll
    for (int q = 0; q < kPlanes; ++q) {
      if (q < count) {
        sum[q].add(widen(pixel[q * plane]), weight);
      }
    }
  }

  // By one warp; add_bin(sum, ph, pw) adds the taps of a bin.
  template <typename F>
  __device__ void pool_bins(T* pooled, int PH, int PW, F add_bin) const {
    const int bins = PH * PW;
    for (int bin = threadIdx.x % 32; bin < bins; bin += 32) {
      const int ph = bin / PW;
      Sum sum[kPlanes];
      add_bin(sum, ph, bin - ph * PW);
#pragma unroll
      for (int q = 0; q < kPlanes; ++q) {
        if (q < count) {
          pooled[static_cast<int64_t>(q) * bins + bin] = narrow<T>(sum[q].value);
        }
      }
    }
  }

  __device__ void pool(T* pooled, int PH, int PW, const RoiTable<Axis>& table) const {
    pool_bins(pooled, PH, PW, [&](Sum(&sum)[kPlanes], int ph, int pw) {
      const BinTaps<A> ys = table.y[ph];
      const BinTaps<A> xs = table.x[pw];
      for (int i = 0; i < ys.count; ++i) {
        const Tap<A> y = ys.taps[i];
        for (int j = 0; j < xs.count; ++j) {
          add(sum, y, xs.taps[j]);
        }
      }
    });
  }

  __device__ void pool(T* pooled, const Roi<Axis>& roi) const {
    pool_bins(pooled, roi.y.bins, roi.x.bins, [&](Sum(&sum)[kPlanes], int ph, int pw) {
      for_each_tap(roi, ph, pw, [&](const Tap<A>& y, const Tap<A>& x) { add(sum, y, x); });
    });
  }
};

template <typename Op, typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2) roi_planar_kernel(
    const __grid_constant__ RoiArgs args, const __grid_constant__ ForwardPlan plan
) {
  using A = accumulate_t<T>;
  using Axis = typename Op::template Axis<A>;
  static_assert(Op::Channels::kSharedByBins, "a warp takes all bins from its own planes");
  constexpr int kPatch = kPatchBytes / sizeof(T);
  __shared__ int limits[4];  // of the pixels that the roi touches: first and -last of y, of x
  FASTVISION_DYNAMIC_SHARED(memory);

  const int slab = blockIdx.x % plan.slabs;
  const int64_t k = blockIdx.x / plan.slabs;
  const Roi<Axis> roi = read_roi<Axis>(args, k);
  if (threadIdx.x < 4) {
    limits[threadIdx.x] = INT32_MAX;
  }
  const RoiTable<Axis> table(roi, plan.table, memory + kWarps * kPatchBytes);
  const int PH = static_cast<int>(args.PH);
  const int PW = static_cast<int>(args.PW);
  if (table.fits) {
    for (int i = threadIdx.x; i < PH + PW; i += kThreads) {
      const BinTaps<A> taps = i < PH ? table.y[i] : table.x[i - PH];
      if (taps.count > 0) {
        atomicMin(&limits[i < PH ? 0 : 2], taps.taps[0].pixel);
        atomicMin(&limits[i < PH ? 1 : 3], -taps.taps[taps.count - 1].pixel);
      }
    }
  }
  __syncthreads();
  const bool touches = limits[0] != INT32_MAX && limits[2] != INT32_MAX;
  const TapRange ys = touches ? TapRange{limits[0], 1 - limits[1] - limits[0]} : TapRange{0, 0};
  const TapRange xs = touches ? TapRange{limits[2], 1 - limits[3] - limits[2]} : TapRange{0, 0};

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  T* patch = reinterpret_cast<T*>(memory) + warp * kPatch;
  const int64_t patch_pixels = static_cast<int64_t>(ys.count) * xs.count;
  const bool staged = patch_pixels > 0 && patch_pixels <= kPatch;
  const int step = !staged                            ? kPlanes
                   : patch_pixels * kPlanes <= kPatch ? kPlanes
                   : patch_pixels * 2 <= kPatch       ? 2
                                                      : 1;

  const int C = static_cast<int>(args.C);
  const int64_t row = roi.x.extent;
  const int64_t plane = roi.y.extent * row;
  const T* image = static_cast<const T*>(args.levels[roi.level].features) + roi.image * (C * plane);
  T* pooled_roi = static_cast<T*>(args.pooled) + k * C * PH * PW;
  const int begin = slab * kChannelsPerBlock;
  const int end = C - begin < kChannelsPerBlock ? C : begin + kChannelsPerBlock;
  for (int c = begin + warp * step; c < end; c += kWarps * step) {
    const int count = end - c < step ? end - c : step;
    const T* map = image + c * plane;
    T* pooled = pooled_roi + static_cast<int64_t>(c) * PH * PW;
    if (staged) {
      // lanes side by side in a row, and as many rows at once as that leaves
      const int row_lanes = power_of_two(xs.count, 1, 32);
      const T* corner = map + ys.begin * row + xs.begin;
      for (int q = 0; q < count; ++q) {
        for (int x = lane % row_lanes; x < xs.count; x += row_lanes) {
#pragma unroll 4
          for (int y = lane / row_lanes; y < ys.count; y += 32 / row_lanes) {
            patch[(q * ys.count + y) * xs.count + x] = corner[q * plane + y * row + x];
          }
        }
      }
      __syncwarp();
      const int pixels = static_cast<int>(patch_pixels);
      const Planes<Op, T, int> planes{patch, ys.begin, xs.begin, xs.count, pixels, count};
      planes.pool(pooled, PH, PW, table);
      __syncwarp();
    } else {
      const Planes<Op, T, int64_t> planes{map, 0, 0, row, plane, count};
      if (table.fits) {
        planes.pool(pooled, PH, PW, table);
      } else {
        planes.pool(pooled, read_roi<Axis>(args, k));
      }
    }
  }
}

template <typename Op, typename T, bool kVector>
void launch_channels_last(const RoiArgs& args, ForwardPlan plan, cudaStream_t stream) {
  constexpr int kWidth = kVector ? 16 / sizeof(T) : 4;
  constexpr int64_t kEnoughBlocks = 1024;  // to fill a large GPU, beyond which bins stay together
  plan.lanes = power_of_two(ceil_div(args.C, kWidth), 4, 32);
  const int64_t slabs = ceil_div(args.C, plan.lanes * kWidth);
  const int64_t passes = ceil_div(args.PH * args.PW, kThreads / plan.lanes);
  plan.slabs = static_cast<int>(slabs);
  plan.parts = static_cast<int>(std::clamp<int64_t>(kEnoughBlocks / (args.K * slabs), 1, passes));
  launch(
      roi_channels_last_kernel<Op, T, kVector>,
      grid_of(args.K * slabs * plan.parts),
      kThreads,
      plan.table.bytes,
      stream,
      args,
      plan
  );
}

}  // namespace

template <typename Op, typename T>
void launch_roi_forward(const RoiArgs& args, CUstream_st* stream) {
  ForwardPlan plan{};
  plan.table = plan_tables<typename Op::template Axis<accumulate_t<T>>>(args);
  if (!args.channels_last) {
    plan.slabs = static_cast<int>(ceil_div(args.C, kChannelsPerBlock));
    launch(
        roi_planar_kernel<Op, T>,
        grid_of(args.K * plan.slabs),
        kThreads,
        kWarps * kPatchBytes + plan.table.bytes,
        stream,
        args,
        plan
    );
  } else if (vectors_fit<T, 16 / sizeof(T)>(args)) {
    launch_channels_last<Op, T, true>(args, plan, stream);
  } else {
    launch_channels_last<Op, T, false>(args, plan, stream);
  }
}

}  // namespace fastvision
