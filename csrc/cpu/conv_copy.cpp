// Copies between the engine's [pixels][channels], float or double, and maps of any format and type.
#include "ops/conv.h"

#include "common/simd.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename S, typename T>
inline void convert(const S* from, int64_t count, T* to) {
  constexpr int n = lanes_v<accumulate_t<S>>;
  int64_t i = 0;
  for (; i + n <= count; i += n) {
    store(to + i, load(from + i));
  }
  if (i < count) {
    const int rest = (int)(count - i);
    store_partial(to + i, load_partial(from + i, rest), rest);
  }
}

// [rows][columns] to [columns][rows]
template <typename S, typename T>
inline void transpose(
    const S* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_stride
) {
  using V = vector_t<accumulate_t<S>>;
  constexpr int n = lanes_v<accumulate_t<S>>;
  for (int64_t j = 0; j < columns; j += n) {
    const int width = (int)min<int64_t>(columns - j, n);
    for (int64_t i = 0; i < rows; i += n) {
      const int height = (int)min<int64_t>(rows - i, n);
      V square[n];
      if (width == n && height == n) {
#pragma GCC unroll 16
        for (int r = 0; r < n; ++r) {
          square[r] = load(from + (i + r) * from_stride + j);
        }
        transpose(square);
#pragma GCC unroll 16
        for (int c = 0; c < n; ++c) {
          store(to + (j + c) * to_stride + i, square[c]);
        }
        continue;
      }
      for (int r = 0; r < n; ++r) {
        square[r] = r < height ? load_partial(from + (i + r) * from_stride + j, width) : V{};
      }
      transpose(square);
      for (int c = 0; c < width; ++c) {
        store_partial(to + (j + c) * to_stride + i, square[c], height);
      }
    }
  }
}

// for few channels, which would leave most lanes of a transposed square empty
template <typename S, typename T>
void interleave(const ConvMaps<const S>& maps, T* to, int64_t to_stride) {
  constexpr int n = lanes_v<accumulate_t<S>>;
  for (int64_t p = 0; p < maps.pixels; p += n) {
    const int count = (int)min<int64_t>(maps.pixels - p, n);
    for (int64_t c = 0; c < maps.channels; ++c) {
      const S* from = maps.data + c * maps.channel_stride + p;
      T values[n];
      store(values, count == n ? load(from) : load_partial(from, count));
      for (int i = 0; i < count; ++i) {
        to[(p + i) * to_stride + c] = values[i];
      }
    }
  }
}

template <typename S, typename T>
void gather(const ConvMaps<const S>& maps, T* to, int64_t to_stride) {
  if (maps.channel_stride == 1 && maps.pixel_stride == maps.channels &&
      to_stride == maps.channels) {
    return convert(maps.data, maps.channels * maps.pixels, to);
  }
  if (maps.pixel_stride == 1 && maps.channels <= 4) {
    return interleave(maps, to, to_stride);
  }
  if (maps.pixel_stride == 1) {
    return transpose(maps.data, maps.channel_stride, maps.channels, maps.pixels, to, to_stride);
  }
  for (int64_t p = 0; p < maps.pixels; ++p) {
    const S* from = maps.data + p * maps.pixel_stride;
    if (maps.channel_stride == 1) {
      convert(from, maps.channels, to + p * to_stride);
      continue;
    }
    for (int64_t c = 0; c < maps.channels; ++c) {
      convert(from + c * maps.channel_stride, 1, to + p * to_stride + c);
    }
  }
}

// [pixels][channels] to maps whose pixels are not adjacent, by transposed squares
template <typename S, typename T>
inline void scatter_spaced(const T* from, int64_t from_stride, const ConvMaps<S>& maps) {
  constexpr int n = lanes_v<T>;
  S square[n * n];
  for (int64_t p = 0; p < maps.pixels; p += n) {
    const int64_t pixels = min<int64_t>(maps.pixels - p, n);
    for (int64_t c = 0; c < maps.channels; c += n) {
      const int64_t channels = min<int64_t>(maps.channels - c, n);
      transpose(from + p * from_stride + c, from_stride, pixels, channels, square, n);
      for (int64_t i = 0; i < channels; ++i) {
        S* to = maps.data + (c + i) * maps.channel_stride + p * maps.pixel_stride;
        for (int64_t j = 0; j < pixels; ++j) {
          to[j * maps.pixel_stride] = square[i * n + j];
        }
      }
    }
  }
}

template <typename S, typename T>
void scatter(const T* from, int64_t from_stride, const ConvMaps<S>& maps) {
  if (maps.pixel_stride == 1) {
    // along long rows, a few channels at a time, whose lines then stay in the L1 cache
    const int64_t step = maps.pixels > maps.channels ? lanes_v<T> : maps.channels;
    for (int64_t c = 0; c < maps.channels; c += step) {
      const int64_t channels = min(maps.channels - c, step);
      S* to = maps.data + c * maps.channel_stride;
      transpose(from + c, from_stride, maps.pixels, channels, to, maps.channel_stride);
    }
    return;
  }
  if (maps.channel_stride != 1) {
    return scatter_spaced(from, from_stride, maps);
  }
  for (int64_t p = 0; p < maps.pixels; ++p) {
    convert(from + p * from_stride, maps.channels, maps.data + p * maps.pixel_stride);
  }
}

}  // namespace

#define FASTVISION_DEFINE_CONV_COPY(S, T)                                          \
  void conv_gather(const ConvMaps<const S>& maps, T* to, int64_t to_stride) {      \
    gather(maps, to, to_stride);                                                   \
  }                                                                                \
  void conv_scatter(const T* from, int64_t from_stride, const ConvMaps<S>& maps) { \
    scatter(from, from_stride, maps);                                              \
  }
FASTVISION_DEFINE_CONV_COPY(float, float)
FASTVISION_DEFINE_CONV_COPY(double, double)
FASTVISION_DEFINE_CONV_COPY(half_t, float)
FASTVISION_DEFINE_CONV_COPY(bfloat16_t, float)
#undef FASTVISION_DEFINE_CONV_COPY
void conv_gather(const ConvMaps<const half_t>& maps, half_t* to, int64_t to_stride) {
  gather(maps, to, to_stride);
}
void conv_gather(const ConvMaps<const bfloat16_t>& maps, bfloat16_t* to, int64_t to_stride) {
  gather(maps, to, to_stride);
}

}  // namespace fastvision::FASTVISION_ISA
