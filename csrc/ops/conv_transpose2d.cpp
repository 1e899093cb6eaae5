// Transposed convolution: separable filters by a kernel of their own, all others on the convolution
// engine, phase by phase (Dumoulin and Visin 2016, section 4, without the zeros between the
// pixels).
#include "ops/conv_transpose2d.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "common/memory_format.h"
#include "common/parallel.h"
#include "common/torch.h"
#include "ops/conv_engine.h"

namespace fastvision {
namespace {

// ---- phases

// Along one axis, the outputs o whose (o + padding) % stride is `residue` share their taps: filter
// positions first_tap + j * tap_step, of which the last reads the first input pixel, and each one
// before reads `dilation` pixels further.
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

struct Filter {
  int64_t groups, C, K;  // channels of a group
  int64_t R, S;
  std::vector<int64_t> stride, dilation;

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

Filter filter_of(
    const std::vector<int64_t>& kernel,  // [C, K / groups, R, S]
    int64_t groups,
    std::vector<int64_t> stride,
    std::vector<int64_t> dilation
) {
  STD_TORCH_CHECK(
      kernel.size() == 4 && stride.size() == 2 && dilation.size() == 2,
      "kernel needs 4 numbers, stride and dilation 2"
  );
  STD_TORCH_CHECK(
      std::min({kernel[1], kernel[2], kernel[3]}) > 0 &&
          std::min({stride[0], stride[1], dilation[0], dilation[1]}) > 0,
      "kernel, stride and dilation must be positive"
  );
  STD_TORCH_CHECK(groups > 0 && kernel[0] % groups == 0, "groups must divide the input channels");
  return {groups, kernel[0] / groups, kernel[1], kernel[2], kernel[3], stride, dilation};
}

template <typename T>
void pack(const Filter& filter, const T* weight, const T* bias, T* packed) {
  const ScalarType dtype = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
  const int64_t C = filter.C, K = filter.K;
  std::vector<T> phase;  // [groups][K][C][taps], as a convolution's
  filter.for_each_phase([&](int64_t, const PhaseAxis& rows, int64_t, const PhaseAxis& columns) {
    const int64_t taps = rows.taps * columns.taps;
    phase.resize(filter.groups * K * C * taps);
    for (int64_t group = 0; group < filter.groups; ++group) {
      for (int64_t c = 0; c < C; ++c) {
        for (int64_t k = 0; k < K; ++k) {
          const T* from = weight + ((group * C + c) * K + k) * filter.R * filter.S;
          T* to = phase.data() + ((group * K + k) * C + c) * taps;
          for (int64_t r = rows.taps - 1; r >= 0; --r) {
            const T* row = from + (rows.first_tap + r * rows.tap_step) * filter.S;
            for (int64_t s = columns.taps - 1; s >= 0; --s) {
              *to++ = row[columns.first_tap + s * columns.tap_step];
            }
          }
        }
      }
    }
    const ConvPacking packing = filter.packing(dtype, rows, columns);
    pack_conv(packing, phase.data(), bias, packed);
    packed += packing.size();
  });
}

Tensor conv_transpose2d_pack(
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    std::vector<int64_t> stride,
    std::vector<int64_t> dilation,
    int64_t groups
) {
  check_dim(weight, 4, "weight");
  const ScalarType dtype = weight.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Double, "weight must be float32 or float64"
  );
  const Filter filter = filter_of(
      {weight.size(0), weight.size(1), weight.size(2), weight.size(3)}, groups, stride, dilation
  );
  const Tensor from = torch::stable::contiguous(weight);
  std::optional<Tensor> shift;
  if (bias.has_value()) {
    STD_TORCH_CHECK(
        bias->scalar_type() == dtype && bias->numel() == filter.K * groups,
        "bias must have a value per channel, in the weight's dtype"
    );
    shift = torch::stable::contiguous(*bias);
  }
  Tensor packed = torch::stable::new_empty(weight, {filter.packed_size(dtype)});
  const auto run = [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    pack(
        filter,
        static_cast<const T*>(from.const_data_ptr()),
        shift ? static_cast<const T*>(shift->const_data_ptr()) : nullptr,
        static_cast<T*>(packed.mutable_data_ptr())
    );
  };
  dtype == ScalarType::Double ? run((double*)nullptr) : run((float*)nullptr);
  return packed;
}

int64_t extent(
    int64_t size, int64_t taps, int64_t stride, int64_t padding, int64_t dilation, int64_t extra
) {
  return (size - 1) * stride - 2 * padding + dilation * (taps - 1) + extra + 1;
}

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

// `kernel` is [C, K / groups, R, S] of the weight.
Tensor conv_transpose2d_packed(
    const Tensor& input,
    const Tensor& packed,
    const std::optional<Tensor>& residual,
    std::vector<int64_t> kernel,
    std::vector<int64_t> stride,
    std::vector<int64_t> padding,
    std::vector<int64_t> output_padding,
    std::vector<int64_t> dilation,
    int64_t groups,
    int64_t activation,
    double negative_slope
) {
  check_dim(input, 4, "input");
  const Filter filter = filter_of(kernel, groups, stride, dilation);
  const int64_t N = input.size(0), C = input.size(1), H = input.size(2), W = input.size(3);
  const int64_t K = filter.K * groups;
  STD_TORCH_CHECK(C == kernel[0], "the input must have the weight's channels");
  STD_TORCH_CHECK(H > 0 && W > 0, "input must not be empty in height or width");
  STD_TORCH_CHECK(
      padding.size() == 2 && output_padding.size() == 2, "paddings must be two numbers"
  );
  STD_TORCH_CHECK(
      std::min({padding[0], padding[1], output_padding[0], output_padding[1]}) >= 0,
      "paddings must not be negative"
  );
  STD_TORCH_CHECK(activation >= 0 && activation < kActivations, "unknown activation ", activation);
  const int64_t OH = extent(H, filter.R, stride[0], padding[0], dilation[0], output_padding[0]);
  const int64_t OW = extent(W, filter.S, stride[1], padding[1], dilation[1], output_padding[1]);
  STD_TORCH_CHECK(OH > 0 && OW > 0, "padding leaves no output");
  const ScalarType dtype = input.scalar_type();
  const ScalarType wide = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(
      packed.scalar_type() == wide && packed.numel() == filter.packed_size(wide) &&
          packed.is_contiguous() && packed.is_cpu(),
      "packed does not belong to these sizes, this type and this CPU level"
  );

  const bool channels_last = is_channels_last(input);
  // once, since each phase reads it
  const Tensor x = has_channels_last_strides(input) ? input : in_format(input, true);
  Tensor output = empty_in_format(input, N, K, OH, OW, channels_last);
  std::optional<Tensor> addend;
  if (residual.has_value()) {
    check_residual(*residual, output);
    addend = in_format(*residual, channels_last);
  }
  if (output.numel() == 0) {
    return output;
  }
  ConvPlan plan{
      dtype,
      {const_cast<void*>(x.const_data_ptr()), N, C, H, W, has_channels_last_strides(x)},
      {output.mutable_data_ptr(), N, K, OH, OW, has_channels_last_strides(output)},
      addend ? addend->const_data_ptr() : nullptr,
      groups,
      {},
      static_cast<Activation>(activation),
      negative_slope
  };
  const char* weights = static_cast<const char*>(packed.const_data_ptr());
  // first output of a phase, and the input pixel that its last tap reads there
  const auto first_output = [](int64_t residue, int64_t step, int64_t before) {
    return ((residue - before) % step + step) % step;
  };
  const auto first_input = [](const PhaseAxis& axis, int64_t u, int64_t step, int64_t by) {
    return axis.taps ? (u - axis.first_tap * by) / step - (axis.taps - 1) * axis.dilation : 0;
  };
  filter.for_each_phase([&](int64_t y, const PhaseAxis& rows, int64_t x, const PhaseAxis& columns) {
    const bool empty = rows.taps * columns.taps == 0;
    const int64_t oy = first_output(y, stride[0], padding[0]);
    const int64_t ox = first_output(x, stride[1], padding[1]);
    plan.phases.push_back(
        {weights,
         empty ? 0 : rows.taps,
         empty ? 0 : columns.taps,
         oy < OH ? (OH - oy - 1) / stride[0] + 1 : 0,
         ox < OW ? (OW - ox - 1) / stride[1] + 1 : 0,
         1,
         1,
         first_input(rows, oy + padding[0], stride[0], dilation[0]),
         first_input(columns, ox + padding[1], stride[1], dilation[1]),
         rows.dilation,
         columns.dilation,
         stride[0],
         stride[1],
         oy,
         ox}
    );
    weights += filter.packing(wide, rows, columns).size() * packed.element_size();
  });
  run_conv(plan);
  return output;
}

// ---- separable filters

constexpr int64_t kSerialWork = 1 << 16;  // outputs below which waking threads does not pay
constexpr int64_t kRowBytes = 16 << 10;   // the stretched rows of a task stay in the first caches
constexpr int64_t kTaskOutputs = 1 << 16;

template <typename scalar_t>
void run_separable(const SeparableArgs<accumulate_t<scalar_t>>& args) {
  using A = accumulate_t<scalar_t>;
  const int64_t planes = args.channels_last ? args.N : args.N * args.C;
  const int64_t width = args.channels_last ? args.C : 1;
  const int64_t columns = (args.OW - 1 + args.x.padding) / args.x.stride + 1;
  const int64_t pixel_bytes = args.x.stride * width * static_cast<int64_t>(sizeof(A));
  const int64_t q_step = std::clamp<int64_t>(kRowBytes / pixel_bytes, 1, columns);
  const int64_t row_outputs = q_step * args.x.stride * width;
  // whole periods, since each task stretches its first rows anew
  const int64_t y_step =
      std::max<int64_t>(kTaskOutputs / row_outputs / args.y.stride, 2) * args.y.stride;
  const int64_t x_blocks = (columns + q_step - 1) / q_step;
  const int64_t y_blocks = (args.OH + y_step - 1) / y_step;
  const int64_t tasks = planes * y_blocks * x_blocks;
  const int64_t outputs = args.N * args.C * args.OH * args.OW;
  parallel_chunks(tasks, outputs < kSerialWork ? tasks : 1, [&] {
    return [&, scratch = std::unique_ptr<A[]>(new A[separable_scratch(args, q_step)])](
               int64_t begin, int64_t end
           ) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t y = i / x_blocks % y_blocks * y_step;
        const int64_t q = i % x_blocks * q_step;
        const SeparableTask task{
            i / (x_blocks * y_blocks),
            y,
            std::min(args.OH, y + y_step),
            q,
            std::min(columns, q + q_step),
        };
        FASTVISION_CALL(
            conv_transpose2d_separable,
            static_cast<const scalar_t*>(nullptr),
            args,
            task,
            scratch.get()
        );
      }
    };
  });
}

Tensor conv_transpose2d_separable(
    const Tensor& input,
    std::vector<double> rows,
    std::vector<double> columns,
    const Tensor& scale,
    const std::optional<Tensor>& shift,
    const std::optional<Tensor>& residual,
    std::vector<int64_t> stride,
    std::vector<int64_t> padding,
    std::vector<int64_t> output_size,
    int64_t activation,
    double negative_slope
) {
  check_dim(input, 4, "input");
  STD_TORCH_CHECK(
      stride.size() == 2 && padding.size() == 2 && output_size.size() == 2,
      "stride, padding and output_size must be two numbers each"
  );
  STD_TORCH_CHECK(
      *std::min_element(stride.begin(), stride.end()) > 0 &&
          *std::min_element(padding.begin(), padding.end()) >= 0 &&
          *std::min_element(output_size.begin(), output_size.end()) > 0,
      "stride and output_size must be positive, padding not negative"
  );
  STD_TORCH_CHECK(!rows.empty() && !columns.empty(), "rows and columns must not be empty");
  STD_TORCH_CHECK(activation >= 0 && activation < kActivations, "unknown activation ", activation);
  const int64_t N = input.size(0), C = input.size(1), H = input.size(2), W = input.size(3);
  STD_TORCH_CHECK(H > 0 && W > 0, "input must not be empty in height or width");
  const bool channels_last = is_channels_last(input);
  const Tensor x = in_format(input, channels_last);
  Tensor output = empty_in_format(input, N, C, output_size[0], output_size[1], channels_last);
  std::optional<Tensor> added;
  if (residual) {
    check_residual(*residual, output);
    added = in_format(*residual, channels_last);
  }
  if (output.numel() == 0) {
    return output;
  }
  FASTVISION_DISPATCH_FLOATING(input.scalar_type(), "input", [&] {
    using A = accumulate_t<scalar_t>;
    constexpr ScalarType kAccumulate =
        std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
    for (const Tensor* t : {&scale, shift ? &*shift : &scale}) {
      STD_TORCH_CHECK(
          t->scalar_type() == kAccumulate && t->numel() == C && t->is_contiguous() && t->is_cpu(),
          "scale and shift must be contiguous, [C], float32, beside float64 input float64"
      );
    }
    const std::vector<A> y_taps(rows.begin(), rows.end());
    const std::vector<A> x_taps(columns.begin(), columns.end());
    const auto axis = [&](const std::vector<A>& taps, int i) {
      return SeparableAxis<A>{
          taps.data(), static_cast<int64_t>(taps.size()), stride[i], padding[i]
      };
    };
    run_separable<scalar_t>({
        x.const_data_ptr(),
        added ? added->const_data_ptr() : nullptr,
        output.mutable_data_ptr(),
        static_cast<const A*>(scale.const_data_ptr()),
        shift ? static_cast<const A*>(shift->const_data_ptr()) : nullptr,
        axis(y_taps, 0),
        axis(x_taps, 1),
        N,
        C,
        H,
        W,
        output_size[0],
        output_size[1],
        channels_last,
        static_cast<Activation>(activation),
        static_cast<A>(negative_slope),
    });
  });
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("conv_transpose2d_pack", FASTVISION_BOX(&conv_transpose2d_pack));
  m.impl("conv_transpose2d_packed", FASTVISION_BOX(&conv_transpose2d_packed));
  m.impl("conv_transpose2d_separable", FASTVISION_BOX(&conv_transpose2d_separable));
}

}  // namespace fastvision
