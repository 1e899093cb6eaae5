// The ops of batch normalization, residual and activation, and of their gradients.
#include "ops/batch_norm_relu.h"

#include "ops/batch_norm_relu_call.h"

namespace fastvision {
namespace {

void check_channels(const Tensor& x, const std::optional<Tensor>& values, const char* name) {
  const ScalarType wide =
      x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(
      !values || (values->dim() == 1 && values->size(0) == x.size(1) &&
                  values->scalar_type() == wide && values->is_contiguous() && values->is_cpu()),
      name,
      " must be contiguous, one value per channel in the type of arithmetic"
  );
}

// running += (batch - running) * momentum
template <typename A>
void update_running(
    const std::optional<Tensor>& running,
    const std::vector<double>& batch,
    double factor,
    double momentum
) {
  if (running) {
    A* values = static_cast<A*>(running->mutable_data_ptr());
    for (size_t c = 0; c < batch.size(); ++c) {
      values[c] = static_cast<A>(values[c] + (batch[c] * factor - values[c]) * momentum);
    }
  }
}

#define FASTVISION_BATCH_NORM(CALL, NAME)                                            \
  (CALL).run([&](int64_t begin, int64_t end, accumulate_t<scalar_t>* scratch) {      \
    const scalar_t* type = nullptr;                                                  \
    FASTVISION_CALL(batch_norm_relu_##NAME, type, (CALL).args, begin, end, scratch); \
  })

std::tuple<Tensor, Tensor> batch_norm_relu_statistics(
    const Tensor& x,
    const std::optional<Tensor>& running_mean,
    const std::optional<Tensor>& running_var,
    double momentum
) {
  const BatchNormLayout layout(x);
  const Tensor input = layout.dense(x, "input");
  const int64_t C = x.size(1);
  STD_TORCH_CHECK(x.numel() > 0, "input must not be empty");
  check_channels(x, running_mean, "running_mean");
  check_channels(x, running_var, "running_var");
  Tensor mean = empty_channels(layout, {C});
  Tensor var = empty_channels(layout, {C});
  FASTVISION_DISPATCH_FLOATING(layout.dtype, "input", [&] {
    using A = accumulate_t<scalar_t>;
    BatchNormCall<scalar_t> call(input, layout);
    call.make_partials();
    FASTVISION_BATCH_NORM(call, statistics);
    const double share = 1.0 / (x.numel() / C);
    std::vector<double> means(C), squares(C);
    call.for_partials([&](int64_t c, double n, double partial_mean, double) {
      means[c] += n * share * partial_mean;
    });
    call.for_partials([&](int64_t c, double n, double partial_mean, double partial_squares) {
      const double difference = partial_mean - means[c];
      squares[c] += partial_squares + n * difference * difference;
    });
    A* m = static_cast<A*>(mean.mutable_data_ptr());
    A* v = static_cast<A*>(var.mutable_data_ptr());
    for (int64_t c = 0; c < C; ++c) {
      m[c] = static_cast<A>(means[c]);
      v[c] = static_cast<A>(squares[c] * share);
    }
    update_running<A>(running_mean, means, 1, momentum);
    update_running<A>(running_var, squares, 1 / (1 / share - 1), momentum);  // unbiased
  });
  return {mean, var};
}

void normalize(
    const BatchNormLayout& layout,
    const Tensor& input,
    const Tensor& mean,
    const Tensor& var,
    const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias,
    const std::optional<Tensor>& residual,
    double eps,
    int64_t activation,
    double negative_slope,
    Tensor& output
) {
  const auto other = residual ? std::optional(layout.dense(*residual, "residual")) : std::nullopt;
  FASTVISION_DISPATCH_FLOATING(layout.dtype, "input", [&] {
    BatchNormCall<scalar_t> call(input, layout);
    call.set_activation(activation, negative_slope);
    call.set_affine(mean, var, eps, weight, bias);
    call.args.residual = other ? other->const_data_ptr() : nullptr;
    call.args.result = output.mutable_data_ptr();
    FASTVISION_BATCH_NORM(call, forward);
  });
}

Tensor batch_norm_relu(
    const Tensor& x,
    const Tensor& mean,
    const Tensor& var,
    const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias,
    const std::optional<Tensor>& residual,
    double eps,
    int64_t activation,
    double negative_slope
) {
  const BatchNormLayout layout(x);
  const Tensor input = layout.dense(x, "input");
  Tensor output = layout.empty();
  normalize(
      layout, input, mean, var, weight, bias, residual, eps, activation, negative_slope, output
  );
  return output;
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_relu_training(
    const Tensor& x,
    const std::optional<Tensor>& running_mean,
    const std::optional<Tensor>& running_var,
    const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias,
    const std::optional<Tensor>& residual,
    double momentum,
    double eps,
    int64_t activation,
    double negative_slope
) {
  const BatchNormLayout layout(x);
  const Tensor input = layout.dense(x, "input");
  // all before the statistics are written
  STD_TORCH_CHECK(
      x.numel() > x.size(1), "input must have more than one value per channel, got ", x.numel()
  );
  check_activation(activation);
  check_channels(x, weight, "weight");
  check_channels(x, bias, "bias");
  if (residual) {
    layout.check_like(*residual, "residual");
  }
  Tensor output = layout.empty();
  auto [mean, var] = batch_norm_relu_statistics(input, running_mean, running_var, momentum);
  normalize(
      layout, input, mean, var, weight, bias, residual, eps, activation, negative_slope, output
  );
  return {output, mean, var};
}

// The first pass of the gradients: fills the sums [C], and dz if it is given.
template <typename scalar_t, typename A>
void run_sums(BatchNormCall<scalar_t>& call, int64_t C, A* first_sums, A* second_sums, Tensor* dz) {
  call.args.result = dz ? dz->mutable_data_ptr() : nullptr;
  call.make_partials();
  FASTVISION_BATCH_NORM(call, sums);
  std::vector<double> totals(2 * C);
  call.for_partials([&](int64_t c, double, double first, double second) {
    totals[c] += first;
    totals[C + c] += second;
  });
  for (int64_t c = 0; c < C; ++c) {
    first_sums[c] = static_cast<A>(totals[c]);
    second_sums[c] = static_cast<A>(totals[C + c] * call.invstd()[c]);
  }
}

// The two passes of the gradients, or one of them: the input's gradient is empty if not wanted.
std::tuple<Tensor, Tensor, Tensor> gradients(
    const Tensor& g,
    const Tensor& x,
    const Tensor& mean,
    const Tensor& var,
    const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias,
    const std::optional<Tensor>& residual,
    const std::optional<Tensor>& output,
    bool of_batch,
    bool with_input,
    double eps,
    int64_t activation,
    double negative_slope
) {
  const BatchNormLayout layout(x);
  const Tensor input = layout.dense(x, "input");
  const Tensor grad = layout.dense(g, "grad");
  const auto other = residual ? std::optional(layout.dense(*residual, "residual")) : std::nullopt;
  const auto y = output ? std::optional(layout.dense(*output, "output")) : std::nullopt;
  const int64_t C = x.size(1);
  Tensor sums = empty_channels(layout, {2, C});
  std::optional<Tensor> dz, dx;
  if (residual || output) {
    dz = layout.empty();
  }
  if (with_input) {
    dx = layout.empty();
  }
  if (input.numel() == 0) {
    torch::stable::zero_(sums);
  } else {
    FASTVISION_DISPATCH_FLOATING(layout.dtype, "input", [&] {
      using A = accumulate_t<scalar_t>;
      BatchNormCall<scalar_t> call(input, layout);
      call.set_activation(activation, negative_slope);
      call.set_affine(mean, var, eps, weight, bias);
      call.args.grad = grad.const_data_ptr();
      call.args.residual = other ? other->const_data_ptr() : nullptr;
      call.args.output = y ? y->const_data_ptr() : nullptr;
      A* const totals = static_cast<A*>(sums.mutable_data_ptr());
      run_sums(call, C, totals, totals + C, dz ? &*dz : nullptr);
      if (dx) {
        if (dz) {  // the sums have taken the activation into account
          call.args.grad = dz->const_data_ptr();
          call.args.activation = Activation::none;
        }
        call.args.residual = call.args.output = nullptr;
        of_batch ? call.set_totals(totals, totals + C, input.numel() / C)
                 : call.set_totals(nullptr, nullptr, 1);
        call.args.result = dx->mutable_data_ptr();
        FASTVISION_BATCH_NORM(call, backward);
      }
    });
  }
  const auto or_empty = [&](const std::optional<Tensor>& t) {
    return t ? *t : empty_channels(layout, {0});
  };
  return {sums, or_empty(dz), or_empty(dx)};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_relu_gradients(
    const Tensor& grad,
    const Tensor& input,
    const Tensor& mean,
    const Tensor& var,
    const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias,
    const std::optional<Tensor>& residual,
    const std::optional<Tensor>& output,
    bool of_batch,
    double eps,
    int64_t activation,
    double negative_slope
) {
  return gradients(
      grad,
      input,
      mean,
      var,
      weight,
      bias,
      residual,
      output,
      of_batch,
      true,
      eps,
      activation,
      negative_slope
  );
}

std::tuple<Tensor, Tensor> batch_norm_relu_sums(
    const Tensor& grad,
    const Tensor& input,
    const Tensor& mean,
    const Tensor& var,
    const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias,
    const std::optional<Tensor>& residual,
    const std::optional<Tensor>& output,
    double eps,
    int64_t activation,
    double negative_slope
) {
  const auto [sums, dz, dx] = gradients(
      grad,
      input,
      mean,
      var,
      weight,
      bias,
      residual,
      output,
      false,
      false,
      eps,
      activation,
      negative_slope
  );
  return {sums, dz};
}

Tensor batch_norm_relu_backward(
    const Tensor& g,
    const Tensor& x,
    const Tensor& mean,
    const Tensor& var,
    const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias,
    const std::optional<Tensor>& sums,
    int64_t count,
    double eps,
    int64_t activation,
    double negative_slope
) {
  const BatchNormLayout layout(x);
  const Tensor input = layout.dense(x, "input");
  const Tensor grad = layout.dense(g, "grad");
  const int64_t C = x.size(1);
  Tensor result = layout.empty();
  if (result.numel() == 0) {
    return result;
  }
  FASTVISION_DISPATCH_FLOATING(layout.dtype, "input", [&] {
    using A = accumulate_t<scalar_t>;
    BatchNormCall<scalar_t> call(input, layout);
    call.set_activation(activation, negative_slope);
    call.set_affine(mean, var, eps, weight, bias);
    std::optional<Tensor> totals;
    if (sums) {
      STD_TORCH_CHECK(sums->dim() == 2 && sums->size(0) == 2, "sums must have shape [2, C]");
      totals = per_channel<A>(torch::stable::flatten(*sums, 0, 1), 2 * C, "sums");
    }
    const A* const first = totals ? data_of<A>(*totals) : nullptr;
    call.set_totals(first, totals ? first + C : nullptr, count);
    call.args.grad = grad.const_data_ptr();
    call.args.result = result.mutable_data_ptr();
    FASTVISION_BATCH_NORM(call, backward);
  });
  return result;
}

// What a layer alone needs in training, in few arguments: `numbers` are momentum, eps, activation
// and negative slope.
const double* numbers_of(const Tensor& numbers) {
  STD_TORCH_CHECK(
      numbers.is_cpu() && numbers.scalar_type() == ScalarType::Double && numbers.is_contiguous() &&
          numbers.numel() == 4,
      "numbers must be float64[4]"
  );
  const auto* values = static_cast<const double*>(numbers.const_data_ptr());
  STD_TORCH_CHECK(values[2] >= 0 && values[2] < kActivations, "unknown activation ", values[2]);
  return values;
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_relu_layer(
    const Tensor& x,
    const std::optional<Tensor>& running_mean,
    const std::optional<Tensor>& running_var,
    const Tensor& weight,
    const Tensor& bias,
    const Tensor& numbers
) {
  const double* n = numbers_of(numbers);
  const auto activation = static_cast<int64_t>(n[2]);
  return batch_norm_relu_training(
      x, running_mean, running_var, weight, bias, std::nullopt, n[0], n[1], activation, n[3]
  );
}

// Gradients of input, weight and bias.
std::tuple<Tensor, Tensor, Tensor> batch_norm_relu_layer_gradients(
    const Tensor& g,
    const Tensor& x,
    const Tensor& mean,
    const Tensor& var,
    const Tensor& weight,
    const Tensor& bias,
    const Tensor& numbers
) {
  const double* n = numbers_of(numbers);
  const BatchNormLayout layout(x);
  const Tensor input = layout.dense(x, "input"), grad = layout.dense(g, "grad");
  const int64_t C = x.size(1);
  STD_TORCH_CHECK(x.numel() > 0, "input must not be empty");
  Tensor dx = layout.empty(), dweight = empty_channels(layout, {C});
  Tensor dbias = empty_channels(layout, {C});
  FASTVISION_DISPATCH_FLOATING(layout.dtype, "input", [&] {
    using A = accumulate_t<scalar_t>;
    BatchNormCall<scalar_t> call(input, layout);
    call.set_activation(static_cast<int64_t>(n[2]), n[3]);
    call.set_affine(mean, var, n[1], weight, bias);
    call.args.grad = grad.const_data_ptr();
    A* const first = static_cast<A*>(dbias.mutable_data_ptr());
    A* const second = static_cast<A*>(dweight.mutable_data_ptr());
    run_sums(call, C, first, second, nullptr);
    call.set_totals(first, second, input.numel() / C);
    call.args.result = dx.mutable_data_ptr();
    FASTVISION_BATCH_NORM(call, backward);
  });
  return {dx, dweight, dbias};
}

#undef FASTVISION_BATCH_NORM

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("batch_norm_relu_statistics", FASTVISION_BOX(&batch_norm_relu_statistics));
  m.impl("batch_norm_relu", FASTVISION_BOX(&batch_norm_relu));
  m.impl("batch_norm_relu_training", FASTVISION_BOX(&batch_norm_relu_training));
  m.impl("batch_norm_relu_sums", FASTVISION_BOX(&batch_norm_relu_sums));
  m.impl("batch_norm_relu_backward", FASTVISION_BOX(&batch_norm_relu_backward));
  m.impl("batch_norm_relu_gradients", FASTVISION_BOX(&batch_norm_relu_gradients));
  m.impl("batch_norm_relu_layer", FASTVISION_BOX(&batch_norm_relu_layer));
  m.impl("batch_norm_relu_layer_gradients", FASTVISION_BOX(&batch_norm_relu_layer_gradients));
}

}  // namespace fastvision
