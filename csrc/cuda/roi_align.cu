// RoIAlign's forward. A CTA builds the taps of its roi's bins once, in shared memory: pixels and
// weights per axis, neighbouring samples merged, so a bin of G x G samples costs about (G + 1)^2
// taps and not 4 G^2. Then threads go over channels (channels_last) or over bins (NCHW).
#include <algorithm>

#include "cuda/roi_align.cuh"

namespace fastvision {
namespace {

constexpr int kInFlight = 4;              // taps loaded before the first is used
constexpr int kMaxTableBytes = 24 << 10;  // taps of a roi that need more are computed at each use
constexpr int kChannelsPerBlock = 64;     // NCHW
constexpr int kPlanes = 4;                // NCHW: channels that a warp handles at once
constexpr int kPatchBytes = 4 << 10;      // NCHW: a warp's copy of the roi's pixels

template <typename A>
struct Tap {
  int pixel;
  A weight;
};

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
template <typename A>
struct AxisTable {
  Tap<A>* taps;
  TapRange* ranges;  // [bins]
  bool by_pixel;  // a bin's taps begin at its first pixel, and `stride` more for each bin before it
  int stride;
  bool fits;

  __device__ AxisTable(const Axis<A>& axis, Tap<A>* taps, TapRange* ranges, int capacity)
      : taps(taps), ranges(ranges) {
    const int64_t most = 2 * static_cast<int64_t>(axis.samples);
    by_pixel = most * axis.bins > capacity;
    // neighbouring bins can share three pixels, and those that rounding takes a sample past
    stride = static_cast<int>(by_pixel ? fmin(3 + axis.rounding(), A(kMaxSamples)) : A(most));
    fits = !by_pixel || axis.extent + static_cast<int64_t>(stride) * axis.bins <= capacity;
  }

  __device__ void fill(const Axis<A>& axis, int bin) const {
    const int rank = axis.bin_size < 0 ? axis.bins - 1 - bin : bin;
    Tap<A>* bin_taps = taps + rank * stride;
    int count = 0;
    axis.for_each_tap(bin, 0, axis.extent - 1, [&](int pixel, A weight) {
      if (count == 0 && by_pixel) {
        bin_taps += pixel;
      }
      // a pixel is among the last two, or new
      for (int i = count - 1; i >= 0 && i >= count - 2; --i) {
        if (bin_taps[i].pixel == pixel) {
          bin_taps[i].weight += weight;
          return;
        }
      }
      bin_taps[count++] = {pixel, weight};
    });
    const A scale = A(1) / axis.grid;
    for (int i = 0; i < count; ++i) {
      bin_taps[i].weight *= scale;
    }
    ranges[bin] = {static_cast<int>(bin_taps - taps), count};
  }

  __device__ BinTaps<A> operator[](int bin) const {
    return {taps + ranges[bin].begin, ranges[bin].count};
  }
};

// How the work is cut into blocks, and the shared memory of a block.
struct ForwardPlan {
  int lanes;       // channels_last: threads that share a pixel's channels
  int slabs;       // pieces of the channels
  int parts;       // channels_last: pieces of the bins
  int capacity_y;  // taps in the tables
  int capacity_x;
  size_t table_bytes;  // 0: without tables
};

template <typename A>
struct RoiTable {
  AxisTable<A> y;
  AxisTable<A> x;
  bool fits;

  // memory: taps of y and x, ranges of y and x
  __device__ RoiTable(const Roi<A>& roi, const ForwardPlan& plan, unsigned char* memory)
      : RoiTable(roi, plan, reinterpret_cast<Tap<A>*>(memory)) {}

 private:
  __device__ RoiTable(const Roi<A>& roi, const ForwardPlan& plan, Tap<A>* taps)
      : RoiTable(
            roi, plan, taps, reinterpret_cast<TapRange*>(taps + (plan.capacity_y + plan.capacity_x))
        ) {}

  __device__ RoiTable(const Roi<A>& roi, const ForwardPlan& plan, Tap<A>* taps, TapRange* ranges)
      : y(roi.y, taps, ranges, plan.capacity_y),
        x(roi.x, taps + plan.capacity_y, ranges + roi.y.bins, plan.capacity_x) {
    fits = plan.table_bytes > 0 && y.fits && x.fits;
    if (fits) {
      for (int i = threadIdx.x; i < roi.y.bins + roi.x.bins; i += kThreads) {
        const bool is_y = i < roi.y.bins;
        const AxisTable<A> table = is_y ? y : x;
        const Axis<A> axis = is_y ? roi.y : roi.x;
        table.fill(axis, is_y ? i : i - roi.y.bins);
      }
    }
    __syncthreads();
  }
};

// Calls f(y, x, weight) for the taps of a bin, one by one, without a table.
template <typename A, typename F>
__device__ void for_each_tap(const Roi<A>& roi, int ph, int pw, F f) {
  roi.y.for_each_tap(ph, 0, roi.y.extent - 1, [&](int y, A y_weight) {
    roi.x.for_each_tap(pw, 0, roi.x.extent - 1, [&](int x, A x_weight) {
      f(y, x, y_weight / roi.y.grid * (x_weight / roi.x.grid));
    });
  });
}

template <typename T, int kWidth, bool kVector>
__device__ void sum_taps(
    accumulate_t<T> (&sum)[kWidth],
    const BinTaps<accumulate_t<T>>& ys,
    const BinTaps<accumulate_t<T>>& xs,
    const Channels<T, kWidth, kVector>& channels,
    const T* image,
    int64_t row
) {
  using Group = Channels<T, kWidth, kVector>;
  const int taps = ys.count * xs.count;
  int i = 0;
  int j = 0;
  for (int tap = 0; tap < taps; tap += kInFlight) {
    typename Group::Values values[kInFlight];
    accumulate_t<T> weights[kInFlight];
#pragma unroll
    for (int q = 0; q < kInFlight; ++q) {
      if (tap + q < taps) {
        const Tap<accumulate_t<T>> y = ys.taps[i];
        const Tap<accumulate_t<T>> x = xs.taps[j];
        weights[q] = y.weight * x.weight;
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
        Group::multiply_add(sum, weights[q], values[q]);
      }
    }
  }
}

template <typename T, bool kVector>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2) roi_align_channels_last_kernel(
    const __grid_constant__ RoIAlignArgs args, const __grid_constant__ ForwardPlan plan
) {
  using A = accumulate_t<T>;
  constexpr int kWidth = kVector ? 16 / sizeof(T) : 4;
  FASTVISION_DYNAMIC_SHARED(memory);

  const int part = blockIdx.x % plan.parts;
  const int slab = blockIdx.x / plan.parts % plan.slabs;
  const int64_t k = blockIdx.x / plan.parts / plan.slabs;
  const Roi<A> roi = read_roi<A>(args, k);
  const RoiTable<A> table(roi, plan, memory);

  const int C = static_cast<int>(args.C);
  const Channels<T, kWidth, kVector> channels(slab, threadIdx.x % plan.lanes, plan.lanes, C);
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
      A sum[kWidth] = {};
      sum_taps(sum, table.y[ph], table.x[bin - ph * PW], channels, image, row);
      channels.store(pooled + static_cast<int64_t>(bin) * C, sum);
    }
  } else {
    const Roi<A> axes = read_roi<A>(args, k);  // again: not kept in registers until here
    for (int bin = first; bin < bins; bin += step) {
      const int ph = bin / PW;
      A sum[kWidth] = {};
      for_each_tap(axes, ph, bin - ph * PW, [&](int y, int x, A weight) {
        channels.multiply_add(
            sum, weight, channels.load(image + y * row + static_cast<int64_t>(x) * C)
        );
      });
      channels.store(pooled + static_cast<int64_t>(bin) * C, sum);
    }
  }
}

// A few channels of a map, or of a warp's copy of its part from (y_begin, x_begin) on.
template <typename T, typename Offset>
struct Planes {
  using A = accumulate_t<T>;

  const T* corner;
  int y_begin;
  int x_begin;
  Offset row;
  Offset plane;
  int count;

  __device__ void multiply_add(A (&sum)[kPlanes], A weight, int y, int x) const {
    const T* pixel = corner + ((y - y_begin) * row + (x - x_begin));
#pragma unroll
    for (int q = 0; q < kPlanes; ++q) {
      if (q < count) {
        sum[q] += weight * widen(pixel[q * plane]);
      }
    }
  }

  // By one warp; sum_bin(sum, ph, pw) gives a bin.
  template <typename F>
  __device__ void pool_bins(T* pooled, int PH, int PW, F sum_bin) const {
    const int bins = PH * PW;
    for (int bin = threadIdx.x % 32; bin < bins; bin += 32) {
      const int ph = bin / PW;
      A sum[kPlanes] = {};
      sum_bin(sum, ph, bin - ph * PW);
#pragma unroll
      for (int q = 0; q < kPlanes; ++q) {
        if (q < count) {
          pooled[static_cast<int64_t>(q) * bins + bin] = narrow<T>(sum[q]);
        }
      }
    }
  }

  __device__ void pool(T* pooled, int PH, int PW, const RoiTable<A>& table) const {
    pool_bins(pooled, PH, PW, [&](A(&sum)[kPlanes], int ph, int pw) {
      const BinTaps<A> ys = table.y[ph];
      const BinTaps<A> xs = table.x[pw];
      for (int i = 0; i < ys.count; ++i) {
        const Tap<A> y = ys.taps[i];
        for (int j = 0; j < xs.count; ++j) {
          const Tap<A> x = xs.taps[j];
          multiply_add(sum, y.weight * x.weight, y.pixel, x.pixel);
        }
      }
    });
  }

  __device__ void pool(T* pooled, const Roi<A>& roi) const {
    pool_bins(pooled, roi.y.bins, roi.x.bins, [&](A(&sum)[kPlanes], int ph, int pw) {
      for_each_tap(roi, ph, pw, [&](int y, int x, A weight) { multiply_add(sum, weight, y, x); });
    });
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2) roi_align_planar_kernel(
    const __grid_constant__ RoIAlignArgs args, const __grid_constant__ ForwardPlan plan
) {
  using A = accumulate_t<T>;
  constexpr int kPatch = kPatchBytes / sizeof(T);
  __shared__ int limits[4];  // of the pixels that the roi touches: first and -last of y, of x
  FASTVISION_DYNAMIC_SHARED(memory);

  const int slab = blockIdx.x % plan.slabs;
  const int64_t k = blockIdx.x / plan.slabs;
  const Roi<A> roi = read_roi<A>(args, k);
  if (threadIdx.x < 4) {
    limits[threadIdx.x] = INT32_MAX;
  }
  const RoiTable<A> table(roi, plan, memory + kWarps * kPatchBytes);
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
      const Planes<T, int> planes{patch, ys.begin, xs.begin, xs.count, pixels, count};
      planes.pool(pooled, PH, PW, table);
      __syncwarp();
    } else {
      const Planes<T, int64_t> planes{map, 0, 0, row, plane, count};
      if (table.fits) {
        planes.pool(pooled, PH, PW, table);
      } else {
        planes.pool(pooled, read_roi<A>(args, k));
      }
    }
  }
}

template <typename A>
void plan_tables(const RoIAlignArgs& args, ForwardPlan* plan) {
  int64_t H = 0;
  int64_t W = 0;
  for (int level = 0; level < args.num_levels; ++level) {
    H = std::max(H, args.levels[level].H);
    W = std::max(W, args.levels[level].W);
  }
  const int64_t range_bytes = (args.PH + args.PW) * sizeof(TapRange);
  if (range_bytes > kMaxTableBytes / 2) {
    return;
  }
  const int64_t half = (kMaxTableBytes - range_bytes) / 2 / sizeof(Tap<A>);
  const auto capacity = [&](int64_t extent, int64_t bins) {
    const int64_t adaptive = extent + 3 * bins;
    const int64_t ratio = std::min<int64_t>(args.sampling_ratio, kMaxSamples);
    return std::min(half, ratio > 0 ? std::min(2 * ratio * bins, adaptive) : adaptive);
  };
  plan->capacity_y = static_cast<int>(capacity(H, args.PH));
  plan->capacity_x = static_cast<int>(capacity(W, args.PW));
  plan->table_bytes = (plan->capacity_y + plan->capacity_x) * sizeof(Tap<A>) + range_bytes;
}

template <typename T, bool kVector>
void launch_channels_last(const RoIAlignArgs& args, ForwardPlan plan, cudaStream_t stream) {
  constexpr int kWidth = kVector ? 16 / sizeof(T) : 4;
  constexpr int64_t kEnoughBlocks = 1024;  // to fill a large GPU, beyond which bins stay together
  plan.lanes = power_of_two(ceil_div(args.C, kWidth), 4, 32);
  const int64_t slabs = ceil_div(args.C, plan.lanes * kWidth);
  const int64_t passes = ceil_div(args.PH * args.PW, kThreads / plan.lanes);
  plan.slabs = static_cast<int>(slabs);
  plan.parts = static_cast<int>(std::clamp<int64_t>(kEnoughBlocks / (args.K * slabs), 1, passes));
  launch(
      roi_align_channels_last_kernel<T, kVector>,
      grid_of(args.K * slabs * plan.parts),
      kThreads,
      plan.table_bytes,
      stream,
      args,
      plan
  );
}

}  // namespace

template <typename T>
void launch_roi_align_forward(const RoIAlignArgs& args, CUstream_st* stream) {
  ForwardPlan plan{};
  plan_tables<accumulate_t<T>>(args, &plan);
  if (!args.channels_last) {
    plan.slabs = static_cast<int>(ceil_div(args.C, kChannelsPerBlock));
    launch(
        roi_align_planar_kernel<T>,
        grid_of(args.K * plan.slabs),
        kThreads,
        kWarps * kPatchBytes + plan.table_bytes,
        stream,
        args,
        plan
    );
  } else if (vectors_fit<T, 16 / sizeof(T)>(args)) {
    launch_channels_last<T, true>(args, plan, stream);
  } else {
    launch_channels_last<T, false>(args, plan, stream);
  }
}

template void launch_roi_align_forward<float>(const RoIAlignArgs&, CUstream_st*);
template void launch_roi_align_forward<double>(const RoIAlignArgs&, CUstream_st*);
template void launch_roi_align_forward<half_t>(const RoIAlignArgs&, CUstream_st*);
template void launch_roi_align_forward<bfloat16_t>(const RoIAlignArgs&, CUstream_st*);

}  // namespace fastvision
