// Transforms and products of the weight gradient by F(4x4, 3x3).
#include "ops/conv_winograd_gradient.h"

#include "common/prefetch.h"
#include "common/register_tile.h"
#include "cpu/conv_winograd_tile.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// input channels of a register tile: a vector's lanes in equal parts
constexpr int kParts = (kLanes + kTileRows - 1) / kTileRows;
constexpr int kMostRows = (kLanes + kParts - 1) / kParts;
constexpr int kTaps = 3;

// A d of a column d: its polynomial at each point
constexpr auto transform_gradient = [](const float_v (&d)[kOut], float_v (&v)[kIn]) {
  const float_v even_a = add_scaled(d[0], kA2, d[2]), odd_a = add_scaled(kA * d[1], kA3, d[3]);
  const float_v even_b = add_scaled(d[0], kB2, d[2]), odd_b = add_scaled(kB * d[1], kB3, d[3]);
  v[0] = d[0];
  v[1] = even_a + odd_a;
  v[2] = even_a - odd_a;
  v[3] = even_b + odd_b;
  v[4] = even_b - odd_b;
  v[5] = d[3];
};

// G^T s of a column s, G as in winograd_filters
constexpr auto transform_sums = [](const float_v (&s)[kIn], float_v (&g)[kTaps]) {
  constexpr double a2 = kNear * kNear, b2 = kFar * kFar, apart = 2 * (a2 - b2);
  constexpr float none = 1 / (a2 * b2), a = 1 / (a2 * apart), b = -1 / (b2 * apart);
  constexpr float odd_a = 1 / (kNear * apart), odd_b = -1 / (kFar * apart), both = 1 / apart;
  const float_v sum_a = s[1] + s[2], sum_b = s[3] + s[4];
  g[0] = add_scaled(add_scaled(none * s[0], a, sum_a), b, sum_b);
  g[1] = add_scaled(odd_a * (s[1] - s[2]), odd_b, s[3] - s[4]);
  g[2] = add_scaled(s[5], both, sum_a - sum_b);
};

// kRows input channels times kVectors of output channels
template <int kRows, int kVectors>
inline void multiply_tiles(const WinogradProducts& p, const float* inputs, float* to) {
  constexpr int64_t kStep = kVectors * kLanes;
  const bool are_first = p.are_first;
  if (!are_first) {
    for (int64_t i = 0; i < kRows * kStep; i += kLineBytes / (int64_t)sizeof(float)) {
      __builtin_prefetch(to + i, 1, 3);
    }
  }
  float_v sums[kRows][kVectors] = {};
  const float* gradients = p.gradients;
  const int64_t tiles = p.tiles;
  for (int64_t t = 0; t < tiles; ++t, inputs += kLanes, gradients += kStep) {
    add_outer_product(sums, inputs, gradients);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      float* const at = to + i * kStep + j * kLanes;
      store(at, are_first ? sums[i][j] : load(at) + sums[i][j]);
    }
  }
}

// for `rows` channels, at most kRows
template <int kVectors, int kRows = kMostRows>
inline void add_rows(const WinogradProducts& p, const float* inputs, float* to, int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return add_rows<kVectors, kRows - 1>(p, inputs, to, rows);
    }
  }
  multiply_tiles<kRows, kVectors>(p, inputs, to);
}

template <int kVectors = kTileVectors>
void add_channels(const WinogradProducts& p) {
  if constexpr (kVectors > 1) {
    if (p.channels < kVectors * kLanes) {
      return add_channels<kVectors - 1>(p);
    }
  }
  for (int64_t c = 0; c < p.C; c += kLanes) {
    const int64_t end = min<int64_t>(p.C - c, kLanes);
    for (int64_t i = 0; i < end; i += kMostRows) {
      add_rows<kVectors>(
          p,
          p.inputs + c * p.tiles + i,
          p.sums + (c + i) * p.channels,
          min<int64_t>(end - i, kMostRows)
      );
    }
  }
}

}  // namespace

// A dy A^T; lanes beyond K are zero
void winograd_gradients(const WinogradGradients& g) {
  // by value: a store could change what is behind a reference
  const int64_t K = g.K, plane = g.plane;
  for (int64_t t = 0; t < g.tiles; ++t) {
    const float* const* pixels = g.pixels + t * kWinogradPixels;
    for (int64_t k = 0; k < K; k += kLanes) {
      const int64_t begin = k / g.block * g.block;
      const int64_t left = (K - begin + kLanes - 1) / kLanes * kLanes;
      const int64_t channels = min<int64_t>(g.block, left);
      float* to = g.transformed + begin * g.room + (g.first + t) * channels + (k - begin);
      const int count = (int)min<int64_t>(K - k, kLanes);
      if (t + 1 < g.tiles && k * (int64_t)sizeof(float) % kLineBytes == 0) {
        for (int i = 0; i < kWinogradPixels; ++i) {
          __builtin_prefetch(pixels[kWinogradPixels + i] + k, 0, 3);
        }
      }
      transform_tile<kOut, kIn, 1>(
          transform_gradient,
          [=](int i, int) {
            return count == kLanes ? load(pixels[i] + k) : load_partial(pixels[i] + k, count);
          },
          [=](int i, int, float_v v) { store(to + i * plane, v); }
      );
    }
  }
}

void winograd_products(const WinogradProducts& products) { add_channels(products); }

void winograd_weights(const WinogradSums& s) {
  const int64_t plane = s.plane, C = s.C;
  for (int64_t c = s.c_begin; c < s.c_end; ++c) {
    for (int64_t k = 0; k < s.K; k += kLanes) {
      const float* from = s.sums + c * s.channels + k;
      float taps[kWinogradTaps][kLanes];
      transform_tile<kIn, kTaps, 1>(
          transform_sums,
          [=](int i, int) { return load(from + i * plane); },
          [&](int i, int, float_v v) { store(taps[i], v); }
      );
      const int count = (int)min<int64_t>(s.K - k, kLanes);
      for (int lane = 0; lane < count; ++lane) {
        float* to = s.weights + ((k + lane) * C + c) * kWinogradTaps;
        for (int tap = 0; tap < kWinogradTaps; ++tap) {
          to[tap] = taps[tap][lane];
        }
      }
    }
  }
}

}  // namespace fastvision::FASTVISION_ISA
