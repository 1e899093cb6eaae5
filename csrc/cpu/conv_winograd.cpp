// The transforms of F(4x4, 3x3); lanes are channels.
#include "ops/conv_winograd.h"

#include "common/simd_activation.h"
#include "cpu/conv_winograd_tile.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// G g of a column g of filters: their polynomials at each point, divided by the product of the
// point's distances from the others
inline void transform_filter(const double_v (&g)[3], double_v (&u)[kIn]) {
  constexpr double a2 = kNear * kNear, b2 = kFar * kFar, apart = 2 * (a2 - b2);
  const double_v even_a = g[0] / (a2 * apart) + g[2] / apart, odd_a = g[1] / (kNear * apart);
  const double_v even_b = g[0] / (-b2 * apart) - g[2] / apart, odd_b = g[1] / (-kFar * apart);
  u[0] = g[0] / (a2 * b2);
  u[1] = even_a + odd_a;
  u[2] = even_a - odd_a;
  u[3] = even_b + odd_b;
  u[4] = even_b - odd_b;
  u[5] = g[2];
}

// B^T d of a column d: for each point the product of (x - the others), with x^i read as d[i]
constexpr auto transform_input = [](const float_v (&d)[kIn], float_v (&v)[kIn]) {
  const float_v even_a = add_scaled(d[4], -kB2, d[2]), odd_a = add_scaled(d[3], -kB2, d[1]);
  const float_v even_b = add_scaled(d[4], -kA2, d[2]), odd_b = add_scaled(d[3], -kA2, d[1]);
  v[0] = add_scaled(add_scaled(d[4], -kSum, d[2]), kProduct, d[0]);
  v[1] = add_scaled(even_a, kA, odd_a);
  v[2] = add_scaled(even_a, -kA, odd_a);
  v[3] = add_scaled(even_b, kB, odd_b);
  v[4] = add_scaled(even_b, -kB, odd_b);
  v[5] = add_scaled(add_scaled(d[5], -kSum, d[3]), kProduct, d[1]);
};

// A^T m of a column m: the sums of m times the points' powers
constexpr auto transform_output = [](const float_v (&m)[kIn], float_v (&y)[kOut]) {
  const float_v even_a = m[1] + m[2], odd_a = m[1] - m[2];
  const float_v even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + even_a + even_b;
  y[1] = add_scaled(kA * odd_a, kB, odd_b);
  y[2] = add_scaled(kA2 * even_a, kB2, even_b);
  y[3] = add_scaled(add_scaled(m[5], kA3, odd_a), kB3, odd_b);
};

// columns of a tile that its left neighbour does not have
inline void prefetch_pixels(const float* const* pixels, int64_t channel) {
  for (int y = 0; y < kIn; ++y) {
    for (int x = kIn - kOut; x < kIn; ++x) {
      __builtin_prefetch(pixels[y * kIn + x] + channel, 0, 3);
    }
  }
}

// kVectors of one tile from channel k on; a single vector has only `count` lanes
template <int kVectors, bool kStreamed, typename Activate>
inline void output_channels(
    const WinogradOutput& out, int64_t t, int64_t k, int count, const Activate& activate
) {
  // by value: a store could change what is behind a reference
  const int64_t plane = out.plane, first = out.channel + k;
  const float* from = out.products + t * out.stride + k;
  float* const* outputs = out.outputs + t * kWinogradPixels;
  const float* const* residuals =
      out.residuals == nullptr ? nullptr : out.residuals + t * kWinogradPixels;
  float_v bias[kVectors];
  for (int j = 0; j < kVectors; ++j) {
    bias[j] = load(out.bias + k + j * kLanes);
  }
  transform_tile<kIn, kOut, kVectors>(
      transform_output,
      [=](int i, int j) { return load(from + i * plane + j * kLanes); },
      [=](int i, int j, float_v v) {
        if (outputs[i] == nullptr) {
          return;
        }
        const int64_t channel = first + j * kLanes;
        v += bias[j];
        if (residuals != nullptr) {
          const float* residual = residuals[i] + channel;
          v += count == kLanes ? load(residual) : load_partial(residual, count);
        }
        if (kStreamed) {
          stream(outputs[i] + channel, activate(v));
        } else if (count == kLanes) {
          store(outputs[i] + channel, activate(v));
        } else {
          store_partial(outputs[i] + channel, activate(v), count);
        }
      }
  );
}

template <bool kStreamed>
inline void prefetch_outputs(const WinogradOutput& out, int64_t pixel, int64_t channel) {
  for (int64_t i = pixel; i < pixel + kWinogradPixels; ++i) {
    if (out.outputs[i] != nullptr) {
      if (!kStreamed) {
        __builtin_prefetch(out.outputs[i] + channel, 1, 3);
      }
      if (out.residuals != nullptr) {
        __builtin_prefetch(out.residuals[i] + channel, 0, 3);
      }
    }
  }
}

template <bool kStreamed, typename Activate>
inline void output_tiles(const WinogradOutput& out, const Activate& activate) {
  for (int64_t t = 0; t < out.tiles; ++t) {
    int64_t k = 0;
    for (; k + kLine * kLanes <= out.channels; k += kLine * kLanes) {
      if (t + 1 < out.tiles) {
        prefetch_outputs<kStreamed>(out, (t + 1) * kWinogradPixels, out.channel + k);
      }
      output_channels<kLine, kStreamed>(out, t, k, kLanes, activate);
    }
    for (; k < out.channels; k += kLanes) {
      const int count = (int)min<int64_t>(out.channels - k, kLanes);
      output_channels<1, false>(out, t, k, count, activate);
    }
  }
}

}  // namespace

// G g G^T of each filter g, a vector of filters at a time
void winograd_filters(const WinogradFilters& f) {
  constexpr int n = lanes_v<double>;
  for (int64_t k = 0; k < f.width; k += n) {
    const int64_t count = min<int64_t>(f.count - k, n);
    for (int64_t c = 0; c < f.C; ++c) {
      double taps[kWinogradTaps][n] = {};
      for (int64_t i = 0; i < count; ++i) {
        const float* from = f.filters + (k + i) * f.filter + c * f.channel;
        for (int tap = 0; tap < kWinogradTaps; ++tap) {
          taps[tap][i] = from[f.is_turned ? kWinogradTaps - 1 - tap : tap];
        }
      }
      double_v rows[kIn][3];
      for (int s = 0; s < 3; ++s) {
        double_v u[kIn];
        transform_filter({load(taps[s]), load(taps[3 + s]), load(taps[6 + s])}, u);
        for (int y = 0; y < kIn; ++y) {
          rows[y][s] = u[y];
        }
      }
      float* to = f.transformed + c * f.width + k;
      for (int y = 0; y < kIn; ++y) {
        double_v u[kIn];
        transform_filter(rows[y], u);
        for (int x = 0; x < kIn; ++x, to += f.plane) {
          double values[n];
          store(values, u[x]);
          for (int i = 0; i < n; ++i) {
            to[i] = (float)values[i];
          }
        }
      }
    }
  }
}

void winograd_input(const WinogradInput& in) {
  // by value: a store could change what is behind a reference
  const int64_t C = in.C, plane = in.plane, vector = in.vector;
  for (int64_t t = 0; t < in.tiles; ++t) {
    const float* const* pixels = in.pixels + t * kWinogradPositions;
    float* to = in.transformed + t * in.tile;
    int64_t c = 0;
    for (; c + kLine * kLanes <= C; c += kLine * kLanes, to += kLine * vector) {
      if (t + 1 < in.tiles) {
        prefetch_pixels(pixels + kWinogradPositions, c);
      }
      transform_tile<kIn, kIn, kLine>(
          transform_input,
          [=](int i, int j) { return load(pixels[i] + c + j * kLanes); },
          [=](int i, int j, float_v v) { store(to + i * plane + j * vector, v); }
      );
    }
    for (; c < C; c += kLanes, to += vector) {
      const int count = (int)min<int64_t>(C - c, kLanes);
      transform_tile<kIn, kIn, 1>(
          transform_input,
          [=](int i, int) { return load_partial(pixels[i] + c, count); },
          [=](int i, int, float_v v) { store_partial(to + i * plane, v, count); }
      );
    }
  }
}

void winograd_output(const WinogradOutput& out) {
  with_activation<float>(out.activation, (float)out.negative_slope, [&](auto activate) {
    if (out.is_streamed) {
      output_tiles<true>(out, activate);
      end_streams();
    } else {
      output_tiles<false>(out, activate);
    }
  });
}

}  // namespace fastvision::FASTVISION_ISA
