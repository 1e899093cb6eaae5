// Register tiles of input channels times vectors of output channels, summed over pixels.
#include "ops/conv_gradient.h"

#include "common/register_tile.h"

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int kWidth = (int)kConvGradientChannels;

template <int kRows, int kCols, typename T>
void add_tile(
    const ConvGradientTile<T>& tile, const T* gradient, int64_t tap, int64_t c, int64_t k
) {
  using V = vector_t<T>;
  T* to = tile.sums + (tap * tile.C + c) * tile.K + k;
  const int64_t K = tile.K, pixels = tile.pixels;
  V sums[kRows][kCols];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kCols; ++j) {
      sums[i][j] = load(to + i * K + j * lanes_v<T>);
    }
  }
  const T* const* inputs = tile.inputs + tap * pixels;
  for (int64_t p = 0; p < pixels; ++p, gradient += kCols * lanes_v<T>) {
    add_outer_product(sums, inputs[p], gradient);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kCols; ++j) {
      store(to + i * K + j * lanes_v<T>, sums[i][j]);
    }
  }
}

template <int kRows, typename T>
void add_channels(const ConvGradientTile<T>& tile, int64_t c) {
  const T* packed = tile.packed;
  for (int64_t k = tile.k_begin; k < tile.k_end;) {
    const bool whole = k + kTileVectors * lanes_v<T> <= tile.k_end;
    for (int64_t tap = 0; tap < tile.taps; ++tap) {
      if (whole) {
        add_tile<kRows, kTileVectors>(tile, packed, tap, c, k);
      } else {
        add_tile<kRows, 1>(tile, packed, tap, c, k);
      }
    }
    const int64_t channels = whole ? kTileVectors * lanes_v<T> : lanes_v<T>;
    packed += tile.pixels * channels;
    k += channels;
  }
}

// for `rows` channels, at most kRows
template <int kRows, typename T>
inline void add_rows(const ConvGradientTile<T>& tile, int64_t c, int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return add_rows<kRows - 1>(tile, c, rows);
    }
  }
  add_channels<kRows>(tile, c);
}

// the order in which add_channels reads them
template <typename T>
void pack_gradients(const ConvGradientTile<T>& tile) {
  T* to = tile.packed;
  for (int64_t k = tile.k_begin; k < tile.k_end;) {
    const bool whole = k + kTileVectors * lanes_v<T> <= tile.k_end;
    const int vectors = whole ? kTileVectors : 1;
    for (int64_t p = 0; p < tile.pixels; ++p) {
      for (int j = 0; j < vectors; ++j, to += lanes_v<T>) {
        store(to, load(tile.gradients + p * tile.K + k + j * lanes_v<T>));
      }
    }
    k += vectors * lanes_v<T>;
  }
}

template <typename T>
void fill_strip(const ConvGradientTile<T>& tile, int64_t c) {
  T* to = tile.strip;
  const int64_t rest = tile.C - c;
  for (int64_t r = 0; r < tile.run_count; ++r) {
    const ConvPixels<T>& run = tile.runs[r];
    const T* from = run.first + c;
    for (int64_t p = 0; p < run.count; ++p, from += run.step, to += kWidth) {
      if (__builtin_expect(rest >= kWidth, 1)) {
        __builtin_memcpy(to, from, kWidth * sizeof(T));
      } else {
        for (int i = 0; i < rest; ++i) {
          to[i] = from[i];
        }
      }
    }
  }
}

template <typename T>
void run(const ConvGradientTile<T>& tile) {
  pack_gradients(tile);
  for (int64_t c = 0; c < tile.C; c += kTileRows) {
    fill_strip(tile, c);
    add_rows<kTileRows>(tile, c, min<int64_t>(tile.C - c, kTileRows));
  }
}

}  // namespace

void conv_gradient_tile(const ConvGradientTile<float>& tile) { run(tile); }
void conv_gradient_tile(const ConvGradientTile<double>& tile) { run(tile); }

}  // namespace fastvision::FASTVISION_ISA
