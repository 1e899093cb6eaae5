// RoIPool on the GPU. A thread of the forward takes the maximum of a bin. The backward gathers: a
// CTA owns a tile of the gradient, finds the rois that reach it, in their order, and each thread
// adds the bins whose maximum is its pixel: no atomics, no zero fill, the same bits in every run.
#include <cfloat>

#include "cuda/roi_tiles.cuh"
#include "ops/roi_pool.h"

namespace fastvision {
namespace {

constexpr int kBinsPerThread = 4;
constexpr int kChannels = 4;       // of a thread of the backward
constexpr int kChannelLanes = 32;  // channels_last: threads that share a pixel's channels

template <typename T>
__global__ void __launch_bounds__(kThreads, 3) roi_pool_kernel(
    const __grid_constant__ RoiArgs args, int slabs
) {
  using A = accumulate_t<T>;
  const int64_t k = blockIdx.x / slabs;
  const Roi<CellAxis<A>> roi = read_roi<CellAxis<A>>(args, k);
  const int64_t H = roi.y.extent;
  const int64_t W = roi.x.extent;
  const T* image = static_cast<const T*>(args.levels[0].features) + roi.image * args.C * H * W;
  const int64_t pixel_stride = args.channels_last ? args.C : 1;
  const int64_t channel_stride = args.channels_last ? 1 : H * W;
  const int64_t bins = args.PH * args.PW;
  const int64_t first = static_cast<int64_t>(blockIdx.x % slabs) * (kThreads * kBinsPerThread);
  for (int q = 0; q < kBinsPerThread; ++q) {
    const int64_t i = first + q * kThreads + threadIdx.x;
    if (i >= args.C * bins) {
      return;
    }
    const int64_t c = args.channels_last ? i % args.C : i / bins;
    const int bin = static_cast<int>(args.channels_last ? i / args.C : i % bins);
    const int ph = bin / static_cast<int>(args.PW);
    const int pw = bin - ph * static_cast<int>(args.PW);
    const int y_end = roi.y.end(ph);
    const int x_begin = roi.x.begin(pw);
    const int x_end = roi.x.end(pw);
    const T* plane = image + c * channel_stride;
    const bool empty = roi.y.begin(ph) >= y_end || x_begin >= x_end;
    A value = empty ? A(0) : A(-FLT_MAX);
    int64_t position = -1;
    for (int y = roi.y.begin(ph); y < y_end; ++y) {
      for (int x = x_begin; x < x_end; ++x) {
        const A pixel = widen(plane[(y * W + x) * pixel_stride]);
        if (pixel > value) {
          value = pixel;
          position = y * W + x;
        }
      }
    }
    const int64_t place = place_of(args, k, c, bin);
    static_cast<T*>(args.pooled)[place] = narrow<T>(value);
    if (args.argmax != nullptr) {
      args.argmax[place] = static_cast<int32_t>(position);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) roi_pool_backward_kernel(
    const __grid_constant__ RoiArgs args, const __grid_constant__ TilePlan plan
) {
  using A = accumulate_t<T>;
  using Axis = CellAxis<A>;
  __shared__ int hits[kThreads];
  __shared__ Roi<Axis> rois[kThreads];
  const Tile tile = tile_of(args, plan, blockIdx.x);
  const int lanes = kThreads / (plan.tile_height * plan.tile_width);  // channels side by side
  const int lane = threadIdx.x % lanes;
  const int cell = threadIdx.x / lanes;
  const int y = tile.y + cell / plan.tile_width;
  const int x = tile.x + cell % plan.tile_width;
  const int H = static_cast<int>(args.levels[0].H);
  const int W = static_cast<int>(args.levels[0].W);
  const bool inside = y < H && x < W;
  const int64_t position = static_cast<int64_t>(y) * W + x;
  const int64_t first_channel = static_cast<int64_t>(tile.slice) * lanes * kChannels + lane;
  const T* pooled = static_cast<const T*>(args.pooled);
  A sum[kChannels] = {};
  const int K = static_cast<int>(args.K);
  for (int first = 0; first < K; first += kThreads) {
    const int own = first + static_cast<int>(threadIdx.x);
    bool hit = false;
    if (own < K) {
      const Roi<Axis> roi = read_roi<Axis>(args, own);
      rois[threadIdx.x] = roi;
      hit = roi.image == tile.image && roi.y.reaches(tile.y, tile.y + plan.tile_height - 1) &&
            roi.x.reaches(tile.x, tile.x + plan.tile_width - 1);
    }
    const int count = compact(hit, hits);
    for (int i = 0; i < count && inside; ++i) {
      const Axis rows = rois[hits[i]].y;
      const Axis columns = rois[hits[i]].x;
      const int first_column = columns.first_bin(x);
      for (int ph = rows.first_bin(y); ph < rows.bins && rows.begin(ph) <= y; ++ph) {
        if (rows.end(ph) <= y) {
          continue;
        }
        for (int pw = first_column; pw < columns.bins && columns.begin(pw) <= x; ++pw) {
          if (columns.end(pw) <= x) {
            continue;
          }
#pragma unroll
          for (int q = 0; q < kChannels; ++q) {
            const int64_t c = first_channel + q * lanes;
            if (c < args.C) {
              const int64_t place = place_of(args, first + hits[i], c, ph * args.PW + pw);
              if (args.argmax[place] == position) {
                sum[q] += widen(pooled[place]);
              }
            }
          }
        }
      }
    }
    __syncthreads();  // before the next rois replace these
  }
  if (!inside) {
    return;
  }
  T* grad = static_cast<T*>(args.levels[0].features);
#pragma unroll
  for (int q = 0; q < kChannels; ++q) {
    const int64_t c = first_channel + q * lanes;
    if (c < args.C) {
      const int64_t pixels = static_cast<int64_t>(H) * W;
      const int64_t place = args.channels_last ? (tile.image * pixels + position) * args.C + c
                                               : (tile.image * args.C + c) * pixels + position;
      grad[place] = narrow<T>(sum[q]);
    }
  }
}

template <typename T>
void forward(const RoiArgs& args, cudaStream_t stream) {
  const int64_t slabs = ceil_div(args.C * args.PH * args.PW, kThreads * kBinsPerThread);
  launch(
      roi_pool_kernel<T>,
      grid_of(args.K * slabs),
      kThreads,
      0,
      stream,
      args,
      static_cast<int>(slabs)
  );
}

template <typename T>
void backward(const RoiArgs& args, cudaStream_t stream) {
  TilePlan plan{};
  const int lanes = args.channels_last ? kChannelLanes : 1;
  plan.tile_width = args.channels_last ? 8 : power_of_two(args.levels[0].W, 8, 32);
  plan.tile_height = kThreads / lanes / plan.tile_width;
  plan.slices = static_cast<int>(ceil_div(args.C, lanes * kChannels));
  plan.count_blocks(args);
  if (plan.first_block[1] > 0) {
    launch(
        roi_pool_backward_kernel<T>, grid_of(plan.first_block[1]), kThreads, 0, stream, args, plan
    );
  }
}

}  // namespace

#define FASTVISION_DEFINE_ROI_POOL(T)                                              \
  template <>                                                                      \
  void launch_roi_forward<RoIPool, T>(const RoiArgs& args, CUstream_st* stream) {  \
    forward<T>(args, stream);                                                      \
  }                                                                                \
  template <>                                                                      \
  void launch_roi_backward<RoIPool, T>(const RoiArgs& args, CUstream_st* stream) { \
    backward<T>(args, stream);                                                     \
  }
FASTVISION_DEFINE_ROI_POOL(float)
FASTVISION_DEFINE_ROI_POOL(double)
FASTVISION_DEFINE_ROI_POOL(half_t)
FASTVISION_DEFINE_ROI_POOL(bfloat16_t)

}  // namespace fastvision
