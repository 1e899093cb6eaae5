// The transforms of F(4, 3), F(4, 2) and F(4, 1) in two dimensions; lanes are channels.
#include "ops/conv_winograd.h"

#include <type_traits>

#include "common/simd_activation.h"
#include "cpu/conv_winograd_tile.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// G g of a column g of filters: their polynomials at each point, divided by the product of the
// point's distances from the others
constexpr auto filter_of_three = [](const double_v* g, double_v* u) {
  constexpr double a2 = kNear * kNear, b2 = kFar * kFar, apart = 2 * (a2 - b2);
  const double_v even_a = g[0] / (a2 * apart) + g[2] / apart, odd_a = g[1] / (kNear * apart);
  const double_v even_b = g[0] / (-b2 * apart) - g[2] / apart, odd_b = g[1] / (-kFar * apart);
  u[0] = g[0] / (a2 * b2);
  u[1] = even_a + odd_a;
  u[2] = even_a - odd_a;
  u[3] = even_b + odd_b;
  u[4] = even_b - odd_b;
  u[5] = g[2];
};

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

// Of F(4, 2) and F(4, 1): the points other than infinity.
constexpr double kInner = 0.3125, kOuter = 1.3125;
constexpr float kP = kInner, kQ = kOuter, kP2 = kInner * kInner, kQ2 = kOuter * kOuter;
constexpr float kP3 = kInner * kInner * kInner, kQ3 = kOuter * kOuter * kOuter;
constexpr float kPairSum = kP2 + kQ2, kPairProduct = kP2 * kQ2;

inline void filter_of_one(double_v g, double_v* u) {
  constexpr double apart = 2 * (kInner * kInner - kOuter * kOuter);
  constexpr double inner = 1 / (kInner * apart), outer = 1 / (-kOuter * apart);
  u[0] = g * inner;
  u[1] = -u[0];
  u[2] = g * outer;
  u[3] = -u[2];
}

inline void filter_of_two(double_v first, double_v second, double_v* u) {
  double_v even[kPointsOfOne], odd[kPointsOfOne];
  filter_of_one(first, even);
  filter_of_one(second, odd);
  u[0] = even[0] + kInner * odd[0];
  u[1] = even[1] - kInner * odd[1];
  u[2] = even[2] + kOuter * odd[2];
  u[3] = even[3] - kOuter * odd[3];
  u[4] = second;
}

// of the rows that one tap meets
constexpr auto pixels_of_one = [](const float_v* d, float_v* v) {
  const float_v even_p = add_scaled(d[2], -kQ2, d[0]), odd_p = add_scaled(d[3], -kQ2, d[1]);
  const float_v even_q = add_scaled(d[2], -kP2, d[0]), odd_q = add_scaled(d[3], -kP2, d[1]);
  v[0] = add_scaled(odd_p, kP, even_p);
  v[1] = add_scaled(odd_p, -kP, even_p);
  v[2] = add_scaled(odd_q, kQ, even_q);
  v[3] = add_scaled(odd_q, -kQ, even_q);
};

// of those that two meet
constexpr auto pixels_of_two = [](const float_v* d, float_v* v) {
  pixels_of_one(d, v);
  v[4] = add_scaled(add_scaled(d[4], -kPairSum, d[2]), kPairProduct, d[0]);
};

constexpr auto output_of_two = [](const float_v (&m)[kPointsOfTwo], float_v (&y)[kOut]) {
  const float_v even_p = m[0] + m[1], odd_p = m[0] - m[1];
  const float_v even_q = m[2] + m[3], odd_q = m[2] - m[3];
  y[0] = even_p + even_q;
  y[1] = add_scaled(kP * odd_p, kQ, odd_q);
  y[2] = add_scaled(kP2 * even_p, kQ2, even_q);
  y[3] = add_scaled(add_scaled(m[4], kP3, odd_p), kQ3, odd_q);
};

// Calls store_value(position, kind, vector, value) with the transformed 9x9 pixels of a tile.
template <int kVectors, typename Load, typename Store>
inline void transform_strided_tile(Load load_value, Store store_value) {
  constexpr int n = kStridedInputs, all = kPointsOfTwo, finite = kPointsOfOne;
  // transformed columns, of the rows that two taps meet, and one: their values by columns that two
  // meet, and one
  float_v twos[all][kVectors][n], ones[finite][kVectors][n];
  for (int x = 0; x < n; ++x) {
    const int place = x % 2 == 0 ? x / 2 : all + x / 2;
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      float_v two[all], one[finite], v[all];
#pragma GCC unroll 5
      for (int y = 0; y < all; ++y) {
        two[y] = load_value(2 * y * n + x, j);
      }
#pragma GCC unroll 4
      for (int y = 0; y < finite; ++y) {
        one[y] = load_value((2 * y + 1) * n + x, j);
      }
      pixels_of_two(two, v);
#pragma GCC unroll 5
      for (int y = 0; y < all; ++y) {
        twos[y][j][place] = v[y];
      }
      pixels_of_one(one, v);
#pragma GCC unroll 4
      for (int y = 0; y < finite; ++y) {
        ones[y][j][place] = v[y];
      }
    }
  }
  const auto finish_row = [&](int y, int j, const float_v* row, int of_two, int of_one) {
    float_v v[all];
    pixels_of_two(row, v);
#pragma GCC unroll 5
    for (int x = 0; x < all; ++x) {
      store_value(y * kPointsOfTwo + x, of_two, j, v[x]);
    }
    pixels_of_one(row + all, v);
#pragma GCC unroll 4
    for (int x = 0; x < finite; ++x) {
      store_value(y * kPointsOfTwo + x, of_one, j, v[x]);
    }
  };
  for (int y = 0; y < all; ++y) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      finish_row(y, j, twos[y][j], kTwoTwo, kTwoOne);
      if (y < finite) {
        finish_row(y, j, ones[y][j], kOneTwo, kOneOne);
      }
    }
  }
}

// columns of a tile of kSide x kSide that its left neighbour does not have
template <int kSide>
inline void prefetch_pixels(const float* const* pixels, int64_t channel) {
  constexpr int first = kSide == kIn ? kIn - kOut : 1;
  for (int y = 0; y < kSide; ++y) {
    for (int x = first; x < kSide; ++x) {
      __builtin_prefetch(pixels[y * kSide + x] + channel, 0, 3);
    }
  }
}

// Calls transform(number of vectors, load_value, store_value) for the channels of each tile of
// kSide x kSide pixels.
template <int kSide, typename Transform>
inline void transform_inputs(const WinogradInput& in, const Transform& transform) {
  constexpr int kPixels = kSide * kSide;
  // by value: a store could change what is behind a reference
  const int64_t C = in.C, plane = in.plane, vector = in.vector;
  for (int64_t t = 0; t < in.tiles; ++t) {
    const float* const* pixels = in.pixels + t * kPixels;
    float* to = in.transformed + t * in.tile;
    int64_t c = 0;
    for (; c + kLine * kLanes <= C; c += kLine * kLanes, to += kLine * vector) {
      if (t + 1 < in.tiles) {
        prefetch_pixels<kSide>(pixels + kPixels, c);
      }
      transform(
          std::integral_constant<int, kLine>{},
          [=](int i, int j) { return load(pixels[i] + c + j * kLanes); },
          [=](int i, int kind, int j, float_v v) {
            store(to + i * plane + kind * C + j * vector, v);
          }
      );
    }
    for (; c < C; c += kLanes, to += vector) {
      const int count = (int)min<int64_t>(C - c, kLanes);
      transform(
          std::integral_constant<int, 1>{},
          [=](int i, int) { return load_partial(pixels[i] + c, count); },
          [=](int i, int kind, int, float_v v) {
            store_partial(to + i * plane + kind * C, v, count);
          }
      );
    }
  }
}

// The transform of a tile whose positions are as many as its pixels.
template <int kSide, typename Transform>
constexpr auto square_transform(Transform transform) {
  return [transform](auto vectors, auto load_value, auto store_value) {
    transform_tile<kSide, kSide, vectors>(transform, load_value, [=](int i, int j, float_v v) {
      store_value(i, 0, j, v);
    });
  };
}

// kVectors of one tile from channel k on; a single vector has only `count` lanes
template <int kVectors, bool kStreamed, int kPoints, typename Transform, typename Activate>
inline void output_channels(
    const WinogradOutput& out,
    int64_t t,
    int64_t k,
    int count,
    const Transform& transform,
    const Activate& activate
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
  transform_tile<kPoints, kOut, kVectors>(
      transform,
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

template <bool kStreamed, int kPoints, typename Transform, typename Activate>
inline void output_tiles(
    const WinogradOutput& out, const Transform& transform, const Activate& activate
) {
  for (int64_t t = 0; t < out.tiles; ++t) {
    int64_t k = 0;
    for (; k + kLine * kLanes <= out.channels; k += kLine * kLanes) {
      if (t + 1 < out.tiles) {
        prefetch_outputs<kStreamed>(out, (t + 1) * kWinogradPixels, out.channel + k);
      }
      output_channels<kLine, kStreamed, kPoints>(out, t, k, kLanes, transform, activate);
    }
    for (; k < out.channels; k += kLanes) {
      const int count = (int)min<int64_t>(out.channels - k, kLanes);
      output_channels<1, false, kPoints>(out, t, k, count, transform, activate);
    }
  }
}

// Calls write(position, kind, u) with the transformed filters g, of kTaps x kTaps.
template <int kTaps, int kPoints, typename Transform, typename Write>
void transform_square_filters(const double_v* g, Transform transform, const Write& write) {
  double_v rows[kPoints][kTaps], u[kPoints];
  for (int s = 0; s < kTaps; ++s) {
    double_v column[kTaps];
    for (int r = 0; r < kTaps; ++r) {
      column[r] = g[r * kTaps + s];
    }
    transform(column, u);
    for (int y = 0; y < kPoints; ++y) {
      rows[y][s] = u[y];
    }
  }
  for (int y = 0; y < kPoints; ++y) {
    transform(rows[y], u);
    for (int x = 0; x < kPoints; ++x) {
      write(y * kPoints + x, 0, u[x]);
    }
  }
}

template <typename Write>
void transform_strided_filters(const double_v (&g)[kWinogradTaps], const Write& write) {
  constexpr int all = kPointsOfTwo, finite = kPointsOfOne;
  const auto write_row = [&](int y, const double_v(&row)[3], int of_two, int of_one) {
    double_v two[all], one[finite];
    filter_of_two(row[0], row[2], two);
    filter_of_one(row[1], one);
    for (int x = 0; x < all; ++x) {
      write(y * kPointsOfTwo + x, of_two, two[x]);
    }
    for (int x = 0; x < finite; ++x) {
      write(y * kPointsOfTwo + x, of_one, one[x]);
    }
  };
  double_v twos[all][3], ones[finite][3];
  for (int s = 0; s < 3; ++s) {
    double_v two[all], one[finite];
    filter_of_two(g[s], g[6 + s], two);
    filter_of_one(g[3 + s], one);
    for (int y = 0; y < all; ++y) {
      twos[y][s] = two[y];
    }
    for (int y = 0; y < finite; ++y) {
      ones[y][s] = one[y];
    }
  }
  for (int y = 0; y < all; ++y) {
    write_row(y, twos[y], kTwoTwo, kTwoOne);
    if (y < finite) {
      write_row(y, ones[y], kOneTwo, kOneOne);
    }
  }
}

}  // namespace

// a vector of filters at a time
void winograd_filters(const WinogradFilters& f) {
  constexpr int n = lanes_v<double>;
  float* places[kWinogradPositions];  // of the block's first kind
  float* position = f.transformed;
  for (int i = 0; i < positions_of(f.form); ++i) {
    const WinogradKinds kinds = kinds_of(f.form, i);
    places[i] = position + (kinds.count * f.begin - kinds.first * f.width) * f.C;
    position += kinds.count * f.pass * f.C + kWinogradGap;
  }
  const int taps = f.form == WinogradForm::kPair ? 4 : kWinogradTaps;
  for (int64_t c = 0; c < f.C; ++c) {
    for (int64_t k = 0; k < f.width; k += n) {
      const int64_t count = min<int64_t>(f.count - k, n);
      double_v g[kWinogradTaps] = {};
      for (int tap = 0; tap < taps; ++tap) {
        double values[n] = {};
        const float* from = f.filters + k * f.filter + c * f.channel + f.taps[tap];
        for (int64_t i = 0; i < count; ++i) {
          values[i] = from[i * f.filter];
        }
        g[tap] = load(values);
      }
      const auto write = [&](int position, int kind, double_v u) {
        float* to = places[position] + (kind * f.C + c) * f.width + k;
        double values[n];
        store(values, u);
        for (int i = 0; i < n; ++i) {
          to[i] = (float)values[i];
        }
      };
      switch (f.form) {
        case WinogradForm::kThree:
          transform_square_filters<3, kIn>(g, filter_of_three, write);
          break;
        case WinogradForm::kStrided:
          transform_strided_filters(g, write);
          break;
        case WinogradForm::kPair:
          transform_square_filters<2, kPointsOfTwo>(
              g,
              [](const double_v* pair, double_v* u) { filter_of_two(pair[0], pair[1], u); },
              write
          );
          break;
      }
    }
  }
}

void winograd_input(const WinogradInput& in) {
  switch (in.form) {
    case WinogradForm::kThree:
      return transform_inputs<kIn>(in, square_transform<kIn>(transform_input));
    case WinogradForm::kStrided:
      return transform_inputs<kStridedInputs>(in, [](auto vectors, auto load_value, auto store) {
        transform_strided_tile<vectors>(load_value, store);
      });
    case WinogradForm::kPair:
      return transform_inputs<kPairInputs>(in, square_transform<kPairInputs>(pixels_of_two));
  }
}

void winograd_output(const WinogradOutput& out) {
  with_activation<float>(out.activation, (float)out.negative_slope, [&](auto activate) {
    const auto run = [&](auto streams) {
      if (out.form == WinogradForm::kThree) {
        output_tiles<streams, kIn>(out, transform_output, activate);
      } else {
        output_tiles<streams, kPointsOfTwo>(out, output_of_two, activate);
      }
    };
    if (out.is_streamed) {
      run(std::true_type{});
      end_streams();
    } else {
      run(std::false_type{});
    }
  });
}

}  // namespace fastvision::FASTVISION_ISA
