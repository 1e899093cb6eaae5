// Sums over a position-sensitive map, on the CPU, forward and backward. A bin has channels of its
// own, PH * PW apart, so lanes are filled one by one, and a plane serves one bin of every roi.
#pragma once

#include "common/roi_op.h"
#include "cpu/roi_bins.h"
#include "cpu/roi_planes.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// `count` lanes from values that are `stride` apart, and back.
template <typename T>
inline auto load_strided(const T* p, int64_t stride, int count) {
  T lanes[lanes_v<accumulate_t<T>>] = {};
  for (int i = 0; i < count; ++i) {
    lanes[i] = p[i * stride];
  }
  return load(lanes);
}
template <typename T, typename V>
inline void store_strided(T* p, V v, int64_t stride, int count) {
  T lanes[lanes_v<accumulate_t<T>>];
  store(lanes, v);
  for (int i = 0; i < count; ++i) {
    p[i * stride] = lanes[i];
  }
}

// The pixels of a bin's channels, where they lie in the map or as a copy with the channels of a
// pixel side by side.
template <typename T>
struct MapPixels {
  const T* first;
  int64_t row, pixel, channel;  // distances

  template <bool kPartial>
  inline auto load_at(int64_t y, int64_t x, int count) const {
    const T* p = first + y * row + x * pixel;
    return load_strided(p, channel, kPartial ? count : lanes_v<accumulate_t<T>>);
  }
};
template <typename A>
struct CopiedPixels {
  const A* first;
  int64_t width;

  template <bool>
  inline auto load_at(int64_t y, int64_t x, int) const {
    return load(first + (y * width + x) * lanes_v<A>);
  }
};

template <bool kPartial, typename Pixels, typename A>
inline vector_t<A> sum_of_bin(const Pixels& pixels, Range<A> ys, Range<A> xs, int count) {
  vector_t<A> sum = {};
  for (const Tap<A>* y = ys.begin; y < ys.end; ++y) {
    for (const Tap<A>* x = xs.begin; x < xs.end; ++x) {
      const auto value = pixels.template load_at<kPartial>(y->pixel, x->pixel, count);
      sum = multiply_add(value, broadcast(y->weight * x->weight), sum);
    }
  }
  return sum;
}

template <typename T, typename A>
void sensitive_forward_last(
    const RoiArgs& args, const RoiTapsView<A>& view, const RoiForwardTask& task
) {
  constexpr int lanes = lanes_v<A>;
  const int64_t bins = args.PH * args.PW;
  for (int64_t i = task.begin; i < task.end; ++i) {
    const int64_t k = task.order[i];
    const RoiFootprint& roi = view.rois[k];
    const RoiLevel& level = args.levels[roi.level];
    const T* image = static_cast<const T*>(level.features) + roi.image * args.C * level.H * level.W;
    T* out = static_cast<T*>(args.pooled) + k * args.C;  // [PH, PW, C / bins]
    const RoiBins<A> own(args, view, k);
    for (int64_t bin = 0; bin < bins; ++bin, out += args.C / bins) {
      const Range<A> ys = own.y(bin / args.PW);
      const Range<A> xs = own.x(bin % args.PW);
      for (int64_t c = task.c_begin; c < task.c_end; c += lanes) {
        const int count = static_cast<int>(least(lanes, task.c_end - c));
        const MapPixels<T> pixels{image + c * bins + bin, level.W * args.C, args.C, bins};
        if (count == lanes) {
          store(out + c, sum_of_bin<false>(pixels, ys, xs, count));
        } else {
          store_partial(out + c, sum_of_bin<true>(pixels, ys, xs, count), count);
        }
      }
    }
  }
}

template <typename T, typename A>
void sensitive_forward_planar(
    const RoiArgs& args, const RoiTapsView<A>& view, const RoiForwardTask& task, A* scratch
) {
  constexpr int lanes = lanes_v<A>;
  const int64_t bins = args.PH * args.PW;
  for (int64_t c = task.c_begin; c < task.c_end; c += lanes) {
    const int count = static_cast<int>(least(lanes, task.c_end - c));
    for (int64_t bin = task.bin_begin; bin < task.bin_end; ++bin) {
      const int64_t ph = bin / args.PW;
      const int64_t pw = bin - ph * args.PW;
      for (int64_t begin = task.begin, run; begin < task.end; begin += run) {
        run = run_of_map(view, task, begin);
        const RoiFootprint& roi = view.rois[task.order[begin]];
        const RoiLevel& level = args.levels[roi.level];
        const int64_t plane = level.H * level.W;
        const T* maps = static_cast<const T*>(level.features);
        const T* first = maps + (roi.image * args.C + c * bins + bin) * plane;
        const MapPixels<T> in_place{first, level.W, 1, bins * plane};
        const CopiedPixels<A> copied{scratch, level.W};
        const bool copy = copy_pays(run, plane, kCopiedPerRoi<WeightedSum, PositionSensitive>);
        if (copy) {
          const Planes<const T, lanes> planes(first, bins * plane, count);
          interleave<T, A>(planes, 0, plane, maps + args.N * args.C * plane, scratch);
        }
        for (int64_t i = begin; i < begin + run; ++i) {
          const int64_t k = task.order[i];
          const RoiBins<A> own(args, view, k);
          const Range<A> ys = own.y(ph);
          const Range<A> xs = own.x(pw);
          const auto sum = copy             ? sum_of_bin<false>(copied, ys, xs, count)
                           : count == lanes ? sum_of_bin<false>(in_place, ys, xs, count)
                                            : sum_of_bin<true>(in_place, ys, xs, count);
          T* out = static_cast<T*>(args.pooled) + k * args.C + c * bins + bin;
          store_strided(out, sum, bins, count);
        }
      }
    }
  }
}

// Part of a tile while it is summed, of a vector's worth of channels: [height, width, bins, lanes],
// of the bins from `bin_begin` on.
template <typename A>
struct SensitiveTile {
  A* sums;
  int64_t width;
  int64_t bin_begin, bin_end;
  int64_t c;
  int count;  // of channels

  int64_t bins() const { return bin_end - bin_begin; }
  A* pixel(int64_t y, int64_t x) const { return sums + (y * width + x) * bins() * lanes_v<A>; }
};

template <typename T, typename A>
inline void scatter_sensitive(
    const RoiArgs& args,
    const RoiBackwardTask& task,
    const RoiBins<A>& own,
    const T* pooled,  // [C, PH, PW] or [PH, PW, C]
    const SensitiveTile<A>& tile
) {
  constexpr int lanes = lanes_v<A>;
  const int64_t bins = args.PH * args.PW;
  const int64_t channels = args.C / bins;
  const auto grad_of = [&](int64_t bin) {  // channels side by side, or `bins` apart
    if (args.channels_last) {
      const T* from = pooled + bin * channels + tile.c;
      return tile.count == lanes ? load(from) : load_partial(from, tile.count);
    }
    const T* from = pooled + tile.c * bins + bin;
    return tile.count == lanes ? load_strided(from, bins, lanes)
                               : load_strided(from, bins, tile.count);
  };
  for (int64_t ph = tile.bin_begin / args.PW; ph * args.PW < tile.bin_end; ++ph) {
    const Range<A> ys = clip(own.y(ph), task.y_begin, task.y_end);
    if (ys.begin == ys.end) {
      continue;
    }
    const int64_t first = ph * args.PW;
    const int64_t pw_begin = first < tile.bin_begin ? tile.bin_begin - first : 0;
    const int64_t pw_end = least(args.PW, tile.bin_end - first);
    for (int64_t pw = pw_begin; pw < pw_end; ++pw) {
      const Range<A> xs = clip(own.x(pw), task.x_begin, task.x_end);
      if (xs.begin == xs.end) {
        continue;
      }
      const int64_t bin = first + pw;
      const auto grad = grad_of(bin);
      for (const Tap<A>* y = ys.begin; y < ys.end; ++y) {
        for (const Tap<A>* x = xs.begin; x < xs.end; ++x) {
          A* sum = tile.pixel(y->pixel - task.y_begin, x->pixel - task.x_begin) +
                   (bin - tile.bin_begin) * lanes;
          store(sum, multiply_add(grad, broadcast(y->weight * x->weight), load(sum)));
        }
      }
    }
  }
}

template <typename T, typename A>
void sensitive_backward(
    const RoiArgs& args, const RoiTapsView<A>& view, const RoiBackwardTask& task, A* scratch
) {
  constexpr int lanes = lanes_v<A>;
  const RoiLevel& level = args.levels[task.level];
  const int64_t bins = args.PH * args.PW;
  const int64_t height = task.y_end - task.y_begin;
  const int64_t width = task.x_end - task.x_begin;
  const int64_t plane = level.H * level.W;
  const T* pooled = static_cast<const T*>(args.pooled);
  T* grad = static_cast<T*>(level.features) + task.image * args.C * plane;
  // the planes of one bin after the other; all channels of a pixel together
  const int64_t step = args.channels_last ? task.bin_end - task.bin_begin : 1;
  for (int64_t c = task.c_begin; c < task.c_end; c += lanes) {
    for (int64_t bin = task.bin_begin; bin < task.bin_end; bin += step) {
      const int count = static_cast<int>(least(lanes, task.c_end - c));
      const SensitiveTile<A> tile{scratch, width, bin, bin + step, c, count};
      memset(scratch, 0, height * width * step * lanes * sizeof(A));
      for (int64_t i = 0; i < task.count; ++i) {
        const int64_t k = task.rois[i];
        if (touches(view.rois[k], task)) {
          scatter_sensitive(args, task, RoiBins<A>(args, view, k), pooled + k * args.C, tile);
        }
      }
      const int64_t channel = c * bins + bin;
      if (!args.channels_last) {  // of whole rows
        T* first = grad + channel * plane + task.y_begin * level.W;
        deinterleave(scratch, Planes<T, lanes>(first, bins * plane, count), 0, height * width);
        continue;
      }
      for (int64_t y = 0; y < height; ++y) {
        for (int64_t x = 0; x < width; ++x) {
          const int64_t pixel = (task.y_begin + y) * level.W + task.x_begin + x;
          T* first = grad + pixel * args.C + channel;
          deinterleave(tile.pixel(y, x), Planes<T, lanes>(first, bins, count), 0, step);
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
