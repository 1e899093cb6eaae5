// Transposed convolution on the convolution engine, phase by phase.
#include <algorithm>
#include <memory>
#include <vector>

#include "common/memory_format.h"
#include "common/torch.h"
#include "ops/conv_format.h"
#include "ops/conv_transposed.h"

namespace fastvision {
namespace {

void check_filter(const TransposedFilter& f, int64_t C) {
  STD_TORCH_CHECK(
      std::min({f.K, f.R, f.S, f.stride[0], f.stride[1], f.dilation[0], f.dilation[1]}) > 0,
      "kernel, stride and dilation must be positive"
  );
  STD_TORCH_CHECK(f.C * f.groups == C, "groups must divide the input channels");
}

template <typename T>
void pack(const TransposedFilter& filter, const T* weight, const T* bias, T* packed) {
  const ScalarType dtype = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
  const int64_t area = filter.R * filter.S, channel = filter.K * area;
  filter.for_each_phase([&](int64_t, const PhaseAxis& rows, int64_t, const PhaseAxis& columns) {
    const ConvPacking packing = filter.packing(dtype, rows, columns);
    pack_conv(
        packing,
        {weight, bias, filter.C * channel, area, channel, filter.taps(rows, columns)},
        packed
    );
    packed += packing.size();
  });
}

Tensor conv_transpose2d_pack(
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    int64_t stride_y,
    int64_t stride_x,
    int64_t dilation_y,
    int64_t dilation_x,
    int64_t groups
) {
  check_dim(weight, 4, "weight");
  const TransposedFilter filter{
      groups,
      channels_per_group(weight.size(0), groups),
      weight.size(1),
      weight.size(2),
      weight.size(3),
      {stride_y, stride_x},
      {dilation_y, dilation_x}
  };
  check_filter(filter, weight.size(0));
  return pack_weight(
      weight,
      bias,
      filter.K * groups,
      filter.packed_size(weight.scalar_type()),
      [&](auto... pointers) { pack(filter, pointers...); }
  );
}

constexpr int64_t kSmallMap = 1 << 13;

// Converts the input to the format that the engine reads fastest.
Tensor located(const Tensor& input, ScalarType dtype) {
  // converting a small map at once takes longer than in each phase
  if (has_channels_last_strides(input) || input.numel() <= kSmallMap) {
    return in_format(input, has_channels_last_strides(input));
  }
  const bool wide = dtype == ScalarType::Float || dtype == ScalarType::Double;
  return wide ? in_channels_last(input) : in_format(input, true);
}

constexpr int64_t kFewPixels = 64, kFewMultiplyAdds = 1 << 22;

// Windows that neither overlap nor leave gaps: each phase is a product of the input's pixels with
// one tap's weights.
bool tiles_output(const TransposedFilter& f, const ConvOptions& o) {
  return f.R == f.stride[0] && f.S == f.stride[1] && f.dilation[0] == 1 && f.dilation[1] == 1 &&
         f.groups == 1 && o.top == 0 && o.left == 0 && o.bottom == 0 && o.right == 0;
}

// A few pixels, at once: the engine's preparations would take longer than the products.
template <typename T>
void run_few(
    const ConvImage& input,
    const ConvImage& output,
    const TransposedFilter& filter,
    const ConvPacking& packing,
    const T* packed,
    const ConvOptions& options
) {
  const int64_t C = input.C, K = output.C, plane = input.H * input.W;
  const int64_t pixels = input.N * plane, output_plane = output.H * output.W;
  const int64_t gathered = input.channels_last ? 0 : pixels * C;
  const int64_t written = output.channels_last ? 0 : input.N * output_plane * K;
  const std::unique_ptr<T[]> scratch(new T[gathered + written + pixels * packing.block]);
  const T* from = static_cast<const T*>(input.data);
  T* to = static_cast<T*>(output.data);
  if (!input.channels_last) {
    for (int64_t n = 0; n < input.N; ++n) {
      const ConvMaps<const T> maps{from + n * C * plane, C, plane, plane, 1};
      FASTVISION_CALL(conv_gather, maps, scratch.get() + n * C * plane, C);
    }
    from = scratch.get();
  }
  if (!output.channels_last) {
    to = scratch.get() + gathered;
  }
  const T* inputs[kFewPixels];
  T* outputs[kFewPixels];
  fill_pointers(inputs, pixels, from, C);
  for (int64_t phase = 0; phase < filter.R * filter.S; ++phase) {
    const int64_t y = phase / filter.S, x = phase % filter.S;
    for (int64_t row = 0; row < pixels / input.W; ++row) {
      T* first = to + ((row * filter.R + y) * output.W + x) * K;
      fill_pointers(outputs + row * input.W, input.W, first, filter.S * K);
    }
    const ConvTile<T> tile{
        inputs,
        outputs,
        nullptr,
        scratch.get() + gathered + written,
        pixels,
        packed + phase * packing.size(),
        &packing,
        0,
        packing.blocks(),
        false,
        false,
        false,
        static_cast<Activation>(options.activation),
        options.negative_slope
    };
    FASTVISION_CALL(conv_tile, tile);
  }
  for (int64_t n = 0; n < input.N && !output.channels_last; ++n) {
    T* const image = static_cast<T*>(output.data) + n * K * output_plane;
    const ConvMaps<T> maps{image, K, output_plane, output_plane, 1};
    FASTVISION_CALL(conv_scatter, to + n * output_plane * K, K, maps);
  }
}

}  // namespace

Tensor conv_transpose2d_packed(
    const Tensor& input,
    const Tensor& packed,
    const std::optional<Tensor>& residual,
    const Tensor& options
) {
  const ConvOptions o = ConvOptions::read(options);
  const TransposedSize size(input, o);
  const int64_t N = input.size(0), C = input.size(1), H = input.size(2), W = input.size(3);
  const TransposedFilter filter = TransposedFilter::of(C, o);
  const ScalarType dtype = input.scalar_type();
  const ScalarType wide = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(
      packed.scalar_type() == wide && packed.numel() == filter.packed_size(wide) &&
          packed.is_contiguous() && packed.is_cpu(),
      "packed does not belong to these sizes, this type and this CPU level"
  );

  const bool channels_last = is_channels_last(input);
  const Tensor x = located(input, dtype);
  Tensor output = empty_in_format(input, N, o.K, size.H, size.W, channels_last);
  const std::optional<Tensor> addend = residual_of(residual, output, channels_last);
  if (output.numel() == 0) {
    return output;
  }
  ConvPlan plan{
      dtype,
      {const_cast<void*>(x.const_data_ptr()), N, C, H, W, has_channels_last_strides(x)},
      {output.mutable_data_ptr(), N, o.K, size.H, size.W, has_channels_last_strides(output)},
      addend ? addend->const_data_ptr() : nullptr,
      o.groups,
      {},
      static_cast<Activation>(o.activation),
      o.negative_slope
  };
  const bool are_few =
      N * H * W <= kFewPixels && N * H * W * C * o.K * o.R * o.S <= kFewMultiplyAdds;
  if (are_few && !addend && dtype == wide && tiles_output(filter, o)) {
    const ConvPacking packing = conv_packing(dtype, 1, C, o.K, 1);
    const auto run = [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const T* values = static_cast<const T*>(packed.const_data_ptr());
      run_few<T>(plan.input, plan.output, filter, packing, values, o);
    };
    dtype == ScalarType::Double ? run((double*)nullptr) : run((float*)nullptr);
    return output;
  }
  const char* weights = static_cast<const char*>(packed.const_data_ptr());
  filter.for_each_phase([&](int64_t y, const PhaseAxis& rows, int64_t x, const PhaseAxis& columns) {
    plan.phases.push_back(transposed_phase(o, size, y, rows, x, columns, weights));
    weights += filter.packing(wide, rows, columns).size() * packed.element_size();
  });
  run_conv(plan);
  return output;
}

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("conv_transpose2d_pack", FASTVISION_BOX(&conv_transpose2d_pack));
  m.impl("conv_transpose2d_packed", FASTVISION_BOX(&conv_transpose2d_packed));
}

}  // namespace fastvision
