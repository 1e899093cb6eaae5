// Backward of the RoI ops that take a maximum, on the CPU: the gradient of a bin goes to one pixel,
// whose position the forward has kept. A tile is some rows of some channels of a gradient map.
#pragma once

#include "common/prefetch.h"
#include "common/roi_op.h"
#include "cpu/roi_bins.h"
#include "cpu/roi_planes.h"

namespace fastvision::FASTVISION_ISA {
namespace {

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

// The gradients of a roi's bins and the positions of their maxima, [C, PH, PW] or [PH, PW, C], from
// the first channel of a tile on.
template <typename T>
struct MaximumGradients {
  const T* grad;
  const int32_t* argmax;

  MaximumGradients at(int64_t offset) const { return {grad + offset, argmax + offset}; }
  inline void ask_for(int64_t n) const {
    for (int64_t i = 0; i < n; i += kLineBytes / static_cast<int64_t>(sizeof(int32_t))) {
      prefetch(grad + i);
      prefetch(argmax + i);
    }
  }
};

template <typename T>
struct MaximumTile {
  const RoiArgs& args;
  const RoiBackwardTask& task;
  int64_t W, plane;
  uint32_t first;  // position of the first cell
  uint32_t cells;
  T* grad;  // of the image, [C, H, W] or [H, W, C]

  MaximumTile(const RoiArgs& args, const RoiBackwardTask& task)
      : args(args),
        task(task),
        W(args.levels[task.level].W),
        plane(args.levels[task.level].H * W),
        first(static_cast<uint32_t>(task.y_begin * W)),
        cells(static_cast<uint32_t>((task.y_end - task.y_begin) * W)),
        grad(static_cast<T*>(args.levels[task.level].features) + task.image * args.C * plane) {}

  int64_t channels() const { return task.c_end - task.c_begin; }
  // of the i-th roi of the task
  MaximumGradients<T> gradients(int64_t i) const {
    const int64_t bins = args.PH * args.PW;
    const int64_t offset =
        task.rois[i] * args.C * bins + task.c_begin * (args.channels_last ? 1 : bins);
    return {static_cast<const T*>(args.pooled) + offset, args.argmax + offset};
  }
};

// Calls f(i, begin, end) with the bins of the i-th roi of the task that can have pixels of the
// tile.
template <typename T, typename A, typename F>
inline void for_each_roi_of(const RoiTapsView<A>& view, const MaximumTile<T>& tile, const F& f) {
  const RoiArgs& args = tile.args;
  for (int64_t i = 0; i < tile.task.count; ++i) {
    const int64_t k = tile.task.rois[i];
    if (touches(view.rois[k], tile.task)) {
      const RowsOfBins<A> rows(args, RoiBins<A>(args, view, k), tile.task);
      f(i, rows.begin * args.PW, rows.end * args.PW);
    }
  }
}

// Positions as cells of a tile, and their gradients. A position in no cell, of another tile or of a
// bin without a maximum, becomes a gradient of 0 to the first cell, as a branch would be
// mispredicted.
template <typename A, int kSize>
struct MaximumBlock {
  uint32_t cell[kSize];
  A value[kSize];

  template <typename T>
  inline void fill(const MaximumGradients<T>& from, int n, uint32_t first, uint32_t cells) {
    constexpr int lanes = lanes_v<A>;
    int j = 0;
    for (; j + lanes <= n; j += lanes) {
      store(value + j, load(from.grad + j));
    }
    if (j < n) {
      store(value + j, load_partial(from.grad + j, n - j));
    }
    for (j = 0; j < n; ++j) {
      const uint32_t distance = static_cast<uint32_t>(from.argmax[j]) - first;  // -1 is far off
      const lane_t<A> mask = -static_cast<lane_t<A>>(distance < cells);
      cell[j] = distance & static_cast<uint32_t>(mask);
      lane_t<A> bits;
      memcpy(&bits, value + j, sizeof bits);
      bits &= mask;
      memcpy(value + j, &bits, sizeof bits);
    }
  }
};

// Few channels of a bin, or few bins of a roi, are read from places too far apart for the processor
// to foresee: so many before they are asked for in advance.
constexpr int64_t kBinsAhead = 8;
constexpr int64_t kRoisAhead = 2;
constexpr int64_t kMostAhead = 1024;  // values of a roi; it foresees the rest

template <typename T, typename A>
void maximum_backward_last(const RoiTapsView<A>& view, const MaximumTile<T>& tile, A* sums) {
  constexpr int lanes = lanes_v<A>;
  constexpr int64_t stride = kMaximumChannelsLast;  // of a cell
  const int64_t C = tile.args.C, channels = tile.channels();
  const int64_t last_bin = tile.args.PH * tile.args.PW - 1;
  memset(sums, 0, tile.cells * stride * sizeof(A));
  for_each_roi_of(view, tile, [&](int64_t i, int64_t begin, int64_t end) {
    const auto own = tile.gradients(i);
    const auto next = tile.gradients(min(i + 1, tile.task.count - 1));
    for (int64_t bin = begin; bin < end; ++bin) {
      const int64_t ahead = bin + kBinsAhead;
      (ahead < end ? own.at(ahead * C) : next.at(min(ahead - end, last_bin) * C)).ask_for(1);
      for (int64_t c = 0; c < channels; c += lanes) {
        MaximumBlock<A, lanes> block;
        const int count = static_cast<int>(min(lanes, channels - c));
        const auto from = own.at(bin * C + c);
        if (count == lanes) {
          block.fill(from, lanes, tile.first, tile.cells);
        } else {
          block.fill(from, count, tile.first, tile.cells);
        }
        for (int j = 0; j < count; ++j) {
          sums[block.cell[j] * stride + c + j] += block.value[j];
        }
      }
    }
  });
  for (int64_t cell = 0; cell < static_cast<int64_t>(tile.cells); ++cell) {
    write(sums + cell * stride, tile.grad + (tile.first + cell) * C + tile.task.c_begin, channels);
  }
}

// Adds the gradients of n bins to kPlanes planes. Neighbouring bins often share a maximum, and an
// addition would wait for the one before it: planes and quarters of a block take turns.
template <int kPlanes, typename T, typename A>
inline void add_to_planes(
    const MaximumTile<T>& tile, const MaximumGradients<T>& from, int64_t n, A* sums, int64_t stride
) {
  constexpr int kSize = 4 * lanes_v<A>;
  const int64_t bins = tile.args.PH * tile.args.PW;
  for (int64_t i = 0; i < n; i += kSize) {
    const int count = static_cast<int>(min(kSize, n - i));
    MaximumBlock<A, kSize> blocks[kPlanes];
    for (int c = 0; c < kPlanes; ++c) {
      blocks[c].fill(from.at(c * bins + i), count, tile.first, tile.cells);
    }
    const int step = (count + 3) / 4;
    for (int first_of_step = 0; first_of_step < step; ++first_of_step) {
      for (int j = first_of_step; j < count; j += step) {
#pragma GCC unroll 4
        for (int c = 0; c < kPlanes; ++c) {
          sums[c * stride + blocks[c].cell[j]] += blocks[c].value[j];
        }
      }
    }
  }
}

template <typename T, typename A>
void maximum_backward_planar(const RoiTapsView<A>& view, const MaximumTile<T>& tile, A* scratch) {
  const int64_t bins = tile.args.PH * tile.args.PW;
  const int64_t channels = tile.channels();
  T* planes = tile.grad + tile.task.c_begin * tile.plane + tile.first;
  A* sums = scratch;
  int64_t stride = roi_padded(tile.cells);
  constexpr bool kInPlace = sizeof(T) == sizeof(A);
  if constexpr (kInPlace) {
    sums = planes;
    stride = tile.plane;
  }
  for (int64_t c = 0; c < channels; ++c) {
    memset(sums + c * stride, 0, tile.cells * sizeof(A));
  }
  for_each_roi_of(view, tile, [&](int64_t i, int64_t begin, int64_t end) {
    const int64_t ahead = i + kRoisAhead;
    if (ahead < tile.task.count && touches(view.rois[tile.task.rois[ahead]], tile.task)) {
      tile.gradients(ahead).ask_for(min(channels * bins, kMostAhead));
    }
    const auto from = tile.gradients(i).at(begin);
    int64_t c = 0;
    for (; c + 4 <= channels; c += 4) {
      add_to_planes<4>(tile, from.at(c * bins), end - begin, sums + c * stride, stride);
    }
    for (; c < channels; ++c) {
      add_to_planes<1>(tile, from.at(c * bins), end - begin, sums + c * stride, stride);
    }
  });
  for (int64_t c = 0; c < channels && !kInPlace; ++c) {
    write(sums + c * stride, planes + c * tile.plane, tile.cells);
  }
}

template <typename T, typename A>
void maximum_backward(
    const RoiArgs& args, const RoiTapsView<A>& view, const RoiBackwardTask& task, A* scratch
) {
  const MaximumTile<T> tile(args, task);
  if (args.channels_last) {
    maximum_backward_last(view, tile, scratch);
  } else {
    maximum_backward_planar(view, tile, scratch);
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
