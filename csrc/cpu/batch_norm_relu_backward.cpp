// Backward: the two sums per channel, then the gradient of the input.
#include "ops/batch_norm_relu.h"

#include "cpu/batch_norm_relu_activations.h"
#include "cpu/batch_norm_relu_items.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename T, typename A, typename Activate, typename Constants>
struct Gradient {
  const T* x;
  const T* residual;
  const T* y;
  const T* grad;
  const BatchNormReluArgs& args;
  const Activate& activate;
  Constants of;

  // gradient of z, and x - mean; forced inline, since it is in the inner loops
  template <Span kSpan>
  __attribute__((always_inline)) inline auto dz(int64_t at, int64_t count, vector_t<A>& d) const {
    d = load_lanes<kSpan>(x + at, count) - of(args.mean, at);
    const auto g = load_lanes<kSpan>(grad + at, count);
    if (y != nullptr) {
      return activate.gradient(g, load_lanes<kSpan>(y + at, count));
    }
    auto z = multiply_add(d, of(args.scale, at), of(args.shift, at));
    if (residual != nullptr) {
      z += load_lanes<kSpan>(residual + at, count);
    }
    return activate.gradient(g, z);
  }
};

// Destinations of the two sums: registers with partial sums of one channel, or per-channel arrays.
template <typename A>
struct InRegisters {
  vector_t<A>& first;
  vector_t<A>& second;

  void add(int64_t, vector_t<A> g, vector_t<A> d) const {
    first += g;
    second = multiply_add(g, d, second);
  }
};

template <typename A>
struct ByChannel {
  A* first;
  A* second;

  void add(int64_t at, vector_t<A> g, vector_t<A> d) const {
    store(first + at, load(first + at) + g);
    store(second + at, multiply_add(g, d, load(second + at)));
  }
};

template <typename T, typename A, typename G, typename Sums>
struct Sum {
  const G& gradient;
  T* dz;
  Sums sums;

  template <Span kSpan>
  void run(int64_t at, int64_t count) const {
    vector_t<A> d;
    const vector_t<A> g = gradient.template dz<kSpan>(at, count, d);
    if (dz != nullptr) {
      store_lanes<kSpan>(dz + at, g, count);
    }
    sums.add(at, own_lanes<kSpan, A>(g, count), d);
  }
};

template <typename T, typename A>
void sums(const BatchNormReluArgs& args, int64_t begin, int64_t end, A* scratch) {
  const int64_t padded = padded_length(args.length);
  if (!args.planes) {
    memset(scratch, 0, 2 * padded * sizeof(A));
  }
  with_activation<A>(args, [&](const auto& activate) {
    for_items<A>(args, begin, end, [&](int64_t offset, auto of) {
      using G = Gradient<T, A, decltype(activate), decltype(of)>;
      const auto gradient_at = [&](int64_t i) {
        return G{
            at_offset<T>(args.input, i),
            at_offset<T>(args.residual, i),
            at_offset<T>(args.output, i),
            at_offset<T>(args.grad, i),
            args,
            activate,
            of
        };
      };
      T* dz = static_cast<T*>(args.result);
      if (!args.planes) {
        const G gradient = gradient_at(offset);
        T* to = dz == nullptr ? nullptr : dz + offset;
        for_vectors<A>(
            0, args.length, Sum<T, A, G, ByChannel<A>>{gradient, to, {scratch, scratch + padded}}
        );
        return;
      }
      double first = 0, second = 0;
      for (int64_t i = 0; i < args.length; i += kChunk) {
        vector_t<A> lanes[2] = {};
        const G gradient = gradient_at(offset + i);
        T* to = dz == nullptr ? nullptr : dz + offset + i;
        const int64_t n = args.length - i < kChunk ? args.length - i : kChunk;
        for_vectors<A>(0, n, Sum<T, A, G, InRegisters<A>>{gradient, to, {lanes[0], lanes[1]}});
        first += sum_of_lanes<A, double>(lanes[0]);
        second += sum_of_lanes<A, double>(lanes[1]);
      }
      double* partials = partials_of(args, offset / args.length);
      partials[0] = first;
      partials[args.C] = second;
    });
  });
  if (!args.planes) {
    double* partials = partials_of(args, begin);
    for (int64_t c = 0; c < args.C; ++c) {
      partials[c] = scratch[c];
      partials[args.C + c] = scratch[padded + c];
    }
  }
}

template <typename T, typename A, typename G>
struct Backward {
  const G& gradient;
  T* dx;

  template <Span kSpan>
  void run(int64_t at, int64_t count) const {
    vector_t<A> d;
    const vector_t<A> g = gradient.template dz<kSpan>(at, count, d);
    const BatchNormReluArgs& args = gradient.args;
    const auto rest = multiply_add(d, gradient.of(args.slope, at), gradient.of(args.offset, at));
    store_lanes<kSpan>(dx + at, multiply_add(g, gradient.of(args.scale, at), rest), count);
  }
};

template <typename T, typename A>
void backward(const BatchNormReluArgs& args, int64_t begin, int64_t end) {
  with_activation<A>(args, [&](const auto& activate) {
    for_items<A>(args, begin, end, [&](int64_t offset, auto of) {
      using G = Gradient<T, A, decltype(activate), decltype(of)>;
      const G gradient{
          at_offset<T>(args.input, offset),
          nullptr,
          nullptr,
          at_offset<T>(args.grad, offset),
          args,
          activate,
          of
      };
      for_vectors<A>(
          0, args.length, Backward<T, A, G>{gradient, static_cast<T*>(args.result) + offset}
      );
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
