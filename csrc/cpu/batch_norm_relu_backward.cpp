// Backward: the two sums per channel, then the gradient of the input.
#include "ops/batch_norm_relu.h"

#include <type_traits>

#include "cpu/batch_norm_relu_activations.h"
#include "cpu/batch_norm_relu_items.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// The channel's or channels' constants of z.
template <typename A>
struct Affine {
  vector_t<A> mean, scale, shift;
};

template <typename T, typename A, typename Activate, typename Constants>
struct Gradient {
  const T* x;
  const T* residual;
  const T* y;
  const T* grad;
  const BatchNormReluArgs& args;
  const Activate& activate;
  Constants of;
  int64_t ahead;  // bytes between a read and the prefetch for a later one

  Affine<A> affine(int64_t at) const {
    return {of(args.mean, at), of(args.scale, at), of(args.shift, at)};
  }

  // gradient of z, and x - mean; forced inline, since it is in the inner loops
  template <Span kSpan>
  __attribute__((always_inline)) inline auto dz(
      const Affine<A>& affine, int64_t at, int64_t count, vector_t<A>& d
  ) const {
    d = load_stream<kSpan>(x + at, count, ahead) - affine.mean;
    const auto g = load_stream<kSpan>(grad + at, count, ahead);
    if (y != nullptr) {
      return activate.gradient(g, load_stream<kSpan>(y + at, count, ahead));
    }
    auto z = multiply_add(d, affine.scale, affine.shift);
    if (residual != nullptr) {
      z += load_stream<kSpan>(residual + at, count, ahead);
    }
    return activate.gradient(g, z);
  }
};

// Both sums, by lane.
template <typename A>
struct Lanes {
  vector_t<A> first, second;
};

// Destinations of the sums: registers with partial sums of one channel, or per-channel arrays.
template <typename A>
struct InRegisters {
  Lanes<A>& lanes;

  Lanes<A> load_sums(int64_t) const { return lanes; }
  void store_sums(int64_t, const Lanes<A>& sums) const { lanes = sums; }
};

template <typename A>
struct ByChannel {
  A* first;
  A* second;

  Lanes<A> load_sums(int64_t at) const { return {load(first + at), load(second + at)}; }
  void store_sums(int64_t at, const Lanes<A>& sums) const {
    store(first + at, sums.first);
    store(second + at, sums.second);
  }
};

// of kCount rows, or of a plane
template <int kCount, typename T, typename A, typename G, typename Sums>
struct Sum {
  const G& gradient;
  T* dz;
  Sums sums;

  template <Span kSpan>
  void run(int64_t at, int64_t count) const {
    const auto affine = gradient.affine(at);
    Lanes<A> lanes = sums.load_sums(at);
    int64_t i = at;
#pragma GCC unroll 4
    for (int row = 0; row < kCount; ++row, i += gradient.args.length) {
      vector_t<A> d;
      const vector_t<A> g = gradient.template dz<kSpan>(affine, i, count, d);
      if (dz != nullptr) {
        store_lanes<kSpan>(dz + i, g, count);
      }
      const vector_t<A> own = own_lanes<kSpan, A>(g, count);
      lanes.first += own;
      lanes.second = multiply_add(own, d, lanes.second);
    }
    sums.store_sums(at, lanes);
  }
};

template <typename T, typename A, typename Constants, typename Activate>
auto gradient_at(
    const BatchNormReluArgs& args,
    int64_t offset,
    Constants of,
    const Activate& activate,
    int64_t ahead
) {
  return Gradient<T, A, Activate, Constants>{
      at_offset<T>(args.input, offset),
      at_offset<T>(args.residual, offset),
      at_offset<T>(args.output, offset),
      at_offset<T>(args.grad, offset),
      args,
      activate,
      of,
      ahead
  };
}

template <typename T>
inline T* result_at(const BatchNormReluArgs& args, int64_t offset) {
  return args.result == nullptr ? nullptr : static_cast<T*>(args.result) + offset;
}

template <typename T, typename A, typename Activate>
void sum_planes(
    const BatchNormReluArgs& args, int64_t begin, int64_t end, const Activate& activate
) {
  for_items<A>(args, begin, end, [&](int64_t offset, auto of) {
    double first = 0, second = 0;
    for (int64_t i = 0; i < args.length; i += kChunk) {
      Lanes<A> lanes{};
      const auto gradient = gradient_at<T, A>(args, offset + i, of, activate, kAheadBytes);
      const Sum<1, T, A, decltype(gradient), InRegisters<A>> step{
          gradient, result_at<T>(args, offset + i), {lanes}
      };
      for_vectors<A>(0, args.length - i < kChunk ? args.length - i : kChunk, step);
      first += sum_of_lanes<A, double>(lanes.first);
      second += sum_of_lanes<A, double>(lanes.second);
    }
    double* partials = partials_of(args, offset / args.length);
    partials[0] = first;
    partials[args.C] = second;
  });
}

template <typename T, typename A, typename Activate>
void sum_rows(
    const BatchNormReluArgs& args, int64_t begin, int64_t end, const Activate& activate, A* scratch
) {
  const int64_t padded = padded_length(args.length);
  const ByChannel<A> sums{scratch, scratch + padded};
  memset(scratch, 0, 2 * padded * sizeof(A));
  const auto add_rows = [&](int64_t row, auto count) {
    // the same place of the next rows: side by side they are more streams than the hardware follows
    const auto gradient = gradient_at<T, A>(
        args, row * args.length, OfRow<A>{}, activate, count * args.length * sizeof(T)
    );
    const Sum<count, T, A, decltype(gradient), ByChannel<A>> step{
        gradient, result_at<T>(args, row * args.length), sums
    };
    for_vectors<A>(0, args.length, step);
  };
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows) {
    add_rows(row, std::integral_constant<int, kRows>{});
  }
  for (; row < end; ++row) {
    add_rows(row, std::integral_constant<int, 1>{});
  }
  double* partials = partials_of(args, begin);
  for (int64_t c = 0; c < args.C; ++c) {
    partials[c] = scratch[c];
    partials[args.C + c] = scratch[padded + c];
  }
}

template <typename T, typename A>
void sums(const BatchNormReluArgs& args, int64_t begin, int64_t end, A* scratch) {
  with_activation<A>(args, [&](const auto& activate) {
    if (args.planes) {
      sum_planes<T, A>(args, begin, end, activate);
    } else {
      sum_rows<T, A>(args, begin, end, activate, scratch);
    }
  });
}

template <typename T, typename A, typename G>
struct Backward {
  const G& gradient;
  T* dx;

  template <Span kSpan>
  void run(int64_t at, int64_t count) const {
    const BatchNormReluArgs& args = gradient.args;
    const auto affine = gradient.affine(at);
    vector_t<A> d;
    const vector_t<A> g = gradient.template dz<kSpan>(affine, at, count, d);
    const auto rest = multiply_add(d, gradient.of(args.slope, at), gradient.of(args.offset, at));
    store_lanes<kSpan>(dx + at, multiply_add(g, affine.scale, rest), count);
  }
};

template <typename T, typename A>
void backward(const BatchNormReluArgs& args, int64_t begin, int64_t end) {
  with_activation<A>(args, [&](const auto& activate) {
    for_items<A>(args, begin, end, [&](int64_t offset, auto of) {
      const auto gradient = gradient_at<T, A>(args, offset, of, activate, kAheadBytes);
      const Backward<T, A, decltype(gradient)> step{gradient, result_at<T>(args, offset)};
      for_vectors<A>(0, args.length, step);
    });
  });
}

}  // namespace

#define FASTVISION_DEFINE_BACKWARD(T, A)                                              \
  void batch_norm_relu_sums(                                                          \
      const T*, const BatchNormReluArgs& args, int64_t begin, int64_t end, A* scratch \
  ) {                                                                                 \
    sums<T, A>(args, begin, end, scratch);                                            \
  }                                                                                   \
  void batch_norm_relu_backward(                                                      \
      const T*, const BatchNormReluArgs& args, int64_t begin, int64_t end, A*         \
  ) {                                                                                 \
    backward<T, A>(args, begin, end);                                                 \
  }
FASTVISION_DEFINE_BACKWARD(float, float)
FASTVISION_DEFINE_BACKWARD(double, double)
FASTVISION_DEFINE_BACKWARD(half_t, float)
FASTVISION_DEFINE_BACKWARD(bfloat16_t, float)
#undef FASTVISION_DEFINE_BACKWARD

}  // namespace fastvision::FASTVISION_ISA
