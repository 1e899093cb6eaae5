// Rows of depthwise convolution: tiles of adjacent pixels, one vector of channels at a time. From
// the contract down to the registers:
//   with_taps       number of taps and step between pixels, as constants if they are common
//   split_pixels    number of pixels per tile
//   with_borders    whether taps of the tile are outside the map
//   depthwise_tile  the sums of a tile
//   add_taps        one row of taps
#include "ops/conv.h"

#include "common/prefetch.h"
#include "common/simd.h"
#include "common/simd_activation.h"
#include "common/simd_lanes.h"
#include "cpu/conv_row.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// Adds the row of taps that starts at pixel `first` of x, whose pixels are `pitch` values apart.
// With borders, only pixels in [0, width) count.
template <int kRows, int kTaps, int kStep, bool kBorders, typename T>
inline void add_taps(
    vector_t<T> (&sums)[kRows],
    const T* x,
    int64_t first,
    int64_t width,
    int64_t pitch,
    const T* weights
) {
  // the first pixel inside; those outside are at the ends
  const auto next = [at = x + max<int64_t>(first, 0) * pitch, pitch](int) mutable {
    const vector_t<T> value = load(at);
    at += pitch;
    return value;
  };
  add_row_of_taps<kRows, kTaps, kStep>(sums, weights, lanes_v<T>, next, [=](int column) {
    return !kBorders || (first + column >= 0 && first + column < width);
  });
}

// as add_taps(), for any number of taps, step and dilation; partial vectors have `count` channels
template <int kRows, bool kBorders, bool kPartial, typename T>
inline void add_any_taps(
    vector_t<T> (&sums)[kRows],
    const ConvDepthwiseRow<T>& row,
    const T* x,
    int64_t first,
    int64_t pitch,
    const T* weights,
    int count
) {
  for (int64_t s = 0; s < row.S; ++s, first += row.dilation) {
    const vector_t<T> w = load(weights + s * lanes_v<T>);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const int64_t column = first + i * row.step;
      if (!kBorders || (column >= 0 && column < row.width)) {
        sums[i] = multiply_add(load_lanes<kPartial>(x + column * pitch, count), w, sums[i]);
      }
    }
  }
}

// kTaps 0 stands for any number of taps, step and dilation
template <int kRows, int kTaps, int kStep, bool kBorders, typename T>
inline void depthwise_tile(const ConvDepthwiseRow<T>& row, int64_t pixel) {
  const int64_t C = row.packing->outer_K(), S = row.S;
  const Bounds<T> bounds(row.activation);
  const vector_t<T> low = broadcast(bounds.low), high = broadcast(bounds.high);
  const T* residual = row.residual == nullptr ? nullptr : row.residual + pixel * C;
  T* output = row.output + pixel * C;
  const int64_t step = row.step * C, first = row.first + pixel * row.step;
  // each vector of channels prefetches its share of a later tile
  constexpr int kAhead = (kRows * kStep * kVectorBytes + kLineBytes - 1) / kLineBytes;
  const int64_t ahead = (1 + 128 / C) * kRows;
  const int64_t later = pixel + ahead - row.pixels;  // in the next row if not negative
  const int64_t behind = (later < 0 ? (pixel + ahead) * step : row.next_row + later * step) - step +
                         (row.first + S) * C;
  for (int64_t k = 0; k < C; k += lanes_v<T>) {
    for (int64_t r = row.R - row.fresh; kTaps > 0 && r < row.R; ++r) {
      if (row.inputs[r] == nullptr) {
        continue;
      }
#pragma GCC unroll 16
      for (int line = 0; line < kAhead; ++line) {
        prefetch((const char*)(row.inputs[r] + behind + k * kRows * kStep) + line * kLineBytes);
      }
    }
#pragma GCC unroll 16
    for (int line = 0; line < kRows * kVectorBytes / kLineBytes; ++line) {
      __builtin_prefetch((char*)(output + ahead * C + k * kRows) + line * kLineBytes, 1, 3);
    }
    const int count = (int)min<int64_t>(C - k, lanes_v<T>);
    const bool full = count == lanes_v<T>;
    vector_t<T> sums[kRows];
    for (int i = 0; i < kRows; ++i) {
      sums[i] = load(row.packed + k);
    }
    const T* weights = row.packed + row.packing->bias_size() + k * row.R * S;
    for (int64_t r = 0; r < row.R; ++r, weights += S * lanes_v<T>) {
      if (row.inputs[r] == nullptr) {
        continue;
      }
      const T* x = row.inputs[r] + k;
      if (!full) {
        add_any_taps<kRows, kBorders, true>(sums, row, x, first, C, weights, count);
      } else if constexpr (kTaps > 0) {
        add_taps<kRows, kTaps, kStep, kBorders>(sums, x, first, row.width, C, weights);
      } else {
        add_any_taps<kRows, kBorders, false>(sums, row, x, first, C, weights, count);
      }
    }
    const T* added = residual == nullptr ? nullptr : residual + k;
    finish_row(sums, output + k, added, C, kRows, count, low, high);
  }
}

template <int kRows, int kTaps, int kStep, typename T>
inline void with_borders(const ConvDepthwiseRow<T>& row, int64_t pixel) {
  const int64_t first = row.first + pixel * row.step;
  const int64_t last = first + (kRows - 1) * row.step + (row.S - 1) * row.dilation;
  if (first < 0 || last >= row.width) {
    depthwise_tile<kRows, kTaps, kStep, true>(row, pixel);
  } else {
    depthwise_tile<kRows, kTaps, kStep, false>(row, pixel);
  }
}

template <int kTaps, int kStep, typename T>
void split_pixels(const ConvDepthwiseRow<T>& row) {
  constexpr int kMost = kTaps > 0 ? 7 : 6;  // any step takes registers for addresses
  int64_t p = 0;
  for (; p + kMost <= row.pixels; p += kMost) {
    with_borders<kMost, kTaps, kStep>(row, p);
  }
  for (; p + 4 <= row.pixels; p += 4) {
    with_borders<4, kTaps, kStep>(row, p);
  }
  for (; p + 2 <= row.pixels; p += 2) {
    with_borders<2, kTaps, kStep>(row, p);
  }
  if (p < row.pixels) {
    with_borders<1, kTaps, kStep>(row, p);
  }
  if (!is_clamp(row.activation)) {
    const int64_t count = row.pixels * row.packing->outer_K();
    activate(row.output, count, row.activation, (T)row.negative_slope);
  }
}

template <typename T>
void with_taps(const ConvDepthwiseRow<T>& row) {
  const auto is = [&](int64_t S, int64_t step) {
    return row.S == S && row.step == step && row.dilation == 1;
  };
  if (is(3, 1)) {
    split_pixels<3, 1>(row);
  } else if (is(3, 2)) {
    split_pixels<3, 2>(row);
  } else if (is(5, 1)) {
    split_pixels<5, 1>(row);
  } else if (is(5, 2)) {
    split_pixels<5, 2>(row);
  } else {
    split_pixels<0, 0>(row);
  }
}

}  // namespace

void conv_depthwise_row(const ConvDepthwiseRow<float>& row) { with_taps(row); }
void conv_depthwise_row(const ConvDepthwiseRow<double>& row) { with_taps(row); }

}  // namespace fastvision::FASTVISION_ISA
