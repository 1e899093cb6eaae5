// RoI ops that take bilinear samples one by one, on the GPU. A thread of the forward has a bin of a
// few channels. The backward gathers: a CTA owns a tile of the gradient, finds the rois that reach
// it, in their order, and each thread adds the samples that touch its pixel: no atomics, no zero
// fill, the same bits in every run.
#pragma once

#include <cfloat>
#include <type_traits>

#include "cuda/roi_tiles.cuh"
// after those of CUDA
#include "common/roi_samples.h"
#include "ops/roi_samples.h"

namespace fastvision {
namespace {

constexpr int kSampleChannels = 4;      // of a thread
constexpr int kSampleCandidates = 128;  // rois whose axes are in shared memory at a time
constexpr int kPixelLanes = 32;  // channels_last, backward: threads that share a pixel's channels

// A bin of one channel.
template <typename Reduction, typename A>
struct SampleSum;

template <typename A>
struct SampleSum<MeanSample, A> {
  A sum = 0;

  __device__ void add(A value, int) { sum += value; }
  __device__ A value(int samples) const { return samples > 0 ? sum / samples : A(0); }
  __device__ int argmax() const { return -1; }
};

template <typename A>
struct SampleSum<LargestSample, A> {
  A best = A(-FLT_MAX);
  int at = -1;

  __device__ void add(A value, int index) {
    if (value > best) {
      best = value;
      at = index;
    }
  }
  __device__ A value(int samples) const { return samples > 0 ? best : A(0); }
  __device__ int argmax() const { return at; }
};

// The samples of a bin from kSampleChannels channels, `step` apart, from the one of `plane` on.
template <typename Op, typename T, typename A>
__device__ void reduce_samples(
    SampleSum<typename Op::Reduction, A> (&sum)[kSampleChannels],
    const SampledRoi<A>& roi,
    int ph,
    int pw,
    const T* plane,
    int64_t pixel_stride,
    int64_t step,
    int channels
) {
  constexpr bool kMaximum = std::is_same_v<typename Op::Reduction, LargestSample>;
  roi.for_each_sample(
      ph,
      pw,
      [&](const BilinearSample<A>& sample) {
        const int64_t corner = static_cast<int64_t>(sample.y.pixel) * roi.x.extent + sample.x.pixel;
        A value[kSampleChannels] = {};
#pragma unroll 1
        for (int tap = 0; tap < 4; ++tap) {
          const bool down = tap >= 2;
          const bool right = tap % 2 == 1;
          const A weight = (down ? sample.y.fraction : A(1) - sample.y.fraction) *
                           (right ? sample.x.fraction : A(1) - sample.x.fraction);
          if (!(weight > 0)) {
            continue;
          }
          const T* pixel = plane + (corner + (down ? roi.x.extent : 0) + right) * pixel_stride;
#pragma unroll
          for (int q = 0; q < kSampleChannels; ++q) {
            if (q < channels) {
              value[q] += weight * widen(pixel[q * step]);
            }
          }
        }
#pragma unroll
        for (int q = 0; q < kSampleChannels; ++q) {
          sum[q].add(value[q], sample.index);
        }
      },
      [&] {
#pragma unroll
        for (int q = 0; q < kSampleChannels && kMaximum; ++q) {
          sum[q].add(A(0), -1);
        }
      }
  );
}

template <typename Op, typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2) roi_samples_kernel(
    const __grid_constant__ RoiArgs args, int groups, int slabs
) {
  using A = accumulate_t<T>;
  __shared__ SampledRoi<A> roi;
  const int64_t k = blockIdx.x / slabs;
  if (threadIdx.x == 0) {
    roi = read_sampled_roi<A>(args, k);
  }
  __syncthreads();
  const int64_t bins = args.PH * args.PW;
  const int64_t i = static_cast<int64_t>(blockIdx.x % slabs) * kThreads + threadIdx.x;
  if (i >= groups * bins) {
    return;
  }
  // neighbouring threads have neighbouring channels, or bins
  const int group = static_cast<int>(args.channels_last ? i % groups : i / bins);
  const int bin = static_cast<int>(args.channels_last ? i / groups : i % bins);
  const int ph = bin / static_cast<int>(args.PW);
  const int64_t pixels = static_cast<int64_t>(roi.y.extent) * roi.x.extent;
  const int64_t channel_stride = args.channels_last ? 1 : pixels;
  const T* image = static_cast<const T*>(args.levels[roi.level].features) +
                   roi.image * args.C * pixels + group * channel_stride;
  const int channels = static_cast<int>(ceil_div(args.C - group, groups));
  SampleSum<typename Op::Reduction, A> sum[kSampleChannels];
  reduce_samples<Op, T>(
      sum,
      roi,
      ph,
      bin - ph * static_cast<int>(args.PW),
      image,
      args.channels_last ? args.C : 1,
      groups * channel_stride,
      channels
  );
#pragma unroll
  for (int q = 0; q < kSampleChannels; ++q) {
    if (q < channels) {
      const int64_t place = place_of(args, k, group + static_cast<int64_t>(q) * groups, bin);
      static_cast<T*>(args.pooled)[place] = narrow<T>(sum[q].value(roi.samples()));
      if (args.argmax != nullptr) {
        args.argmax[place] = sum[q].argmax();
      }
    }
  }
}

// What of a sample's value is from a pixel.
template <typename A>
__device__ A weight_of(const BilinearSample<A>& sample, int y, int x) {
  const auto along = [](const PixelBelow<A>& at, int pixel) {
    return pixel == at.pixel ? A(1) - at.fraction : pixel == at.pixel + 1 ? at.fraction : A(0);
  };
  return along(sample.y, y) * along(sample.x, x);
}

// A pixel on the axes of a roi, and how far from it samples that touch it can be.
template <typename A>
struct PixelInRoi {
  A v, u, reach;

  __device__ PixelInRoi(const SampledRoi<A>& roi, int y, int x) {
    const A dy = static_cast<A>(y) - roi.y_centre;
    const A dx = static_cast<A>(x) - roi.x_centre;
    v = dy * roi.cosine + dx * roi.sine;
    u = dx * roi.cosine - dy * roi.sine;
    // one pixel in the map; slack is 2 and what rounding adds
    reach = fabs(roi.cosine) + fabs(roi.sine) + (roi.slack - A(1.99));
  }
  __device__ Interval bins(const BilinearAxis<A>& axis, A at) const {
    // a bin's samples are inside it
    const Interval near =
        steps_between(axis.start, axis.bin_size, at - reach, at + reach, axis.bins);
    return {near.begin > 0 ? near.begin - 1 : 0, near.end};
  }
  __device__ Interval samples(const BilinearAxis<A>& axis, int bin, A at) const {
    const A step = axis.bin_size / axis.grid;
    return steps_between(
        axis.bin_start(bin) + step / 2, step, at - reach, at + reach, axis.samples
    );
  }
};

template <typename Op, typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2) roi_samples_backward_kernel(
    const __grid_constant__ RoiArgs args, const __grid_constant__ TilePlan plan
) {
  using A = accumulate_t<T>;
  constexpr bool kMaximum = std::is_same_v<typename Op::Reduction, LargestSample>;
  __shared__ int hits[kThreads];
  __shared__ SampledRoi<A> rois[kSampleCandidates];
  const Tile tile = tile_of(args, plan, blockIdx.x);
  const int lanes = kThreads / (plan.tile_height * plan.tile_width);  // channels side by side
  const int lane = threadIdx.x % lanes;
  const int cell = threadIdx.x / lanes;
  const int y = tile.y + cell / plan.tile_width;
  const int x = tile.x + cell % plan.tile_width;
  const RoiLevel& map = args.levels[tile.level];
  const int H = static_cast<int>(map.H);
  const int W = static_cast<int>(map.W);
  const bool inside = y < H && x < W;
  const int64_t first_channel = static_cast<int64_t>(tile.slice) * lanes * kSampleChannels + lane;
  const T* pooled = static_cast<const T*>(args.pooled);
  A sum[kSampleChannels] = {};
  const int K = static_cast<int>(args.K);
  for (int first = 0; first < K; first += kSampleCandidates) {
    const int own = first + static_cast<int>(threadIdx.x);
    bool hit = false;
    if (threadIdx.x < kSampleCandidates && own < K) {
      const SampledRoi<A> roi = read_sampled_roi<A>(args, own);
      rois[threadIdx.x] = roi;
      hit = !roi.empty() && roi.image == tile.image && roi.level == tile.level &&
            roi.pixels_of(0, roi.y.bins, 0, roi.x.bins)
                .meets(tile.y, plan.tile_height, tile.x, plan.tile_width);
    }
    const int count = compact(hit, hits);
    for (int i = 0; i < count && inside; ++i) {
      const SampledRoi<A>& roi = rois[hits[i]];
      const PixelInRoi<A> pixel(roi, y, x);
      const Interval rows = pixel.bins(roi.y, pixel.v);
      const Interval columns = pixel.bins(roi.x, pixel.u);
      for (int ph = rows.begin; ph < rows.end; ++ph) {
        for (int pw = columns.begin; pw < columns.end; ++pw) {
          BilinearSample<A> sample;
          A weight = 0;
          if constexpr (!kMaximum) {
            const Interval is = pixel.samples(roi.y, ph, pixel.v);
            const Interval js = pixel.samples(roi.x, pw, pixel.u);
            for (int row = is.begin; row < is.end; ++row) {
              for (int column = js.begin; column < js.end; ++column) {
                if (roi.find(ph, pw, row * roi.x.samples + column, sample)) {
                  weight += weight_of(sample, y, x);
                }
              }
            }
            if (!(weight > 0)) {
              continue;
            }
            weight /= static_cast<A>(roi.samples());
          }
#pragma unroll
          for (int q = 0; q < kSampleChannels; ++q) {
            const int64_t c = first_channel + q * lanes;
            if (c < args.C) {
              const int64_t place = place_of(args, first + hits[i], c, ph * args.PW + pw);
              if constexpr (kMaximum) {
                const int index = args.argmax[place];
                const bool touches = index >= 0 && roi.find(ph, pw, index, sample);
                weight = touches ? weight_of(sample, y, x) : A(0);
              }
              if (weight > 0) {
                sum[q] += weight * widen(pooled[place]);
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
  T* grad = static_cast<T*>(map.features);
  const int64_t pixels = map.H * map.W;
  const int64_t position = static_cast<int64_t>(y) * W + x;
#pragma unroll
  for (int q = 0; q < kSampleChannels; ++q) {
    const int64_t c = first_channel + q * lanes;
    if (c < args.C) {
      const int64_t place = args.channels_last ? (tile.image * pixels + position) * args.C + c
                                               : (tile.image * args.C + c) * pixels + position;
      grad[place] = narrow<T>(sum[q]);
    }
  }
}

template <typename Op, typename T>
void forward(const RoiArgs& args, cudaStream_t stream) {
  const int groups = static_cast<int>(ceil_div(args.C, kSampleChannels));
  const int64_t slabs = ceil_div(groups * args.PH * args.PW, kThreads);
  launch(
      roi_samples_kernel<Op, T>,
      grid_of(args.K * slabs),
      kThreads,
      0,
      stream,
      args,
      groups,
      static_cast<int>(slabs)
  );
}

template <typename Op, typename T>
void backward(const RoiArgs& args, cudaStream_t stream) {
  TilePlan plan{};
  const int lanes = args.channels_last ? kPixelLanes : 1;
  plan.tile_width = args.channels_last ? 4 : 16;
  plan.tile_height = kThreads / lanes / plan.tile_width;
  plan.slices = static_cast<int>(ceil_div(args.C, lanes * kSampleChannels));
  plan.count_blocks(args);
  const int64_t blocks = plan.first_block[args.num_levels];
  if (blocks > 0) {
    launch(roi_samples_backward_kernel<Op, T>, grid_of(blocks), kThreads, 0, stream, args, plan);
  }
}

}  // namespace

#define FASTVISION_DEFINE_ROI_SAMPLES_OF_TYPE(Op, T)                          \
  template <>                                                                 \
  void launch_roi_forward<Op, T>(const RoiArgs& args, CUstream_st* stream) {  \
    forward<Op, T>(args, stream);                                             \
  }                                                                           \
  template <>                                                                 \
  void launch_roi_backward<Op, T>(const RoiArgs& args, CUstream_st* stream) { \
    backward<Op, T>(args, stream);                                            \
  }
#define FASTVISION_DEFINE_ROI_SAMPLES(Op)           \
  FASTVISION_DEFINE_ROI_SAMPLES_OF_TYPE(Op, float)  \
  FASTVISION_DEFINE_ROI_SAMPLES_OF_TYPE(Op, double) \
  FASTVISION_DEFINE_ROI_SAMPLES_OF_TYPE(Op, half_t) \
  FASTVISION_DEFINE_ROI_SAMPLES_OF_TYPE(Op, bfloat16_t)

}  // namespace fastvision
