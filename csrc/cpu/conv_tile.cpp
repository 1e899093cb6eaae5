// Register tiles of pixels times vectors of output channels. From the contract down to the
// registers, each level decides one thing:
//   split_channels            the next block of channels and its weights
//   with_vectors, with_width  the block's size: vectors of one group, or the width of its groups
//   split_taps                the taps of one pass, whose weights have to stay in the cache
//   split_pixels              the number of pixels per register tile
//   with_rows                 the same as a constant
//   dense_tile, shared_tile   the register tile
#include "ops/conv.h"

#include "common/prefetch.h"
#include "common/register_tile.h"
#include "common/simd.h"
#include "common/simd_activation.h"
#include "common/simd_lanes.h"

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int64_t kPassBytes = 160 << 10;  // weights per pass over the pixels
constexpr int kStretch = 16;               // channels between prefetches
constexpr int kUnrolled = 4;       // channels per iteration where each takes few instructions
constexpr int64_t kLatency = 600;  // cycles that a prefetch from memory takes, about
constexpr int64_t kMostLead = 4;

// Pointers of a tile as local copies; otherwise the compiler must assume that stores change them.
template <typename T>
struct Epilogue {
  T* const* outputs;
  const T* const* residuals;
  bool streams;
  vector_t<T> low, high;

  explicit Epilogue(const ConvTile<T>& tile)
      : outputs(tile.outputs), residuals(tile.residuals), streams(tile.streams) {
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
    if (streams) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        T* output = out[i] + channel;
#pragma GCC unroll 16
        for (int j = 0; j < kCols; ++j) {
          stream(output + j * n, clamp(sums[i][j], least, most));
        }
      }
      return;
    }
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

// One block of one group.
template <typename T>
struct Block {
  const T* weights;
  const T* bias;
  int64_t input_channel, output_channel;
  int64_t channels;  // output channels
  int64_t C;         // input channels per tap
  int64_t tap_begin, tap_end;
  int64_t ahead;     // cache lines of the next weights to prefetch per stretch
  int64_t lead;      // tiles between a prefetch of inputs and the tile before theirs
  bool reads_first;  // whether no block has read the inputs before
  bool far_group;    // whether the inputs of the next block, of another group, are to be prefetched
};

// The channels of one tap for pixels [begin, end), starting `channel` values into each.
template <typename T>
inline void prefetch_inputs(
    const ConvTile<T>& tile,
    const T* const* inputs,
    int64_t channel,
    int64_t channels,
    int64_t begin,
    int64_t end
) {
  for (int64_t p = begin; p < min(end, tile.pixels); ++p) {
    for (int64_t c = 0; c < channels; c += kLineBytes / sizeof(T)) {
      prefetch(inputs[p] + channel + c);
    }
  }
}

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
  // this tile's share of the next block's weights
  const int64_t share = (block.tap_end - block.tap_begin) * (block.C / kStretch) * block.ahead;
  const T* behind = block.weights + block.tap_end * block.C * kCols * lanes_v<T>;
  const char* ahead =
      reinterpret_cast<const char*>(behind) + pixel / kTileRows * share * kLineBytes;
  const int64_t lead = block.lead * kRows;
  if (tile.far_outputs && block.tap_end == tile.packing->taps) {
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < kCols; ++j) {
        const int64_t channel = block.output_channel + j * lanes_v<T>;
        if (!tile.streams) {
          __builtin_prefetch(tile.outputs[pixel + i] + channel, 1, 3);
        }
        if (tile.residuals != nullptr) {
          __builtin_prefetch(tile.residuals[pixel + i] + channel, 0, 3);
        }
      }
    }
  }
  if (block.reads_first && pixel == 0) {
    prefetch_inputs(tile, tile.inputs, block.input_channel, block.C, kRows, kRows + lead);
  }
  if (block.far_group && first) {
    const T* const* middle = tile.inputs + tile.packing->taps / 2 * tile.pixels;
    prefetch_inputs(tile, middle, block.input_channel + block.C, block.C, pixel, pixel + kRows);
  }
  for (int64_t tap = block.tap_begin; tap < block.tap_end; ++tap, inputs += tile.pixels) {
    const T* rows[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      rows[i] = inputs[i] + block.input_channel;
    }
    const bool next_inputs = block.reads_first && pixel + lead + 2 * kRows <= tile.pixels;
    const int64_t stretch = next_inputs || block.ahead ? kStretch : block.C;
    for (int64_t c = 0; c < block.C;) {
      for (int64_t line = 0; line < block.ahead; ++line, ahead += kLineBytes) {
        prefetch(ahead);
      }
      if (next_inputs && c % (kLineBytes / sizeof(T)) == 0) {
        for (int i = 0; i < kRows; ++i) {
          prefetch(inputs[i + lead + kRows] + block.input_channel + c);
        }
      }
      const int64_t end = min(c + stretch, block.C);
      if constexpr (kCols == 1) {
        // few enough instructions for those of a loop to count
        for (; c + kUnrolled <= end; c += kUnrolled, weights += kUnrolled * lanes_v<T>) {
#pragma GCC unroll 4
          for (int u = 0; u < kUnrolled; ++u) {
            const V w = load(weights + u * lanes_v<T>);
#pragma GCC unroll 16
            for (int i = 0; i < kRows; ++i) {
              sums[i][0] = multiply_add(broadcast(rows[i][c + u]), w, sums[i][0]);
            }
          }
        }
      }
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

template <int kWidth, int c, int kRows, typename T>
inline void add_shared(
    vector_t<T> (&sums)[kRows][1], const vector_t<T> (&x)[kRows], const T* weights
) {
  if constexpr (c < kWidth) {
    const vector_t<T> w = load(weights);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const vector_t<T> value = spread_lane<kWidth, c>(x[i]);
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

// All vectors of a block belong to one group of channels and share their inputs.
template <int kVectors>
struct Dense {
  static constexpr int64_t kWeightBytes = kVectors * kVectorBytes;  // per input channel
  // a single vector of channels takes more pixels, to hide the latency of additions; for more than
  // ten, there are not enough registers for their addresses
  static constexpr int kMostRows = kVectors == 1 ? 10 : kTileRows;

  template <int kRows, typename T>
  static void run(const ConvTile<T>& tile, const Block<T>& block, int64_t pixel) {
    dense_tile<kRows, kVectors>(tile, block, pixel);
  }
};

// The block is one vector, of several groups of kWidth channels.
template <int kWidth>
struct Shared {
  static constexpr int64_t kWeightBytes = 0;  // few enough for all taps in one pass
  static constexpr int kMostRows = kTileRows;

  template <int kRows, typename T>
  static void run(const ConvTile<T>& tile, const Block<T>& block, int64_t pixel) {
    shared_tile<kRows, kWidth>(tile, block, pixel);
  }
};

// A register tile of `rows` pixels, at most kRows.
template <typename Kind, int kRows, typename T>
inline void with_rows(const ConvTile<T>& tile, const Block<T>& block, int64_t pixel, int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return with_rows<Kind, kRows - 1>(tile, block, pixel, rows);
    }
  }
  Kind::template run<kRows>(tile, block, pixel);
}

template <typename Kind, typename T>
void split_pixels(const ConvTile<T>& tile, const Block<T>& block) {
  constexpr int kMost = Kind::kMostRows;
  for (int64_t p = 0, rows; p < tile.pixels; p += rows) {
    const int64_t left = tile.pixels - p;
    // the last two tiles share the remaining pixels, since a narrow tile is bound by latency
    rows = left >= 2 * kMost || left == kMost ? kMost : left > kMost ? (left + 1) / 2 : left;
    with_rows<Kind, kMost>(tile, block, p, rows);
  }
}

template <typename Kind, typename T>
void split_taps(const ConvTile<T>& tile, Block<T> block) {
  const int64_t taps = tile.packing->taps;
  // the weights, which all tiles read, should stay in the L2 cache along with the inputs
  const int64_t bytes = Kind::kWeightBytes * block.C;
  const int64_t passes = (taps * bytes + kPassBytes - 1) / kPassBytes;
  const int64_t step = passes > 1 ? (taps + passes - 1) / passes : taps;
  block.tap_end = 0;
  do {  // runs even without taps: a phase of a transposed convolution may only have a bias
    block.tap_begin = block.tap_end;
    block.tap_end = min(block.tap_begin + step, taps);
    if (Kind::kWeightBytes > 0 && tile.far_weights) {
      // distributes the cache lines of the next weights over the tiles
      const int64_t lines = Kind::kWeightBytes * kStretch / kLineBytes;
      const int64_t tiles = (tile.pixels + kTileRows - 1) / kTileRows;
      block.ahead = (lines + tiles - 1) / tiles;
    }
    // two multiply-adds per cycle
    const int64_t vectors = Kind::kWeightBytes / kVectorBytes * Kind::kMostRows;
    const int64_t cycles = (block.tap_end - block.tap_begin) * block.C * vectors / 2;
    block.lead = cycles > 0 ? min(kLatency / cycles, kMostLead) : 0;
    split_pixels<Kind>(tile, block);
  } while (block.tap_end < taps);
  if (!is_clamp(tile.activation)) {
    for (int64_t p = 0; p < tile.pixels; ++p) {
      T* output = tile.outputs[p] + block.output_channel;
      activate(output, block.channels, tile.activation, (T)tile.negative_slope);
    }
  }
}

template <typename T>
void with_vectors(const ConvTile<T>& tile, const Block<T>& block) {
  switch ((block.channels + lanes_v<T> - 1) / lanes_v<T>) {
    case 1:
      return split_taps<Dense<1>>(tile, block);
    case 2:
      return split_taps<Dense<2>>(tile, block);
#if defined(FASTVISION_AVX512) || defined(FASTVISION_EMULATE_AVX512)
    case 3:
      return split_taps<Dense<3>>(tile, block);
    case 4:
      return split_taps<Dense<4>>(tile, block);
#endif
  }
}

template <typename T>
void with_width(const ConvTile<T>& tile, const Block<T>& block, int64_t width) {
  switch (width) {
    case 1:
      return split_taps<Shared<1>>(tile, block);
    case 2:
      return split_taps<Shared<2>>(tile, block);
    case 4:
      if constexpr (lanes_v<T> > 4) {
        return split_taps<Shared<4>>(tile, block);
      }
      break;
    case 8:
      if constexpr (lanes_v<T> > 8) {
        return split_taps<Shared<8>>(tile, block);
      }
  }
}

template <typename T>
void split_channels(const ConvTile<T>& tile) {
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
    const bool one_tap = packing.taps == 1;
    block.reads_first = tile.far_inputs && one_tap && b == tile.block_begin;
    // a phase of a transposed convolution may have no tap and no inputs
    block.far_group =
        tile.far_inputs && packing.taps > 1 && (b + 1) % blocks == 0 && b + 1 < tile.block_end;
    if (width == 0) {
      with_vectors(tile, block);
      continue;
    }
    const int64_t end = block.output_channel + block.channels;
    for (; block.output_channel < end; block.output_channel += lanes_v<T>) {
      block.channels = min<int64_t>(end - block.output_channel, lanes_v<T>);
      with_width(tile, block, width);
      block.bias += lanes_v<T>;
      block.weights += packing.taps * width * lanes_v<T>;
    }
  }
}

}  // namespace

#define FASTVISION_DEFINE_CONV_TILE(T)                               \
  int64_t conv_lanes(const T*) { return lanes_v<T>; }                \
  int64_t conv_block(const T*) { return kTileVectors * lanes_v<T>; } \
  void conv_tile(const ConvTile<T>& tile) {                          \
    split_channels(tile);                                            \
    if (tile.streams) {                                              \
      end_streams();                                                 \
    }                                                                \
  }
FASTVISION_DEFINE_CONV_TILE(float)
FASTVISION_DEFINE_CONV_TILE(double)
#undef FASTVISION_DEFINE_CONV_TILE

}  // namespace fastvision::FASTVISION_ISA
