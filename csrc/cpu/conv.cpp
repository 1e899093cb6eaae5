// The inner loops of the convolution engine: register tiles of pixels times vectors of output
// channels.
#include "ops/conv.h"

#include "common/register_tile.h"
#include "common/simd.h"
#include "common/simd_activation.h"

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int64_t kPassBytes = 160 << 10;
constexpr int64_t kLineBytes = 64;
constexpr int kStretch = 8;  // channels between two prefetches

// A tile's way to memory, in local copies: the compiler must assume that a store changes the
// others.
template <typename T>
struct Epilogue {
  T* const* outputs;
  const T* const* residuals;
  vector_t<T> low, high;

  explicit Epilogue(const ConvTile<T>& tile) : outputs(tile.outputs), residuals(tile.residuals) {
    const Bounds<T> bounds(tile.activation);
    low = broadcast(bounds.low);
    high = broadcast(bounds.high);
  }

  // `last` lanes of the last vector are channels
  template <int kRows, int kCols>
  void operator()(
      vector_t<T> (&sums)[kRows][kCols], int64_t pixel, int64_t channel, int last
  ) const {
    constexpr int n = lanes_v<T>, end = (kCols - 1) * n;
    if (residuals != nullptr) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const T* residual = residuals[pixel + i] + channel;
#pragma GCC unroll 16
        for (int j = 0; j < kCols - 1; ++j) {
          sums[i][j] += load(residual + j * n);
        }
        sums[i][kCols - 1] += last == n ? load(residual + end) : load_partial(residual + end, last);
      }
    }
    T* const* const out = outputs + pixel;
    const vector_t<T> least = low, most = high;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      T* output = out[i] + channel;
#pragma GCC unroll 16
      for (int j = 0; j < kCols - 1; ++j) {
        store(output + j * n, clamp(sums[i][j], least, most));
      }
      const vector_t<T> v = clamp(sums[i][kCols - 1], least, most);
      if (__builtin_expect(last == n, 1)) {
        store(output + end, v);
      } else {
        store_partial(output + end, v, last);
      }
    }
  }
};

// The activations that are no clamp go over what is stored, still in the cache.
template <typename T, typename Options>
inline void activate(T* values, int64_t count, const Options& options) {
  with_activation<T>(options.activation, (T)options.negative_slope, [&](auto f) {
    int64_t i = 0;
    for (; i + lanes_v<T> <= count; i += lanes_v<T>) {
      store(values + i, f(load(values + i)));
    }
    if (i < count) {
      const int rest = (int)(count - i);
      store_partial(values + i, f(load_partial(values + i, rest)), rest);
    }
  });
}

// One block of one group.
template <typename T>
struct Block {
  const T* weights;
  const T* bias;
  int64_t input_channel, output_channel;
  int64_t channels;  // of output
  int64_t C;         // of input per tap
  int64_t tap_begin, tap_end;
  int64_t ahead;     // lines of the weights behind these to prefetch per stretch
  bool reads_first;  // whether it is the first to read the inputs
};

inline void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }

template <int kRows, int kCols, typename T>
inline void dense_tile(const ConvTile<T>& tile, const Block<T>& block, int64_t pixel) {
  using V = vector_t<T>;
  V sums[kRows][kCols];
  T* kept = tile.sums + pixel * kCols * lanes_v<T>;
  const bool first = block.tap_begin == 0;
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kCols; ++j) {
      sums[i][j] = load(first ? block.bias + j * lanes_v<T> : kept + (i * kCols + j) * lanes_v<T>);
    }
  }
  const T* weights = block.weights + block.tap_begin * block.C * kCols * lanes_v<T>;
  const T* const* inputs = tile.inputs + block.tap_begin * tile.pixels + pixel;
  // this tile's share of the weights behind the block's
  const int64_t share = (block.tap_end - block.tap_begin) * (block.C / kStretch) * block.ahead;
  const T* behind = block.weights + block.tap_end * block.C * kCols * lanes_v<T>;
  const char* ahead =
      reinterpret_cast<const char*>(behind) + pixel / kTileRows * share * kLineBytes;
  if (tile.far_outputs && block.tap_end == tile.packing->taps) {
    for (int i = 0; i < kRows; ++i) {
      __builtin_prefetch(tile.outputs[pixel + i] + block.output_channel, 1, 3);
      if (tile.residuals != nullptr) {
        __builtin_prefetch(tile.residuals[pixel + i] + block.output_channel, 0, 3);
      }
    }
  }
  for (int64_t tap = block.tap_begin; tap < block.tap_end; ++tap, inputs += tile.pixels) {
    const T* rows[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      rows[i] = inputs[i] + block.input_channel;
    }
    const bool next_inputs = block.reads_first && pixel + 2 * kRows <= tile.pixels;
    const int64_t stretch = next_inputs || block.ahead ? kStretch : block.C;
    for (int64_t c = 0; c < block.C;) {
      for (int64_t line = 0; line < block.ahead; ++line, ahead += kLineBytes) {
        prefetch(ahead);
      }
      if (next_inputs && c % (kLineBytes / sizeof(T)) == 0) {
        for (int i = 0; i < kRows; ++i) {
          prefetch(inputs[i + kRows] + block.input_channel + c);
        }
      }
      const int64_t end = min(c + stretch, block.C);
      for (; c < end; ++c, weights += kCols * lanes_v<T>) {
        V w[kCols];
#pragma GCC unroll 16
        for (int j = 0; j < kCols; ++j) {
          w[j] = load(weights + j * lanes_v<T>);
        }
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) {
          const V x = broadcast(rows[i][c]);
#pragma GCC unroll 16
          for (int j = 0; j < kCols; ++j) {
            sums[i][j] = multiply_add(x, w[j], sums[i][j]);
          }
        }
      }
    }
  }
  if (block.tap_end < tile.packing->taps) {
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kCols; ++j) {
        store(kept + (i * kCols + j) * lanes_v<T>, sums[i][j]);
      }
    }
    return;
  }
  const int last = (int)(block.channels - (kCols - 1) * lanes_v<T>);
  const Epilogue<T> finish(tile);
  finish(sums, pixel, block.output_channel, last);
}

// of lanes grouped by kWidth, each gets the value of lane `c` of its group
template <int kWidth, int c, typename V, int... I>
inline V pick(V x, lane_list<I...>) {
  return __builtin_shufflevector(x, x, (I / kWidth * kWidth + c)...);
}

template <int kWidth, int c, int kRows, typename T>
inline void add_shared(
    vector_t<T> (&sums)[kRows][1], const vector_t<T> (&x)[kRows], const T* weights
) {
  if constexpr (c < kWidth) {
    const vector_t<T> w = load(weights);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const vector_t<T> value = pick<kWidth, c>(x[i], typename make_lanes<lanes_v<T>>::type{});
      sums[i][0] = multiply_add(value, w, sums[i][0]);
    }
    add_shared<kWidth, c + 1, kRows, T>(sums, x, weights + lanes_v<T>);
  }
}

// One vector of channels made of groups of kWidth.
template <int kRows, int kWidth, typename T>
inline void shared_tile(const ConvTile<T>& tile, const Block<T>& block, int64_t pixel) {
  using V = vector_t<T>;
  const int count = (int)block.channels;
  V sums[kRows][1];
  for (int i = 0; i < kRows; ++i) {
    sums[i][0] = load(block.bias);
  }
  const T* weights = block.weights;
  const T* const* inputs = tile.inputs + pixel;
  for (int64_t tap = 0; tap < tile.packing->taps; ++tap, inputs += tile.pixels) {
    V x[kRows];
    if (__builtin_expect(count == lanes_v<T>, 1)) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        x[i] = load(inputs[i] + block.output_channel);
      }
    } else {
      for (int i = 0; i < kRows; ++i) {
        x[i] = load_partial(inputs[i] + block.output_channel, count);
      }
    }
    add_shared<kWidth, 0, kRows, T>(sums, x, weights);
    weights += kWidth * lanes_v<T>;
  }
  const Epilogue<T> finish(tile);
  finish(sums, pixel, block.output_channel, count);
}

// kSize is the number of vectors of a dense block, or minus the width of shared vectors
template <int kSize, int kRows, typename T>
inline void run_tile(const ConvTile<T>& tile, const Block<T>& block, int64_t pixel) {
  if constexpr (kSize > 0) {
    dense_tile<kRows, kSize>(tile, block, pixel);
  } else {
    shared_tile<kRows, -kSize>(tile, block, pixel);
  }
}

// run_tile of `rows` rows, at most kRows
template <int kSize, int kRows, typename T>
inline void run_rows(const ConvTile<T>& tile, const Block<T>& block, int64_t pixel, int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return run_rows<kSize, kRows - 1>(tile, block, pixel, rows);
    }
  }
  run_tile<kSize, kRows>(tile, block, pixel);
}

template <int kSize, typename T>
void run_taps(const ConvTile<T>& tile, const Block<T>& block) {
  // of one vector of channels twice as many pixels, or each sum would wait for the one before
  constexpr int kMost = kSize == 1 ? 2 * kTileRows : kTileRows;
  for (int64_t p = 0, rows; p < tile.pixels; p += rows) {
    const int64_t left = tile.pixels - p;
    // the last two tiles share what is left, since a narrow one waits for its sums
    rows = left >= 2 * kMost || left == kMost ? kMost : left > kMost ? (left + 1) / 2 : left;
    run_rows<kSize, kMost>(tile, block, p, rows);
  }
}

template <int kSize, typename T>
void run_block(const ConvTile<T>& tile, Block<T> block) {
  const int64_t taps = tile.packing->taps;
  // weights that all tiles read should stay in the second-level cache beside the inputs
  const int64_t bytes = kSize > 0 ? kSize * kVectorBytes * block.C : 0;
  const int64_t passes = (taps * bytes + kPassBytes - 1) / kPassBytes;
  const int64_t step = passes > 1 ? (taps + passes - 1) / passes : taps;
  block.tap_end = 0;
  do {  // once without taps, too: a phase of a transposed convolution may have only a bias
    block.tap_begin = block.tap_end;
    block.tap_end = min(block.tap_begin + step, taps);
    if (kSize > 0 && tile.far_weights) {
      // lines of a stretch's weights, shared out over the tiles
      const int64_t lines = kSize * kVectorBytes * kStretch / kLineBytes;
      const int64_t tiles = (tile.pixels + kTileRows - 1) / kTileRows;
      block.ahead = (lines + tiles - 1) / tiles;
    }
    run_taps<kSize>(tile, block);
  } while (block.tap_end < taps);
  if (!is_clamp(tile.activation)) {
    for (int64_t p = 0; p < tile.pixels; ++p) {
      activate(tile.outputs[p] + block.output_channel, block.channels, tile);
    }
  }
}

template <typename T>
void run_dense(const ConvTile<T>& tile, const Block<T>& block) {
  switch ((block.channels + lanes_v<T> - 1) / lanes_v<T>) {
    case 1:
      return run_block<1>(tile, block);
    case 2:
      return run_block<2>(tile, block);
#if defined(FASTVISION_AVX512) || defined(FASTVISION_EMULATE_AVX512)
    case 3:
      return run_block<3>(tile, block);
    case 4:
      return run_block<4>(tile, block);
#endif
  }
}

template <typename T>
void run_shared(const ConvTile<T>& tile, const Block<T>& block, int64_t width) {
  switch (width) {
    case 1:
      return run_block<-1>(tile, block);
    case 2:
      return run_block<-2>(tile, block);
    case 4:
      if constexpr (lanes_v<T> > 4) {
        return run_block<-4>(tile, block);
      }
      break;
    case 8:
      if constexpr (lanes_v<T> > 8) {
        return run_block<-8>(tile, block);
      }
  }
}

template <typename T>
void run(const ConvTile<T>& tile) {
  const ConvPacking& packing = *tile.packing;
  const int64_t width = packing.width(), padded = packing.padded_K(), blocks = packing.blocks();
  for (int64_t b = tile.block_begin; b < tile.block_end; ++b) {
    const int64_t group = b / blocks, k = b % blocks * packing.block;
    Block<T> block;
    block.bias = tile.packed + group * padded + k;
    block.weights =
        tile.packed + packing.bias_size() + (group * padded + k) * packing.taps * packing.C;
    block.input_channel = group * packing.C;
    block.output_channel = group * packing.outer_K() + k;
    const int64_t left = packing.outer_K() - k;
    block.channels = left < packing.block ? left : packing.block;
    block.C = packing.C;
    block.ahead = 0;
    block.reads_first = tile.far_inputs && b == tile.block_begin;
    if (width == 0) {
      run_dense(tile, block);
      continue;
    }
    const int64_t end = block.output_channel + block.channels;
    for (; block.output_channel < end; block.output_channel += lanes_v<T>) {
      block.channels = min<int64_t>(end - block.output_channel, lanes_v<T>);
      run_shared(tile, block, width);
      block.bias += lanes_v<T>;
      block.weights += packing.taps * width * lanes_v<T>;
    }
  }
}

// ---- depthwise

// Adds the row of taps that starts at x; each input vector is loaded once for all of its pixels.
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

// kTaps is 0 for any number of taps, step and dilation
template <int kRows, int kTaps, int kStep, typename T>
inline void depthwise_tile(const ConvDepthwiseRow<T>& row, int64_t pixel) {
  const int64_t C = row.packing->outer_K(), S = row.S;
  const Bounds<T> bounds(row.activation);
  const vector_t<T> low = broadcast(bounds.low), high = broadcast(bounds.high);
  const T* weights = row.packed + row.packing->bias_size();
  const T* residual = row.residual == nullptr ? nullptr : row.residual + pixel * C;
  T* output = row.output + pixel * C;
  const int64_t step = row.step * C, dilation = row.dilation * C;
  // with each vector of channels a share of a coming tile is prefetched
  constexpr int kAhead = kRows * kStep * kVectorBytes / kLineBytes;
  const int64_t ahead = (1 + 128 / C) * kRows;
  const int64_t behind = (pixel + ahead - 1) * step + S * C;
  for (int64_t k = 0; k < C; k += lanes_v<T>) {
    for (int64_t r = row.R - row.fresh; kTaps > 0 && r < row.R; ++r) {
#pragma GCC unroll 16
      for (int line = 0; line < kAhead; ++line) {
        prefetch((const char*)(row.inputs[r] + behind + k * kRows * kStep) + line * kLineBytes);
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
    for (int64_t r = 0; r < row.R; ++r) {
      const T* x = row.inputs[r] + pixel * step + k;
      if (kTaps > 0 && full) {
        add_taps<kRows, kTaps, kStep>(sums, x, C, weights);
        weights += kTaps * lanes_v<T>;
        continue;
      }
      for (int64_t s = 0; s < S; ++s, weights += lanes_v<T>, x += dilation) {
        const vector_t<T> w = load(weights);
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
void run_depthwise(const ConvDepthwiseRow<T>& row) {
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
    activate(row.output, row.pixels * row.packing->outer_K(), row);
  }
}

template <typename T>
void run_depthwise(const ConvDepthwiseRow<T>& row) {
  const auto is = [&](int64_t S, int64_t step) {
    return row.S == S && row.step == step && row.dilation == 1;
  };
  if (is(3, 1)) {
    run_depthwise<3, 1>(row);
  } else if (is(3, 2)) {
    run_depthwise<3, 2>(row);
  } else if (is(5, 1)) {
    run_depthwise<5, 1>(row);
  } else if (is(5, 2)) {
    run_depthwise<5, 2>(row);
  } else {
    run_depthwise<0, 0>(row);
  }
}

// ---- other formats and types

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
  for (int64_t i = 0; i < rows; i += n) {
    const int height = (int)min<int64_t>(rows - i, n);
    for (int64_t j = 0; j < columns; j += n) {
      const int width = (int)min<int64_t>(columns - j, n);
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

// of few channels, which would leave most lanes of a transposed square empty
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

// [pixels][channels] to maps whose pixels are apart, through transposed squares
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
    // along long rows a few channels at a time, whose lines then stay in the first-level cache
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

#define FASTVISION_DEFINE_CONV(T)                                    \
  int64_t conv_lanes(const T*) { return lanes_v<T>; }                \
  int64_t conv_block(const T*) { return kTileVectors * lanes_v<T>; } \
  void conv_tile(const ConvTile<T>& tile) { run(tile); }             \
  void conv_depthwise_row(const ConvDepthwiseRow<T>& row) { run_depthwise(row); }
FASTVISION_DEFINE_CONV(float)
FASTVISION_DEFINE_CONV(double)
#undef FASTVISION_DEFINE_CONV

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

}  // namespace fastvision::FASTVISION_ISA
