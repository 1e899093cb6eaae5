// RoI ops that sum over a position-sensitive map, on the GPU. A bin has channels of its own, so a
// thread of the forward takes one bin of one channel. The backward gathers as in roi_backward.cuh:
// each channel of the map has one bin per roi.
#pragma once

#include "cuda/roi_backward.cuh"
#include "cuda/roi_table.cuh"

namespace fastvision {
namespace {

constexpr int kBinsPerThread = 4;
constexpr int kSums = 8;           // channels of a thread of the backward
constexpr int kChannelLanes = 32;  // channels_last: threads side by side in the channels

// Where a channel of the map is pooled to in the output of its roi.
__device__ inline int place_of(const RoiArgs& args, int channel) {
  if (!args.channels_last) {
    return channel;
  }
  const int bins = static_cast<int>(args.PH * args.PW);
  return channel % bins * static_cast<int>(args.C / bins) + channel / bins;
}

template <typename Op, typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2) roi_sensitive_kernel(
    const __grid_constant__ RoiArgs args, const __grid_constant__ TablePlan plan, int slabs
) {
  using A = accumulate_t<T>;
  using Axis = typename Op::template Axis<A>;
  using Sum = Accumulator<typename Op::Reduction, A>;
  FASTVISION_DYNAMIC_SHARED(memory);
  const int64_t k = blockIdx.x / slabs;
  const Roi<Axis> roi = read_roi<Axis>(args, k);
  const RoiTable<Axis> table(roi, plan, memory);
  const int C = static_cast<int>(args.C);
  const int PW = static_cast<int>(args.PW);
  const int bins = static_cast<int>(args.PH) * PW;
  const int64_t H = roi.y.extent;
  const int64_t W = roi.x.extent;
  const T* image = static_cast<const T*>(args.levels[roi.level].features) + roi.image * C * H * W;
  const int64_t pixel_stride = args.channels_last ? C : 1;
  T* pooled = static_cast<T*>(args.pooled) + k * C;
  // neighbouring threads have neighbouring channels of the map, thus neighbouring bins
  int64_t channel = static_cast<int64_t>(blockIdx.x % slabs) * (kThreads * kBinsPerThread);
  channel += threadIdx.x;
  for (int q = 0; q < kBinsPerThread && channel < C; ++q, channel += kThreads) {
    const int bin = static_cast<int>(channel) % bins;
    const int ph = bin / PW;
    const int pw = bin - ph * PW;
    const T* plane = image + (args.channels_last ? channel : channel * H * W);
    Sum sum;
    const auto add = [&](const Tap<A>& y, const Tap<A>& x) {
      sum.add(widen(plane[(y.pixel * W + x.pixel) * pixel_stride]), Sum::weight(y, x));
    };
    if (table.fits) {
      const BinTaps<A> ys = table.y[ph];
      const BinTaps<A> xs = table.x[pw];
      for (int i = 0; i < ys.count; ++i) {
        const Tap<A> y = ys.taps[i];
        for (int j = 0; j < xs.count; ++j) {
          add(y, xs.taps[j]);
        }
      }
    } else {
      for_each_tap(read_roi<Axis>(args, k), ph, pw, add);
    }
    pooled[place_of(args, static_cast<int>(channel))] = narrow<T>(sum.value);
  }
}

// A thread's part of a tile: one pixel, and kSums channels with a bin each.
template <typename Op, typename T>
struct SensitiveSum {
  using A = accumulate_t<T>;
  using Weights = TileWeights<typename Op::template Axis<A>>;
  using Sum = Accumulator<WeightedSum, A>;
  static constexpr int kMinBlocks = sizeof(T) == 8 ? 1 : 2;

  int row;
  int column;
  int first_channel;
  int step;  // from a channel to the next
  int ph[kSums];
  int pw[kSums];
  Sum sum[kSums];

  __device__ SensitiveSum(const RoiArgs& args, const BackwardPlan& plan, const Tile& tile) {
    step = kThreads / (plan.tile_height * plan.tile_width);
    const int cell = threadIdx.x / step;
    row = cell / plan.tile_width;
    column = cell % plan.tile_width;
    first_channel = tile.slice * step * kSums + static_cast<int>(threadIdx.x) % step;
    const int PW = static_cast<int>(args.PW);
    const int bins = static_cast<int>(args.PH) * PW;
#pragma unroll
    for (int q = 0; q < kSums; ++q) {
      const int channel = first_channel + q * step;
      const int bin = channel % bins;
      // a channel past the end has a bin that no window contains
      ph[q] = channel < args.C ? bin / PW : -1;
      pw[q] = bin % PW;
    }
  }

  __device__ void add(
      const Weights& y, const Weights& x, const RoiArgs& args, const Window& window
  ) {
    const unsigned y_bins = y.bins[row];
    const unsigned x_bins = x.bins[column];
    if (y_bins == 0 || x_bins == 0) {
      return;
    }
    const T* pooled = static_cast<const T*>(args.pooled) + window.k * args.C;
#pragma unroll
    for (int q = 0; q < kSums; ++q) {
      const unsigned i = static_cast<unsigned>(ph[q] - window.ph);
      const unsigned j = static_cast<unsigned>(pw[q] - window.pw);
      if (i < kWindow && j < kWindow && (y_bins >> i & 1) != 0 && (x_bins >> j & 1) != 0) {
        const A weight = y.weights[i * y.pixels + row] * x.weights[j * x.pixels + column];
        sum[q].add(widen(pooled[place_of(args, first_channel + q * step)]), weight);
      }
    }
  }

  __device__ void store(const RoiArgs& args, const Tile& tile) const {
    const RoiLevel& map = args.levels[tile.level];
    const int64_t y = tile.y + row;
    const int64_t x = tile.x + column;
    if (y >= map.H || x >= map.W) {
      return;
    }
    T* grad = static_cast<T*>(map.features) + tile.image * args.C * map.H * map.W;
    const int64_t pixel = y * map.W + x;
#pragma unroll
    for (int q = 0; q < kSums; ++q) {
      const int64_t channel = first_channel + q * step;
      if (channel < args.C) {
        grad[args.channels_last ? pixel * args.C + channel : channel * map.H * map.W + pixel] =
            narrow<T>(sum[q].value);
      }
    }
  }
};

template <typename Op, typename T>
void sensitive_forward(const RoiArgs& args, cudaStream_t stream) {
  const TablePlan plan = plan_tables<typename Op::template Axis<accumulate_t<T>>>(args);
  const int64_t slabs = ceil_div(args.C, kThreads * kBinsPerThread);
  launch(
      roi_sensitive_kernel<Op, T>,
      grid_of(args.K * slabs),
      kThreads,
      plan.bytes,
      stream,
      args,
      plan,
      static_cast<int>(slabs)
  );
}

template <typename Op, typename T>
void sensitive_backward(const RoiArgs& args, cudaStream_t stream) {
  BackwardPlan plan{};
  int64_t W = 0;
  for (int level = 0; level < args.num_levels; ++level) {
    W = std::max(W, args.levels[level].W);
  }
  const int lanes = args.channels_last ? kChannelLanes : 1;
  plan.tile_width = args.channels_last ? kThreads / kChannelLanes : power_of_two(W, 8, 32);
  plan.tile_height = kThreads / lanes / plan.tile_width;
  plan.slices = static_cast<int>(ceil_div(args.C, lanes * kSums));
  launch_tiles<Op, T, SensitiveSum<Op, T>>(args, plan, stream);
}

}  // namespace
}  // namespace fastvision

#define FASTVISION_DEFINE_SENSITIVE_OF_TYPE(Op, T)                            \
  template <>                                                                 \
  void launch_roi_forward<Op, T>(const RoiArgs& args, CUstream_st* stream) {  \
    sensitive_forward<Op, T>(args, stream);                                   \
  }                                                                           \
  template <>                                                                 \
  void launch_roi_backward<Op, T>(const RoiArgs& args, CUstream_st* stream) { \
    sensitive_backward<Op, T>(args, stream);                                  \
  }
#define FASTVISION_DEFINE_SENSITIVE(Op)           \
  FASTVISION_DEFINE_SENSITIVE_OF_TYPE(Op, float)  \
  FASTVISION_DEFINE_SENSITIVE_OF_TYPE(Op, double) \
  FASTVISION_DEFINE_SENSITIVE_OF_TYPE(Op, half_t) \
  FASTVISION_DEFINE_SENSITIVE_OF_TYPE(Op, bfloat16_t)
