// The transforms of F(2x2, 3x3); lanes are channels.
#include "ops/conv_winograd.h"

#include "common/simd.h"
#include "common/simd_activation.h"

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int kLanes = lanes_v<float>;

// B^T d of a column d
inline void transform_input(const float_v (&d)[4], float_v (&v)[4]) {
  v[0] = d[0] - d[2];
  v[1] = d[1] + d[2];
  v[2] = d[2] - d[1];
  v[3] = d[1] - d[3];
}

template <typename Load, typename Store>
inline void input_tile(const Load& load_pixel, const Store& store_position) {
  float_v rows[4][4];  // the columns transformed
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    float_v column[4], v[4];
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y) {
      column[y] = load_pixel(y * 4 + x);
    }
    transform_input(column, v);
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y) {
      rows[y][x] = v[y];
    }
  }
#pragma GCC unroll 4
  for (int y = 0; y < 4; ++y) {
    float_v v[4];
    transform_input(rows[y], v);
#pragma GCC unroll 4
    for (int x = 0; x < 4; ++x) {
      store_position(y * 4 + x, v[x]);
    }
  }
}

// A^T m of a column m
inline void transform_output(const float_v (&m)[4], float_v (&y)[2]) {
  y[0] = m[0] + m[1] + m[2];
  y[1] = m[1] - m[2] - m[3];
}

template <typename Load>
inline void output_tile(const Load& load_position, float_v (&result)[4]) {
  float_v rows[2][4];
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    float_v column[4], y[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      column[i] = load_position(i * 4 + x);
    }
    transform_output(column, y);
    rows[0][x] = y[0];
    rows[1][x] = y[1];
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    float_v y[2];
    transform_output(rows[i], y);
    result[i * 2] = y[0];
    result[i * 2 + 1] = y[1];
  }
}

}  // namespace

void winograd_input(const WinogradInput& in) {
  const int64_t C = in.C, plane = in.tiles * C;
  for (int64_t t = 0; t < in.tiles; ++t) {
    const float* const* pixels = in.pixels + t * kWinogradPositions;
    float* to = in.transformed + t * C;
    int64_t c = 0;
    for (; c + kLanes <= C; c += kLanes) {
      input_tile(
          [&](int i) { return load(pixels[i] + c); },
          [&](int i, float_v v) { store(to + i * plane + c, v); }
      );
    }
    if (c < C) {
      const int rest = (int)(C - c);
      input_tile(
          [&](int i) { return load_partial(pixels[i] + c, rest); },
          [&](int i, float_v v) { store_partial(to + i * plane + c, v, rest); }
      );
    }
  }
}

void winograd_output(const WinogradOutput& out) {
  const int64_t plane = out.tiles * out.stride;
  with_activation<float>(out.activation, (float)out.negative_slope, [&](auto activate) {
    for (int64_t t = 0; t < out.tiles; ++t) {
      for (int64_t k = 0; k < out.channels; k += kLanes) {
        const float* from = out.products + t * out.stride + k;
        const int count = (int)min<int64_t>(out.channels - k, kLanes);
        float_v result[4];
        output_tile([&](int i) { return load(from + i * plane); }, result);
        const float_v bias = load(out.bias + k);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          float* output = out.outputs[t * 4 + i];
          if (output == nullptr) {
            continue;
          }
          output += out.channel + k;
          float_v v = result[i] + bias;
          if (out.residuals != nullptr) {
            const float* residual = out.residuals[t * 4 + i] + out.channel + k;
            v += count == kLanes ? load(residual) : load_partial(residual, count);
          }
          if (count == kLanes) {
            store(output, activate(v));
          } else {
            store_partial(output, activate(v), count);
          }
        }
      }
    }
  });
}

}  // namespace fastvision::FASTVISION_ISA
