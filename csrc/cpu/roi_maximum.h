// RoI ops that take a maximum, on the CPU, forward and backward. A bin is a rectangle of pixels, so
// its taps serve as two ranges. Lanes run over channels as in roi_forward.h.
#pragma once

#include "common/prefetch.h"
#include "cpu/roi_maximum_planar.h"

namespace fastvision::FASTVISION_ISA {
namespace {

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
  RoiForwardTask part = task;
  for (; part.begin < task.end; part.begin = part.end) {
    part.end = part.begin + run_of_map(view, task, part.begin);
    maximum_of_map<kArgmax, T>(args, view, part, scratch);
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
