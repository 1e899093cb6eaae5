// Backward of the RoI ops that sum, on the CPU: A^T * grad * B, tile by tile of the gradient maps,
// with lanes over channels as in the forward.
#pragma once

#include "common/roi_op.h"
#include "cpu/roi_bins.h"
#include "cpu/roi_planes.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename T, typename A>
struct ScatterChannelsLast {
  const RoiArgs& args;
  const RoiBackwardTask& task;
  RoiBins<A> bins;
  const T* pooled;  // [PH, PW, C]
  A* tile;          // [height, width, channels], channels padded to a vector
  int64_t channels;

  template <int kVectors, bool kPartial>
  inline void operator()(int64_t c, int count) const {
    constexpr int lanes = lanes_v<A>;
    const int64_t width = task.x_end - task.x_begin;
    for (int64_t ph = 0; ph < args.PH; ++ph) {
      const Range<A> ys = clip(bins.y(ph), task.y_begin, task.y_end);
      if (ys.begin == ys.end) {
        continue;
      }
      for (int64_t pw = 0; pw < args.PW; ++pw) {
        const Range<A> xs = clip(bins.x(pw), task.x_begin, task.x_end);
        if (xs.begin == xs.end) {
          continue;
        }
        const T* grad = pooled + (ph * args.PW + pw) * args.C + c;
        vector_t<A> value[kVectors];
#pragma GCC unroll 8
        for (int i = 0; i < kVectors; ++i) {
          value[i] = load_lanes<kPartial>(grad + i * lanes, count);
        }
        for (const Tap<A>* y = ys.begin; y < ys.end; ++y) {
          A* row = tile + (y->pixel - task.y_begin) * width * channels + c - task.c_begin;
          for (const Tap<A>* x = xs.begin; x < xs.end; ++x) {
            A* pixel = row + (x->pixel - task.x_begin) * channels;
            const vector_t<A> weight = broadcast(y->weight * x->weight);
#pragma GCC unroll 8
            for (int i = 0; i < kVectors; ++i) {
              store(pixel + i * lanes, multiply_add(value[i], weight, load(pixel + i * lanes)));
            }
          }
        }
      }
    }
  }
};

template <typename T, typename A>
inline void scatter_planar(
    const RoiArgs& args,
    const RoiBackwardTask& task,
    const RoiBins<A>& bins,
    const RoiFootprint& roi,
    const Planes<const T, lanes_v<A>>& pooled,  // [PH, PW] each
    const T* tensor_end,
    const Planes<A, lanes_v<A>>& tile,  // [height, padded W] each
    int64_t tile_width,
    A* scratch
) {
  constexpr int lanes = lanes_v<A>;
  const int64_t width = roi.x_end - roi.x_begin;
  A* columns = scratch;                            // [width][lanes]
  A* grads = columns + roi_padded(width) * lanes;  // [bins of a batch][lanes]
  const int64_t batch = roi_batch_rows(args);
  const uint64_t mask = columns_with_taps(bins, roi, args.PW);
  for (int64_t first = 0; first < args.PH; first += batch) {
    const int64_t last = min(args.PH, first + batch);
    interleave<T, A>(pooled, first * args.PW, (last - first) * args.PW, tensor_end, grads);
    for (int64_t ph = first; ph < last; ++ph) {
      const Range<A> ys = clip(bins.y(ph), task.y_begin, task.y_end);
      if (ys.begin == ys.end) {
        continue;
      }
      for (int64_t i = 0; i < roi_padded(width); ++i) {
        store(columns + i * lanes, vector_t<A>{});
      }
      for (int64_t pw = 0; pw < args.PW; ++pw) {
        const auto grad = load(grads + ((ph - first) * args.PW + pw) * lanes);
        const Range<A> xs = bins.x(pw);
        for (const Tap<A>* x = xs.begin; x < xs.end; ++x) {
          A* column = columns + (x->pixel - roi.x_begin) * lanes;
          store(column, multiply_add(grad, broadcast(x->weight), load(column)));
        }
      }
      for (int64_t i = 0; i < width; i += lanes) {
        if (!has_taps<A>(mask, i)) {
          continue;
        }
        vector_t<A> column[lanes];
#pragma GCC unroll 16
        for (int j = 0; j < lanes; ++j) {
          column[j] = load(columns + (i + j) * lanes);
        }
        transpose(column);
        for (const Tap<A>* y = ys.begin; y < ys.end; ++y) {
          const int64_t offset = (y->pixel - task.y_begin) * tile_width + roi.x_begin + i;
          const vector_t<A> weight = broadcast(y->weight);
          for (int c = 0; c < tile.count; ++c) {
            A* row = tile[c] + offset;
            store(row, multiply_add(column[c], weight, load(row)));
          }
        }
      }
    }
  }
}

template <typename Channels, typename T, typename A>
void backward(
    const RoiArgs& args, const RoiTapsView<A>& view, const RoiBackwardTask& task, A* scratch
) {
  static_assert(Channels::kSharedByBins, "the kernels give all bins to one pixel or plane");
  constexpr int lanes = lanes_v<A>;
  const RoiLevel& level = args.levels[task.level];
  const int64_t height = task.y_end - task.y_begin;
  const int64_t width = task.x_end - task.x_begin;
  const int64_t channels = task.c_end - task.c_begin;
  const int64_t plane = level.H * level.W;
  const int64_t pooled_plane = args.PH * args.PW;
  const T* pooled = static_cast<const T*>(args.pooled);
  const T* pooled_end = pooled + args.K * args.C * pooled_plane;
  T* grad = static_cast<T*>(level.features) + task.image * args.C * plane;

  // channels_last: [height, width, padded channels]; NCHW: [channels, height, padded width]
  const int64_t tile_channels = args.channels_last ? roi_padded(channels) : channels;
  const int64_t tile_width = args.channels_last ? width : roi_padded(width);
  const int64_t tile_size = height * tile_width * tile_channels;
  memset(scratch, 0, tile_size * sizeof(A));
  A* rest = scratch + tile_size;

  for (int64_t i = 0; i < task.count; ++i) {
    const int64_t k = task.rois[i];
    const RoiFootprint& roi = view.rois[k];
    if (!touches(roi, task)) {
      continue;
    }
    const RoiBins<A> bins(args, view, k);
    const T* grads = pooled + k * args.C * pooled_plane;
    if (args.channels_last) {
      for_channel_pieces<A>(
          task.c_begin,
          task.c_end,
          ScatterChannelsLast<T, A>{args, task, bins, grads, scratch, tile_channels}
      );
      continue;
    }
    for (int64_t c = task.c_begin; c < task.c_end; c += lanes) {
      const int64_t count = task.c_end - c;
      const Planes<const T, lanes> from(grads + c * pooled_plane, pooled_plane, count);
      const Planes<A, lanes> tile(
          scratch + (c - task.c_begin) * height * tile_width, height * tile_width, count
      );
      scatter_planar<T, A>(args, task, bins, roi, from, pooled_end, tile, tile_width, rest);
    }
  }

  for (int64_t y = 0; y < height; ++y) {
    if (args.channels_last) {
      for (int64_t x = 0; x < width; ++x) {
        const A* sums = scratch + (y * width + x) * tile_channels;
        const int64_t pixel = (task.y_begin + y) * level.W + task.x_begin + x;
        write(sums, grad + pixel * args.C + task.c_begin, channels);
      }
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        const A* sums = scratch + (c * height + y) * tile_width;
        write(sums, grad + (task.c_begin + c) * plane + (task.y_begin + y) * level.W, width);
      }
    }
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
