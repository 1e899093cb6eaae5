// Activations on the vectors of simd.h, for files of csrc/cpu.
#pragma once

#include "common/activation.h"
#include "common/simd_math.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// Bounds of the clamping activations, x < low ? low : x > high ? high : x, which propagates NaN.
// The others have no bounds.
template <typename T>
struct Bounds {
  T low, high;

  explicit Bounds(Activation activation)
      : low(activation == Activation::relu || activation == Activation::relu6
                ? T(0)
                : T(-__builtin_inf())),
        high(activation == Activation::relu6 ? T(6) : T(__builtin_inf())) {}
};

template <typename V>
inline V clamp(V x, V low, V high) {
  const V above = x < low ? low : x;
  return above > high ? high : above;
}

// exp() saturates where the result would be infinite
template <typename T>
constexpr T kMostExponent = sizeof(T) == 4 ? T(88) : T(709);

template <typename T>
inline vector_t<T> sigmoid(vector_t<T> x) {
  const vector_t<T> most = broadcast(kMostExponent<T>);
  return T(1) / (exp(-x > most ? most : -x) + T(1));
}

// NaN at minus infinity, as in torch
template <typename T>
inline vector_t<T> silu(vector_t<T> x) {
  const vector_t<T> most = broadcast(kMostExponent<T>), infinity = broadcast(T(__builtin_inf()));
  return x / (-x > most ? infinity : exp(-x) + T(1));
}

// Calls apply(f) with the function of `activation`, to dispatch outside of loops.
template <typename T, typename Apply>
inline void with_activation(Activation activation, T negative_slope, const Apply& apply) {
  using V = vector_t<T>;
  switch (activation) {
    case Activation::none:
      return apply([](V x) { return x; });
    case Activation::relu:
    case Activation::relu6: {
      const Bounds<T> bounds(activation);
      const V low = broadcast(bounds.low), high = broadcast(bounds.high);
      return apply([=](V x) { return clamp(x, low, high); });
    }
    case Activation::leaky_relu: {
      const V slope = broadcast(negative_slope);
      return apply([=](V x) { return x > V{} ? x : x * slope; });
    }
    case Activation::silu:
      return apply([](V x) { return silu<T>(x); });
    case Activation::hardswish: {
      const V six = broadcast(T(6));
      return apply([=](V x) { return x * clamp(x + T(3), V{}, six) / six; });
    }
    case Activation::sigmoid:
      return apply([](V x) { return sigmoid<T>(x); });
  }
}

// In place, for results that are stored but still in the cache.
template <typename T>
inline void activate(T* values, int64_t count, Activation activation, T negative_slope) {
  with_activation<T>(activation, negative_slope, [&](auto f) {
    int64_t i = 0;
    for (; i + lanes_v<T> <= count; i += lanes_v<T>) {
      store(values + i, f(load(values + i)));
    }
    if (i < count) {
      const int rest = (int)(count - i);
      store_partial(values + i, f(load_partial(values + i, rest)), rest);
    }
  });
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
