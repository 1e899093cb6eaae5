// Splits a convolution into tasks, fills their pointer tables and runs the kernels of conv.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "common/torch.h"
#include "ops/conv.h"
#include "ops/conv_taps.h"

namespace fastvision {

// A batch of maps in memory, [N, C, H, W] or [N, H, W, C] if channels_last.
struct ConvImage {
  void* data;
  int64_t N, C, H, W;
  bool channels_last;

  // Channels [channel, channel + channels) of adjacent pixels of image n, counted by rows. `M` is
  // the element type.
  template <typename M>
  ConvMaps<M> at(
      int64_t n, int64_t pixel, int64_t pixels, int64_t channel, int64_t channels
  ) const {
    M* const image = static_cast<M*>(data) + n * C * H * W;
    return channels_last ? ConvMaps<M>{image + pixel * C + channel, channels, pixels, 1, C}
                         : ConvMaps<M>{image + channel * H * W + pixel, channels, pixels, H * W, 1};
  }
};

// A dense grid of pixels under one window: the whole output of a convolution, or one phase of a
// transposed convolution. Per axis, grid pixel i is output pixel i * out_step + out_first.
struct ConvPhase : ConvWindow {
  const void* packed;
  int64_t grid_h, grid_w;
  int64_t out_step_y, out_step_x, out_first_y, out_first_x;
};

struct ConvPlan {
  ScalarType dtype;  // of input, residual and output
  ConvImage input, output;
  const void* residual;  // like output, or null
  int64_t groups;
  std::vector<ConvPhase> phases;
  Activation activation;
  double negative_slope;
};

// Packing at the current CPU level; `dtype` of the packed weights is float32 or float64.
ConvPacking conv_packing(ScalarType dtype, int64_t groups, int64_t C, int64_t K, int64_t taps);

ConvPacking conv_packing(const ConvPlan& plan, const ConvPhase& phase);

// Multiply-adds below which waking threads does not pay.
constexpr int64_t kSerialMultiplyAdds = 1 << 18;

template <typename T>
struct ConvFilters {
  const T* weight;
  const T* bias;                   // [groups][K], or null
  int64_t group, filter, channel;  // values from a group, a filter, an input channel to the next
  std::vector<int64_t> taps;       // offsets within a filter

  // of a weight [groups][K][C][taps]
  static ConvFilters contiguous(const ConvPacking& p, const T* weight, const T* bias) {
    std::vector<int64_t> taps(p.taps);
    std::iota(taps.begin(), taps.end(), int64_t{0});
    return {weight, bias, p.K * p.C * p.taps, p.C * p.taps, p.taps, taps};
  }
};

template <typename T>
void pack_conv(const ConvPacking& p, const ConvFilters<T>& f, T* packed);

// Allocates `size` elements and fills them by pack(weight, bias or null, packed), with pointers to
// float or double. The bias has `channels` elements.
template <typename Pack>
Tensor pack_weight(
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    int64_t channels,
    int64_t size,
    const Pack& pack
) {
  const ScalarType dtype = weight.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Double, "weight must be float32 or float64"
  );
  const Tensor from = torch::stable::contiguous(weight);
  std::optional<Tensor> shift;
  if (bias.has_value()) {
    STD_TORCH_CHECK(
        bias->scalar_type() == dtype && bias->numel() == channels,
        "bias must have a value per channel, in the weight's dtype"
    );
    shift = torch::stable::contiguous(*bias);
  }
  Tensor packed = torch::stable::new_empty(weight, {size});
  const auto run = [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    pack(
        static_cast<const T*>(from.const_data_ptr()),
        shift ? static_cast<const T*>(shift->const_data_ptr()) : nullptr,
        static_cast<T*>(packed.mutable_data_ptr())
    );
  };
  dtype == ScalarType::Double ? run((double*)nullptr) : run((float*)nullptr);
  return packed;
}

// Refuses a residual that does not fit the output.
void check_residual(const Tensor& residual, const Tensor& output);

// Checks the residual, if any, against the output and converts it to the output's memory format.
std::optional<Tensor> residual_of(
    const std::optional<Tensor>& residual, const Tensor& output, bool channels_last
);

// The memory of a convolution's result: new, or the residual's, if it is to be written there.
Tensor conv_result(
    const Tensor& input,
    const std::optional<Tensor>& residual,
    int64_t K,
    int64_t OH,
    int64_t OW,
    bool channels_last,
    bool in_place
);

// Whether each pixel of channels_last maps takes whole cache lines, so that results can be stored
// past the caches.
inline bool fills_lines(const void* maps, int64_t pixel_bytes) {
  constexpr int64_t kLineBytes = 64;
  return reinterpret_cast<uintptr_t>(maps) % kLineBytes == 0 && pixel_bytes % kLineBytes == 0;
}

void run_conv(const ConvPlan& plan);

// Copies `width` pixels of row y of image n to [width][stride]: `left` zeros, as many pixels as the
// row has, and zeros. Of a negative `left` the first pixels of the row are left out.
template <typename S, typename T>
void gather_padded_row(
    const ConvImage& image,
    int64_t n,
    int64_t y,
    int64_t channel,
    int64_t channels,
    int64_t left,
    int64_t width,
    T* to,
    int64_t stride
) {
  // the padding may be wider than the row
  const int64_t begin = std::clamp<int64_t>(left, 0, width);
  const int64_t end = std::clamp<int64_t>(left + image.W, begin, width);
  std::fill(to, to + begin * stride, T(0));
  std::fill(to + end * stride, to + width * stride, T(0));
  if (begin < end) {
    const int64_t first = y * image.W + begin - left;
    const auto maps = image.at<const S>(n, first, end - begin, channel, channels);
    FASTVISION_CALL(conv_gather, maps, to + begin * stride, stride);
  }
}

// The options of a convolution op, an int64 tensor in this order; the slope as a double's bits.
struct ConvOptions {
  int64_t K, R, S;
  int64_t stride_y, stride_x;
  int64_t left, right, top, bottom;  // padding
  int64_t dilation_y, dilation_x;
  int64_t groups;
  int64_t activation;
  double negative_slope;

  ConvWindow window() const {
    return {R, S, stride_y, stride_x, -top, -left, dilation_y, dilation_x};
  }

  // a single tensor, since each argument of an op costs a good part of a microsecond
  static ConvOptions read(const Tensor& options);
};

// What a guarded op reads behind the options: see conv_guarded.cpp.
struct ConvGuard {
  int64_t fingerprint;  // of the weights that were packed
  int64_t channels;     // of the input

  static ConvGuard read(const Tensor& options);
};

// The ops with packed weights: of a convolution and a transposed one, and both by Winograd.
using PackedConv = Tensor(
    const Tensor& input,
    const Tensor& packed,
    const std::optional<Tensor>& residual,
    const Tensor& options
);
PackedConv conv_packed, conv_transpose2d_packed, conv_winograd, conv_transpose2d_winograd;

}  // namespace fastvision
