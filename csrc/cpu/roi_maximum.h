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

template <typename A>
inline void store_best(const RunningMaximum<A, true>& best, bool empty, A* value, A* position) {
  store(value, empty ? vector_t<A>{} : best.value);
  memcpy(position, &best.position, sizeof best.position);
}
template <typename A>
inline void store_best(const RunningMaximum<A, false>& best, bool empty, A* value, A*) {
  store(value, empty ? vector_t<A>{} : best.value);
}

// A row of bins of a vector's worth of channel planes: columns first, with lanes along the row,
// then, transposed, the columns of each bin.
template <bool kArgmax, typename T, typename A>
struct RowOfPlanes {
  const RoiOfTask<T, A>& own;
  Planes<const T, lanes_v<A>> maps;
  int64_t bins;
  A* columns;    // [width][lanes]
  A* positions;  // [width][lanes]

  inline void operator()(int64_t ph, A* value, A* position) const {
    constexpr int lanes = lanes_v<A>;
    const int64_t x_begin = own.roi.x_begin;
    const Range<A> ys = own.bins.y(ph);
    if (!is_empty(ys)) {
      fill_columns(ys);
    }
    for (int64_t pw = 0; pw < bins; ++pw, value += lanes, position += lanes) {
      const Range<A> xs = own.bins.x(pw);
      RunningMaximum<A, kArgmax> best;
      for (const Tap<A>* x = xs.begin; x < xs.end && !is_empty(ys); ++x) {
        const int64_t column = (x->pixel - x_begin) * lanes;
        positions_t<A> at = {};
        if constexpr (kArgmax) {
          memcpy(&at, positions + column, sizeof at);
        }
        best.merge(load(columns + column), at);
      }
      store_best(best, is_empty(xs) || is_empty(ys), value, position);
    }
  }

 private:
  inline void fill_columns(Range<A> ys) const {
    constexpr int lanes = lanes_v<A>;
    using Positions = positions_t<A>;
    const int64_t x_begin = own.roi.x_begin;
    const int64_t width = own.roi.x_end - x_begin;
    Positions iota;
    for (int i = 0; i < lanes; ++i) {
      iota[i] = i;
    }
    for (int64_t i = 0; i < width; i += lanes) {
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
          memcpy(positions + (i + j) * lanes, &position[j], sizeof position[j]);
        }
      }
    }
  }
};

// The same from a copy of the planes, [pixels from y_begin on][lanes].
template <bool kArgmax, typename T, typename A>
struct RowOfCopy {
  const RoiOfTask<T, A>& own;
  int64_t bins;
  const A* copy;
  int64_t y_begin;

  inline void operator()(int64_t ph, A* value, A* position) const {
    constexpr int lanes = lanes_v<A>;
    const Range<A> ys = own.bins.y(ph);
    for (int64_t pw = 0; pw < bins; ++pw, value += lanes, position += lanes) {
      const Range<A> xs = own.bins.x(pw);
      RunningMaximum<A, kArgmax> best;
      for (const Tap<A>* y = ys.begin; y < ys.end && !is_empty(xs); ++y) {
        const int64_t x = xs.begin->pixel;
        const A* pixel = copy + ((y->pixel - y_begin) * own.W + x) * lanes;
        auto at = positions_t<A>{} + static_cast<decltype(+best.position[0])>(y->pixel * own.W + x);
        for (int64_t n = xs.end - xs.begin; n > 0; --n, pixel += lanes, at += 1) {
          best.add(load(pixel), at);
        }
      }
      store_best(best, is_empty(xs) || is_empty(ys), value, position);
    }
  }
};

// Pools a vector's worth of channel planes from c on; rows of bins come from `row`.
template <bool kArgmax, typename T, typename A, typename Row>
inline void maximum_planar(
    const RoiArgs& args,
    const RoiOfTask<T, A>& own,
    int64_t c,
    int64_t c_end,
    const Row& row,
    A* values,    // [bins of a batch][lanes]
    A* positions  // likewise
) {
  constexpr int lanes = lanes_v<A>;
  const int64_t batch = roi_batch_rows(args);
  for (int64_t first = 0; first < args.PH; first += batch) {
    const int64_t last = least(args.PH, first + batch);
    for (int64_t ph = first; ph < last; ++ph) {
      const int64_t bin = (ph - first) * args.PW;
      row(ph, values + bin * lanes, positions + bin * lanes);
    }
    const auto pooled = own.template pooled_planes<lanes>(c, c_end);
    deinterleave(values, pooled, first * args.PW, (last - first) * args.PW);
    if constexpr (kArgmax) {
      const auto argmax = own.template argmax_planes<lanes>(c, c_end);
      write_positions(positions, argmax, first * args.PW, (last - first) * args.PW);
    }
  }
}

// Rois of one map, of a vector's worth of channel planes from c on.
template <bool kArgmax, typename T, typename A>
void maximum_of_map(
    const RoiArgs& args,
    const RoiTapsView<A>& view,
    const RoiForwardTask& task,
    int64_t c,
    bool copy,
    A* scratch
) {
  constexpr int lanes = lanes_v<A>;
  const int64_t in_batch = roi_padded(roi_batch_rows(args) * args.PW) * lanes;
  A* values = scratch;
  A* positions = kArgmax ? values + in_batch : values;
  A* more = positions + in_batch;
  int64_t y_begin = INT64_MAX, y_end = 0;  // of all rois
  for (int64_t i = task.begin; i < task.end; ++i) {
    const RoiFootprint& roi = view.rois[task.order[i]];
    if (roi.y_begin < roi.y_end) {
      y_begin = least(y_begin, roi.y_begin);
      y_end = y_end < roi.y_end ? roi.y_end : y_end;
    }
  }
  bool copied = false;
  for_each_roi<T>(args, view, task, [&](const RoiOfTask<T, A>& own) {
    const auto maps = own.template maps<lanes>(c, task.c_end);
    if (copy) {
      if (!copied && y_begin < y_end) {
        interleave<T, A>(maps, y_begin * own.W, (y_end - y_begin) * own.W, own.maps_end, more);
        copied = true;
      }
      const RowOfCopy<kArgmax, T, A> row{own, args.PW, more, y_begin};
      maximum_planar<kArgmax>(args, own, c, task.c_end, row, values, positions);
    } else {
      const int64_t width = own.roi.x_end - own.roi.x_begin;
      const RowOfPlanes<kArgmax, T, A> row{
          own, maps, args.PW, more, more + roi_padded(width) * lanes
      };
      maximum_planar<kArgmax>(args, own, c, task.c_end, row, values, positions);
    }
  });
}

template <bool kArgmax, typename T, typename A>
void maximum_forward(
    const RoiArgs& args, const RoiTapsView<A>& view, const RoiForwardTask& task, A* scratch
) {
  if (args.channels_last) {
    for_each_roi<T>(args, view, task, [&](const RoiOfTask<T, A>& own) {
      for_channel_pieces<A, kArgmax ? 4 : 8>(
          task.c_begin, task.c_end, MaximumChannelsLast<T, A, kArgmax>{args, own}
      );
    });
    return;
  }
  for (int64_t c = task.c_begin; c < task.c_end; c += lanes_v<A>) {
    RoiForwardTask part = task;
    for (; part.begin < task.end; part.begin = part.end) {
      part.end = part.begin + run_of_map(view, task, part.begin);
      const RoiLevel& level = args.levels[view.rois[task.order[part.begin]].level];
      const bool copy =
          copy_pays(part.end - part.begin, level.H * level.W, kCopiedPerRoi<Maximum, AllChannels>);
      maximum_of_map<kArgmax, T>(args, view, part, c, copy, scratch);
    }
  }
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

// Sums of some rows of a gradient map, kStride apart: [cells][channels] in channels_last, else
// [cells]. Behind them is one cell more, which takes the gradients of pixels in no cell, those of
// other tiles and of bins without a maximum: they would be hard to foresee as branches.
template <typename A, int kStride>
struct MaximumTile {
  A* sums;
  uint32_t first;  // position of the first cell
  uint32_t cells;

  // n gradients, of neighbouring channels or of neighbouring bins. Neighbouring bins often share a
  // maximum, and an addition would wait for the one before it: blocks take turns.
  template <typename T>
  inline void add(const T* grad, const int32_t* argmax, int64_t n) const {
    constexpr int lanes = lanes_v<A>;
    for (int64_t i = 0; i < n; i += kBlocks * lanes) {
      const int count = static_cast<int>(least(kBlocks * lanes, n - i));
      if (count == kBlocks * lanes) {
        add_blocks(grad + i, argmax + i, i, kBlocks * lanes);
      } else {
        add_blocks(grad + i, argmax + i, i, count);
      }
    }
  }

 private:
  static constexpr int kBlocks = kStride > 1 ? kStride / lanes_v<A> : 4;

  template <typename T>
  inline void add_blocks(const T* grad, const int32_t* argmax, int64_t at, int count) const {
    constexpr int lanes = lanes_v<A>;
    A values[kBlocks * lanes];
    uint32_t cell[kBlocks * lanes];
    for (int j = 0; j < count; ++j) {
      const uint32_t distance = static_cast<uint32_t>(argmax[j]) - first;
      cell[j] = distance < cells ? distance : cells;  // -1 is far off
    }
    int j = 0;
    for (; j + lanes <= count; j += lanes) {
      store(values + j, load(grad + j));
    }
    if (j < count) {
      store(values + j, load_partial(grad + j, count - j));
    }
    const int step = kStride > 1 ? 1 : (count + kBlocks - 1) / kBlocks;
    for (int first_of_step = 0; first_of_step < step; ++first_of_step) {
#pragma GCC unroll 4
      for (int k = first_of_step; k < count; k += step) {
        sums[static_cast<size_t>(cell[k]) * kStride + (kStride > 1 ? at + k : 0)] += values[k];
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
  const uint32_t first = static_cast<uint32_t>(task.y_begin * level.W);
  const uint32_t cells = static_cast<uint32_t>((task.y_end - task.y_begin) * level.W);
  const int64_t tile_plane = roi_padded(cells);  // NCHW; has room for a cell more
  const int64_t pooled_plane = args.PH * args.PW;
  const T* pooled = static_cast<const T*>(args.pooled);
  T* grad = static_cast<T*>(level.features) + task.image * args.C * plane;
  const int64_t in_tile =
      args.channels_last ? (cells + int64_t{1}) * kMaximumChannelsLast : tile_plane * channels;
  memset(scratch, 0, in_tile * sizeof(A));
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
      const MaximumTile<A, kMaximumChannelsLast> tile{scratch, first, cells};
      for (int64_t bin = begin; bin < end; ++bin) {
        const int64_t from = roi + bin * args.C + task.c_begin;
        const int64_t next = bin + kAhead < end ? from + kAhead * args.C : from;
        prefetch(pooled + next);
        prefetch(args.argmax + next);
        tile.add(pooled + from, args.argmax + from, channels);
      }
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t from = roi + (task.c_begin + c) * pooled_plane + begin;
        const MaximumTile<A, 1> tile{scratch + c * tile_plane, first, cells};
        tile.add(pooled + from, args.argmax + from, end - begin);
      }
    }
  }
  if (args.channels_last) {
    for (int64_t cell = 0; cell < static_cast<int64_t>(cells); ++cell) {
      write(
          scratch + cell * kMaximumChannelsLast,
          grad + (first + cell) * args.C + task.c_begin,
          channels
      );
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      write(scratch + c * tile_plane, grad + (task.c_begin + c) * plane + first, cells);
    }
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
