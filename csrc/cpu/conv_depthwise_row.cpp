// Rows of depthwise convolution: tiles of adjacent pixels, one vector of channels at a time. From
// the contract down to the registers:
//   with_taps       number of taps and step between pixels, as constants if they are common
//   split_pixels    number of pixels per tile
//   depthwise_tile  the sums of a tile
//   add_taps        one row of taps
#include "ops/conv.h"

#include "common/prefetch.h"
#include "common/simd.h"
#include "common/simd_activation.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// Adds the row of taps starting at x; each input vector is loaded once for all its pixels.
template <int kRows, int kTaps, int kStep, typename T>
inline void add_taps(vector_t<T> (&sums)[kRows], const T* x, int64_t pitch, const T* weights) {
  vector_t<T> w[kTaps];
#pragma GCC unroll 16
  for (int s = 0; s < kTaps; ++s) {
    w[s] = load(weights + s * lanes_v<T>);
  }
#pragma GCC unroll 32
  for (int column = 0; column < (kRows - 1) * kStep + kTaps; ++column) {
    const vector_t<T> value = load(x);
    x += pitch;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const int s = column - i * kStep;
      if (s >= 0 && s < kTaps) {
        sums[i] = multiply_add(value, w[s], sums[i]);
      }
    }
  }
}

// kTaps 0 stands for any number of taps, step and dilation
template <int kRows, int kTaps, int kStep, typename T>
inline void depthwise_tile(const ConvDepthwiseRow<T>& row, int64_t pixel) {
  const int64_t C = row.packing->outer_K(), S = row.S;
  const Bounds<T> bounds(row.activation);
  const vector_t<T> low = broadcast(bounds.low), high = broadcast(bounds.high);
  const T* residual = row.residual == nullptr ? nullptr : row.residual + pixel * C;
  T* output = row.output + pixel * C;
  const int64_t step = row.step * C, dilation = row.dilation * C;
  // each vector of channels prefetches its share of a later tile
  constexpr int kAhead = kRows * kStep * kVectorBytes / kLineBytes;
  const int64_t ahead = (1 + 128 / C) * kRows;
  const int64_t later = pixel + ahead - row.pixels;  // in the next row if not negative
  const int64_t behind =
      (later < 0 ? (pixel + ahead) * step : row.next_row + later * step) - step + S * C;
  for (int64_t k = 0; k < C; k += lanes_v<T>) {
    for (int64_t r = row.R - row.fresh; kTaps > 0 && r < row.R; ++r) {
#pragma GCC unroll 16
      for (int line = 0; line < kAhead; ++line) {
        prefetch(
            (const char*)(row.inputs[r] + row.start + behind + k * kRows * kStep) +
            line * kLineBytes
        );
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
      const T* x = row.inputs[r] + row.start + pixel * step + k;
      if (kTaps > 0 && full) {
        add_taps<kRows, kTaps, kStep>(sums, x, C, weights);
        continue;
      }
      for (int64_t s = row.tap_begin; s < row.tap_end; ++s, x += dilation) {
        const vector_t<T> w = load(weights + s * lanes_v<T>);
        for (int i = 0; i < kRows; ++i) {
          const vector_t<T> value = full ? load(x + i * step) : load_partial(x + i * step, count);
          sums[i] = multiply_add(value, w, sums[i]);
        }
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const int64_t at = i * C + k;
      if (residual != nullptr) {
        sums[i] += full ? load(residual + at) : load_partial(residual + at, count);
      }
      const vector_t<T> v = clamp(sums[i], low, high);
      if (full) {
        store(output + at, v);
      } else {
        store_partial(output + at, v, count);
      }
    }
  }
}

template <int kTaps, int kStep, typename T>
void split_pixels(const ConvDepthwiseRow<T>& row) {
  int64_t p = 0;
  for (; p + 6 <= row.pixels; p += 6) {
    depthwise_tile<6, kTaps, kStep>(row, p);
  }
  for (; p + 2 <= row.pixels; p += 2) {
    depthwise_tile<2, kTaps, kStep>(row, p);
  }
  if (p < row.pixels) {
    depthwise_tile<1, kTaps, kStep>(row, p);
  }
  if (!is_clamp(row.activation)) {
    const int64_t count = row.pixels * row.packing->outer_K();
    activate(row.output, count, row.activation, (T)row.negative_slope);
  }
}

template <typename T>
void with_taps(const ConvDepthwiseRow<T>& row) {
  const auto is = [&](int64_t S, int64_t step) {
    return row.S == S && row.tap_end - row.tap_begin == S && row.step == step && row.dilation == 1;
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
