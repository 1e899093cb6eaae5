// Sums over a position-sensitive map, on the CPU, forward and backward. A bin has channels of its
// own, PH * PW apart, so lanes are filled one by one, and a plane serves one bin of every roi.
#pragma once

#include "common/roi_op.h"
#include "common/simd_value.h"
#include "cpu/roi_bins.h"
#include "cpu/roi_planes.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// `count` lanes from values that are `stride` apart.
template <typename T>
inline auto load_strided(const T* p, int64_t stride, int count) {
  T lanes[lanes_v<accumulate_t<T>>] = {};
  for (int i = 0; i < count; ++i) {
    lanes[i] = p[i * stride];
  }
  return load(lanes);
}

// So few channels go one by one: that costs more for a tap, but nothing for lanes without a channel
// when planes are copied, or sums cleared and put in place.
template <typename A>
constexpr int kFewChannels = lanes_v<A> / 3;

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

// The same of few channels, one by one, to places that are `stride` apart.
template <typename T, typename A>
inline void sum_few_channels(
    const MapPixels<T>& pixels, Range<A> ys, Range<A> xs, int count, T* out, int64_t stride
) {
  for (int i = 0; i < count; ++i) {
    const T* first = pixels.first + i * pixels.channel;
    A sum = 0;
    for (const Tap<A>* y = ys.begin; y < ys.end; ++y) {
      for (const Tap<A>* x = xs.begin; x < xs.end; ++x) {
        const A value = value_of(first + y->pixel * pixels.row + x->pixel * pixels.pixel);
        sum = multiply_add(value, y->weight * x->weight, sum);
      }
    }
    store_value(out + i * stride, sum);
  }
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
        const int count = static_cast<int>(min(lanes, task.c_end - c));
        const MapPixels<T> pixels{image + c * bins + bin, level.W * args.C, args.C, bins};
        if (count == lanes) {
          store(out + c, sum_of_bin<false>(pixels, ys, xs, count));
        } else if (count > kFewChannels<A>) {
          store_partial(out + c, sum_of_bin<true>(pixels, ys, xs, count), count);
        } else {
          sum_few_channels(pixels, ys, xs, count, out + c, 1);
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
    const int count = static_cast<int>(min(lanes, task.c_end - c));
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
        // a copy is read in order: it pays for fewer channels than lanes do elsewhere
        const bool copy = count > lanes / 8 &&
                          copy_pays(run, plane, kCopiedPerRoi<WeightedSum, PositionSensitive>);
        if (copy) {
          const Planes<const T, lanes> planes(first, bins * plane, count);
          interleave<T, A>(planes, 0, plane, maps + args.N * args.C * plane, scratch);
        }
        for (int64_t i = begin; i < begin + run; ++i) {
          const int64_t k = task.order[i];
          const RoiBins<A> own(args, view, k);
          const Range<A> ys = own.y(ph);
          const Range<A> xs = own.x(pw);
          T* out = static_cast<T*>(args.pooled) + k * args.C + c * bins + bin;
          if (copy) {
            store_strided(out, sum_of_bin<false>(copied, ys, xs, count), bins, count);
          } else if (count == lanes) {
            store_strided(out, sum_of_bin<false>(in_place, ys, xs, count), bins, count);
          } else if (count > kFewChannels<A>) {
            store_strided(out, sum_of_bin<true>(in_place, ys, xs, count), bins, count);
          } else {
            sum_few_channels(in_place, ys, xs, count, out, bins);
          }
        }
      }
    }
  }
}

// What is summed at once: up to a vector's worth of channels of some bins.
struct SensitivePart {
  int64_t bin_begin, bin_end;
  int64_t c;
  int count;  // of channels
};

// The gradients of a bin's channels, which are side by side or, in NCHW, `bins` apart.
template <typename T>
inline const T* gradients_of_bin(const RoiArgs& args, const T* pooled, int64_t c, int64_t bin) {
  const int64_t bins = args.PH * args.PW;
  return args.channels_last ? pooled + bin * (args.C / bins) + c : pooled + c * bins + bin;
}

// A tile's sums in scratch memory, [height, width, bins, lanes].
template <typename A>
struct SumsInLanes {
  const RoiArgs& args;
  SensitivePart part;
  A* sums;
  int64_t width;

  int64_t bins() const { return part.bin_end - part.bin_begin; }
  A* pixel(int64_t y, int64_t x) const { return sums + (y * width + x) * bins() * lanes_v<A>; }

  template <typename T>
  inline vector_t<A> take(const T* pooled, int64_t bin) const {
    constexpr int lanes = lanes_v<A>;
    const T* from = gradients_of_bin(args, pooled, part.c, bin);
    if (args.channels_last) {
      return part.count == lanes ? load(from) : load_partial(from, part.count);
    }
    const int64_t stride = args.PH * args.PW;
    return part.count == lanes ? load_strided(from, stride, lanes)
                               : load_strided(from, stride, part.count);
  }
  inline void add(vector_t<A> grad, int64_t y, int64_t x, int64_t bin, A weight) const {
    A* sum = pixel(y, x) + (bin - part.bin_begin) * lanes_v<A>;
    store(sum, multiply_add(grad, broadcast(weight), load(sum)));
  }
};

template <typename A>
struct SumsInPlace {
  const RoiArgs& args;
  SensitivePart part;
  A* first;                          // of the tile
  int64_t row, pixel, bin, channel;  // distances

  struct Gradients {
    A of[kFewChannels<A> + 1];
  };

  void clear(int64_t height, int64_t width) const {
    if (!args.channels_last) {  // whole rows of each plane
      for (int j = 0; j < part.count; ++j) {
        memset(first + j * channel, 0, height * width * sizeof(A));
      }
      return;
    }
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        memset(first + y * row + x * pixel, 0, part.count * channel * sizeof(A));
      }
    }
  }
  inline Gradients take(const A* pooled, int64_t at) const {
    const A* from = gradients_of_bin(args, pooled, part.c, at);
    const int64_t stride = args.channels_last ? 1 : args.PH * args.PW;
    Gradients result;
    for (int j = 0; j < part.count; ++j) {
      result.of[j] = from[j * stride];
    }
    return result;
  }
  inline void add(const Gradients& grad, int64_t y, int64_t x, int64_t at, A weight) const {
    A* sum = first + y * row + x * pixel + (at - part.bin_begin) * bin;
    for (int j = 0; j < part.count; ++j, sum += channel) {
      *sum = multiply_add(grad.of[j], weight, *sum);
    }
  }
};

template <typename T, typename A, typename Sums>
inline void scatter_sensitive(
    const RoiArgs& args,
    const RoiBackwardTask& task,
    const RoiBins<A>& own,
    const T* pooled,  // [C, PH, PW] or [PH, PW, C]
    const Sums& sums
) {
  const SensitivePart& part = sums.part;
  for (int64_t ph = part.bin_begin / args.PW; ph * args.PW < part.bin_end; ++ph) {
    const Range<A> ys = clip(own.y(ph), task.y_begin, task.y_end);
    if (is_empty(ys)) {
      continue;
    }
    const int64_t first = ph * args.PW;
    const int64_t pw_begin = first < part.bin_begin ? part.bin_begin - first : 0;
    const int64_t pw_end = min(args.PW, part.bin_end - first);
    for (int64_t pw = pw_begin; pw < pw_end; ++pw) {
      const Range<A> xs = clip(own.x(pw), task.x_begin, task.x_end);
      if (is_empty(xs)) {
        continue;
      }
      const int64_t bin = first + pw;
      const auto grad = sums.take(pooled, bin);
      for (const Tap<A>* y = ys.begin; y < ys.end; ++y) {
        for (const Tap<A>* x = xs.begin; x < xs.end; ++x) {
          const A weight = y->weight * x->weight;
          sums.add(grad, y->pixel - task.y_begin, x->pixel - task.x_begin, bin, weight);
        }
      }
    }
  }
}

// Adds all rois of a task.
template <typename T, typename A, typename Sums>
void add_sensitive(
    const RoiArgs& args,
    const RoiTapsView<A>& view,
    const RoiBackwardTask& task,
    const T* pooled,
    const Sums& sums
) {
  for (int64_t i = 0; i < task.count; ++i) {
    const int64_t k = task.rois[i];
    if (touches(view.rois[k], task)) {
      scatter_sensitive(args, task, RoiBins<A>(args, view, k), pooled + k * args.C, sums);
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
  T* image = static_cast<T*>(level.features) + task.image * args.C * plane;
  const bool last = args.channels_last;
  // distances in the gradient
  const int64_t pixel = last ? args.C : 1, of_bin = last ? 1 : plane;
  const int64_t row = level.W * pixel, channel = bins * of_bin;
  // the planes of one bin after the other; all channels of a pixel together
  const int64_t step = last ? task.bin_end - task.bin_begin : 1;
  for (int64_t c = task.c_begin; c < task.c_end; c += lanes) {
    for (int64_t bin = task.bin_begin; bin < task.bin_end; bin += step) {
      const int count = static_cast<int>(min(lanes, task.c_end - c));
      const SensitivePart part{bin, bin + step, c, count};
      T* first = image + task.y_begin * row + task.x_begin * pixel + c * channel + bin * of_bin;
      if constexpr (sizeof(T) == sizeof(A)) {
        if (count <= kFewChannels<A>) {
          const SumsInPlace<A> sums{args, part, first, row, pixel, of_bin, channel};
          sums.clear(height, width);
          add_sensitive(args, view, task, pooled, sums);
          continue;
        }
      }
      const SumsInLanes<A> sums{args, part, scratch, width};
      memset(scratch, 0, height * width * step * lanes * sizeof(A));
      add_sensitive(args, view, task, pooled, sums);
      if (!last) {  // of whole rows
        deinterleave(scratch, Planes<T, lanes>(first, channel, count), 0, height * width);
        continue;
      }
      for (int64_t y = 0; y < height; ++y) {
        for (int64_t x = 0; x < width; ++x) {
          const Planes<T, lanes> to(first + y * row + x * pixel, channel, count);
          deinterleave(sums.pixel(y, x), to, 0, step);
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
