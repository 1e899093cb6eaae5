// The products of Winograd's algorithm in each position: register tiles of tiles times output
// channels.
#include "common/prefetch.h"
#include "common/register_tile.h"
#include "cpu/conv_winograd_tile.h"

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int kUnrolled = 4;  // input channels between prefetches
constexpr int64_t kTerms = 64;
constexpr int64_t kBlock = kTileVectors * kLanes;

// Factors and products of a register tile.
struct Part {
  const float* inputs;   // [rows][C], rows `row` apart
  const float* weights;  // [C][channels of the block]
  float* products;       // [rows][stride]
  int64_t C, row, stride;
  const char* ahead;  // weights of the next block, to be prefetched
};

// Sums over kTerms input channels, which are added up afterwards: the rounding errors of a single
// sum over 256 are twice as large. Prefetches kAhead cache lines per kUnrolled input channels.
template <int kRows, int kVectors, int kAhead>
inline void multiply_part(const Part& part) {
  const float *weights = part.weights, *inputs = part.inputs;
  float* const products = part.products;
  const char* ahead = part.ahead;
  const int64_t C = part.C, row = part.row, stride = part.stride;
  int64_t c = 0;
  do {
    const int64_t end = min(c + kTerms, C);
    float_v sums[kRows][kVectors] = {};
    const auto add_channel = [&](int64_t c) {
      add_outer_product(sums, inputs + c, weights, row);
      weights += kVectors * kLanes;
    };
    const bool are_first = c == 0;
    for (; c + kUnrolled <= end; c += kUnrolled) {
#pragma GCC unroll 16
      for (int i = 0; i < kAhead; ++i) {
        prefetch(ahead + i * kLineBytes);
      }
      ahead += kAhead * kLineBytes;
#pragma GCC unroll 4
      for (int u = 0; u < kUnrolled; ++u) {
        add_channel(c + u);
      }
    }
    for (; c < end; ++c) {
      add_channel(c);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        float* const to = products + i * stride + j * kLanes;
        store(to, are_first ? sums[i][j] : load(to) + sums[i][j]);
      }
    }
  } while (c < C);
}

// for `rows` tiles, at most kRows
template <int kVectors, int kAhead, int kRows = kTileRows>
inline void multiply_rows(const Part& part, int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return multiply_rows<kVectors, kAhead, kRows - 1>(part, rows);
    }
  }
  multiply_part<kRows, kVectors, kAhead>(part);
}

// For a block of kVectors. The rows are of nearly equal number, since a narrow register tile is
// bound by latency.
template <int kVectors, int kAhead>
void multiply_block(Part part, int64_t tiles, int64_t row_tiles) {
  for (int64_t i = 0; i < row_tiles; ++i) {
    const int64_t rows = (i + 1) * tiles / row_tiles - i * tiles / row_tiles;
    multiply_rows<kVectors, kAhead>(part, rows);
    part.inputs += rows * part.row;
    part.products += rows * part.stride;
    part.ahead += kAhead * (part.C / kUnrolled) * kLineBytes;
  }
}

template <int kAhead, int kVectors = kTileVectors>
void multiply_vectors(const Part& part, int64_t tiles, int64_t row_tiles, int64_t channels) {
  if constexpr (kVectors > 1) {
    if (channels < kVectors * kLanes) {
      return multiply_vectors<kAhead, kVectors - 1>(part, tiles, row_tiles, channels);
    }
  }
  multiply_block<kVectors, kAhead>(part, tiles, row_tiles);
}

template <int kAhead>
void multiply(const WinogradFactors& f, int64_t row_tiles) {
  const float* weights = f.weights;
  const int64_t row = all_kinds(f.form) * f.C;
  for (int position = 0; position < positions_of(f.form); ++position) {
    const WinogradKinds kinds = kinds_of(f.form, position);
    const float* inputs = f.inputs + position * f.input_plane + kinds.first * f.C;
    const int64_t C = kinds.count * f.C;
    for (int64_t k = 0; k < f.channels; k += kBlock) {
      const int64_t channels = min(f.channels - k, kBlock);
      const float* next = weights + C * channels;
      const Part part{
          inputs,
          weights,
          f.products + position * f.plane + k,
          C,
          row,
          f.channels,
          reinterpret_cast<const char*>(next)
      };
      multiply_vectors<kAhead>(part, f.tiles, row_tiles, channels);
      weights = next;
    }
    weights += kWinogradGap;
  }
}

// `lines` per kUnrolled input channels, rounded up to kAhead
template <int kAhead = 1>
void multiply_ahead(const WinogradFactors& f, int64_t row_tiles, int64_t lines) {
  if constexpr (kAhead < kUnrolled * kBlock * (int64_t)sizeof(float) / kLineBytes) {
    if (lines > kAhead) {
      return multiply_ahead<2 * kAhead>(f, row_tiles, lines);
    }
  }
  multiply<kAhead>(f, row_tiles);
}

}  // namespace

void winograd_multiply(const WinogradFactors& f) {
  const int64_t row_tiles = (f.tiles + kTileRows - 1) / kTileRows;
  if (!f.far_weights) {
    return multiply<0>(f, row_tiles);
  }
  // the cache lines of a block, distributed over the row tiles
  constexpr int64_t kLines = kUnrolled * kBlock * sizeof(float) / kLineBytes;
  multiply_ahead(f, row_tiles, (kLines + row_tiles - 1) / row_tiles);
}

}  // namespace fastvision::FASTVISION_ISA
