// Activations and their derivatives: value(z), and gradient(g, z) = g * value'(z).
#pragma once

#include "common/simd_activation.h"
#include "ops/batch_norm_relu.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// none, relu and relu6. NaN stands for a missing limit, since comparisons with it are false; they
// are false for NaN z as well, which passes through.
template <typename A>
struct Clamp {
  using V = vector_t<A>;
  V low, high;

  explicit Clamp(const BatchNormReluArgs& args)
      : low(broadcast(args.activation == Activation::none ? A(__builtin_nan("")) : A(0))),
        high(broadcast(args.activation == Activation::relu6 ? A(6) : A(__builtin_nan("")))) {}
  V value(V z) const {
    z = z < low ? low : z;
    return z > high ? high : z;
  }
  V gradient(V g, V z) const { return (z <= low) | (z >= high) ? V{} : g; }
};

template <typename A>
struct LeakyReLU {
  using V = vector_t<A>;
  V slope;

  explicit LeakyReLU(const BatchNormReluArgs& args) : slope(broadcast(A(args.negative_slope))) {}
  V value(V z) const { return z > 0 ? z : z * slope; }
  V gradient(V g, V z) const { return z > 0 ? g : g * slope; }
};

template <typename A>
struct Sigmoid {
  using V = vector_t<A>;

  explicit Sigmoid(const BatchNormReluArgs&) {}
  V value(V z) const { return sigmoid<A>(z); }
  V gradient(V g, V z) const {
    const V s = value(z);
    return g * (s * (1 - s));
  }
};

template <typename A>
struct SiLU {
  using V = vector_t<A>;

  explicit SiLU(const BatchNormReluArgs&) {}
  V value(V z) const { return silu<A>(z); }
  V gradient(V g, V z) const {
    const V s = sigmoid<A>(z);
    return g * (s * (1 + z * (1 - s)));
  }
};

template <typename A>
struct HardSwish {
  using V = vector_t<A>;

  explicit HardSwish(const BatchNormReluArgs&) {}
  V value(V z) const {
    V gate = z + 3;
    gate = gate < 0 ? V{} : gate;
    gate = gate > 6 ? V{} + 6 : gate;
    return z * gate / 6;
  }
  V gradient(V g, V z) const {
    const V inside = g * (z / 3 + A(0.5));
    return z <= -3 ? V{} : (z >= 3 ? g : inside);
  }
};

template <typename A, typename F>
inline void with_activation(const BatchNormReluArgs& args, const F& run) {
  switch (args.activation) {
    case Activation::none:
    case Activation::relu:
    case Activation::relu6:
      return run(Clamp<A>(args));
    case Activation::leaky_relu:
      return run(LeakyReLU<A>(args));
    case Activation::silu:
      return run(SiLU<A>(args));
    case Activation::hardswish:
      return run(HardSwish<A>(args));
    case Activation::sigmoid:
      return run(Sigmoid<A>(args));
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
