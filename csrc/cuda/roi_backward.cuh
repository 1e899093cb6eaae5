// Backward of the RoI ops that sum, on the GPU, as a gather. A CTA owns a tile of one gradient map,
// finds the rois that reach it, in their order, and sums A^T * grad * B over them in registers: no
// atomics, no zero fill, and the same bits in every run.
#pragma once

#include <algorithm>

#include "cuda/roi_tiles.cuh"

namespace fastvision {
namespace {

constexpr int kWindow = 32;    // bins of an axis handled at a time, one bit of a mask each
constexpr int kMaxBatch = 16;  // rois whose weights are in shared memory at a time
constexpr int kBatchBytes = 16 << 10;
constexpr int kTileWidth = 8;       // channels_last: pixels of a thread
constexpr int kPlanesPerTile = 16;  // NCHW: channels of a thread

struct BackwardPlan : TilePlan {
  int window_y;  // bins
  int window_x;
  int batch;
};

// Bins of a roi that are handled at a time, by their first ones.
struct Window {
  int64_t k;
  int ph;
  int pw;
};

// The gradient of the output from the window's first bin on, where all channels have all bins.
template <typename T>
__device__ const T* gradients_of(const RoiArgs& args, const Window& window) {
  const int64_t bin = window.ph * args.PW + window.pw;
  return static_cast<const T*>(args.pooled) + window.k * (args.C * args.PH * args.PW) +
         (args.channels_last ? bin * args.C : bin);
}

// Of one axis of a roi, for a window of bins and the pixels of a tile, in shared memory.
template <typename Axis>
struct TileWeights {
  using A = typename Axis::Value;

  A* weights;      // [bins, pixels]
  unsigned* bins;  // [pixels] the bins with a weight there, one bit each; zero at first
  int pixels;

  __device__ void fill(const Axis& axis, int window, int bin, int first_pixel) const {
    A* own = weights + bin * pixels;
    for (int i = 0; i < pixels; ++i) {
      own[i] = 0;
    }
    axis.for_each_tap(
        window + bin, first_pixel, first_pixel + pixels - 1, [&](int pixel, A weight) {
          const int i = pixel - first_pixel;
          if (i >= 0 && i < pixels) {
            own[i] += weight;
          }
        }
    );
    const A scale = A(1) / axis.divisor(window + bin);
    for (int i = 0; i < pixels; ++i) {
      if (own[i] != 0) {
        own[i] *= scale;
        atomicOr(&bins[i], 1u << bin);
      }
    }
  }
};

// The shared memory of a batch of rois: weights of y and x, then masks.
template <typename Axis>
struct BatchWeights {
  using A = typename Axis::Value;

  const BackwardPlan& plan;
  unsigned char* memory;

  __host__ __device__ static size_t bytes_per_roi(const BackwardPlan& plan) {
    return (plan.window_y * plan.tile_height + plan.window_x * plan.tile_width) * sizeof(A) +
           (plan.tile_height + plan.tile_width) * sizeof(unsigned);
  }
  __device__ unsigned* masks() const {
    const int weights = plan.window_y * plan.tile_height + plan.window_x * plan.tile_width;
    return reinterpret_cast<unsigned*>(memory + plan.batch * weights * sizeof(A));
  }
  __device__ int masks_per_roi() const { return plan.tile_height + plan.tile_width; }
  __device__ TileWeights<Axis> y(int roi) const {
    const int weights = plan.window_y * plan.tile_height;
    return {
        reinterpret_cast<A*>(memory) + roi * weights,
        masks() + roi * masks_per_roi(),
        plan.tile_height
    };
  }
  __device__ TileWeights<Axis> x(int roi) const {
    const int weights = plan.window_x * plan.tile_width;
    return {
        reinterpret_cast<A*>(memory) + plan.batch * plan.window_y * plan.tile_height +
            roi * weights,
        masks() + roi * masks_per_roi() + plan.tile_height,
        plan.tile_width
    };
  }
};

// A thread's part of a tile in channels_last: kTileWidth pixels of a row, and some channels.
template <typename Op, typename T, bool kVector>
struct ChannelsLastSum {
  using A = accumulate_t<T>;
  using Weights = TileWeights<typename Op::template Axis<A>>;
  using Sum = Accumulator<WeightedSum, A>;
  // 32 accumulators; more would leave registers for fewer threads
  static constexpr int kWidth = sizeof(T) == 8 ? 2 : 4;
  static constexpr int kInFlight = 4;  // bins loaded before the first is used
  static constexpr int kMinBlocks = sizeof(T) == 8 ? 1 : 2;
  using Group = ChannelGroup<T, kWidth, kVector>;

  Group channels;
  int row;
  Sum sum[kTileWidth][kWidth];

  // plan.tile_height is kThreads over the number of threads that share a pixel's channels
  __device__ ChannelsLastSum(const RoiArgs& args, const BackwardPlan& plan, const Tile& tile)
      : channels(
            tile.slice,
            threadIdx.x % (kThreads / plan.tile_height),
            kThreads / plan.tile_height,
            static_cast<int>(args.C)
        ),
        row(threadIdx.x / (kThreads / plan.tile_height)) {}

  __device__ void add(
      const Weights& y, const Weights& x, const RoiArgs& args, const Window& window
  ) {
    static_assert(Op::Channels::kSharedByBins, "a pixel takes the gradients of all bins");
    unsigned y_bins = y.bins[row];
    if (y_bins == 0 || channels.empty()) {
      return;
    }
    const T* pooled = gradients_of<T>(args, window);
    unsigned all_x_bins = 0;
#pragma unroll
    for (int i = 0; i < kTileWidth; ++i) {
      all_x_bins |= x.bins[i];
    }
    for (; y_bins != 0; y_bins &= y_bins - 1) {
      const int ph = __ffs(y_bins) - 1;
      const A y_weight = y.weights[ph * y.pixels + row];
      const int first_bin = ph * static_cast<int>(args.PW);
      for (unsigned x_bins = all_x_bins; x_bins != 0;) {
        typename Group::Values values[kInFlight];
        int pw[kInFlight];
#pragma unroll
        for (int q = 0; q < kInFlight; ++q) {
          pw[q] = __ffs(x_bins) - 1;
          x_bins &= x_bins - 1;
          if (pw[q] >= 0) {
            values[q] =
                channels.load(pooled + static_cast<int64_t>(first_bin + pw[q]) * channels.C);
          }
        }
#pragma unroll
        for (int q = 0; q < kInFlight; ++q) {
          if (pw[q] >= 0) {
            const A* x_weights = x.weights + pw[q] * kTileWidth;
#pragma unroll
            for (int i = 0; i < kTileWidth; ++i) {
              if (x_weights[i] != 0) {
                Group::add(sum[i], values[q], y_weight * x_weights[i]);
              }
            }
          }
        }
      }
    }
  }

  __device__ void store(const RoiArgs& args, const Tile& tile) const {
    const RoiLevel& map = args.levels[tile.level];
    if (tile.y + row >= map.H || channels.empty()) {
      return;
    }
    T* pixels =
        static_cast<T*>(map.features) +
        ((static_cast<int64_t>(tile.image) * map.H + tile.y + row) * map.W + tile.x) * args.C;
#pragma unroll
    for (int i = 0; i < kTileWidth; ++i) {
      if (tile.x + i < map.W) {
        channels.store(pixels + i * args.C, sum[i]);
      }
    }
  }
};

// A thread's part of a tile in NCHW: one pixel of kPlanesPerTile channels.
template <typename Op, typename T>
struct PlanarSum {
  using A = accumulate_t<T>;
  using Weights = TileWeights<typename Op::template Axis<A>>;
  using Sum = Accumulator<WeightedSum, A>;
  static constexpr int kMinBlocks = sizeof(T) == 8 ? 1 : 3;

  int row;
  int column;
  int64_t first_channel;
  int channels;
  Sum sum[kPlanesPerTile];

  __device__ PlanarSum(const RoiArgs& args, const BackwardPlan& plan, const Tile& tile)
      : row(threadIdx.x / plan.tile_width),
        column(threadIdx.x % plan.tile_width),
        first_channel(static_cast<int64_t>(tile.slice) * kPlanesPerTile) {
    const int64_t left = args.C - first_channel;
    channels = left < kPlanesPerTile ? static_cast<int>(left) : kPlanesPerTile;
  }

  __device__ void add(
      const Weights& y, const Weights& x, const RoiArgs& args, const Window& window
  ) {
    static_assert(Op::Channels::kSharedByBins, "a pixel takes the gradients of all bins");
    const int64_t plane = args.PH * args.PW;
    const T* planes = gradients_of<T>(args, window) + first_channel * plane;
    for (unsigned y_bins = y.bins[row]; y_bins != 0; y_bins &= y_bins - 1) {
      const int ph = __ffs(y_bins) - 1;
      const A y_weight = y.weights[ph * y.pixels + row];
      for (unsigned x_bins = x.bins[column]; x_bins != 0; x_bins &= x_bins - 1) {
        const int pw = __ffs(x_bins) - 1;
        const A weight = y_weight * x.weights[pw * x.pixels + column];
        const T* bin = planes + ph * args.PW + pw;
#pragma unroll
        for (int c = 0; c < kPlanesPerTile; ++c) {
          if (c < channels) {
            sum[c].add(widen(bin[c * plane]), weight);
          }
        }
      }
    }
  }

  __device__ void store(const RoiArgs& args, const Tile& tile) const {
    const RoiLevel& map = args.levels[tile.level];
    if (tile.y + row >= map.H || tile.x + column >= map.W) {
      return;
    }
    const int64_t plane = map.H * map.W;
    T* pixel = static_cast<T*>(map.features) +
               (static_cast<int64_t>(tile.image) * args.C + first_channel) * plane +
               (tile.y + row) * map.W + tile.x + column;
#pragma unroll
    for (int c = 0; c < kPlanesPerTile; ++c) {
      if (c < channels) {
        pixel[c * plane] = narrow<T>(sum[c].value);
      }
    }
  }
};

template <typename Op, typename T, typename TileSum>
__global__ void __launch_bounds__(kThreads, TileSum::kMinBlocks) roi_backward_kernel(
    const __grid_constant__ RoiArgs args, const __grid_constant__ BackwardPlan plan
) {
  using Axis = typename Op::template Axis<accumulate_t<T>>;
  FASTVISION_DYNAMIC_SHARED(memory);
  __shared__ int hits[kThreads];
  const BatchWeights<Axis> batch{plan, memory};

  __shared__ Tile tile;
  if (threadIdx.x == 0) {
    tile = tile_of(args, plan, blockIdx.x);
  }
  __syncthreads();
  TileSum sum(args, plan, tile);
  const int K = static_cast<int>(args.K);
  for (int first = 0; first < K; first += kThreads) {
    bool hit = false;
    const int k = first + static_cast<int>(threadIdx.x);
    if (k < K) {
      const Roi<Axis> roi = read_roi<Axis>(args, k);
      hit = roi.level == tile.level && roi.image == tile.image &&
            roi.y.reaches(tile.y, tile.y + plan.tile_height - 1) &&
            roi.x.reaches(tile.x, tile.x + plan.tile_width - 1);
    }
    const int count = compact(hit, hits);
    for (int begin = 0; begin < count; begin += plan.batch) {
      const int rois = count - begin < plan.batch ? count - begin : plan.batch;
      for (int ph = 0; ph < args.PH; ph += plan.window_y) {
        for (int pw = 0; pw < args.PW; pw += plan.window_x) {
          for (int i = threadIdx.x; i < rois * batch.masks_per_roi(); i += kThreads) {
            batch.masks()[i] = 0;
          }
          __syncthreads();
          const int bins = plan.window_y + plan.window_x;
          for (int i = threadIdx.x; i < rois * bins; i += kThreads) {
            const int r = i / bins;
            const int bin = i - r * bins;
            const Roi<Axis> roi = read_roi<Axis>(args, first + hits[begin + r]);
            const bool is_x = bin >= plan.window_y;
            const Axis axis = is_x ? roi.x : roi.y;
            const int axis_bin = is_x ? bin - plan.window_y : bin;
            const int window = is_x ? pw : ph;
            if (window + axis_bin < axis.bins) {
              (is_x ? batch.x(r) : batch.y(r)).fill(axis, window, axis_bin, is_x ? tile.x : tile.y);
            }
          }
          __syncthreads();
          for (int r = 0; r < rois; ++r) {
            sum.add(batch.y(r), batch.x(r), args, Window{first + hits[begin + r], ph, pw});
          }
          __syncthreads();
        }
      }
    }
  }
  sum.store(args, tile);
}

template <typename Op, typename T, typename TileSum>
void launch_tiles(const RoiArgs& args, BackwardPlan plan, cudaStream_t stream) {
  plan.count_blocks(args);
  if (plan.first_block[args.num_levels] == 0) {
    return;
  }
  plan.window_y = static_cast<int>(std::min<int64_t>(args.PH, kWindow));
  plan.window_x = static_cast<int>(std::min<int64_t>(args.PW, kWindow));
  const size_t bytes =
      BatchWeights<typename Op::template Axis<accumulate_t<T>>>::bytes_per_roi(plan);
  plan.batch = std::clamp(static_cast<int>(kBatchBytes / bytes), 1, kMaxBatch);
  launch(
      roi_backward_kernel<Op, T, TileSum>,
      grid_of(plan.first_block[args.num_levels]),
      kThreads,
      plan.batch * bytes,
      stream,
      args,
      plan
  );
}

template <typename Op, typename T, bool kVector>
void launch_channels_last(const RoiArgs& args, BackwardPlan plan, cudaStream_t stream) {
  using TileSum = ChannelsLastSum<Op, T, kVector>;
  const int lanes = power_of_two(ceil_div(args.C, TileSum::kWidth), 8, 32);
  plan.tile_height = kThreads / lanes;
  plan.tile_width = kTileWidth;
  plan.slices = static_cast<int>(ceil_div(args.C, lanes * TileSum::kWidth));
  launch_tiles<Op, T, TileSum>(args, plan, stream);
}

}  // namespace

template <typename Op, typename T>
void launch_roi_backward(const RoiArgs& args, CUstream_st* stream) {
  BackwardPlan plan{};
  if (!args.channels_last) {
    int64_t W = 0;
    for (int level = 0; level < args.num_levels; ++level) {
      W = std::max(W, args.levels[level].W);
    }
    plan.tile_width = power_of_two(W, 8, 32);
    plan.tile_height = kThreads / plan.tile_width;
    plan.slices = static_cast<int>(ceil_div(args.C, kPlanesPerTile));
    launch_tiles<Op, T, PlanarSum<Op, T>>(args, plan, stream);
  } else if (vectors_fit<T, ChannelsLastSum<Op, T, true>::kWidth>(args)) {
    launch_channels_last<Op, T, true>(args, plan, stream);
  } else {
    launch_channels_last<Op, T, false>(args, plan, stream);
  }
}

}  // namespace fastvision
