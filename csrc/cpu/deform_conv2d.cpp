// Samples of deformable convolution: lanes are output pixels where they are located, and channels
// where they are gathered.
#include "ops/deform_conv2d.h"

#include "common/simd_sum.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename T>
using index_v = typename simd<T>::mask;

template <typename T>
inline index_v<T> load_index(const deform_index_t<T>* p) {
  index_v<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <typename T>
inline void store_index(deform_index_t<T>* p, index_v<T> v) {
  memcpy(p, &v, sizeof v);
}

template <typename T>
inline vector_t<T> load_some(const T* p, int64_t count) {
  return count >= lanes_v<T> ? load(p) : load_partial(p, static_cast<int>(count));
}

// One axis of a vector of samples.
template <typename T>
struct Axis {
  index_v<T> low;  // pixel at or below
  vector_t<T> fraction;
  index_v<T> has_low, has_high;  // pixels of the image
};

// the position must be in [-1, extent)
template <typename T>
inline Axis<T> split(vector_t<T> position, int64_t extent) {
  using I = index_v<T>;
  Axis<T> axis;
  const I towards_zero = __builtin_convertvector(position, I);
  axis.low = towards_zero + (__builtin_convertvector(towards_zero, vector_t<T>) > position);
  axis.fraction = position - __builtin_convertvector(axis.low, vector_t<T>);
  const deform_index_t<T> last = static_cast<deform_index_t<T>>(extent - 1);
  axis.has_low = axis.low >= 0;
  axis.has_high = axis.low < last;
  return axis;
}

template <typename T>
void locate(const DeformTile<T>& tile, bool edges, int64_t* rows) {
  using V = vector_t<T>;
  using I = index_v<T>;
  constexpr int n = lanes_v<T>;
  const V height = broadcast(static_cast<T>(tile.H)), width = broadcast(static_cast<T>(tile.W));
  const deform_index_t<T> W = static_cast<deform_index_t<T>>(tile.W);
  const deform_index_t<T> end = static_cast<deform_index_t<T>>(tile.H);
  I first = I{} + end, last = I{} - 1;
  const DeformPoints<T>& points = tile.points;
  for (int64_t sample = 0; sample < tile.groups * tile.taps; ++sample) {
    const int64_t tap = sample % tile.taps;
    const T* offsets = tile.offsets + 2 * sample * tile.offset_stride;
    for (int64_t p = 0; p < tile.pixels; p += n) {
      const int64_t left = tile.pixels - p, at = sample * points.stride + p;
      const I base_y = load_index<T>(tile.base_y + p) + tile.tap_y[tap];
      const I base_x = load_index<T>(tile.base_x + p) + tile.tap_x[tap];
      V y = __builtin_convertvector(base_y, V) + load_some(offsets + p, left);
      V x = __builtin_convertvector(base_x, V) + load_some(offsets + tile.offset_stride + p, left);
      const I reached = (y >= T(-1)) & (y < height) & (x >= T(-1)) & (x < width);
      const I counts = reached & (y > T(-1)) & (x > T(-1));
      y = (V)((I)y & reached);
      x = (V)((I)x & reached);
      const Axis<T> v = split<T>(y, tile.H), h = split<T>(x, tile.W);
      const I kept = edges ? reached : counts;
      const I flags = (v.has_low & h.has_low & kTopLeft) | (v.has_low & h.has_high & kTopRight) |
                      (v.has_high & h.has_low & kBottomLeft) |
                      (v.has_high & h.has_high & kBottomRight);
      store_index<T>(points.flags + at, (flags & kept) | (counts & kCounts));
      store_index<T>(points.index + at, v.low * W + h.low);
      store(points.y + at, v.fraction);
      store(points.x + at, h.fraction);
      const I low = v.low - (v.low < 0), high = v.low + 1 + (v.low + 1 >= end);
      first = min(first, (low & kept) | (first & ~kept));
      last = max(last, (high & kept) | (last & ~kept));
    }
  }
  rows[0] = tile.H;
  rows[1] = 0;
  for (int i = 0; i < n; ++i) {
    rows[0] = first[i] < rows[0] ? first[i] : rows[0];
    rows[1] = last[i] + 1 > rows[1] ? last[i] + 1 : rows[1];
  }
}

// Pointers to the corners of a sample, to zeros where they are outside, and their weights.
template <typename T>
struct Sample {
  const T* corners[4];
  T weights[4];
  T y, x;
  int64_t index, flags;
  bool roomy;  // whole vectors can be read, beyond the group's channels

  Sample(const DeformTile<T>& tile, int64_t group, int64_t tap, int64_t pixel) {
    const DeformPoints<T>& points = tile.points;
    const int64_t at = (group * tile.taps + tap) * points.stride + pixel;
    const int64_t channels = tile.C / tile.groups, channel = group * channels;
    index = points.index[at];
    flags = points.flags[at];
    y = points.y[at];
    x = points.x[at];
    roomy = (index + tile.W + 1) * tile.C + channel + channels + lanes_v<T> <= tile.readable;
    const T* image = tile.image + channel;
    corners[0] = flags & kTopLeft ? image + index * tile.C : tile.zeros;
    corners[1] = flags & kTopRight ? image + (index + 1) * tile.C : tile.zeros;
    corners[2] = flags & kBottomLeft ? image + (index + tile.W) * tile.C : tile.zeros;
    corners[3] = flags & kBottomRight ? image + (index + tile.W + 1) * tile.C : tile.zeros;
    weights[0] = (1 - y) * (1 - x);
    weights[1] = (1 - y) * x;
    weights[2] = y * (1 - x);
    weights[3] = y * x;
  }
};

template <typename T>
inline T mask_at(const DeformTile<T>& tile, int64_t group, int64_t tap, int64_t pixel) {
  return tile.mask == nullptr ? T(1)
                              : tile.mask[(group * tile.taps + tap) * tile.mask_stride + pixel];
}

template <typename T>
inline vector_t<T> weigh(const vector_t<T> (&weights)[4], const vector_t<T> (&v)[4]) {
  vector_t<T> sum = weights[0] * v[0];
  for (int i = 1; i < 4; ++i) {
    sum = multiply_add(weights[i], v[i], sum);
  }
  return sum;
}

template <typename T>
void gather(const DeformTile<T>& tile) {
  using V = vector_t<T>;
  constexpr int n = lanes_v<T>;
  const int64_t C = tile.C / tile.groups;
  const int rest = static_cast<int>(C % n);
  // groups in ascending order, since a vector may write over the next group's first channels
  for (int64_t tap = 0; tap < tile.taps; ++tap) {
    for (int64_t group = 0; group < tile.groups; ++group) {
      T* to = tile.columns + tap * tile.pixels * tile.row_stride + group * C;
      for (int64_t p = 0; p < tile.pixels; ++p, to += tile.row_stride) {
        const Sample<T> sample(tile, group, tap, p);
        const V mask = broadcast(mask_at(tile, group, tap, p));
        V weights[4];
        for (int i = 0; i < 4; ++i) {
          weights[i] = broadcast(sample.weights[i]);
        }
        const int64_t whole = sample.roomy ? C : C - rest;
        V v[4];
        int64_t c = 0;
        for (; c < whole; c += n) {
          for (int i = 0; i < 4; ++i) {
            v[i] = load(sample.corners[i] + c);
          }
          store(to + c, weigh<T>(weights, v) * mask);
        }
        if (c < C) {
          for (int i = 0; i < 4; ++i) {
            v[i] = load_partial(sample.corners[i] + c, rest);
          }
          store(to + c, weigh<T>(weights, v) * mask);
        }
      }
    }
  }
}

// Sums over the channels of a sample.
template <typename T>
struct Products {
  vector_t<T> y{}, x{}, value{};  // the column's gradient times derivatives and value
};

// What is the same for all channels of a sample, in all lanes.
template <typename T>
struct Factors {
  vector_t<T> mask, y, x;
  vector_t<T> weights[4], additions[4];
  bool counts;

  Factors(const Sample<T>& sample, T mask)
      : mask(broadcast(mask)),
        y(broadcast(sample.y)),
        x(broadcast(sample.x)),
        counts((sample.flags & kCounts) != 0) {
    for (int i = 0; i < 4; ++i) {
      weights[i] = broadcast(sample.weights[i]);
      additions[i] = broadcast(sample.weights[i] * mask);
    }
  }
};

// One vector of channels: its column, its share of the products, and the gradients of its corners.
template <typename T, typename Read, typename Keep>
inline void differentiate(
    const Factors<T>& factors,
    const Sample<T>& sample,
    T* const* targets,
    const T* gradient,
    T* column,
    int64_t c,
    Products<T>& products,
    const Read& read,
    const Keep& keep
) {
  using V = vector_t<T>;
  const V g = keep(load(gradient + c));
  V v[4];
  for (int i = 0; i < 4; ++i) {
    v[i] = read(sample.corners[i] + c);
  }
  // differences come first: neighbours may be nearly equal
  const V down = v[2] - v[0], right = v[1] - v[0], twist = (v[3] - v[1]) - down;
  products.y = multiply_add(g, multiply_add(factors.x, twist, down), products.y);
  products.x = multiply_add(g, multiply_add(factors.y, twist, right), products.x);
  V value{};
  if (factors.counts) {
    value = weigh<T>(factors.weights, v);
  }
  products.value = multiply_add(g, value, products.value);
  store(column + c, value * factors.mask);
  for (int i = 0; i < 4; ++i) {
    T* to = targets[i] + c;
    store(to, load(to) + keep(factors.additions[i] * g));
  }
}

template <typename T>
void gradients(const DeformGradientTile<T>& tile) {
  using V = vector_t<T>;
  using I = index_v<T>;
  constexpr int n = lanes_v<T>;
  const int64_t C = tile.C / tile.groups;
  const int rest = static_cast<int>(C % n);
  I tail{};
  for (int i = 0; i < rest; ++i) {
    tail[i] = -1;
  }
  const auto all = [](V v) { return v; };
  const auto first = [tail](V v) { return (V)((I)v & tail); };
  const auto read = [](const T* p) { return load(p); };
  const auto read_first = [first](const T* p) { return first(load(p)); };
  const auto read_rest = [rest](const T* p) { return load_partial(p, rest); };
  // groups in ascending order, as in gather()
  for (int64_t tap = 0; tap < tile.taps; ++tap) {
    for (int64_t group = 0; group < tile.groups; ++group) {
      const int64_t channel = group * C, sample_row = group * tile.taps + tap;
      for (int64_t p = 0; p < tile.pixels; ++p) {
        const int64_t row = (tap * tile.pixels + p) * tile.row_stride + channel;
        const Sample<T> sample(tile, group, tap, p);
        const T mask = mask_at(tile, group, tap, p);
        const Factors<T> factors(sample, mask);
        const int64_t corners[4] = {
            sample.index, sample.index + 1, sample.index + tile.W, sample.index + tile.W + 1
        };
        T* targets[4];
        for (int i = 0; i < 4; ++i) {
          // a corner without weight gets nothing, not even if the gradient is infinite
          const bool taken =
              tile.image_gradient != nullptr && (sample.flags >> i & 1) && sample.weights[i] != 0;
          targets[i] = taken ? tile.image_gradient + corners[i] * tile.C + channel : tile.unused;
        }
        const T* gradient = tile.column_gradients + row;
        T* column = tile.columns + row;
        Products<T> products;
        const auto part = [&](int64_t c, const auto& read, const auto& keep) {
          differentiate(factors, sample, targets, gradient, column, c, products, read, keep);
        };
        int64_t c = 0;
        for (; c + n <= C; c += n) {
          part(c, read, all);
        }
        if (c < C && sample.roomy) {
          part(c, read_first, first);
        } else if (c < C) {
          part(c, read_rest, first);
        }
        T* to = tile.offset_gradients + 2 * sample_row * tile.pixels + p;
        to[0] = sum_of_lanes<T>(products.y) * mask;
        to[tile.pixels] = sum_of_lanes<T>(products.x) * mask;
        tile.mask_gradients[sample_row * tile.pixels + p] = sum_of_lanes<T>(products.value);
      }
    }
  }
}

}  // namespace

#define FASTVISION_DEFINE_DEFORM(T)                                          \
  int64_t deform_lanes(const T*) { return lanes_v<T>; }                      \
  void deform_locate(const DeformTile<T>& tile, bool edges, int64_t* rows) { \
    locate(tile, edges, rows);                                               \
  }                                                                          \
  void deform_gather(const DeformTile<T>& tile) { gather(tile); }            \
  void deform_gradients(const DeformGradientTile<T>& tile) { gradients(tile); }
FASTVISION_DEFINE_DEFORM(float)
FASTVISION_DEFINE_DEFORM(double)
#undef FASTVISION_DEFINE_DEFORM

}  // namespace fastvision::FASTVISION_ISA
