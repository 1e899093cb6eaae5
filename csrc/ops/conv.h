// Contract of the CPU convolution engine, which also runs transposed convolutions.
//
// A convolution is a sum over taps (positions in the filter): for each tap, the C values of one
// input pixel are multiplied by a [C, K] matrix. A table of pointers gives the input pixel of each
// tap and output pixel, so stride, padding, dilation and the phases of a transposed convolution
// only change that table, without any copy (Dukhan, The Indirect Convolution Algorithm, 2019). The
// kernels read channels_last float or double; other formats and types are converted in a worker's
// scratch memory.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/isa.h"
#include "common/scalar.h"

namespace fastvision {

// Packed weights: first the bias [groups][K'], with K' = K rounded up to whole vectors, then the
// weights [groups][block of output channels][taps][C][channels of the block]. A block has `block`
// channels, the last one of a group as many whole vectors as it needs. Groups of 1, 2, 4 or 8
// channels, if fewer than a vector's lanes, share vectors instead: then `width` is their number of
// channels (otherwise 0), and the weights are [vector of channels][taps][width][lanes].
struct ConvPacking {
  int64_t groups;
  int64_t C, K;  // input and output channels per group
  int64_t taps;
  int64_t lanes, block;  // conv_lanes() and conv_block()

  FASTVISION_NO_COPY int64_t width() const {
    const bool shares = C == K && C < lanes && groups > 1 && (C == 1 || C == 2 || C == 4 || C == 8);
    return shares ? C : 0;
  }
  // groups that share vectors count as one
  FASTVISION_NO_COPY int64_t outer_groups() const { return width() ? 1 : groups; }
  FASTVISION_NO_COPY int64_t outer_K() const { return width() ? groups * K : K; }
  FASTVISION_NO_COPY int64_t padded_K() const { return (outer_K() + lanes - 1) / lanes * lanes; }
  FASTVISION_NO_COPY int64_t blocks() const { return (padded_K() + block - 1) / block; }
  FASTVISION_NO_COPY int64_t bias_size() const { return outer_groups() * padded_K(); }
  FASTVISION_NO_COPY int64_t size() const { return bias_size() * (1 + taps * C); }
};

// Output pixels and blocks of channels [block_begin, block_end), counted over all groups.
template <typename T>
struct ConvTile {
  const T* const* inputs;     // [taps][pixels] channel 0 of the input pixel
  T* const* outputs;          // [pixels] channel 0 of the output pixel
  const T* const* residuals;  // [pixels] channel 0 of the residual pixel, or null
  T* sums;                    // [pixels][block] scratch for sums over some of the taps
  int64_t pixels;
  const T* packed;
  const ConvPacking* packing;
  int64_t block_begin, block_end;
  bool far_inputs, far_outputs, far_weights;  // not yet in the L1 and L2 caches
  Activation activation;
  double negative_slope;
  bool streams = false;  // whether outputs, aligned and of whole lines, are stored past the caches
};

// A row of output pixels of a depthwise convolution (width 1).
template <typename T>
struct ConvDepthwiseRow {
  const T* const* inputs;  // [R] first value of the input row that each row of taps reads, or null
                           // outside the map
  int64_t width;           // pixels of an input row
  int64_t first;           // input pixel of the first tap of the first output pixel
  T* output;               // channel 0 of the first output pixel
  const T* residual;       // channel 0 of the first residual pixel, or null
  int64_t pixels;
  int64_t R, S;
  int64_t fresh;           // how many of the R rows, at the end, no previous row has read
  int64_t step, dilation;  // between pixels and between taps, in input pixels
  int64_t next_row;        // values from the inputs to those of the next row of pixels
  int64_t pitch;           // values from a pixel to the next, in all maps
  int64_t offset;          // values from the inputs to pixel 0 of their rows
  const T* packed;
  const ConvPacking* packing;
  Activation activation;
  double negative_slope;
};

// Rows of pixels that are needed next, of which `bytes` are to be prefetched each.
template <typename T>
struct ConvAhead {
  const T* data;         // of the first pixel
  int64_t row, pixel;    // values from a row, and from a pixel, to the next
  int64_t rows, pixels;  // none if rows is 0
  int64_t bytes;
};

// Output rows of a grouped convolution with windows R x 3, of one block of channels. The input is
// gathered, with padding on all sides, and may be read up to kStripExcess output pixels beyond it.
template <typename T>
struct ConvStrip {
  const T* input;        // [rows][input_row] of pixels [channels]
  int64_t begin, end;    // rows inside the map; the others are not read
  int64_t input_row;     // values
  int64_t channels;      // input channels: of one group, or a vector of groups that share it
  int64_t width;         // channels of such a group, otherwise 0
  T* output;             // channel 0 of the first output pixel
  const T* residual;     // or null
  int64_t row, pixel;    // values from an output row, and from a pixel, to the next
  int64_t rows, pixels;  // of the output, pixels per row
  int64_t outputs;       // output channels
  int64_t R;
  int64_t step_y, step_x;  // step_x 1 or 2
  bool has_borders;        // whether rows are as long as the input's, with a pixel of padding
                           // on both sides
  const T* weights;        // [R][3][channels or width][outputs in whole vectors]
  const T* bias;
  ConvAhead<T> ahead;
  Activation activation;
  double negative_slope;
};
constexpr int64_t kStripTaps = 3, kStripExcess = 3;

#define FASTVISION_DECLARE_CONV(T)                              \
  FASTVISION_DECLARE_CPU(int64_t, conv_lanes, const T*)         \
  FASTVISION_DECLARE_CPU(int64_t, conv_block, const T*)         \
  FASTVISION_DECLARE_CPU(void, conv_tile, const ConvTile<T>&)   \
  FASTVISION_DECLARE_CPU(void, conv_strip, const ConvStrip<T>&) \
  FASTVISION_DECLARE_CPU(void, conv_depthwise_row, const ConvDepthwiseRow<T>&)
FASTVISION_DECLARE_CONV(float)
FASTVISION_DECLARE_CONV(double)
#undef FASTVISION_DECLARE_CONV

// A run of pixels in maps of any storage type and memory format.
template <typename S>
struct ConvMaps {
  S* data;  // channel 0 of the first pixel
  int64_t channels, pixels;
  int64_t channel_stride, pixel_stride;  // in elements
};

// Copies to and from the engine's [pixels][channels], with pixels `stride` values apart.
#define FASTVISION_DECLARE_CONV_COPY(S, T)                                                   \
  FASTVISION_DECLARE_CPU(void, conv_gather, const ConvMaps<const S>&, T* to, int64_t stride) \
  FASTVISION_DECLARE_CPU(void, conv_scatter, const T* from, int64_t stride, const ConvMaps<S>&)
FASTVISION_DECLARE_CONV_COPY(float, float)
FASTVISION_DECLARE_CONV_COPY(double, double)
FASTVISION_DECLARE_CONV_COPY(half_t, float)
FASTVISION_DECLARE_CONV_COPY(bfloat16_t, float)
#undef FASTVISION_DECLARE_CONV_COPY
FASTVISION_DECLARE_CPU(void, conv_gather, const ConvMaps<const half_t>&, half_t*, int64_t stride)
FASTVISION_DECLARE_CPU(
    void, conv_gather, const ConvMaps<const bfloat16_t>&, bfloat16_t*, int64_t stride
)

}  // namespace fastvision
