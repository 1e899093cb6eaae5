// The ops of batch normalization, residual and activation, and of their gradients.
#include "ops/batch_norm_relu.h"

#include "ops/batch_norm_relu_call.h"

namespace fastvision {
namespace {

// running += (batch - running) * momentum
template <typename A>
void update_running(
    const std::optional<Tensor>& running,
    const std::vector<double>& batch,
    double factor,
    double momentum
) {
  if (running) {
    STD_TORCH_CHECK(
        running->dim() == 1 && running->size(0) == static_cast<int64_t>(batch.size()) &&
            running->scalar_type() == kArithmetic<A> && running->is_contiguous() &&
            running->is_cpu(),
        "running statistics must be contiguous, one value per channel in the type of arithmetic"
    );
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
  const auto other = residual ? std::optional(layout.dense(*residual, "residual")) : std::nullopt;
  Tensor output = layout.empty();
  FASTVISION_DISPATCH_FLOATING(layout.dtype, "input", [&] {
    BatchNormCall<scalar_t> call(input, layout);
    call.set_activation(activation, negative_slope);
    call.set_affine(mean, var, eps, weight, bias);
    call.args.residual = other ? other->const_data_ptr() : nullptr;
    call.args.result = output.mutable_data_ptr();
    FASTVISION_BATCH_NORM(call, forward);
  });
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
  const Tensor input = BatchNormLayout(x).dense(x, "input");
  auto [mean, var] = batch_norm_relu_statistics(input, running_mean, running_var, momentum);
  Tensor output =
      batch_norm_relu(input, mean, var, weight, bias, residual, eps, activation, negative_slope);
  return {output, mean, var};
}

// The first pass of the gradients: fills `sums` [2, C], and dz if it is given.
template <typename scalar_t>
void run_sums(BatchNormCall<scalar_t>& call, Tensor& sums, std::optional<Tensor>& dz) {
  using A = accumulate_t<scalar_t>;
  const int64_t C = sums.size(1);
  call.args.result = dz ? dz->mutable_data_ptr() : nullptr;
  call.make_partials();
  FASTVISION_BATCH_NORM(call, sums);
  std::vector<double> totals(2 * C);
  call.for_partials([&](int64_t c, double, double first, double second) {
    totals[c] += first;
    totals[C + c] += second;
  });
  A* out = static_cast<A*>(sums.mutable_data_ptr());
  for (int64_t c = 0; c < C; ++c) {
    out[c] = static_cast<A>(totals[c]);
    out[C + c] = static_cast<A>(totals[C + c] * call.invstd()[c]);
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
      run_sums(call, sums, dz);
      if (dx) {
        if (dz) {  // the sums have taken the activation into account
          call.args.grad = dz->const_data_ptr();
          call.args.activation = Activation::none;
        }
        call.args.residual = call.args.output = nullptr;
        call.set_totals(of_batch ? data_of<A>(sums) : nullptr, input.numel() / C);
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
    call.set_totals(totals ? data_of<A>(*totals) : nullptr, count);
    call.args.grad = grad.const_data_ptr();
    call.args.result = result.mutable_data_ptr();
    FASTVISION_BATCH_NORM(call, backward);
  });
  return result;
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
}

}  // namespace fastvision
