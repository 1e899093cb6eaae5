// The ops of the convolution engine: packing weights, and convolution with packed weights.
#include <cstring>
#include <utility>

#include "common/memory_format.h"
#include "ops/conv_engine.h"

namespace fastvision {

template <typename T>
void pack_conv(const ConvPacking& p, const T* weight, const T* bias, T* packed) {
  const int64_t width = p.width(), K = p.outer_K(), padded = p.padded_K();
  std::memset(packed, 0, p.size() * sizeof(T));
  T* weights = packed + p.bias_size();
  for (int64_t group = 0; group < p.outer_groups(); ++group) {
    for (int64_t k = 0; k < K; ++k) {
      if (bias != nullptr) {
        packed[group * padded + k] = bias[group * K + k];
      }
      // a block's channels lie side by side; shared vectors are blocks of one vector
      const int64_t size = width ? p.lanes : p.block;
      const int64_t first = k / size * size;
      const int64_t lanes = std::min(size, padded - first);
      const T* from = weight + (group * K + k) * p.C * p.taps;
      T* to = weights + (group * padded + first) * p.taps * p.C + (k - first);
      for (int64_t tap = 0; tap < p.taps; ++tap) {
        for (int64_t c = 0; c < p.C; ++c) {
          to[(tap * p.C + c) * lanes] = from[c * p.taps + tap];
        }
      }
    }
  }
}

template void pack_conv(const ConvPacking&, const float*, const float*, float*);
template void pack_conv(const ConvPacking&, const double*, const double*, double*);

void check_residual(const Tensor& residual, const Tensor& output) {
  check_dim(residual, 4, "residual");
  for (int dim = 0; dim < 4; ++dim) {
    STD_TORCH_CHECK(
        residual.size(dim) == output.size(dim), "residual must have the shape of the result"
    );
  }
  STD_TORCH_CHECK(
      residual.scalar_type() == output.scalar_type() && residual.is_cpu(),
      "residual must have the dtype and device of the result"
  );
}

std::optional<Tensor> residual_of(
    const std::optional<Tensor>& residual, const Tensor& output, bool channels_last
) {
  if (!residual.has_value()) {
    return std::nullopt;
  }
  check_residual(*residual, output);
  return in_format(*residual, channels_last);
}

namespace {

// The first byte of a tensor, and the one behind its last.
std::pair<const char*, const char*> memory_of(const Tensor& x) {
  int64_t elements = x.numel() > 0 ? 1 : 0;
  for (int64_t dim = 0; dim < x.dim() && elements > 0; ++dim) {
    elements += (x.size(dim) - 1) * x.stride(dim);
  }
  const char* const first = static_cast<const char*>(x.const_data_ptr());
  return {first, first + elements * x.element_size()};
}

}  // namespace

Tensor conv_result(
    const Tensor& input,
    const std::optional<Tensor>& residual,
    int64_t K,
    int64_t OH,
    int64_t OW,
    bool channels_last,
    bool in_place
) {
  const int64_t N = input.size(0);
  if (!in_place) {
    return empty_in_format(input, N, K, OH, OW, channels_last);
  }
  const Tensor& result = *residual;
  STD_TORCH_CHECK(
      result.dim() == 4 && result.size(0) == N && result.size(1) == K && result.size(2) == OH &&
          result.size(3) == OW && result.scalar_type() == input.scalar_type() && result.is_cpu() &&
          has_channels_last_strides(result),
      "residual must be channels_last and have the shape, dtype and device of the result"
  );
  const auto [input_begin, input_end] = memory_of(input);
  const auto [begin, end] = memory_of(result);
  STD_TORCH_CHECK(
      input_end <= begin || end <= input_begin,
      "residual must not share memory with the input, which would be overwritten while it is read"
  );
  return result;
}

constexpr int64_t kOptions = sizeof(ConvOptions) / sizeof(int64_t);
constexpr int64_t kGuard = sizeof(ConvGuard) / sizeof(int64_t);

ConvOptions ConvOptions::read(const Tensor& options) {
  STD_TORCH_CHECK(
      options.is_cpu() && options.scalar_type() == ScalarType::Long && options.is_contiguous() &&
          (options.numel() == kOptions || options.numel() == kOptions + kGuard),
      "options must be int64[14], or int64[16] with a guard"
  );
  ConvOptions o;
  std::memcpy(&o, options.const_data_ptr(), sizeof(o));
  STD_TORCH_CHECK(
      std::min({o.K, o.R, o.S, o.stride_y, o.stride_x, o.dilation_y, o.dilation_x, o.groups}) > 0,
      "channels, kernel, stride, dilation and groups must be positive"
  );
  STD_TORCH_CHECK(
      o.activation >= 0 && o.activation < kActivations, "unknown activation ", o.activation
  );
  return o;
}

ConvGuard ConvGuard::read(const Tensor& options) {
  STD_TORCH_CHECK(
      options.is_cpu() && options.scalar_type() == ScalarType::Long && options.is_contiguous() &&
          options.numel() == kOptions + kGuard,
      "options must be int64[16]"
  );
  ConvGuard guard;
  std::memcpy(
      &guard, static_cast<const int64_t*>(options.const_data_ptr()) + kOptions, sizeof guard
  );
  return guard;
}

namespace {

Tensor conv_pack(const Tensor& weight, const std::optional<Tensor>& bias, int64_t groups) {
  check_dim(weight, 4, "weight");
  const int64_t K = weight.size(0);
  STD_TORCH_CHECK(groups > 0 && K % groups == 0, "groups must divide the output channels");
  const ConvPacking packing = conv_packing(
      weight.scalar_type(), groups, weight.size(1), K / groups, weight.size(2) * weight.size(3)
  );
  return pack_weight(weight, bias, K, packing.size(), [&](auto... pointers) {
    pack_conv(packing, pointers...);
  });
}

Tensor convolve(
    const Tensor& input,
    const Tensor& packed,
    const std::optional<Tensor>& residual,
    const Tensor& options,
    bool in_place
) {
  const ConvOptions o = ConvOptions::read(options);
  check_dim(input, 4, "input");
  const int64_t N = input.size(0), C = input.size(1), H = input.size(2), W = input.size(3);
  STD_TORCH_CHECK(
      C > 0 && C % o.groups == 0 && o.K % o.groups == 0, "channels and groups do not fit"
  );
  const int64_t OH = extent(H, o.top, o.bottom, o.R, o.dilation_y, o.stride_y);
  const int64_t OW = extent(W, o.left, o.right, o.S, o.dilation_x, o.stride_x);
  STD_TORCH_CHECK(OH > 0 && OW > 0, "the kernel does not fit into the padded input");
  const ScalarType dtype = input.scalar_type();
  const bool wide = dtype == ScalarType::Double;
  STD_TORCH_CHECK(
      packed.is_contiguous() &&
          packed.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float) &&
          packed.numel() ==
              conv_packing(packed.scalar_type(), o.groups, C / o.groups, o.K / o.groups, o.R * o.S)
                  .size(),
      "packed does not belong to these sizes, this type and this CPU level"
  );

  const bool channels_last = in_place || is_channels_last(input);
  const Tensor x = has_channels_last_strides(input) ? input : in_format(input, false);
  Tensor output = conv_result(input, residual, o.K, OH, OW, channels_last, in_place);
  const std::optional<Tensor> addend = residual_of(residual, output, channels_last);
  if (output.numel() == 0) {
    return output;
  }
  ConvPlan plan{
      dtype,
      {const_cast<void*>(x.const_data_ptr()), N, C, H, W, has_channels_last_strides(x)},
      {output.mutable_data_ptr(), N, o.K, OH, OW, has_channels_last_strides(output)},
      addend ? addend->const_data_ptr() : nullptr,
      o.groups,
      {},
      static_cast<Activation>(o.activation),
      o.negative_slope
  };
  plan.phases.push_back({o.window(), packed.const_data_ptr(), OH, OW, 1, 1, 0, 0});
  run_conv(plan);
  return output;
}

void conv_packed_in_place(
    const Tensor& input, const Tensor& packed, const Tensor& residual, const Tensor& options
) {
  convolve(input, packed, residual, options, true);
}

}  // namespace

Tensor conv_packed(
    const Tensor& input,
    const Tensor& packed,
    const std::optional<Tensor>& residual,
    const Tensor& options
) {
  return convolve(input, packed, residual, options, false);
}

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("conv_pack", FASTVISION_BOX(&conv_pack));
  m.impl("conv_packed", FASTVISION_BOX(&conv_packed));
  m.impl("conv_packed_", FASTVISION_BOX(&conv_packed_in_place));
}

}  // namespace fastvision
