#include "ops/batch_norm_relu.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "common/memory_format.h"
#include "common/parallel.h"
#include "common/torch.h"

namespace fastvision {
namespace {

constexpr int64_t kSerialElements = 1 << 15;  // below, waking threads does not pay
constexpr int64_t kPieceElements = 1 << 15;   // per kernel call; a second pass hits the cache
constexpr int64_t kMaxRows = 512;             // added up in float
constexpr int64_t kLeastLength = 64;          // of rows: shorter ones are joined

// Memory layout of an input, and tensors of the same shape and layout.
struct Layout {
  Tensor like;
  std::vector<int64_t> shape;
  ScalarType dtype;
  bool channels_last;

  explicit Layout(const Tensor& input)
      : like(input),
        shape(input.sizes().begin(), input.sizes().end()),
        dtype(input.scalar_type()),
        channels_last(is_channels_last(input)) {
    STD_TORCH_CHECK(input.dim() >= 2, "input must have shape [N, C, ...]");
  }

  Tensor dense(const Tensor& x, const char* name) const {
    STD_TORCH_CHECK(
        x.scalar_type() == dtype && x.device() == like.device() &&
            std::equal(shape.begin(), shape.end(), x.sizes().begin(), x.sizes().end()),
        name,
        " must have the shape, dtype and device of the input"
    );
    return in_format(x, channels_last);
  }

  Tensor empty() const {
    if (channels_last) {
      return empty_in_format(like, shape[0], shape[1], shape[2], shape[3], true);
    }
    std::vector<int64_t> strides(shape.size(), 1);
    for (size_t dim = shape.size() - 1; dim > 0; --dim) {
      strides[dim - 1] = strides[dim] * std::max<int64_t>(shape[dim], 1);
    }
    return empty_result(like, shape, strides);
  }
};

// A per-channel tensor of the compute type.
template <typename A>
const A* per_channel(const Tensor& x, int64_t C, const char* name) {
  const ScalarType expected =
      std::is_same<A, double>::value ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(
      x.dim() == 1 && x.size(0) == C && x.scalar_type() == expected && x.is_contiguous() &&
          x.is_cpu(),
      name,
      " must be contiguous, one value per channel in the type of arithmetic"
  );
  return static_cast<const A*>(x.const_data_ptr());
}

// A call of the kernels: the shape as items, per-channel arrays, partial results.
template <typename T>
class Call {
 public:
  using A = accumulate_t<T>;
  BatchNormReluArgs args{};

  Call(const Tensor& input, const Layout& layout, int64_t activation, double negative_slope)
      : C_(input.size(1)), elements_(input.numel()) {
    STD_TORCH_CHECK(
        activation >= 0 && activation < kActivations, "unknown activation ", activation
    );
    args.activation = static_cast<Activation>(activation);
    args.negative_slope = negative_slope;
    const int64_t plane = elements_ / std::max<int64_t>(input.size(0) * C_, 1);
    args.planes = !layout.channels_last && plane != 1;
    const int64_t rows = input.size(0) * plane;
    while (!args.planes && repeats_ * C_ < kLeastLength && rows % (2 * repeats_) == 0) {
      repeats_ *= 2;
    }
    args.C = C_ * repeats_;
    args.length = args.planes ? plane : args.C;
    args.items = args.planes ? input.size(0) * C_ : rows / repeats_;
    const int64_t piece = std::clamp<int64_t>(kPieceElements / args.length, 1, kMaxRows);
    args.block = args.planes ? C_ : piece;
    piece_ = piece;
    padded_ = (args.C + kBatchNormPadding - 1) / kBatchNormPadding * kBatchNormPadding;
  }

  // A per-channel array of value(c), padded for the kernels.
  template <typename Value>
  const void* constants(const Value& value) {
    arrays_.emplace_back(new A[padded_]());
    A* array = arrays_.back().get();
    for (int64_t i = 0; i < args.C; ++i) {
      array[i] = value(i % C_);
    }
    return array;
  }

  // scale = weight / std and shift = bias; the mean is kept separately.
  void set_affine(
      const Tensor& mean,
      const Tensor& invstd,
      const std::optional<Tensor>& weight,
      const std::optional<Tensor>& bias
  ) {
    const A* m = per_channel<A>(mean, C_, "mean");
    const A* r = per_channel<A>(invstd, C_, "invstd");
    const A* w = weight ? per_channel<A>(*weight, C_, "weight") : nullptr;
    const A* b = bias ? per_channel<A>(*bias, C_, "bias") : nullptr;
    args.mean = constants([&](int64_t c) { return m[c]; });
    args.scale = constants([&](int64_t c) { return w == nullptr ? r[c] : r[c] * w[c]; });
    args.shift = constants([&](int64_t c) { return b == nullptr ? A(0) : b[c]; });
  }

  template <typename Kernel>
  void run(const Kernel& kernel) {
    const int64_t pieces = (args.items + piece_ - 1) / piece_;
    const int64_t chunk = elements_ < kSerialElements ? pieces : 1;
    parallel_chunks(pieces, chunk, [&] {
      return [&, scratch = std::unique_ptr<A[]>(new A[3 * padded_])](int64_t begin, int64_t end) {
        for (int64_t piece = begin; piece < end; ++piece) {
          const int64_t first = piece * piece_;
          kernel(first, std::min(args.items, first + piece_), scratch.get());
        }
      };
    });
  }

  void make_partials() {
    partials_.resize((args.items + args.block - 1) / args.block * 2 * args.C);
    args.partials = partials_.data();
  }

  // Calls add(channel, elements, first, second) for all partial results, in a fixed order.
  template <typename Add>
  void for_partials(const Add& add) const {
    const double* p = partials_.data();
    for (int64_t i = 0; i < args.items; i += args.block, p += 2 * args.C) {
      const double elements = args.planes ? args.length : std::min(args.block, args.items - i);
      for (int64_t c = 0, channel = 0; c < args.C; ++c) {
        add(channel, elements, p[c], p[args.C + c]);
        channel = channel + 1 == C_ ? 0 : channel + 1;
      }
    }
  }

 private:
  int64_t C_, elements_, repeats_ = 1, piece_, padded_;
  std::vector<std::unique_ptr<A[]>> arrays_;
  std::vector<double> partials_;
};

Tensor empty_channels(const Layout& layout, std::vector<int64_t> shape) {
  const ScalarType dtype =
      layout.dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return torch::stable::empty(
      shape, dtype, torch::headeronly::Layout::Strided, layout.like.device()
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
    per_channel<A>(*running, batch.size(), "running statistics");
    A* values = static_cast<A*>(running->mutable_data_ptr());
    for (size_t c = 0; c < batch.size(); ++c) {
      values[c] = static_cast<A>(values[c] + (batch[c] * factor - values[c]) * momentum);
    }
  }
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_relu_statistics(
    const Tensor& x,
    const std::optional<Tensor>& running_mean,
    const std::optional<Tensor>& running_var,
    double momentum,
    double eps
) {
  const Layout layout(x);
  const Tensor input = layout.dense(x, "input");
  const int64_t C = x.size(1);
  STD_TORCH_CHECK(x.numel() > 0, "input must not be empty");
  Tensor mean = empty_channels(layout, {C});
  Tensor var = empty_channels(layout, {C});
  Tensor invstd = empty_channels(layout, {C});
  FASTVISION_DISPATCH_FLOATING(layout.dtype, "input", [&] {
    using A = accumulate_t<scalar_t>;
    Call<scalar_t> call(input, layout, 0, 0);
    call.args.input = input.const_data_ptr();
    call.make_partials();
    call.run([&](int64_t begin, int64_t end, A* scratch) {
      FASTVISION_CALL(
          batch_norm_relu_statistics,
          static_cast<const scalar_t*>(nullptr),
          call.args,
          begin,
          end,
          scratch
      );
    });
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
    A* r = static_cast<A*>(invstd.mutable_data_ptr());
    for (int64_t c = 0; c < C; ++c) {
      m[c] = static_cast<A>(means[c]);
      v[c] = static_cast<A>(squares[c] * share);
      r[c] = static_cast<A>(1 / std::sqrt(squares[c] * share + eps));
    }
    update_running<A>(running_mean, means, 1, momentum);
    update_running<A>(running_var, squares, 1 / (1 / share - 1), momentum);  // unbiased
  });
  return {mean, var, invstd};
}

Tensor batch_norm_relu(
    const Tensor& x,
    const Tensor& mean,
    const Tensor& invstd,
    const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias,
    const std::optional<Tensor>& residual,
    int64_t activation,
    double negative_slope
) {
  const Layout layout(x);
  const Tensor input = layout.dense(x, "input");
  Tensor output = layout.empty();
  if (output.numel() == 0) {
    return output;
  }
  const auto other = residual ? std::optional(layout.dense(*residual, "residual")) : std::nullopt;
  FASTVISION_DISPATCH_FLOATING(layout.dtype, "input", [&] {
    Call<scalar_t> call(input, layout, activation, negative_slope);
    call.set_affine(mean, invstd, weight, bias);
    call.args.input = input.const_data_ptr();
    call.args.residual = other ? other->const_data_ptr() : nullptr;
    call.args.result = output.mutable_data_ptr();
    call.run([&](int64_t begin, int64_t end, accumulate_t<scalar_t>* scratch) {
      FASTVISION_CALL(
          batch_norm_relu_forward,
          static_cast<const scalar_t*>(nullptr),
          call.args,
          begin,
          end,
          scratch
      );
    });
  });
  return output;
}

std::tuple<Tensor, Tensor> batch_norm_relu_sums(
    const Tensor& g,
    const Tensor& x,
    const Tensor& mean,
    const Tensor& invstd,
    const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias,
    const std::optional<Tensor>& residual,
    const std::optional<Tensor>& output,
    int64_t activation,
    double negative_slope
) {
  const Layout layout(x);
  const Tensor input = layout.dense(x, "input");
  const Tensor grad = layout.dense(g, "grad");
  const int64_t C = x.size(1);
  Tensor sums = empty_channels(layout, {2, C});
  const bool with_dz = residual || output;
  Tensor dz = with_dz ? layout.empty() : empty_channels(layout, {0});
  if (input.numel() == 0) {
    torch::stable::zero_(sums);
    return {sums, dz};
  }
  const auto other = residual ? std::optional(layout.dense(*residual, "residual")) : std::nullopt;
  const auto y = output ? std::optional(layout.dense(*output, "output")) : std::nullopt;
  FASTVISION_DISPATCH_FLOATING(layout.dtype, "input", [&] {
    using A = accumulate_t<scalar_t>;
    Call<scalar_t> call(input, layout, activation, negative_slope);
    call.set_affine(mean, invstd, weight, bias);
    call.args.input = input.const_data_ptr();
    call.args.grad = grad.const_data_ptr();
    call.args.residual = other ? other->const_data_ptr() : nullptr;
    call.args.output = y ? y->const_data_ptr() : nullptr;
    call.args.result = with_dz ? dz.mutable_data_ptr() : nullptr;
    call.make_partials();
    call.run([&](int64_t begin, int64_t end, A* scratch) {
      FASTVISION_CALL(
          batch_norm_relu_sums,
          static_cast<const scalar_t*>(nullptr),
          call.args,
          begin,
          end,
          scratch
      );
    });
    std::vector<double> totals(2 * C);
    call.for_partials([&](int64_t c, double, double first, double second) {
      totals[c] += first;
      totals[C + c] += second;
    });
    const A* r = static_cast<const A*>(invstd.const_data_ptr());
    A* out = static_cast<A*>(sums.mutable_data_ptr());
    for (int64_t c = 0; c < C; ++c) {
      out[c] = static_cast<A>(totals[c]);
      out[C + c] = static_cast<A>(totals[C + c] * r[c]);
    }
  });
  return {sums, dz};
}

Tensor batch_norm_relu_backward(
    const Tensor& g,
    const Tensor& x,
    const Tensor& mean,
    const Tensor& invstd,
    const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias,
    const std::optional<Tensor>& sums,
    int64_t count,
    int64_t activation,
    double negative_slope
) {
  const Layout layout(x);
  const Tensor input = layout.dense(x, "input");
  const Tensor grad = layout.dense(g, "grad");
  const int64_t C = x.size(1);
  Tensor result = layout.empty();
  if (result.numel() == 0) {
    return result;
  }
  FASTVISION_DISPATCH_FLOATING(layout.dtype, "input", [&] {
    using A = accumulate_t<scalar_t>;
    Call<scalar_t> call(input, layout, activation, negative_slope);
    call.set_affine(mean, invstd, weight, bias);
    const A* r = static_cast<const A*>(invstd.const_data_ptr());
    const A* scale = static_cast<const A*>(call.args.scale);
    std::vector<A> means(2 * C);
    if (sums) {
      STD_TORCH_CHECK(sums->dim() == 2 && sums->size(0) == 2, "sums must have shape [2, C]");
      const Tensor flat = torch::stable::flatten(*sums, 0, 1);
      const A* totals = per_channel<A>(flat, 2 * C, "sums");
      for (int64_t c = 0; c < 2 * C; ++c) {
        means[c] = totals[c] / count;
      }
    }
    call.args.slope = call.constants([&](int64_t c) { return -scale[c] * r[c] * means[C + c]; });
    call.args.offset = call.constants([&](int64_t c) { return -scale[c] * means[c]; });
    call.args.input = input.const_data_ptr();
    call.args.grad = grad.const_data_ptr();
    call.args.result = result.mutable_data_ptr();
    call.run([&](int64_t begin, int64_t end, A* scratch) {
      FASTVISION_CALL(
          batch_norm_relu_backward,
          static_cast<const scalar_t*>(nullptr),
          call.args,
          begin,
          end,
          scratch
      );
    });
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("batch_norm_relu_statistics", FASTVISION_BOX(&batch_norm_relu_statistics));
  m.impl("batch_norm_relu", FASTVISION_BOX(&batch_norm_relu));
  m.impl("batch_norm_relu_sums", FASTVISION_BOX(&batch_norm_relu_sums));
  m.impl("batch_norm_relu_backward", FASTVISION_BOX(&batch_norm_relu_backward));
}

}  // namespace fastvision
