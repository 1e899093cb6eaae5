// Rows of grouped convolution with three taps per row: tiles of adjacent pixels, one vector of
// output channels at a time. Each input value is broadcast once for all taps of a row. From the
// contract down to the registers:
//   with_step, with_width  both as constants
//   split_pixels           the number of pixels per tile
//   strip_tile             the sums of a tile
//   add_channel            one input channel of one row of taps
#include <type_traits>

#include "ops/conv.h"

#include "common/prefetch.h"
#include "common/simd.h"
#include "common/simd_activation.h"
#include "common/simd_lanes.h"
#include "cpu/conv_row.h"

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int kTaps = kStripTaps;
constexpr int kMostRows = kVectorBytes == 64 ? 14 : 7;  // pixels of a tile

// Rows of taps inside the map.
struct Span {
  int64_t begin, end;
};

// A vector of a strip's output channels.
template <typename T>
struct Part {
  const T *weights, *bias;
  int64_t step;  // values from the weights of an input channel to those of the next
  int count;     // lanes that are channels
};

// Prefetches the pixels of a ConvAhead, a few at a time.
template <typename T>
class Ahead {
 public:
  // in `steps` steps
  Ahead(const ConvAhead<T>& pixels, int64_t steps)
      : pixels_(pixels), step_((pixels.rows * pixels.pixels + steps - 1) / steps) {}

  void advance() {
    for (int64_t i = 0; i < step_ && row_ < pixels_.rows; ++i) {
      const T* pixel = pixels_.data + row_ * pixels_.row + pixel_ * pixels_.pixel;
      for (int64_t line = 0; line < pixels_.bytes; line += kLineBytes) {
        prefetch(reinterpret_cast<const char*>(pixel) + line);
      }
      if (++pixel_ == pixels_.pixels) {
        pixel_ = 0;
        ++row_;
      }
    }
  }

 private:
  ConvAhead<T> pixels_;
  int64_t step_, row_ = 0, pixel_ = 0;
};

// One input channel of one row of taps; with borders, the first and the last column are padding.
template <int kRows, int kStep, bool kBorders, typename T, typename Input>
inline void add_channel(
    vector_t<T> (&sums)[kRows], const T* weights, int64_t tap, const Input& input
) {
  constexpr int last = (kRows - 1) * kStep + kTaps - 1;
  add_row_of_taps<kRows, kTaps, kStep>(sums, weights, tap, input, [](int column) {
    return !kBorders || (column > 0 && column < last);
  });
}

// input channels from c on of groups of kWidth that share a vector
template <int kRows, int kStep, bool kBorders, int kWidth, int c, typename T>
inline void add_shared(vector_t<T> (&sums)[kRows], const T* x, const T* weights, int64_t step) {
  if constexpr (c < kWidth) {
    add_channel<kRows, kStep, kBorders>(sums, weights + c * step, kWidth * step, [=](int column) {
      return spread_lane<kWidth, c>(load(x + column * lanes_v<T>));
    });
    add_shared<kRows, kStep, kBorders, kWidth, c + 1>(sums, x, weights, step);
  }
}

// `count` of kRows output pixels; kWidth 0 stands for one group
template <int kRows, int kStep, bool kBorders, int kWidth, typename T>
inline void strip_tile(
    const ConvStrip<T>& strip,
    const Part<T>& part,
    Ahead<T>& ahead,
    Span taps,
    const T* x,
    T* output,
    const T* residual,
    int64_t count
) {
  const int64_t C = strip.channels, pixel = strip.pixel, step = part.step;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    __builtin_prefetch(output + min<int64_t>(i, count - 1) * pixel, 1, 3);
  }
  vector_t<T> sums[kRows];
  for (int i = 0; i < kRows; ++i) {
    sums[i] = load(part.bias);
  }
  const T* weights = part.weights + taps.begin * kTaps * (kWidth > 0 ? kWidth : C) * step;
  x += taps.begin * strip.input_row;
  for (int64_t r = taps.begin; r < taps.end; ++r, x += strip.input_row) {
    ahead.advance();
    if constexpr (kWidth > 0) {
      add_shared<kRows, kStep, kBorders, kWidth, 0>(sums, x, weights, step);
      weights += kTaps * kWidth * step;
      continue;
    }
    for (int64_t c = 0; c < C; ++c, weights += step) {
      const T* at = x + c;
      add_channel<kRows, kStep, kBorders>(sums, weights, C * step, [=](int column) {
        return broadcast(at[column * C]);
      });
    }
    weights += (kTaps - 1) * C * step;
  }
  const Bounds<T> bounds(strip.activation);
  const vector_t<T> low = broadcast(bounds.low), high = broadcast(bounds.high);
  finish_row(sums, output, residual, pixel, count, part.count, low, high);
}

// The last tile may exceed the row, by at most kStripExcess pixels.
template <int kStep, int kWidth, typename T>
inline void split_pixels(
    const ConvStrip<T>& strip,
    const Part<T>& part,
    Ahead<T>& ahead,
    Span taps,
    const T* x,
    T* output,
    const T* residual
) {
  const auto run = [&](auto rows, auto borders, int64_t p) {
    constexpr int kRows = rows;
    const T* from = residual == nullptr ? nullptr : residual + p * strip.pixel;
    strip_tile<kRows, kStep, borders, kWidth>(
        strip,
        part,
        ahead,
        taps,
        x + p * kStep * strip.channels,
        output + p * strip.pixel,
        from,
        min<int64_t>(strip.pixels - p, kRows)
    );
    return kRows;
  };
  const auto run_with_borders = [&](auto rows, int64_t p) {
    if constexpr (kStep == 1) {
      if (strip.has_borders && strip.pixels == rows) {
        return run(rows, std::true_type{}, p);
      }
    }
    return run(rows, std::false_type{}, p);
  };
  for (int64_t p = 0; p < strip.pixels;) {
    const int64_t left = strip.pixels - p;
    if constexpr (kMostRows > 7) {
      if (left > kMostRows - kStripExcess) {
        p += run_with_borders(std::integral_constant<int, kMostRows>{}, p);
        continue;
      }
    }
    if (left > 7 - kStripExcess) {
      p += run_with_borders(std::integral_constant<int, 7>{}, p);
    } else {
      p += run(std::integral_constant<int, 4>{}, std::false_type{}, p);
    }
  }
}

template <int kStep, int kWidth, typename T>
void run_strip(const ConvStrip<T>& strip) {
  const int64_t tiles = (strip.pixels + kMostRows - 1) / kMostRows;
  Ahead<T> ahead(strip.ahead, strip.rows * tiles * strip.R);
  const int64_t step = (strip.outputs + lanes_v<T> - 1) / lanes_v<T> * lanes_v<T>;
  for (int64_t k = 0; k < strip.outputs; k += lanes_v<T>) {
    const int count = (int)min<int64_t>(strip.outputs - k, lanes_v<T>);
    const Part<T> part{strip.weights + k, strip.bias + k, step, count};
    for (int64_t y = 0; y < strip.rows; ++y) {
      const int64_t at = y * strip.row + k;
      const T* residual = strip.residual == nullptr ? nullptr : strip.residual + at;
      const int64_t first = y * strip.step_y;
      const int64_t begin = min(max<int64_t>(strip.begin - first, 0), strip.R);
      const Span taps{begin, min(strip.end - first, strip.R)};
      const T* x = strip.input + first * strip.input_row;
      split_pixels<kStep, kWidth>(strip, part, ahead, taps, x, strip.output + at, residual);
    }
  }
  if (is_clamp(strip.activation)) {
    return;
  }
  for (int64_t y = 0; y < strip.rows; ++y) {
    for (int64_t p = 0; p < strip.pixels; ++p) {
      T* output = strip.output + y * strip.row + p * strip.pixel;
      activate(output, strip.outputs, strip.activation, (T)strip.negative_slope);
    }
  }
}

template <int kStep, typename T>
void with_width(const ConvStrip<T>& strip) {
  switch (strip.width) {
    case 0:
      return run_strip<kStep, 0>(strip);
    case 2:
      return run_strip<kStep, 2>(strip);
    case 4:
      if constexpr (lanes_v<T> > 4) {
        return run_strip<kStep, 4>(strip);
      }
      break;
    case 8:
      if constexpr (lanes_v<T> > 8) {
        return run_strip<kStep, 8>(strip);
      }
  }
}

template <typename T>
void with_step(const ConvStrip<T>& strip) {
  if (strip.step_x == 1) {
    with_width<1>(strip);
  } else {
    with_width<2>(strip);
  }
}

}  // namespace

void conv_strip(const ConvStrip<float>& strip) { with_step(strip); }
void conv_strip(const ConvStrip<double>& strip) { with_step(strip); }

}  // namespace fastvision::FASTVISION_ISA
