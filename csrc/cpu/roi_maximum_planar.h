// Maxima of rois over channel planes (NCHW), with a vector's worth of channels in the lanes.
#pragma once

#include "common/prefetch.h"
#include "common/roi_op.h"
#include "cpu/roi_bins.h"
#include "cpu/roi_planes.h"
#include "cpu/roi_running_maximum.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// The maxima of `n` columns of a plane over the rows of a bin, from the pixel at `corner` on.
template <bool kArgmax, typename A, typename T>
inline RunningMaximum<A, kArgmax> maximum_of_columns(
    const T* corner, int64_t W, Range<A> ys, int n, bool whole, places_t<A> first
) {
  RunningMaximum<A, kArgmax> best;
  const T* pixel = corner;
  for (const Tap<A>* y = ys.begin; y < ys.end; ++y, pixel += W) {
    best.add(whole ? load(pixel) : load_partial(pixel, n), first);
    first += static_cast<lane_t<A>>(W);
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
      places_t<A> at;
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
        places_t<A> at = {};
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
    using Positions = places_t<A>;
    const int64_t x_begin = own.roi.x_begin;
    const int64_t width = own.roi.x_end - x_begin;
    for (int64_t i = 0; i < width; i += lanes) {
      const int64_t corner = ys.begin->pixel * own.W + x_begin + i;
      const T* end = maps[lanes - 1] + ys.end[-1].pixel * own.W + x_begin + i + lanes;
      const int n = static_cast<int>(min(lanes, width - i));
      const Positions at = places_from<A>(corner, 1);
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

// The same from copies of the planes of some vectors' worth of channels, [pixels from y_begin on]
// [lanes] each, `copied` apart. Values and positions of the vectors are `in_batch` apart.
template <bool kArgmax, int kVectors, typename T, typename A>
struct RowOfCopies {
  const RoiOfTask<T, A>& own;
  int64_t bins;
  const A* copies;
  int64_t copied, y_begin, in_batch;

  // not inlined: a larger function keeps the counters of the innermost loop in memory
  __attribute__((noinline)) void operator()(int64_t ph, A* value, A* position) const {
    constexpr int lanes = lanes_v<A>;
    const Range<A> ys = own.bins.y(ph);
    const int64_t W = own.W, distance = copied;
    for (int64_t pw = 0; pw < bins; ++pw, value += lanes, position += lanes) {
      const Range<A> xs = own.bins.x(pw);
      const int64_t width = xs.end - xs.begin;
      RunningMaximum<A, kArgmax> best[kVectors];
      if (width > 0 && !is_empty(ys)) {
        const int64_t corner = ys.begin->pixel * W + xs.begin->pixel;
        const A* pixel = copies + (corner - y_begin * W) * lanes;
        auto at = places_from<A>(corner, 0);
        for (int64_t rows = ys.end - ys.begin; rows > 0; --rows) {
          for (const A* end = pixel + width * lanes; pixel < end; pixel += lanes, at += 1) {
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) {
              best[v].add(load(pixel + v * distance), at);
            }
          }
          pixel += (W - width) * lanes;
          at += static_cast<lane_t<A>>(W - width);
        }
      }
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const int64_t offset = v * in_batch;
        store_best(best[v], is_empty(xs) || is_empty(ys), value + offset, position + offset);
      }
    }
  }
};

// Scratch memory of the planar forward: values and positions of the bins of a batch, for each of
// kCopiedVectors, and what the rows need.
template <bool kArgmax, typename A>
struct PlanarScratch {
  int64_t in_batch;  // [bins][lanes]
  A* values;
  A* positions;
  A* more;

  PlanarScratch(const RoiArgs& args, A* scratch)
      : in_batch(roi_padded(roi_batch_rows(args) * args.PW) * lanes_v<A>),
        values(scratch),
        positions(kArgmax ? values + kCopiedVectors * in_batch : values),
        more(positions + kCopiedVectors * in_batch) {}
};

// Pools some vectors' worth of channel planes from c on; rows of bins come from `row`.
template <bool kArgmax, int kVectors, typename T, typename A, typename Row>
inline void maximum_planar(
    const RoiArgs& args,
    const RoiOfTask<T, A>& own,
    int64_t c,
    int64_t c_end,
    const Row& row,
    const PlanarScratch<kArgmax, A>& scratch
) {
  constexpr int lanes = lanes_v<A>;
  const int64_t batch = roi_batch_rows(args);
  for (int64_t first = 0; first < args.PH; first += batch) {
    const int64_t last = min(args.PH, first + batch);
    for (int64_t ph = first; ph < last; ++ph) {
      // a row's share of what the roi will be written to, which is rarely in cache
      const int64_t share = min(kVectors * lanes, c_end - c) * args.PW;
      const int64_t begin_of_share = c * args.PH * args.PW + ph * share;
      prefetch_to_write(own.pooled + begin_of_share, share * sizeof(T));
      if constexpr (kArgmax) {
        prefetch_to_write(own.argmax + begin_of_share, share * sizeof(int32_t));
      }
      const int64_t bin = (ph - first) * args.PW;
      row(ph, scratch.values + bin * lanes, scratch.positions + bin * lanes);
    }
    const int64_t begin = first * args.PW, n = (last - first) * args.PW;
    for (int v = 0; v < kVectors; ++v) {
      const int64_t channel = c + v * lanes, offset = v * scratch.in_batch;
      const auto pooled = own.template pooled_planes<lanes>(channel, c_end);
      deinterleave(scratch.values + offset, pooled, begin, n);
      if constexpr (kArgmax) {
        const auto argmax = own.template argmax_planes<lanes>(channel, c_end);
        write_positions(scratch.positions + offset, argmax, begin, n);
      }
    }
  }
}

// Rois of one map, of kVectors vectors' worth of channels from c on, whose planes are copied.
template <bool kArgmax, int kVectors, typename T, typename A>
void maximum_of_copies(
    const RoiArgs& args,
    const RoiTapsView<A>& view,
    const RoiForwardTask& task,
    int64_t c,
    const PlanarScratch<kArgmax, A>& scratch
) {
  constexpr int lanes = lanes_v<A>;
  int64_t y_begin = INT64_MAX, y_end = 0;  // of all rois
  for (int64_t i = task.begin; i < task.end; ++i) {
    const RoiFootprint& roi = view.rois[task.order[i]];
    if (roi.y_begin < roi.y_end) {
      y_begin = min(y_begin, roi.y_begin);
      y_end = y_end < roi.y_end ? roi.y_end : y_end;
    }
  }
  bool is_copied = y_begin >= y_end;
  for_each_roi<T>(args, view, task, [&](const RoiOfTask<T, A>& own) {
    const int64_t pixels = y_begin < y_end ? (y_end - y_begin) * own.W : 0;
    const int64_t copied = roi_padded(pixels) * lanes;
    if (!is_copied) {
      for (int v = 0; v < kVectors; ++v) {
        const auto maps = own.template maps<lanes>(c + v * lanes, task.c_end);
        interleave<T, A>(maps, y_begin * own.W, pixels, own.maps_end, scratch.more + v * copied);
      }
      is_copied = true;
    }
    const RowOfCopies<kArgmax, kVectors, T, A> row{
        own, args.PW, scratch.more, copied, y_begin, scratch.in_batch
    };
    maximum_planar<kArgmax, kVectors>(args, own, c, task.c_end, row, scratch);
  });
}

template <bool kArgmax, typename T, typename A>
void maximum_of_map(
    const RoiArgs& args, const RoiTapsView<A>& view, const RoiForwardTask& task, A* memory
) {
  constexpr int lanes = lanes_v<A>;
  const PlanarScratch<kArgmax, A> scratch(args, memory);
  const RoiLevel& level = args.levels[view.rois[task.order[task.begin]].level];
  const int64_t most = kCopiedPerRoi<Maximum, AllChannels>;
  if (copy_pays(task.end - task.begin, level.H * level.W, most)) {
    int64_t c = task.c_begin;
    for (; c + lanes < task.c_end; c += 2 * lanes) {
      maximum_of_copies<kArgmax, 2, T>(args, view, task, c, scratch);
    }
    if (c < task.c_end) {
      maximum_of_copies<kArgmax, 1, T>(args, view, task, c, scratch);
    }
    return;
  }
  for_each_roi<T>(args, view, task, [&](const RoiOfTask<T, A>& own) {
    const int64_t width = own.roi.x_end - own.roi.x_begin;
    for (int64_t c = task.c_begin; c < task.c_end; c += lanes) {
      const RowOfPlanes<kArgmax, T, A> row{
          own,
          own.template maps<lanes>(c, task.c_end),
          args.PW,
          scratch.more,
          scratch.more + roi_padded(width) * lanes
      };
      maximum_planar<kArgmax, 1>(args, own, c, task.c_end, row, scratch);
    }
  });
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
