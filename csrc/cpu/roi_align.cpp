// RoIAlign on the CPU. Lanes run over channels in both memory formats: channels_last has them side
// by side; NCHW is reduced vertically first, with lanes along the row, and only what is left is
// transposed.
#include "ops/roi_align.h"

#include "common/roi_taps_view.h"
#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename A>
struct Range {
  const Tap<A>* begin;
  const Tap<A>* end;
};

// The taps of one bin of a roi.
template <typename A>
struct RoiBins {
  const int32_t* bins;
  const Tap<A>* taps;
  int64_t PH;

  RoiBins(const RoIAlignArgs& args, const RoiTapsView<A>& view, int64_t roi)
      : bins(view.bins + roi * (args.PH + args.PW + 2)),
        taps(view.taps + view.rois[roi].taps),
        PH(args.PH) {}
  Range<A> y(int64_t bin) const { return {taps + bins[bin], taps + bins[bin + 1]}; }
  Range<A> x(int64_t bin) const { return {taps + bins[PH + 1 + bin], taps + bins[PH + 2 + bin]}; }
};

// The part of a bin's taps, which ascend, in [low, high).
template <typename A>
inline Range<A> clip(Range<A> range, int64_t low, int64_t high) {
  while (range.begin < range.end && range.begin->index < low) {
    ++range.begin;
  }
  while (range.begin < range.end && range.end[-1].index >= high) {
    --range.end;
  }
  return range;
}

template <bool kPartial, typename T>
inline auto load_lanes(const T* p, int count) {
  if constexpr (kPartial) {
    return load_partial(p, count);
  } else {
    return load(p);
  }
}

template <bool kPartial, typename T, typename V>
inline void store_lanes(T* p, V v, int count) {
  if constexpr (kPartial) {
    store_partial(p, v, count);
  } else {
    store(p, v);
  }
}

// Runs f<vectors, partial>(channel, lanes of the last vector) over [begin, end) in the widest
// pieces.
template <typename A, typename F>
inline void for_channel_pieces(int64_t begin, int64_t end, const F& f) {
  constexpr int lanes = lanes_v<A>;
  int64_t c = begin;
  for (; c + 8 * lanes <= end; c += 8 * lanes) {
    f.template operator()<8, false>(c, lanes);
  }
  if (c + 4 * lanes <= end) {
    f.template operator()<4, false>(c, lanes);
    c += 4 * lanes;
  }
  if (c + 2 * lanes <= end) {
    f.template operator()<2, false>(c, lanes);
    c += 2 * lanes;
  }
  if (c + lanes <= end) {
    f.template operator()<1, false>(c, lanes);
    c += lanes;
  }
  if (c < end) {
    f.template operator()<1, true>(c, static_cast<int>(end - c));
  }
}

// ---- channels_last

template <typename T, typename A>
struct PoolChannelsLast {
  const RoIAlignArgs& args;
  RoiBins<A> bins;
  const T* map;  // [H, W, C]
  int64_t W;
  T* pooled;  // [PH, PW, C]

  template <int kVectors, bool kPartial>
  inline void operator()(int64_t c, int count) const {
    constexpr int lanes = lanes_v<A>;
    T* out = pooled + c;
    for (int64_t ph = 0; ph < args.PH; ++ph) {
      const Range<A> ys = bins.y(ph);
      for (int64_t pw = 0; pw < args.PW; ++pw, out += args.C) {
        const Range<A> xs = bins.x(pw);
        vector_t<A> sum[kVectors] = {};
        for (const Tap<A>* y = ys.begin; y < ys.end; ++y) {
          const T* row = map + y->index * W * args.C + c;
          for (const Tap<A>* x = xs.begin; x < xs.end; ++x) {
            const T* pixel = row + x->index * args.C;
            const vector_t<A> weight = broadcast(y->weight * x->weight);
#pragma GCC unroll 8
            for (int i = 0; i < kVectors; ++i) {
              const auto value = load_lanes<kPartial>(pixel + i * lanes, count);
              sum[i] = multiply_add(value, weight, sum[i]);
            }
          }
        }
#pragma GCC unroll 8
        for (int i = 0; i < kVectors; ++i) {
          store_lanes<kPartial>(out + i * lanes, sum[i], count);
        }
      }
    }
  }
};

template <typename T, typename A>
struct ScatterChannelsLast {
  const RoIAlignArgs& args;
  const RoIAlignBackwardTask& task;
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
          A* row = tile + (y->index - task.y_begin) * width * channels + c - task.c_begin;
          for (const Tap<A>* x = xs.begin; x < xs.end; ++x) {
            A* pixel = row + (x->index - task.x_begin) * channels;
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

// ---- NCHW

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// One vector's worth of channel planes; channels past the end repeat the last one.
template <typename T, int kLanes>
struct Planes {
  T* first;
  int64_t stride;
  int count;

  Planes(T* first, int64_t stride, int64_t channels)
      : first(first), stride(stride), count(static_cast<int>(least(channels, kLanes))) {}
  T* operator[](int i) const { return first + least(i, count - 1) * stride; }

  // Loads `n` <= lanes values at `offset` of every plane.
  template <typename V>
  inline void load_all(int64_t offset, int64_t n, const T* tensor_end, V (&out)[kLanes]) const {
    if (count == kLanes && (*this)[kLanes - 1] + offset + kLanes <= tensor_end) {
      const T* p = first + offset;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i, p += stride) {
        out[i] = load(p);
      }
    } else {
      for (int i = 0; i < kLanes; ++i) {
        out[i] = load_partial((*this)[i] + offset, static_cast<int>(n));
      }
    }
  }
};

// [channels][n] in planes to [n][lanes] in `out`, and back. The last block overlaps the one before
// it rather than being partial.
template <typename T, typename A, int kLanes>
inline void interleave(
    const Planes<const T, kLanes>& from, int64_t offset, int64_t n, const T* tensor_end, A* out
) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t begin = n >= kLanes ? least(i, n - kLanes) : 0;
    vector_t<A> block[kLanes];
    from.load_all(offset + begin, least(kLanes, n), tensor_end, block);
    transpose(block);
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      store(out + (begin + j) * kLanes, block[j]);
    }
  }
}

template <typename T, typename A, int kLanes>
inline void deinterleave(const A* in, const Planes<T, kLanes>& to, int64_t offset, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t begin = n >= kLanes ? least(i, n - kLanes) : 0;
    vector_t<A> block[kLanes];
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      block[j] = load(in + (begin + j) * kLanes);
    }
    transpose(block);
    T* out = to.first + offset + begin;
    if (to.count == kLanes && n >= kLanes) {
#pragma GCC unroll 16
      for (int c = 0; c < kLanes; ++c, out += to.stride) {
        store(out, block[c]);
      }
    } else {
      for (int c = 0; c < to.count; ++c, out += to.stride) {
        store_partial(out, block[c], static_cast<int>(least(kLanes, n)));
      }
    }
  }
}

// One bit per vector of columns that has a tap; from the 64th on they share the last bit. A wide
// box with few samples leaves most of its columns alone.
template <typename A>
inline uint64_t columns_with_taps(const RoiBins<A>& bins, const RoiFootprint& roi, int64_t PW) {
  uint64_t mask = 0;
  for (const Tap<A>* x = bins.x(0).begin; x < bins.x(PW - 1).end; ++x) {
    mask |= uint64_t{1} << least((x->index - roi.x_begin) / lanes_v<A>, 63);
  }
  return mask;
}

template <typename A>
inline bool has_taps(uint64_t mask, int64_t column) {
  return mask >> least(column / lanes_v<A>, 63) & 1;
}

template <typename T, typename A>
inline void pool_planar(
    const RoIAlignArgs& args,
    const RoiBins<A>& bins,
    const RoiFootprint& roi,
    const Planes<const T, lanes_v<A>>& maps,  // [H, W] each
    const T* tensor_end,
    int64_t W,
    const Planes<T, lanes_v<A>>& pooled,  // [PH, PW] each
    A* scratch
) {
  constexpr int lanes = lanes_v<A>;
  const int64_t width = roi.x_end - roi.x_begin;
  A* columns = scratch;                                 // [width][lanes]
  A* sums = columns + roi_align_padded(width) * lanes;  // [bins of a batch][lanes]
  const int64_t batch = roi_align_batch_rows(args);
  const uint64_t mask = columns_with_taps(bins, roi, args.PW);
  for (int64_t first = 0; first < args.PH; first += batch) {
    const int64_t last = least(args.PH, first + batch);
    A* sum_out = sums;
    for (int64_t ph = first; ph < last; ++ph) {
      const Range<A> ys = bins.y(ph);
      for (int64_t i = 0; i < width; i += lanes) {
        if (!has_taps<A>(mask, i)) {
          continue;
        }
        vector_t<A> column[lanes] = {};
        for (const Tap<A>* y = ys.begin; y < ys.end; ++y) {
          const int64_t offset = y->index * W + roi.x_begin + i;
          const vector_t<A> weight = broadcast(y->weight);
          vector_t<A> value[lanes];
          maps.load_all(offset, least(lanes, width - i), tensor_end, value);
#pragma GCC unroll 16
          for (int c = 0; c < lanes; ++c) {
            column[c] = multiply_add(value[c], weight, column[c]);
          }
        }
        transpose(column);
#pragma GCC unroll 16
        for (int j = 0; j < lanes; ++j) {
          store(columns + (i + j) * lanes, column[j]);
        }
      }
      for (int64_t pw = 0; pw < args.PW; ++pw, sum_out += lanes) {
        const Range<A> xs = bins.x(pw);
        vector_t<A> sum = {};
        for (const Tap<A>* x = xs.begin; x < xs.end; ++x) {
          const auto value = load(columns + (x->index - roi.x_begin) * lanes);
          sum = multiply_add(value, broadcast(x->weight), sum);
        }
        store(sum_out, sum);
      }
    }
    deinterleave(sums, pooled, first * args.PW, (last - first) * args.PW);
  }
}

template <typename T, typename A>
inline void scatter_planar(
    const RoIAlignArgs& args,
    const RoIAlignBackwardTask& task,
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
  A* columns = scratch;                                  // [width][lanes]
  A* grads = columns + roi_align_padded(width) * lanes;  // [bins of a batch][lanes]
  const int64_t batch = roi_align_batch_rows(args);
  const uint64_t mask = columns_with_taps(bins, roi, args.PW);
  for (int64_t first = 0; first < args.PH; first += batch) {
    const int64_t last = least(args.PH, first + batch);
    interleave<T, A>(pooled, first * args.PW, (last - first) * args.PW, tensor_end, grads);
    for (int64_t ph = first; ph < last; ++ph) {
      const Range<A> ys = clip(bins.y(ph), task.y_begin, task.y_end);
      if (ys.begin == ys.end) {
        continue;
      }
      for (int64_t i = 0; i < roi_align_padded(width); ++i) {
        store(columns + i * lanes, vector_t<A>{});
      }
      for (int64_t pw = 0; pw < args.PW; ++pw) {
        const auto grad = load(grads + ((ph - first) * args.PW + pw) * lanes);
        const Range<A> xs = bins.x(pw);
        for (const Tap<A>* x = xs.begin; x < xs.end; ++x) {
          A* column = columns + (x->index - roi.x_begin) * lanes;
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
          const int64_t offset = (y->index - task.y_begin) * tile_width + roi.x_begin + i;
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

template <typename T, typename A>
void forward(
    const RoIAlignArgs& args,
    const RoiTapsView<A>& view,
    const RoIAlignForwardTask& task,
    A* scratch
) {
  constexpr int lanes = lanes_v<A>;
  for (int64_t i = task.begin; i < task.end; ++i) {
    const int64_t k = task.order[i];
    const RoiFootprint& roi = view.rois[k];
    const RoIAlignLevel& level = args.levels[roi.level];
    const RoiBins<A> bins(args, view, k);
    const int64_t plane = level.H * level.W;
    const T* features = static_cast<const T*>(level.features);
    const T* image = features + roi.image * args.C * plane;
    T* pooled = static_cast<T*>(args.pooled) + k * args.C * args.PH * args.PW;
    if (args.channels_last) {
      for_channel_pieces<A>(
          task.c_begin, task.c_end, PoolChannelsLast<T, A>{args, bins, image, level.W, pooled}
      );
      continue;
    }
    for (int64_t c = task.c_begin; c < task.c_end; c += lanes) {
      const int64_t count = task.c_end - c;
      const Planes<const T, lanes> maps(image + c * plane, plane, count);
      const Planes<T, lanes> out(pooled + c * args.PH * args.PW, args.PH * args.PW, count);
      pool_planar<T, A>(
          args, bins, roi, maps, features + args.N * args.C * plane, level.W, out, scratch
      );
    }
  }
}

template <typename A>
inline bool touches(const RoiFootprint& roi, const RoIAlignBackwardTask& task) {
  return roi.y_begin < task.y_end && roi.y_end > task.y_begin && roi.x_begin < task.x_end &&
         roi.x_end > task.x_begin;
}

// Writes n finished sums in the gradient's type.
template <typename T, typename A>
inline void write(const A* sums, T* out, int64_t n) {
  constexpr int lanes = lanes_v<A>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    store(out + i, load(sums + i));
  }
  if (i < n) {
    store_partial(
        out + i, load_partial(sums + i, static_cast<int>(n - i)), static_cast<int>(n - i)
    );
  }
}

template <typename T, typename A>
void backward(
    const RoIAlignArgs& args,
    const RoiTapsView<A>& view,
    const RoIAlignBackwardTask& task,
    A* scratch
) {
  constexpr int lanes = lanes_v<A>;
  const RoIAlignLevel& level = args.levels[task.level];
  const int64_t height = task.y_end - task.y_begin;
  const int64_t width = task.x_end - task.x_begin;
  const int64_t channels = task.c_end - task.c_begin;
  const int64_t plane = level.H * level.W;
  const int64_t pooled_plane = args.PH * args.PW;
  const T* pooled = static_cast<const T*>(args.pooled);
  const T* pooled_end = pooled + args.K * args.C * pooled_plane;
  T* grad = static_cast<T*>(level.features) + task.image * args.C * plane;

  // channels_last: [height, width, padded channels]; NCHW: [channels, height, padded width]
  const int64_t tile_channels = args.channels_last ? roi_align_padded(channels) : channels;
  const int64_t tile_width = args.channels_last ? width : roi_align_padded(width);
  const int64_t tile_size = height * tile_width * tile_channels;
  memset(scratch, 0, tile_size * sizeof(A));
  A* rest = scratch + tile_size;

  for (int64_t i = 0; i < task.count; ++i) {
    const int64_t k = task.rois[i];
    const RoiFootprint& roi = view.rois[k];
    if (!touches<A>(roi, task)) {
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

#define FASTVISION_DEFINE_ROI_ALIGN(T, A)      \
  void roi_align_forward(                      \
      const T*,                                \
      const RoIAlignArgs& args,                \
      const RoiTapsView<A>& taps,              \
      const RoIAlignForwardTask& task,         \
      A* scratch                               \
  ) {                                          \
    forward<T, A>(args, taps, task, scratch);  \
  }                                            \
  void roi_align_backward(                     \
      const T*,                                \
      const RoIAlignArgs& args,                \
      const RoiTapsView<A>& taps,              \
      const RoIAlignBackwardTask& task,        \
      A* scratch                               \
  ) {                                          \
    backward<T, A>(args, taps, task, scratch); \
  }
FASTVISION_DEFINE_ROI_ALIGN(float, float)
FASTVISION_DEFINE_ROI_ALIGN(double, double)
FASTVISION_DEFINE_ROI_ALIGN(half_t, float)
FASTVISION_DEFINE_ROI_ALIGN(bfloat16_t, float)

}  // namespace fastvision::FASTVISION_ISA
