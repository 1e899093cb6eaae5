// The phases of a transposed convolution (Dumoulin and Visin 2016, section 4, without the zeros
// between the pixels).
#pragma once

#include <numeric>

#include "ops/conv_engine.h"

namespace fastvision {

// Along an axis, outputs o with (o + padding) % stride == residue share their taps: the filter
// positions first_tap + j * tap_step. The last one reads the first input pixel, and each one before
// it `dilation` pixels further.
struct PhaseAxis {
  int64_t taps, first_tap, tap_step;
  int64_t dilation;

  PhaseAxis(int64_t residue, int64_t size, int64_t stride, int64_t filter_dilation) {
    const int64_t common = std::gcd(stride, filter_dilation);
    tap_step = stride / common;
    dilation = filter_dilation / common;
    first_tap = 0;
    while (first_tap < tap_step && first_tap * filter_dilation % stride != residue) {
      ++first_tap;
    }
    taps = first_tap < std::min(tap_step, size) ? (size - first_tap - 1) / tap_step + 1 : 0;
  }
};

inline int64_t channels_per_group(int64_t channels, int64_t groups) {
  STD_TORCH_CHECK(groups > 0 && channels % groups == 0, "groups must divide the channels");
  return channels / groups;
}

struct TransposedFilter {
  int64_t groups, C, K;  // channels per group
  int64_t R, S;
  int64_t stride[2], dilation[2];

  // of an input of C channels
  static TransposedFilter of(int64_t C, const ConvOptions& o) {
    return {
        o.groups,
        channels_per_group(C, o.groups),
        channels_per_group(o.K, o.groups),
        o.R,
        o.S,
        {o.stride_y, o.stride_x},
        {o.dilation_y, o.dilation_x}
    };
  }

  // calls with each phase: residues and taps of both axes
  template <typename Call>
  void for_each_phase(const Call& call) const {
    for (int64_t y = 0; y < stride[0]; ++y) {
      const PhaseAxis rows(y, R, stride[0], dilation[0]);
      for (int64_t x = 0; x < stride[1]; ++x) {
        const PhaseAxis columns(x, S, stride[1], dilation[1]);
        call(y, rows, x, columns);
      }
    }
  }

  // offsets of the taps of a phase within a filter, in the order of the pixels they meet
  std::vector<int64_t> taps(const PhaseAxis& rows, const PhaseAxis& columns) const {
    std::vector<int64_t> taps;
    for (int64_t r = rows.taps - 1; r >= 0; --r) {
      for (int64_t s = columns.taps - 1; s >= 0; --s) {
        taps.push_back(
            (rows.first_tap + r * rows.tap_step) * S + columns.first_tap + s * columns.tap_step
        );
      }
    }
    return taps;
  }

  ConvPacking packing(ScalarType dtype, const PhaseAxis& rows, const PhaseAxis& columns) const {
    return conv_packing(dtype, groups, C, K, rows.taps * columns.taps);
  }

  int64_t packed_size(ScalarType dtype) const {
    int64_t size = 0;
    for_each_phase([&](int64_t, const PhaseAxis& rows, int64_t, const PhaseAxis& columns) {
      size += packing(dtype, rows, columns).size();
    });
    return size;
  }
};

// Height and width of the output.
struct TransposedSize {
  int64_t H, W;

  TransposedSize(const Tensor& input, const ConvOptions& o) {
    check_dim(input, 4, "input");
    const int64_t height = input.size(2), width = input.size(3);
    STD_TORCH_CHECK(height > 0 && width > 0, "input must not be empty in height or width");
    STD_TORCH_CHECK(std::min(o.top, o.left) >= 0, "padding must not be negative");
    H = (height - 1) * o.stride_y - o.top - o.bottom + o.dilation_y * (o.R - 1) + 1;
    W = (width - 1) * o.stride_x - o.left - o.right + o.dilation_x * (o.S - 1) + 1;
    STD_TORCH_CHECK(H > 0 && W > 0, "padding leaves no output");
  }
};

// The phase of these residues, with its packed weights.
inline ConvPhase transposed_phase(
    const ConvOptions& o,
    const TransposedSize& size,
    int64_t y,
    const PhaseAxis& rows,
    int64_t x,
    const PhaseAxis& columns,
    const void* packed
) {
  const auto first_output = [](int64_t residue, int64_t step, int64_t before) {
    return ((residue - before) % step + step) % step;
  };
  // that the last tap reads for output u, counted without the padding
  const auto first_input = [](const PhaseAxis& axis, int64_t u, int64_t step, int64_t by) {
    return axis.taps ? (u - axis.first_tap * by) / step - (axis.taps - 1) * axis.dilation : 0;
  };
  const bool empty = rows.taps * columns.taps == 0;
  const int64_t oy = first_output(y, o.stride_y, o.top);
  const int64_t ox = first_output(x, o.stride_x, o.left);
  const ConvWindow window{
      empty ? 0 : rows.taps,
      empty ? 0 : columns.taps,
      1,
      1,
      first_input(rows, oy + o.top, o.stride_y, o.dilation_y),
      first_input(columns, ox + o.left, o.stride_x, o.dilation_x),
      rows.dilation,
      columns.dilation
  };
  return {
      window,
      packed,
      oy < size.H ? ceil_div(size.H - oy, o.stride_y) : 0,
      ox < size.W ? ceil_div(size.W - ox, o.stride_x) : 0,
      o.stride_y,
      o.stride_x,
      oy,
      ox
  };
}

}  // namespace fastvision
