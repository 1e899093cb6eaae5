// Focal loss on the CPU. With labels, the logits between two positives are a run of negatives,
// contiguous in memory over any number of rows.
#include "ops/focal_loss.h"

#include "common/simd_lanes.h"
#include "common/simd_math.h"
#include "common/simd_sum.h"
#include "common/simd_value.h"

namespace fastvision::FASTVISION_ISA {
namespace {

template <typename A>
struct Math {
  using V = vector_t<A>;
  static constexpr A largest = sizeof(A) == sizeof(float) ? A(__FLT_MAX__) : A(__DBL_MAX__);
  static inline V abs(V x) { return absolute(x); }
  static inline V at_least_zero(V x) { return at_least(x, A(0)); }
  static inline V exp(V x) { return FASTVISION_ISA::exp(x); }
  static inline V exp_capped(V x) {  // x may be positive for targets outside [0, 1]
    constexpr A kMost = sizeof(A) == sizeof(float) ? A(88) : A(709);
    return exp(x > kMost ? V{} + kMost : x);
  }
  static inline V log(V x) { return FASTVISION_ISA::log(x); }
  static inline V log1p(V x) { return FASTVISION_ISA::log1p(x); }
  static inline V reciprocal(V x) { return A(1) / x; }
};

// for the single value of a row, always in double
struct ScalarMath {
  static constexpr double largest = __DBL_MAX__;
  static inline double exp(double x) { return __builtin_exp(x); }
  static inline double log(double x) { return __builtin_log(x); }
};

// Vectors summed in A before going on in double: the loss of millions of easy negatives is a sum of
// very small numbers.
constexpr int kVectorsPerSum = 32;
// Vectors scanned for easy negatives before the others among them are computed.
constexpr int kBlock = 256;

template <typename T>
inline auto load_filled(const T* p, int count, accumulate_t<T> fill) {
  constexpr int lanes = lanes_v<accumulate_t<T>>;
  T buffer[lanes];
  store(buffer, broadcast(fill));
  memcpy(buffer, p, count * sizeof(T));
  return load(buffer);
}

// Calls add(i, sum of some vectors) for i in [0, count); returns the total.
template <typename A, typename F>
inline double sum_of_vectors(int count, const F& add) {
  double sum = 0;
  for (int i = 0; i < count;) {
    const int end = i + kVectorsPerSum < count ? i + kVectorsPerSum : count;
    vector_t<A> recent{};
    for (; i < end; ++i) {
      add(i, recent);
    }
    sum += sum_of_lanes<A, double>(recent);
  }
  return sum;
}

constexpr double kInfinity = __builtin_inf();

// Pointers into one level. targets are null with labels; losses and grads may be.
template <typename T>
struct Elements {
  const T* inputs;
  const T* targets;
  T* losses;
  T* grads;

  inline Elements at(int64_t offset) const {
    return {
        inputs + offset,
        targets ? targets + offset : nullptr,
        losses ? losses + offset : nullptr,
        grads ? grads + offset : nullptr
    };
  }
};

template <bool kTargets, typename T>
inline bool are_negatives(const Elements<T>& vector) {
  if constexpr (kTargets) {
    return movemask(load(vector.targets) != accumulate_t<T>(0)) == 0;
  }
  return true;
}

// Indices of a block's vectors that have more than easy negatives.
struct Others {
  int count = 0;
  uint16_t index[kBlock];
};

// Nearly all logits of a detector are far below 0, and gamma is usually 2. With e = e^x,
// p^2 log(1 + e) and its derivative are then e^3 times short polynomials (fitted for e <= 1/6,
// relative error at most 1e-7 and 3e-7). The general formula would take registers from this loop,
// so vectors that need it are listed.
template <typename T, bool kTargets, bool kGrad>
inline double easy_negatives(
    const Elements<T>& elements, int vectors, const FocalParams<float>& params, Others& others
) {
  constexpr float kEasy = -1.7917595f;
  constexpr float kLoss[] = {
      0.99999991f, -2.49996207f, 4.33069884f, -6.34830019f, 7.87267682f, -6.2190022f
  };
  constexpr int lanes = lanes_v<float>;
  [[maybe_unused]] const float grad_scale = params.negative * params.grad_scale;
  const auto add = [&](int i, float_v& sum) {
    const Elements<T> vector = elements.at(i * lanes);
    const float_v x = load(vector.inputs);
    int32_v easy = x <= kEasy;
    if constexpr (kTargets) {
      easy &= load(vector.targets) == 0.0f;
    }
    if (movemask(easy) != (1u << lanes) - 1) {
      others.index[others.count++] = static_cast<uint16_t>(i);
      return;
    }
    // smaller values also have a cube of 0
    const float_v e = exp_of_normal(at_least(x, -80.0f));
    const float_v cube = e * e * e;
    const float_v loss = polynomial(e, kLoss);
    if (vector.losses) {
      store(vector.losses, cube * loss * params.negative);
    } else {
      sum = multiply_add(cube, loss, sum);
    }
    if constexpr (kGrad) {
      constexpr float kDerivative[] = {
          2.9999992f, -9.99966746f, 21.6437964f, -37.9094602f, 53.7513814f, -46.2026104f
      };
      store(vector.grads, cube * grad_scale * polynomial(e, kDerivative));
    }
  };
  return sum_of_vectors<float>(vectors, add) * params.negative;
}

// The vectors index(0), index(1), ...
template <typename T, bool kTargets, bool kGrad, typename A, typename Index>
inline double any_elements(
    const Elements<T>& elements, int vectors, const FocalParams<A>& params, const Index& index
) {
  using V = vector_t<A>;
  return sum_of_vectors<A>(vectors, [&](int i, V& sum) {
    const Elements<T> vector = elements.at(index(i) * lanes_v<A>);
    const V x = load(vector.inputs);
    FocalTerm<V> term;
    if (are_negatives<kTargets>(vector)) {
      term = focal_negative<Math<A>, kGrad>(x, params);
      term = {term.loss * params.negative, term.grad * params.negative};
    } else {
      term = focal_soft<Math<A>, kGrad>(x, load(vector.targets), params);
    }
    if (vector.losses) {
      store(vector.losses, term.loss);
    } else {
      sum += term.loss;
    }
    if constexpr (kGrad) {
      store(vector.grads, term.grad * params.grad_scale);
    }
  });
}

// Writes losses and gradients of `count` elements; returns the sum if losses are not written.
template <typename T, bool kTargets, bool kGrad, typename A>
inline double elementwise(
    const Elements<T>& elements, int64_t count, const FocalParams<A>& params
) {
  constexpr int lanes = lanes_v<A>;
  [[maybe_unused]] bool try_easy = params.power == kPowerTwo;
  double sum = 0;
  int64_t i = 0;
  while (i + lanes <= count) {
    const int vectors = static_cast<int>(min(kBlock, (count - i) / lanes));
    const Elements<T> block = elements.at(i);
    i += vectors * lanes;
    if constexpr (sizeof(A) == sizeof(float)) {
      if (try_easy) {
        Others others;
        sum += easy_negatives<T, kTargets, kGrad>(block, vectors, params, others);
        const auto index = [&](int i) { return others.index[i]; };
        sum += any_elements<T, kTargets, kGrad>(block, others.count, params, index);
        try_easy = others.count <= vectors / 2;  // otherwise scanning does not pay
        continue;
      }
    }
    sum += any_elements<T, kTargets, kGrad>(block, vectors, params, [](int i) { return i; });
  }
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    const Elements<T> last = elements.at(i);
    // a negative at -infinity has no loss
    T inputs[lanes], targets[lanes], losses[lanes], grads[lanes];
    store(inputs, load_filled(last.inputs, rest, A(-kInfinity)));
    if constexpr (kTargets) {
      store(targets, load_filled(last.targets, rest, A(0)));
    }
    const Elements<T> padded{inputs, targets, last.losses ? losses : nullptr, grads};
    sum += elementwise<T, kTargets, kGrad>(padded, lanes, params);
    if (last.losses) {
      memcpy(last.losses, losses, rest * sizeof(T));
    }
    if constexpr (kGrad) {
      memcpy(last.grads, grads, rest * sizeof(T));
    }
  }
  return sum;
}

template <typename T, bool kGrad, typename A>
inline double positive(const Elements<T>& element, const FocalParams<A>& params) {
  const auto x = load_filled(element.inputs, 1, A(0));
  const auto term = focal_negative<Math<A>, kGrad>(-x, params);
  const auto loss = term.loss * params.positive;
  if constexpr (kGrad) {
    store_partial(element.grads, term.grad * (-params.positive * params.grad_scale), 1);
  }
  if (element.losses) {
    store_partial(element.losses, loss, 1);
    return 0;
  }
  return loss[0];
}

template <typename T>
inline void zeros(const Elements<T>& elements, int64_t count) {
  if (elements.losses) {
    memset(elements.losses, 0, count * sizeof(T));
  }
  if (elements.grads) {
    memset(elements.grads, 0, count * sizeof(T));
  }
}

template <typename T, bool kGrad, typename A>
FocalResult with_labels(
    const Elements<T>& level,
    const int64_t* labels,
    int64_t K,
    const FocalTask& task,
    const FocalParams<A>& params
) {
  double sum = 0;
  int64_t bad_row = -1;
  int64_t run = task.begin * K;  // begin of the run of negatives
  const auto finish_run = [&](int64_t end) {
    if (run < end) {
      sum += elementwise<T, false, kGrad>(level.at(run), end - run, params);
    }
  };
  for (int64_t row = task.begin; row < task.end; ++row) {
    const int64_t label = labels[row];
    if (label == -1) {
      continue;
    }
    if (label >= 0 && label < K) {
      const int64_t at = row * K + label;
      finish_run(at);
      sum += positive<T, kGrad>(level.at(at), params);
      run = at + 1;
      continue;
    }
    if (label >= K && bad_row < 0) {
      bad_row = row;
    }
    finish_run(row * K);
    zeros(level.at(row * K), K);
    run = (row + 1) * K;
  }
  finish_run(task.end * K);
  return {sum, bad_row};
}

template <typename T, bool kGrad>
FocalResult sigmoid(const FocalArgs& args, const FocalTask& task) {
  using A = accumulate_t<T>;
  const FocalLevel& level = args.levels[task.level];
  const FocalParams<A> params = focal_params<A>(args.alpha, args.gamma, args.grad_scale);
  const Elements<T> elements{
      static_cast<const T*>(level.inputs),
      args.labels ? nullptr : static_cast<const T*>(level.targets),
      static_cast<T*>(level.losses),
      static_cast<T*>(level.grads),
  };
  if (args.labels) {
    const auto* labels = static_cast<const int64_t*>(level.targets);
    return with_labels<T, kGrad>(elements, labels, args.K, task, params);
  }
  const int64_t count = task.end - task.begin;
  return {elementwise<T, true, kGrad>(elements.at(task.begin), count, params), -1};
}

// Calls f(offset, vector) for all vectors of a row; lanes past the end are -infinity.
template <typename T, typename F>
inline void for_row(const T* row, int64_t K, const F& f) {
  using A = accumulate_t<T>;
  constexpr int lanes = lanes_v<A>;
  int64_t i = 0;
  for (; i + lanes <= K; i += lanes) {
    f(i, load(row + i));
  }
  if (i < K) {
    f(i, load_filled(row + i, static_cast<int>(K - i), A(-kInfinity)));
  }
}

template <typename T, typename A>
FocalResult softmax(const FocalArgs& args, const FocalTask& task, A* exponentials) {
  using V = vector_t<A>;
  constexpr int lanes = lanes_v<A>;
  const FocalLevel& level = args.levels[task.level];
  const auto params = focal_params<double>(-1, args.gamma, args.grad_scale);
  const auto* weights = static_cast<const A*>(args.class_weights);
  const auto* labels = static_cast<const int64_t*>(level.targets);
  const int64_t K = args.K;
  FocalResult result{0, -1};
  for (int64_t r = task.begin; r < task.end; ++r) {
    const int64_t label = labels[r];
    T* loss_out = level.losses ? static_cast<T*>(level.losses) + r : nullptr;
    T* grad = level.grads ? static_cast<T*>(level.grads) + r * K : nullptr;
    if (label == args.ignore_index || label < 0 || label >= K) {
      if (label != args.ignore_index && result.bad_row < 0) {
        result.bad_row = r;
      }
      zeros(Elements<T>{nullptr, nullptr, loss_out, nullptr}, 1);
      zeros(Elements<T>{nullptr, nullptr, nullptr, grad}, K);
      continue;
    }
    const T* row = static_cast<const T*>(level.inputs) + r * K;
    V most_v = broadcast(A(-kInfinity));
    for_row(row, K, [&](int64_t, V x) { most_v = max(most_v, x); });
    const A most = largest_lane<A>(most_v);
    // 1 - p as a sum over the other classes, to avoid cancellation
    V others_v{};
    for_row(row, K, [&](int64_t i, V x) {
      const V e = exp(x - most);
      store(exponentials + i, e);
      const int64_t none = -1, at = min(max(label - i, none), int64_t{lanes});
      others_v += places_from<A>(0, 1) == static_cast<lane_t<A>>(at) ? V{} : e;
    });
    const double own = exponentials[label];
    const double others = sum_of_lanes<A, double>(others_v);
    const double sum = own + others;
    const double x = static_cast<double>(value_of(row + label)) - most;
    const double log_p = x == 0 ? -__builtin_log1p(others) : x - __builtin_log(sum);
    const auto term = focal_softmax<ScalarMath>(own / sum, others / sum, log_p, params);
    const double weight = weights ? double(weights[label]) : 1.0;
    const double loss = term.loss * weight;
    if (loss_out) {
      store_value(loss_out, static_cast<A>(loss));
    } else {
      result.sum += loss;
    }
    if (grad) {
      const double factor = term.grad * weight * args.grad_scale;
      const V scale = broadcast(A(factor / sum));
      int64_t i = 0;
      for (; i + lanes <= K; i += lanes) {
        store(grad + i, load(exponentials + i) * scale);
      }
      if (i < K) {
        store_partial(grad + i, load(exponentials + i) * scale, static_cast<int>(K - i));
      }
      store_partial(grad + label, broadcast(A(-factor * (others / sum))), 1);
    }
  }
  return result;
}

template <typename T>
void scale_in_place(T* grads, int64_t count, accumulate_t<T> factor) {
  constexpr int lanes = lanes_v<accumulate_t<T>>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    store(grads + i, load(grads + i) * factor);
  }
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    store_partial(grads + i, load_partial(grads + i, rest) * factor, rest);
  }
}

}  // namespace

#define FASTVISION_DEFINE_FOCAL_LOSS(T, A)                                                 \
  FocalResult sigmoid_focal_loss(const T*, const FocalArgs& args, const FocalTask& task) { \
    return args.levels[task.level].grads ? sigmoid<T, true>(args, task)                    \
                                         : sigmoid<T, false>(args, task);                  \
  }                                                                                        \
  FocalResult softmax_focal_loss(                                                          \
      const T*, const FocalArgs& args, const FocalTask& task, A* scratch                   \
  ) {                                                                                      \
    return softmax<T, A>(args, task, scratch);                                             \
  }                                                                                        \
  void focal_loss_scale(T* grads, int64_t count, double factor) {                          \
    scale_in_place<T>(grads, count, static_cast<A>(factor));                               \
  }
FASTVISION_DEFINE_FOCAL_LOSS(float, float)
FASTVISION_DEFINE_FOCAL_LOSS(double, double)
FASTVISION_DEFINE_FOCAL_LOSS(half_t, float)
FASTVISION_DEFINE_FOCAL_LOSS(bfloat16_t, float)

}  // namespace fastvision::FASTVISION_ISA
