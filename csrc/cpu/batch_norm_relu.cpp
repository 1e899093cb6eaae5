// Batch normalization, residual and activation in one pass.
#include "ops/batch_norm_relu.h"

#include "cpu/batch_norm_relu_activations.h"
#include "cpu/batch_norm_relu_items.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename T, typename A, typename Activate, typename Constants>
struct Forward {
  const T* x;
  const T* residual;
  T* y;
  const BatchNormReluArgs& args;
  const Activate& activate;
  Constants of;

  template <Span kSpan>
  void run(int64_t at, int64_t count) const {
    const auto d = load_stream<kSpan>(x + at, count) - of(args.mean, at);
    auto z = multiply_add(d, of(args.scale, at), of(args.shift, at));
    if (residual != nullptr) {
      z += load_stream<kSpan>(residual + at, count);
    }
    store_lanes<kSpan>(y + at, activate.value(z), count);
  }
};

template <typename T, typename A>
void forward(const BatchNormReluArgs& args, int64_t begin, int64_t end) {
  with_activation<A>(args, [&](const auto& activate) {
    for_items<A>(args, begin, end, [&](int64_t offset, auto of) {
      const Forward<T, A, decltype(activate), decltype(of)> step{
          at_offset<T>(args.input, offset),
          at_offset<T>(args.residual, offset),
          static_cast<T*>(args.result) + offset,
          args,
          activate,
          of
      };
      for_vectors<A>(0, args.length, step);
    });
  });
}

}  // namespace

#define FASTVISION_DEFINE_FORWARD(T, A)                                       \
  void batch_norm_relu_forward(                                               \
      const T*, const BatchNormReluArgs& args, int64_t begin, int64_t end, A* \
  ) {                                                                         \
    forward<T, A>(args, begin, end);                                          \
  }
FASTVISION_DEFINE_FORWARD(float, float)
FASTVISION_DEFINE_FORWARD(double, double)
FASTVISION_DEFINE_FORWARD(half_t, float)
FASTVISION_DEFINE_FORWARD(bfloat16_t, float)
#undef FASTVISION_DEFINE_FORWARD

}  // namespace fastvision::FASTVISION_ISA
