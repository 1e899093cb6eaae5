// A call of the batch normalization kernels: the layout of its tensors and its per-channel arrays.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>

#include "common/memory_format.h"
#include "common/parallel.h"
#include "common/torch.h"
#include "ops/batch_norm_relu.h"

namespace fastvision {

constexpr int64_t kSerialElements = 1 << 15;  // below, waking threads does not pay
constexpr int64_t kPieceElements = 1 << 15;   // per kernel call; a second pass hits the cache
constexpr int64_t kMaxRows = 512;             // added up in float
constexpr int64_t kLeastLength = 64;          // of rows: shorter ones are joined

// Memory layout of an input, and tensors of the same shape and layout.
struct BatchNormLayout {
  Tensor like;
  std::vector<int64_t> shape;
  ScalarType dtype;
  bool channels_last;

  explicit BatchNormLayout(const Tensor& input)
      : like(input),
        shape(input.sizes().begin(), input.sizes().end()),
        dtype(input.scalar_type()),
        channels_last(is_channels_last(input)) {
    STD_TORCH_CHECK(input.dim() >= 2, "input must have shape [N, C, ...]");
  }

  void check_like(const Tensor& x, const char* name) const {
    STD_TORCH_CHECK(
        x.scalar_type() == dtype && x.device() == like.device() &&
            std::equal(shape.begin(), shape.end(), x.sizes().begin(), x.sizes().end()),
        name,
        " must have the shape, dtype and device of the input"
    );
  }

  Tensor dense(const Tensor& x, const char* name) const {
    check_like(x, name);
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

template <typename A>
constexpr ScalarType kArithmetic =
    std::is_same<A, double>::value ? ScalarType::Double : ScalarType::Float;

inline void check_activation(int64_t activation) {
  STD_TORCH_CHECK(activation >= 0 && activation < kActivations, "unknown activation ", activation);
}

// A per-channel tensor in the type of arithmetic, contiguous.
template <typename A>
Tensor per_channel(const Tensor& x, int64_t C, const char* name) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(
      x.dim() == 1 && x.size(0) == C && x.is_cpu() &&
          (type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
           type == ScalarType::BFloat16),
      name,
      " must have one floating-point value per channel"
  );
  const Tensor wide = type == kArithmetic<A> ? x : torch::stable::to(x, kArithmetic<A>);
  return wide.is_contiguous() ? wide : torch::stable::contiguous(wide);
}

template <typename A>
const A* data_of(const Tensor& x) {
  return static_cast<const A*>(x.const_data_ptr());
}

// A call of the kernels: the shape as items, per-channel arrays, partial results.
template <typename T>
class BatchNormCall {
 public:
  using A = accumulate_t<T>;
  BatchNormReluArgs args{};

  BatchNormCall(const Tensor& input, const BatchNormLayout& layout)
      : C_(input.size(1)), elements_(input.numel()) {
    if (elements_ == 0) {
      return;  // no items
    }
    const int64_t plane = elements_ / (input.size(0) * C_);
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
    args.input = input.const_data_ptr();
    piece_ = piece;
    padded_ = (args.C + kBatchNormPadding - 1) / kBatchNormPadding * kBatchNormPadding;
  }

  void set_activation(int64_t activation, double negative_slope) {
    check_activation(activation);
    args.activation = static_cast<Activation>(activation);
    args.negative_slope = negative_slope;
  }

  // scale = weight / std and shift = bias; the mean is kept separately.
  void set_affine(
      const Tensor& mean,
      const Tensor& var,
      double eps,
      const std::optional<Tensor>& weight,
      const std::optional<Tensor>& bias
  ) {
    const Tensor means = per_channel<A>(mean, C_, "mean"), vars = per_channel<A>(var, C_, "var");
    const A *m = data_of<A>(means), *v = data_of<A>(vars), e = static_cast<A>(eps);
    args.mean = constants([&](int64_t c) { return m[c]; });
    invstd_ = constants([&](int64_t c) { return 1 / std::sqrt(v[c] + e); });
    args.scale = invstd_;
    if (weight) {
      const Tensor weights = per_channel<A>(*weight, C_, "weight");
      const A *w = data_of<A>(weights), *r = invstd_;
      args.scale = constants([&](int64_t c) { return r[c] * w[c]; });
    }
    const std::optional<Tensor> biases =
        bias ? std::optional(per_channel<A>(*bias, C_, "bias")) : std::nullopt;
    const A* b = biases ? data_of<A>(*biases) : nullptr;
    args.shift = constants([&](int64_t c) { return b == nullptr ? A(0) : b[c]; });
  }

  // 1 / std of each channel
  const A* invstd() const { return invstd_; }

  // The constants of the input's gradient. first, second: sums over the batch of dz and of
  // dz * (x - mean) / std, if the statistics are the batch's; null if they are constants.
  void set_totals(const A* first, const A* second, int64_t count) {
    const A *r = invstd_, *scale = static_cast<const A*>(args.scale);
    const auto share = [&](const A* totals, int64_t c) {
      return totals == nullptr ? A(0) : totals[c] / count;
    };
    args.slope = constants([&](int64_t c) { return -scale[c] * r[c] * share(second, c); });
    args.offset = constants([&](int64_t c) { return -scale[c] * share(first, c); });
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
  static constexpr int kArrays = 6;  // mean, 1 / std, scale, shift, slope, offset

  // A per-channel array of value(c), padded for the kernels.
  template <typename Value>
  const A* constants(const Value& value) {
    if (arrays_ == nullptr) {
      arrays_.reset(new A[kArrays * padded_]());
    }
    A* array = arrays_.get() + used_++ * padded_;
    for (int64_t first = 0; first < args.C; first += C_) {
      for (int64_t c = 0; c < C_; ++c) {
        array[first + c] = value(c);
      }
    }
    return array;
  }

  int64_t C_, elements_, repeats_ = 1, piece_ = 1, padded_ = 0;
  std::unique_ptr<A[]> arrays_;
  int used_ = 0;
  const A* invstd_ = nullptr;
  std::vector<double> partials_;
};

// Of the type of arithmetic.
inline Tensor empty_channels(const BatchNormLayout& layout, std::vector<int64_t> shape) {
  const bool wide = layout.dtype == ScalarType::Double;
  const auto strides =
      shape.size() == 2 ? std::vector<int64_t>{shape[1], 1} : std::vector<int64_t>{1};
  return empty_strided(
      shape,
      strides,
      wide ? ScalarType::Double : ScalarType::Float,
      wide ? sizeof(double) : sizeof(float),
      layout.like.device()
  );
}

}  // namespace fastvision
