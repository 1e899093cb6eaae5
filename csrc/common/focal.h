// Focal loss of one logit and its derivative (Lin et al., Focal Loss for Dense Object Detection,
// equation 5), shared by CPU vectors and GPU threads. M provides abs, exp, log, at_least_zero,
// log1p, reciprocal and the largest finite number; A is float or double, V is A or a vector of A.
//
// With p = sigmoid(x), the loss of a negative is p^gamma * log(1 + e^x); a positive is a negative
// at -x. Only e^-|x| is computed, so nothing overflows, and infinite logits give the limits.
#pragma once

#if defined(__CUDACC__) || defined(FASTVISION_CUDA_EMULATION)
#define FASTVISION_INLINE __device__ __forceinline__
#else
#define FASTVISION_INLINE inline __attribute__((always_inline))
#endif

namespace fastvision {

// The exponent gamma; small integers are computed by multiplication.
enum FocalPower { kPowerZero, kPowerOne, kPowerTwo, kPowerThree, kPowerAny };

template <typename A>
struct FocalParams {
  A positive;  // weights: alpha and 1 - alpha, or 1 and 1
  A negative;
  A gamma;
  A grad_scale;
  FocalPower power;
};

inline FocalPower focal_power(double gamma) {
  return gamma == 0   ? kPowerZero
         : gamma == 1 ? kPowerOne
         : gamma == 2 ? kPowerTwo
         : gamma == 3 ? kPowerThree
                      : kPowerAny;
}

// alpha below 0 disables the weights
template <typename A>
FocalParams<A> focal_params(double alpha, double gamma, double grad_scale) {
  return {
      static_cast<A>(alpha < 0 ? 1 : alpha),
      static_cast<A>(alpha < 0 ? 1 : 1 - alpha),
      static_cast<A>(gamma),
      static_cast<A>(grad_scale),
      focal_power(gamma)
  };
}

template <typename V>
struct FocalTerm {
  V loss;
  V grad;  // derivative of the loss with respect to the logit
};

template <typename V, typename A>
FASTVISION_INLINE V focal_small_power(V base, FocalPower power, A one) {
  switch (power) {
    case kPowerOne:
      return base;
    case kPowerTwo:
      return base * base;
    case kPowerThree:
      return base * base * base;
    default:
      return V{} + one;
  }
}

template <typename M, typename V>
FASTVISION_INLINE V focal_finite(V x) {
  return x > M::largest ? V{} + M::largest : x;  // NaN stays
}

// Loss of a negative, unweighted.
template <typename M, bool kGrad, typename V, typename A>
FASTVISION_INLINE FocalTerm<V> focal_negative(V x, const FocalParams<A>& params) {
  const V zero{};
  const V magnitude = M::abs(x);
  const V e = M::exp(-magnitude);
  const V log1p_e = M::log1p(e);
  const V large = M::reciprocal(e + A(1));
  const V small = e * large;
  const V p = x < zero ? small : large;
  const V softplus = log1p_e + M::at_least_zero(x);
  const V modulator = params.power == kPowerAny
                          ? M::exp(-params.gamma * (log1p_e + (x < zero ? magnitude : zero)))
                          : focal_small_power(p, params.power, A(1));
  FocalTerm<V> term{modulator * softplus, zero};
  if constexpr (kGrad) {
    const V rest = x < zero ? large : small;
    // e^-x * x has the limit 0
    term.grad = modulator * (params.gamma * rest * focal_finite<M>(softplus) + p);
  }
  return term;
}

// Weighted loss for a floating-point target t.
template <typename M, bool kGrad, typename V, typename A>
FASTVISION_INLINE FocalTerm<V> focal_soft(V x, V t, const FocalParams<A>& params) {
  const V zero{};
  const V magnitude = M::abs(x);
  const V e = M::exp(-magnitude);
  const V large = M::reciprocal(e + A(1));
  const V small = e * large;
  const V p = x < zero ? small : large;
  const V rest = x < zero ? large : small;
  const V f = A(1) - t;
  const V share = x < zero ? t : f;  // the part of the loss that grows with |x|
  const V cross_entropy = M::log1p(e) + (share == zero ? zero : share * magnitude);
  const V miss = p * f + rest * t;
  const V modulator = params.power == kPowerAny ? M::exp_capped(params.gamma * M::log(miss))
                                                : focal_small_power(miss, params.power, A(1));
  const V weighted = (params.positive * t + params.negative * f) * modulator;
  FocalTerm<V> term{weighted * cross_entropy, zero};
  if constexpr (kGrad) {
    const V slope = miss == zero ? zero + A(1) : p * rest / miss;
    term.grad = weighted * ((p * f - rest * t) +
                            params.gamma * (f - t) * slope * focal_finite<M>(cross_entropy));
  }
  return term;
}

// Softmax focal loss of one row, u^gamma * -log(p) with the label's probability p and u = 1 - p.
// Its derivative with respect to logit j is factor * (p_j - [j is the label]).
template <typename M, typename A>
FASTVISION_INLINE FocalTerm<A> focal_softmax(A p, A u, A log_p, const FocalParams<A>& params) {
  const A modulator = params.power == kPowerAny ? M::exp(params.gamma * M::log(u))
                                                : focal_small_power(u, params.power, A(1));
  // p log(p) and log(p) / (1 - p) have the limits 0 and -1
  const A slope = u == A(0) ? A(-1) : p == A(0) ? A(0) : p * log_p / u;
  return {-modulator * log_p, modulator * (A(1) - params.gamma * slope)};
}

}  // namespace fastvision
