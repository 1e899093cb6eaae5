// Max pooling with indices: vectors of output columns (contiguous) or of channels (channels_last).
#include "ops/max_pool2d.h"

#include <type_traits>

#include "common/simd_lanes.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// Taps [first, last) of a window that begins at `start`, which are inside of the input.
struct Taps {
  int64_t first, last;
};

inline Taps taps_inside(int64_t start, int64_t size, int64_t kernel, int64_t dilation) {
  const int64_t first = start < 0 ? (-start + dilation - 1) / dilation : 0;
  const int64_t last = start < size ? (size - 1 - start) / dilation + 1 : 0;
  return {first, last < kernel ? last : kernel};
}

template <typename A>
inline A lowest() {
  return -static_cast<A>(__builtin_inf());
}

// for a vector of values of type T, none of them NaN
template <typename T, typename V>
inline void store_exact(T* p, V v) {
  if constexpr (std::is_same_v<T, bfloat16_t>) {
    store(reinterpret_cast<uint16_t*>(p), (float_v)((uint32_v)v >> 16));
  } else {
    store(p, v);
  }
}

// A maximum and its place in pixels from the window's corner, per lane.
template <typename A>
struct Best {
  vector_t<A> value;
  places_t<A> place;

  void take(vector_t<A> x, places_t<A> at) {
    const places_t<A> better = (x > value) | (x != x);
    value = better ? x : value;
    place = better ? at : place;
  }
};

// A row of the input by phases: columns[phase][i] = row[i * stride + phase - padding], and minus
// infinity outside, so that the taps of neighbouring outputs are neighbours. Phases are `length`
// apart.
template <typename A>
void split_phases(const MaxPoolArgs& p, const A* row, int64_t length, A* columns) {
  constexpr int lanes = lanes_v<A>;
  const int64_t stride = p.stride[1], padding = p.padding[1], W = p.W;
  const int64_t count = p.OW + max_pool2d_steps(p);
  for (int64_t phase = 0; phase < max_pool2d_phases(p); ++phase, columns += length) {
    const int64_t before = padding > phase ? (padding - phase + stride - 1) / stride : 0;
    const int64_t shift = phase - padding;
    int64_t end = W > shift ? (W - 1 - shift) / stride + 1 : 0;
    end = end < count ? end : count;
    int64_t i = 0;
    for (; i < before && i < count; ++i) {
      columns[i] = lowest<A>();
    }
    if (stride == 1) {
      for (; i + lanes <= end; i += lanes) {
        store(columns + i, load(row + i + shift));
      }
    } else if (stride == 2) {
      for (; i + lanes <= end && 2 * (i + lanes) + shift <= W; i += lanes) {
        const A* pairs = row + 2 * i + shift;
        store(columns + i, even_lanes(load(pairs), load(pairs + lanes)));
      }
    }
    for (; i < end; ++i) {
      columns[i] = row[i * stride + shift];
    }
    for (; i < count; ++i) {
      columns[i] = lowest<A>();
    }
  }
}

// A row in the type of arithmetic; `scratch` has room for it, rounded up to whole vectors.
template <typename T, typename A>
const A* widen(const T* row, int64_t W, A* scratch) {
  if constexpr (sizeof(T) == sizeof(A)) {
    return row;
  } else {
    constexpr int lanes = lanes_v<A>;
    int64_t i = 0;
    for (; i + lanes <= W; i += lanes) {
      store(scratch + i, load(row + i));
    }
    if (i < W) {
      store(scratch + i, load_partial(row + i, static_cast<int>(W - i)));
    }
    return scratch;
  }
}

// Values of one output row, and their places as indices from that of the first window's corner.
template <typename T, typename A>
void store_row(const MaxPoolArgs& p, const A* values, const A* places, int64_t corner, int64_t at) {
  constexpr int lanes = lanes_v<A>;
  T* output = static_cast<T*>(p.output) + at;
  int64_t i = 0;
  for (; i + lanes <= p.OW; i += lanes) {
    store(output + i, load(values + i));
  }
  if (i < p.OW) {
    store_partial(output + i, load(values + i), static_cast<int>(p.OW - i));
  }
  const auto* relative = reinterpret_cast<const lane_t<A>*>(places);
  int64_t* indices = p.indices + at;
  for (int64_t k = 0; k < p.OW; ++k) {
    indices[k] = corner + k * p.stride[1] + relative[k];
  }
}

template <typename T, typename A>
void pool_planes(const MaxPoolArgs& p, int64_t begin, int64_t end, A* scratch) {
  constexpr int lanes = lanes_v<A>;
  const int64_t width = max_pool2d_columns(p);
  const int64_t length = width + max_pool2d_steps(p);
  A* const columns = scratch;
  A* const values = columns + max_pool2d_phases(p) * length;
  A* const places = values + width;
  A* const first_places = places + width;  // of the first tap inside, from the window's left
  A* const wide = first_places + width;
  for (int64_t ow = 0; ow < width; ++ow) {
    const int64_t start = ow * p.stride[1] - p.padding[1];
    const int64_t first = taps_inside(start, p.W, p.kernel[1], p.dilation[1]).first;
    const lane_t<A> place = static_cast<lane_t<A>>(first * p.dilation[1]);
    memcpy(first_places + ow, &place, sizeof place);
  }
  for (int64_t item = begin; item < end; ++item) {
    const T* plane = static_cast<const T*>(p.input) + item / p.OH * p.H * p.W;
    const int64_t top = item % p.OH * p.stride[0] - p.padding[0];
    const Taps rows = taps_inside(top, p.H, p.kernel[0], p.dilation[0]);
    for (int64_t kh = rows.first; kh < rows.last; ++kh) {
      const T* row = plane + (top + kh * p.dilation[0]) * p.W;
      split_phases(p, widen(row, p.W, wide), length, columns);
      const lane_t<A> row_place = static_cast<lane_t<A>>(kh * p.dilation[0] * p.W);
      for (int64_t ow = 0; ow < p.OW; ow += lanes) {
        Best<A> best;
        if (kh == rows.first) {
          best.value = vector_t<A>{} + lowest<A>();
          best.place = (places_t<A>)load(first_places + ow) + row_place;
        } else {
          best.value = load(values + ow);
          best.place = (places_t<A>)load(places + ow);
        }
        for (int64_t kw = 0; kw < p.kernel[1]; ++kw) {
          const int64_t offset = kw * p.dilation[1];
          const A* tap = columns + offset % p.stride[1] * length + offset / p.stride[1];
          best.take(load(tap + ow), places_t<A>{} + row_place + static_cast<lane_t<A>>(offset));
        }
        store(values + ow, best.value);
        store(places + ow, (vector_t<A>)best.place);
      }
    }
    store_row<T>(p, values, places, top * p.W - p.padding[1], item * p.OW);
  }
}

// A vector of windows of 2x2 pixels side by side, or `count` of them.
template <bool kPartial, typename T, typename A>
inline void pool_vector(
    const T* upper, int64_t W, int count, T* output, int64_t* indices, int64_t corner
) {
  constexpr int lanes = lanes_v<A>;
  const int first = 2 * count < lanes ? 2 * count : lanes, rest = 2 * count - first;
  const T* lower = upper + W;
  const vector_t<A> a = load_lanes<kPartial>(upper, first);
  const vector_t<A> b = load_lanes<kPartial>(upper + first, rest);
  const vector_t<A> c = load_lanes<kPartial>(lower, first);
  const vector_t<A> d = load_lanes<kPartial>(lower + first, rest);
  const places_t<A> left = places_from<A>(0, 2);
  Best<A> best{even_lanes(a, b), left};
  best.take(odd_lanes(a, b), left + 1);
  best.take(even_lanes(c, d), left + static_cast<lane_t<A>>(W));
  best.take(odd_lanes(c, d), left + static_cast<lane_t<A>>(W + 1));
  store_lanes<kPartial>(output, best.value, count);
  store_indices<kPartial>(indices, best.place, corner, count);
}

template <typename T, typename A>
void pool_quads(const MaxPoolArgs& p, int64_t begin, int64_t end) {
  const int64_t W = p.W, OW = p.OW;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t corner = item % p.OH * 2 * W;
    const T* upper = static_cast<const T*>(p.input) + item / p.OH * p.H * W + corner;
    T* output = static_cast<T*>(p.output) + item * OW;
    int64_t* indices = p.indices + item * OW;
    for_vectors<A>(OW, [&](int64_t i, auto partial, int count) FASTVISION_INLINED {
      pool_vector<decltype(partial)::value, T, A>(
          upper + 2 * i, W, count, output + i, indices + i, corner + 2 * i
      );
    });
  }
}

// One window for kVectors vectors of channels, or for the first `count` channels of one vector.
template <int kVectors, bool kPartial, typename T, typename A>
inline void pool_channels(
    const MaxPoolArgs& p,
    const T* input,  // first channel of the first tap inside
    Taps rows,
    Taps columns,
    int count,
    T* output,
    int64_t* indices,
    int64_t corner
) {
  constexpr int lanes = lanes_v<A>;
  const int64_t first = rows.first * p.dilation[0] * p.W + columns.first * p.dilation[1];
  Best<A> best[kVectors];
  for (auto& b : best) {
    b.value = vector_t<A>{} + lowest<A>();
    b.place = places_t<A>{} + static_cast<lane_t<A>>(first);
  }
  for (int64_t kh = rows.first; kh < rows.last; ++kh) {
    for (int64_t kw = columns.first; kw < columns.last; ++kw) {
      const int64_t place = kh * p.dilation[0] * p.W + kw * p.dilation[1];
      const T* tap = input + (place - first) * p.C;
      const places_t<A> at = places_t<A>{} + static_cast<lane_t<A>>(place);
      for (int v = 0; v < kVectors; ++v) {
        if constexpr (kPartial) {
          best[v].take(load_partial(tap, count), at);
        } else {
          best[v].take(load(tap + v * lanes), at);
        }
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    store_lanes<kPartial>(output + v * lanes, best[v].value, count);
    store_indices<kPartial>(indices + v * lanes, best[v].place, corner, count);
  }
}

// One window of kSize x kSize pixels side by side, all inside, for a vector of channels. `places`:
// of the taps. Returns a sum that is NaN if any tap is, for which the results are wrong.
template <int kSize, typename T, typename A>
inline vector_t<A> pool_whole(
    const T* input,
    int64_t row,
    int64_t pixel,
    const places_t<A>* places,
    T* output,
    int64_t* indices,
    int64_t corner
) {
  vector_t<A> value, sum;
  places_t<A> place;
  for (int kh = 0; kh < kSize; ++kh) {
    vector_t<A> row_value = load(input + kh * row), row_sum = row_value;
    places_t<A> row_place = places[kh * kSize];
    for (int kw = 1; kw < kSize; ++kw) {
      const vector_t<A> x = load(input + kh * row + kw * pixel);
      row_place = x > row_value ? places[kh * kSize + kw] : row_place;
      row_value = max(x, row_value);
      row_sum += x;
    }
    if (kh == 0) {
      value = row_value, place = row_place, sum = row_sum;
    } else {
      place = row_value > value ? row_place : place;
      value = max(row_value, value);
      sum += row_sum;
    }
  }
  store_exact(output, value);
  store_indices<false>(indices, place, corner, 0);
  return sum;
}

// Output pixels [first, last) of a row. kSize: that of all windows if they are square and of pixels
// side by side, or 0.
template <int kSize, typename T, typename A>
void pool_row(
    const MaxPoolArgs& p, const T* image, int64_t oh, int64_t first, int64_t last, int64_t at
) {
  constexpr int lanes = lanes_v<A>;
  constexpr int kVectors = 4;
  const int64_t C = p.C, W = p.W;
  const int64_t top = oh * p.stride[0] - p.padding[0];
  const Taps rows = taps_inside(top, p.H, p.kernel[0], p.dilation[0]);
  const bool whole_rows = rows.last - rows.first == p.kernel[0];
  places_t<A> places[kSize == 0 ? 1 : kSize * kSize];
  for (int tap = 0; tap < kSize * kSize; ++tap) {
    places[tap] = places_t<A>{} + static_cast<lane_t<A>>(tap / kSize * W + tap % kSize);
  }
  for (int64_t ow = first; ow < last; ++ow, at += C) {
    const int64_t left = ow * p.stride[1] - p.padding[1];
    const int64_t corner = top * W + left;
    T* y = static_cast<T*>(p.output) + at;
    int64_t* indices = p.indices + at;
    int64_t c = 0;
    if constexpr (kSize > 0) {
      if (whole_rows && left >= 0 && left + kSize <= W) {
        const T* x = image + corner * C;
        vector_t<A> sum{};
        for (; c + lanes <= C; c += lanes) {
          sum += pool_whole<kSize, T, A>(x + c, W * C, C, places, y + c, indices + c, corner);
        }
        c = movemask(sum != sum) == 0 ? c : 0;
      }
    }
    if (c == C) {
      continue;
    }
    const Taps columns = taps_inside(left, W, p.kernel[1], p.dilation[1]);
    const int64_t tap = rows.first * p.dilation[0] * W + columns.first * p.dilation[1];
    const T* x = image + (corner + tap) * C;
    for (; c + kVectors * lanes <= C; c += kVectors * lanes) {
      pool_channels<kVectors, false, T, A>(p, x + c, rows, columns, 0, y + c, indices + c, corner);
    }
    for (; c + lanes <= C; c += lanes) {
      pool_channels<1, false, T, A>(p, x + c, rows, columns, 0, y + c, indices + c, corner);
    }
    if (c < C) {
      const int count = static_cast<int>(C - c);
      pool_channels<1, true, T, A>(p, x + c, rows, columns, count, y + c, indices + c, corner);
    }
  }
}

template <typename T, typename A>
void pool_pixels(const MaxPoolArgs& p, int64_t begin, int64_t end) {
  const bool dense = p.kernel[0] == p.kernel[1] && p.dilation[0] == 1 && p.dilation[1] == 1;
  const int64_t size = dense ? p.kernel[0] : 0;
  for (int64_t pixel = begin; pixel < end;) {
    const int64_t row = pixel / p.OW, first = pixel % p.OW;
    const int64_t rest = first + end - pixel, last = rest < p.OW ? rest : p.OW;
    const T* image = static_cast<const T*>(p.input) + row / p.OH * p.H * p.W * p.C;
    const auto pool = size == 2   ? pool_row<2, T, A>
                      : size == 3 ? pool_row<3, T, A>
                                  : pool_row<0, T, A>;
    pool(p, image, row % p.OH, first, last, pixel * p.C);
    pixel += last - first;
  }
}

}  // namespace

#define FASTVISION_DEFINE_MAX_POOL(T, A)                                                       \
  void max_pool2d(const T*, const MaxPoolArgs& args, int64_t begin, int64_t end, A* scratch) { \
    if (args.channels_last) {                                                                  \
      pool_pixels<T, A>(args, begin, end);                                                     \
    } else if (max_pool2d_in_quads(args)) {                                                    \
      pool_quads<T, A>(args, begin, end);                                                      \
    } else {                                                                                   \
      pool_planes<T, A>(args, begin, end, scratch);                                            \
    }                                                                                          \
  }
FASTVISION_DEFINE_MAX_POOL(float, float)
FASTVISION_DEFINE_MAX_POOL(double, double)
FASTVISION_DEFINE_MAX_POOL(half_t, float)
FASTVISION_DEFINE_MAX_POOL(bfloat16_t, float)
#undef FASTVISION_DEFINE_MAX_POOL

}  // namespace fastvision::FASTVISION_ISA
