// Rows of depthwise convolution: tiles of adjacent pixels, one vector of channels at a time. From
// the contract down to the registers:
//   by_dilation     pixels whose taps are the same, if taps are not side by side
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
  const int64_t C = row.packing->outer_K(), pitch = row.pitch, S = row.S;
  const Bounds<T> bounds(row.activation);
  const vector_t<T> low = broadcast(bounds.low), high = broadcast(bounds.high);
  const T* residual = row.residual == nullptr ? nullptr : row.residual + pixel * pitch;
  T* output = row.output + pixel * pitch;
  const int64_t step = row.step * pitch, first = row.first + pixel * row.step;
  // each vector of channels prefetches its share of a later tile
  constexpr int kAhead = (kRows * kStep * kVectorBytes + kLineBytes - 1) / kLineBytes;
  const int64_t ahead = (1 + 128 / C) * kRows;
  const int64_t later = pixel + ahead - row.pixels;  // in the next row if not negative
  const int64_t behind = (later < 0 ? (pixel + ahead) * step : row.next_row + later * step) - step +
                         (row.first + S) * pitch;
  for (int64_t k = 0; k < C; k += lanes_v<T>) {
    for (int64_t r = row.R - row.fresh; kTaps > 0 && r < row.R; ++r) {
      if (row.inputs[r] == nullptr) {
        continue;
      }
#pragma GCC unroll 16
      for (int line = 0; line < kAhead; ++line) {
        prefetch(
            (const char*)(row.inputs[r] + row.offset + behind + k * kRows * kStep) +
            line * kLineBytes
        );
      }
    }
#pragma GCC unroll 16
    for (int line = 0; line < kRows * kVectorBytes / kLineBytes; ++line) {
      __builtin_prefetch((char*)(output + ahead * pitch + k * kRows) + line * kLineBytes, 1, 3);
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
      const T* x = row.inputs[r] + row.offset + k;
      if (!full) {
        add_any_taps<kRows, kBorders, true>(sums, row, x, first, pitch, weights, count);
      } else if constexpr (kTaps > 0) {
        add_taps<kRows, kTaps, kStep, kBorders>(sums, x, first, row.width, pitch, weights);
      } else {
        add_any_taps<kRows, kBorders, false>(sums, row, x, first, pitch, weights, count);
      }
    }
    const T* added = residual == nullptr ? nullptr : residual + k;
    finish_row(sums, output + k, added, pitch, kRows, count, low, high);
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
  } else if (is(7, 1)) {
    split_pixels<7, 1>(row);
  } else if (is(7, 2)) {
    split_pixels<7, 2>(row);
  } else {
    split_pixels<0, 0>(row);
  }
}

// With step 1, the pixels that are equal modulo the dilation share their taps, and are a row whose
// taps are side by side.
template <typename T>
void by_dilation(const ConvDepthwiseRow<T>& row) {
  const int64_t d = row.dilation;
  if (d == 1 || row.step != 1 || d >= row.pixels) {
    return with_taps(row);
  }
  for (int64_t p = 0; p < d; ++p) {
    const int64_t first = row.first + p, pixel = (first % d + d) % d;
    ConvDepthwiseRow<T> part = row;
    part.pixels = (row.pixels - p + d - 1) / d;
    part.width = pixel < row.width ? (row.width - pixel + d - 1) / d : 0;
    part.first = (first - pixel) / d;
    part.dilation = 1;
    part.pitch = d * row.pitch;
    part.offset = pixel * row.pitch;
    part.output += p * row.pitch;
    part.residual = row.residual == nullptr ? nullptr : row.residual + p * row.pitch;
    with_taps(part);
  }
}

template <typename T>
void run_row(const ConvDepthwiseRow<T>& row) {
  by_dilation(row);
  if (!is_clamp(row.activation)) {
    activate(row.output, row.pixels * row.pitch, row.activation, (T)row.negative_slope);
  }
}

}  // namespace

void conv_depthwise_row(const ConvDepthwiseRow<float>& row) { run_row(row); }
void conv_depthwise_row(const ConvDepthwiseRow<double>& row) { run_row(row); }

}  // namespace fastvision::FASTVISION_ISA
