// RoI ops that take a maximum, on the CPU, forward and backward. A bin is a rectangle of pixels, so
// its taps serve as two ranges. Lanes run over channels as in roi_forward.h.
#pragma once

#include "common/prefetch.h"
#include "common/roi_op.h"
#include "cpu/roi_bins.h"
#include "cpu/roi_planes.h"
#include "cpu/roi_running_maximum.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename A>
inline bool is_empty(Range<A> range) {
  return range.begin == range.end;
}

template <typename T, typename A, bool kArgmax>
struct MaximumChannelsLast {
  const RoiArgs& args;
  const RoiOfTask<T, A>& own;

  template <int kVectors, bool kPartial>
  inline void operator()(int64_t c, int count) const {
    constexpr int lanes = lanes_v<A>;
    int64_t out = c;
    for (int64_t ph = 0; ph < args.PH; ++ph) {
      const Range<A> ys = own.bins.y(ph);
      for (int64_t pw = 0; pw < args.PW; ++pw, out += args.C) {
        const Range<A> xs = own.bins.x(pw);
        RunningMaximum<A, kArgmax> best[kVectors];
        for (const Tap<A>* y = ys.begin; y < ys.end; ++y) {
          for (const Tap<A>* x = xs.begin; x < xs.end; ++x) {
            const int64_t at = y->pixel * own.W + x->pixel;
            const T* pixel = own.image + at * args.C + c;
            const auto positions =
                positions_t<A>{} + static_cast<decltype(+best[0].position[0])>(at);
#pragma GCC unroll 8
            for (int i = 0; i < kVectors; ++i) {
              best[i].add(load_lanes<kPartial>(pixel + i * lanes, count), positions);
            }
          }
        }
        const bool empty = is_empty(ys) || is_empty(xs);
#pragma GCC unroll 8
        for (int i = 0; i < kVectors; ++i) {
          const vector_t<A> value = empty ? vector_t<A>{} : best[i].value;
          store_lanes<kPartial>(own.pooled + out + i * lanes, value, count);
          if constexpr (kArgmax) {
            store_positions<A>(best[i].position, own.argmax + out + i * lanes, 1, count);
          }
        }
      }
    }
  }
};

// The maxima of `n` columns of a plane over the rows of a bin, from the pixel at `corner` on.
template <bool kArgmax, typename A, typename T>
inline RunningMaximum<A, kArgmax> maximum_of_columns(
    const T* corner, int64_t W, Range<A> ys, int n, bool whole, positions_t<A> first
) {
  RunningMaximum<A, kArgmax> best;
  const T* pixel = corner;
  for (const Tap<A>* y = ys.begin; y < ys.end; ++y, pixel += W) {
    best.add(whole ? load(pixel) : load_partial(pixel, n), first);
    first += static_cast<decltype(+first[0])>(W);
  }
  return best;
}

// Positions [n][lanes], as wide as values, to planes from `offset` on.
template <typename A, int kLanes>
inline void write_positions(
    const A* in, const Planes<int32_t, kLanes>& to, int64_t offset, int64_t n
) {
  if constexpr (sizeof(A) == sizeof(int32_t)) {  // shuffles leave the bits of integers as they are
    deinterleave(
        in, Planes<A, kLanes>(reinterpret_cast<A*>(to.first), to.stride, to.count), offset, n
    );
  } else {
    for (int64_t i = 0; i < n; ++i) {
      positions_t<A> at;
      memcpy(&at, in + i * kLanes, sizeof at);
      store_positions<A>(at, to.first + offset + i, to.stride, to.count);
    }
  }
}

// Of a vector's worth of channels: columns of a row of bins first, with lanes along the row, then,
// transposed, the columns of each bin.
template <bool kArgmax, typename T, typename A>
inline void maximum_planar(
    const RoiArgs& args, const RoiOfTask<T, A>& own, int64_t c, int64_t c_end, A* scratch
) {
  constexpr int lanes = lanes_v<A>;
  using Positions = positions_t<A>;
  const auto maps = own.template maps<lanes>(c, c_end);
  const int64_t x_begin = own.roi.x_begin;
  const int64_t width = own.roi.x_end - x_begin;
  const int64_t batch = roi_batch_rows(args);
  A* columns = scratch;                                                // [width][lanes]
  A* values = columns + roi_padded(width) * lanes;                     // [bins of a batch][lanes]
  A* column_positions = values + roi_padded(batch * args.PW) * lanes;  // [width][lanes]
  A* positions = column_positions + roi_padded(width) * lanes;         // [bins of a batch][lanes]
  Positions iota;
  for (int i = 0; i < lanes; ++i) {
    iota[i] = i;
  }
  for (int64_t first = 0; first < args.PH; first += batch) {
    const int64_t last = least(args.PH, first + batch);
    A* value = values;
    for (int64_t ph = first; ph < last; ++ph) {
      const Range<A> ys = own.bins.y(ph);
      for (int64_t i = 0; i < width && !is_empty(ys); i += lanes) {
        const int64_t corner = ys.begin->pixel * own.W + x_begin + i;
        const T* end = maps[lanes - 1] + ys.end[-1].pixel * own.W + x_begin + i + lanes;
        const int n = static_cast<int>(least(lanes, width - i));
        const Positions at = iota + static_cast<decltype(+iota[0])>(corner);
        vector_t<A> column[lanes] = {};
        Positions position[lanes] = {};
        for (int plane = 0; plane < maps.count; ++plane) {
          const auto best = maximum_of_columns<kArgmax, A>(
              maps[plane] + corner, own.W, ys, n, end <= own.maps_end, at
          );
          column[plane] = best.value;
          position[plane] = best.position;
        }
        transpose(column);
        if constexpr (kArgmax) {
          transpose(position);
        }
#pragma GCC unroll 16
        for (int j = 0; j < lanes; ++j) {
          store(columns + (i + j) * lanes, column[j]);
          if constexpr (kArgmax) {
            memcpy(column_positions + (i + j) * lanes, &position[j], sizeof position[j]);
          }
        }
      }
      for (int64_t pw = 0; pw < args.PW; ++pw, value += lanes) {
        const Range<A> xs = own.bins.x(pw);
        RunningMaximum<A, kArgmax> best;
        for (const Tap<A>* x = xs.begin; x < xs.end && !is_empty(ys); ++x) {
          const int64_t column = (x->pixel - x_begin) * lanes;
          Positions at = {};
          if constexpr (kArgmax) {
            memcpy(&at, column_positions + column, sizeof at);
          }
          best.merge(load(columns + column), at);
        }
        store(value, is_empty(xs) || is_empty(ys) ? vector_t<A>{} : best.value);
        if constexpr (kArgmax) {
          memcpy(positions + (value - values), &best.position, sizeof best.position);
        }
      }
    }
    const auto pooled = own.template pooled_planes<lanes>(c, c_end);
    deinterleave(values, pooled, first * args.PW, (last - first) * args.PW);
    if constexpr (kArgmax) {
      const auto argmax = own.template argmax_planes<lanes>(c, c_end);
      write_positions(positions, argmax, first * args.PW, (last - first) * args.PW);
    }
  }
}

template <bool kArgmax, typename T, typename A>
void maximum_forward(
    const RoiArgs& args, const RoiTapsView<A>& view, const RoiForwardTask& task, A* scratch
) {
  for_each_roi<T>(args, view, task, [&](const RoiOfTask<T, A>& own) {
    if (args.channels_last) {
      for_channel_pieces<A, kArgmax ? 4 : 8>(
          task.c_begin, task.c_end, MaximumChannelsLast<T, A, kArgmax>{args, own}
      );
      return;
    }
    for (int64_t c = task.c_begin; c < task.c_end; c += lanes_v<A>) {
      maximum_planar<kArgmax>(args, own, c, task.c_end, scratch);
    }
  });
}

// The rows of bins that reach into a tile, [begin, end).
template <typename A>
struct RowsOfBins {
  int64_t begin = 0;
  int64_t end;

  RowsOfBins(const RoiArgs& args, const RoiBins<A>& bins, const RoiBackwardTask& task) {
    while (begin < args.PH &&
           (is_empty(bins.y(begin)) || bins.y(begin).end[-1].pixel < task.y_begin)) {
      ++begin;
    }
    end = begin;
    while (end < args.PH && !is_empty(bins.y(end)) && bins.y(end).begin->pixel < task.y_end) {
      ++end;
    }
  }
};

// Bins whose gradients are asked for in advance: few channels of each are read, in channels_last
// from places too far apart for the processor to foresee.
constexpr int64_t kAhead = 8;

// Rows of a gradient map. kChannelsLast: [cells, channels], else [cells].
template <typename A, bool kChannelsLast>
struct MaximumTile {
  A* sums;
  int64_t first;  // position of the first cell
  uint64_t cells;
  int64_t channels;

  // n gradients, of neighbouring channels or of neighbouring bins
  template <typename T>
  inline void add(const T* grad, const int32_t* argmax, int64_t n) const {
    constexpr int lanes = lanes_v<A>;
    for (int64_t i = 0; i < n; i += lanes) {
      const int count = static_cast<int>(least(lanes, n - i));
      A values[lanes];
      store(values, count == lanes ? load(grad + i) : load_partial(grad + i, count));
      for (int j = 0; j < count; ++j) {
        const uint64_t cell = static_cast<uint64_t>(argmax[i + j] - first);
        if (cell < cells) {  // -1, and what lies in another tile, is not
          sums[kChannelsLast ? static_cast<int64_t>(cell) * channels + i + j : cell] += values[j];
        }
      }
    }
  }
};

template <typename T, typename A>
void maximum_backward(
    const RoiArgs& args, const RoiTapsView<A>& view, const RoiBackwardTask& task, A* scratch
) {
  const RoiLevel& level = args.levels[task.level];
  const int64_t channels = task.c_end - task.c_begin;
  const int64_t plane = level.H * level.W;
  const int64_t first = task.y_begin * level.W;
  const int64_t cells = (task.y_end - task.y_begin) * level.W;
  const int64_t pooled_plane = args.PH * args.PW;
  const T* pooled = static_cast<const T*>(args.pooled);
  T* grad = static_cast<T*>(level.features) + task.image * args.C * plane;
  memset(scratch, 0, cells * channels * sizeof(A));
  for (int64_t i = 0; i < task.count; ++i) {
    const int64_t k = task.rois[i];
    if (!touches(view.rois[k], task)) {
      continue;
    }
    const RowsOfBins<A> rows(args, RoiBins<A>(args, view, k), task);
    const int64_t begin = rows.begin * args.PW;
    const int64_t end = rows.end * args.PW;
    const int64_t roi = k * args.C * pooled_plane;
    if (args.channels_last) {
      const MaximumTile<A, true> tile{scratch, first, static_cast<uint64_t>(cells), channels};
      for (int64_t bin = begin; bin < end; ++bin) {
        const int64_t from = roi + bin * args.C + task.c_begin;
        const int64_t next = bin + kAhead < end ? from + kAhead * args.C : from;
        prefetch(pooled + next);
        prefetch(args.argmax + next);
        tile.add(pooled + from, args.argmax + from, channels);
      }
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        const MaximumTile<A, false> tile{
            scratch + c * cells, first, static_cast<uint64_t>(cells), 1
        };
        const int64_t from = roi + (task.c_begin + c) * pooled_plane + begin;
        tile.add(pooled + from, args.argmax + from, end - begin);
      }
    }
  }
  if (args.channels_last) {
    for (int64_t cell = 0; cell < cells; ++cell) {
      write(scratch + cell * channels, grad + (first + cell) * args.C + task.c_begin, channels);
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      write(scratch + c * cells, grad + (task.c_begin + c) * plane + first, cells);
    }
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
