// The op: a linear layer of a few rows with the weight as it is.
#include "ops/linear.h"

#include <algorithm>

#include "common/parallel.h"
#include "common/result_memory.h"
#include "common/torch.h"

namespace fastvision {
namespace {

constexpr int64_t kChunksOfThread = 8;
constexpr int64_t kSerialValues = 1 << 15;  // of the weight; below, waking threads does not pay

template <typename T>
void run(LinearArgs<T> args) {
  const int64_t wanted = kChunksOfThread * torch::stable::get_num_threads();
  const int64_t share = (args.outputs + wanted - 1) / wanted;
  const int64_t chunk = args.outputs * args.features < kSerialValues
                            ? args.outputs
                            : (share + kLinearStreams - 1) / kLinearStreams * kLinearStreams;
  parallel_chunks(args.outputs, chunk, [&] {
    return [&](int64_t begin, int64_t end) { FASTVISION_CALL(linear, args, begin, end); };
  });
}

template <typename T>
LinearArgs<T> arguments(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, Tensor& output
) {
  LinearArgs<T> args{};
  args.input = static_cast<const T*>(input.const_data_ptr());
  args.weight = static_cast<const T*>(weight.const_data_ptr());
  args.bias = bias.has_value() ? static_cast<const T*>(bias->const_data_ptr()) : nullptr;
  args.output = static_cast<T*>(output.mutable_data_ptr());
  args.rows = input.size(0);
  args.features = input.size(1);
  args.outputs = weight.size(0);
  return args;
}

Tensor linear_rows(
    const Tensor& x,
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    int64_t activation,
    double negative_slope
) {
  check_dim(x, 2, "input");
  check_dim(weight, 2, "weight");
  const Tensor input = x.is_contiguous() ? x : torch::stable::contiguous(x);
  const int64_t rows = input.size(0), features = input.size(1), outputs = weight.size(0);
  const ScalarType dtype = input.scalar_type();
  STD_TORCH_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Double, "input must be float32 or float64"
  );
  STD_TORCH_CHECK(
      rows >= 1 && rows <= kMostLinearRows,
      "input must have 1 to ",
      kMostLinearRows,
      " rows, got ",
      rows
  );
  STD_TORCH_CHECK(
      weight.size(1) == features && weight.scalar_type() == dtype && weight.is_cpu() &&
          weight.is_contiguous(),
      "weight must be [outputs, ",
      features,
      "] in input's dtype on the CPU and contiguous"
  );
  STD_TORCH_CHECK(
      !bias.has_value() ||
          (bias->dim() == 1 && bias->size(0) == outputs && bias->scalar_type() == dtype &&
           bias->is_cpu() && bias->is_contiguous()),
      "bias must be [",
      outputs,
      "] in input's dtype on the CPU and contiguous"
  );
  STD_TORCH_CHECK(activation >= 0 && activation < kActivations, "unknown activation ", activation);
  Tensor output = empty_result(input, {rows, outputs}, {outputs, 1});
  const auto launch = [&](auto args) {
    args.activation = static_cast<Activation>(activation);
    args.negative_slope = negative_slope;
    run(args);
  };
  if (dtype == ScalarType::Double) {
    launch(arguments<double>(input, weight, bias, output));
  } else {
    launch(arguments<float>(input, weight, bias, output));
  }
  return output;
}

// The usual activation by an op of its own: two arguments less are a tenth of a small layer's time.
Tensor linear_relu_rows(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias
) {
  return linear_rows(input, weight, bias, static_cast<int64_t>(Activation::relu), 0.0);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("linear_rows", FASTVISION_BOX(&linear_rows));
  m.impl("linear_relu_rows", FASTVISION_BOX(&linear_relu_rows));
}

}  // namespace fastvision
