// The ops of the convolution engine: packing weights, and convolution with packed weights.
#include <cstring>
#include <utility>

#include "common/memory_format.h"
#include "common/parallel.h"
#include "ops/conv_engine.h"
#include "ops/conv_format.h"

namespace fastvision {

namespace {

constexpr int64_t kSerialValues = 1 << 15;  // below which waking threads does not pay
// of the rows above a task's that its taps read: with more, depthwise tasks would convert each row
// several times
constexpr int64_t kReachBytes = 256 << 10;

}  // namespace

template <typename T>
void pack_conv(const ConvPacking& p, const ConvFilters<T>& f, T* packed) {
  constexpr int64_t kChannels = 16;  // whose values in a block stay in the L1 cache
  const int64_t K = p.outer_K(), padded = p.padded_K();
  // a block's channels lie side by side; shared vectors are blocks of one vector
  const int64_t size = p.width() ? p.lanes : p.block, blocks = ceil_div(padded, size);
  const int64_t tasks = p.outer_groups() * blocks;
  parallel_chunks(tasks, p.size() < kSerialValues ? tasks : 1, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task / blocks, first = task % blocks * size;
        const int64_t lanes = std::min(size, padded - first), used = std::min(lanes, K - first);
        T* const bias = packed + group * padded + first;
        T* const weights = packed + p.bias_size() + (group * padded + first) * p.taps * p.C;
        std::fill_n(bias, lanes, T(0));
        if (used < lanes) {
          std::fill_n(weights, lanes * p.taps * p.C, T(0));
        }
        for (int64_t c0 = 0; c0 < p.C; c0 += kChannels) {
          const int64_t c1 = std::min(c0 + kChannels, p.C);
          for (int64_t i = 0; i < used; ++i) {
            const int64_t k = group * K + first + i;
            const T* from = f.weight + k / p.K * f.group + k % p.K * f.filter;
            for (int64_t tap = 0; tap < p.taps; ++tap) {
              for (int64_t c = c0; c < c1; ++c) {
                weights[(tap * p.C + c) * lanes + i] = from[c * f.channel + f.taps[tap]];
              }
            }
          }
        }
        if (f.bias != nullptr) {
          std::copy_n(f.bias + group * K + first, used, bias);
        }
      }
    };
  });
}

template void pack_conv(const ConvPacking&, const ConvFilters<float>&, float*);
template void pack_conv(const ConvPacking&, const ConvFilters<double>&, double*);

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
  const int64_t C = weight.size(1), taps = weight.size(2) * weight.size(3);
  const ConvPacking packing = conv_packing(weight.scalar_type(), groups, C, K / groups, taps);
  return pack_weight(weight, bias, K, packing.size(), [&](auto* from, auto* shift, auto* packed) {
    using T = std::remove_pointer_t<decltype(packed)>;
    pack_conv(packing, ConvFilters<T>::contiguous(packing, from, shift), packed);
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
  const int64_t rows = std::min((o.R - 1) * o.dilation_y, H);
  const int64_t reach = rows * W * C * static_cast<int64_t>(sizeof(float));
  const bool rereads = o.groups == C && reach > kReachBytes && dtype == ScalarType::Float;
  const Tensor x = has_channels_last_strides(input) ? input
                   : rereads                        ? in_channels_last(input)
                                                    : in_format(input, false);
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
