// Batch normalization, residual and activation on the CPU. Lanes run along a plane, which shares
// its channel's constants, or along a row, whose lanes are different channels.
#include "ops/batch_norm_relu.h"

#include "common/simd.h"
#include "common/simd_activation.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// elements of a plane whose sum is taken in float before it goes on in double; they stay in the
// first-level cache for the second look at them
constexpr int64_t kChunk = 2048;

// A vector of an item: whole; the last one of an item that is no multiple of a vector, which starts
// early and so has lanes that were handled before; all of an item that is shorter than a vector.
enum class Span { whole, overlapping, partial };

template <Span kSpan, typename T>
inline auto load_lanes(const T* p, int64_t count) {
  if constexpr (kSpan == Span::partial) {
    return load_partial(p, static_cast<int>(count));
  } else {
    return load(p);
  }
}

template <Span kSpan, typename T, typename V>
inline void store_lanes(T* p, V v, int64_t count) {
  if constexpr (kSpan == Span::partial) {
    store_partial(p, v, static_cast<int>(count));
  } else {
    store(p, v);
  }
}

// Zero in the lanes that have no element of their own: the last `count` or first `count` have one.
template <Span kSpan, typename A>
inline vector_t<A> own_lanes(vector_t<A> v, int64_t count) {
  if constexpr (kSpan == Span::whole) {
    return v;
  } else {
    vector_t<A> lane;
    for (int i = 0; i < lanes_v<A>; ++i) {
      lane[i] = kSpan == Span::overlapping ? lanes_v<A> - 1 - i : i;
    }
    return lane < broadcast(static_cast<A>(count)) ? v : vector_t<A>{};
  }
}

template <typename A>
inline double sum_of_lanes(vector_t<A> v) {
  double sum = 0;
  for (int i = 0; i < lanes_v<A>; ++i) {
    sum += v[i];
  }
  return sum;
}

// ---- activations: value(z), and gradient(g, z) = g * value'(z)

// none, relu and relu6. A limit that is not there is NaN: no comparison with it holds, and a z that
// is NaN passes all of them.
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

// ---- constants of a channel, by lane

// Of a plane: the same in every lane.
template <typename A>
struct OfPlane {
  int64_t channel;

  vector_t<A> operator()(const void* values, int64_t) const {
    return broadcast(static_cast<const A*>(values)[channel]);
  }
};

// Of a row: of the channels from `at` on.
template <typename A>
struct OfRow {
  vector_t<A> operator()(const void* values, int64_t at) const {
    return load(static_cast<const A*>(values) + at);
  }
};

// Calls step.run<span>(at, count of lanes of its own) for the vectors of an item from `at` on.
template <typename A, typename Step>
inline void for_vectors(int64_t at, int64_t length, const Step& step) {
  constexpr int64_t lanes = lanes_v<A>;
  for (; at + lanes <= length; at += lanes) {
    step.template run<Span::whole>(at, lanes);
  }
  if (at < length && length >= lanes) {
    step.template run<Span::overlapping>(length - lanes, length - at);
  } else if (at < length) {
    step.template run<Span::partial>(at, length - at);
  }
}

// Calls item(offset of its first element, its constants) for the items [begin, end).
template <typename A, typename F>
inline void for_items(const BatchNormReluArgs& args, int64_t begin, int64_t end, const F& item) {
  for (int64_t i = begin; i < end; ++i) {
    if (args.planes) {
      item(i * args.length, OfPlane<A>{i % args.C});
    } else {
      item(i * args.length, OfRow<A>{});
    }
  }
}

// ---- statistics

// Each chunk is looked at twice: for its mean, then for the deviations from it, which cancel
// nothing however far from zero the values are (Chan, Golub and LeVeque 1983, the pairwise update).
template <typename T, typename A>
struct AddTo {
  const T* x;
  vector_t<A>& sum;

  template <Span kSpan>
  void run(int64_t at, int64_t count) const {
    sum += own_lanes<kSpan, A>(load_lanes<kSpan>(x + at, count), count);
  }
};

template <typename T, typename A>
struct AddDeviationsTo {
  const T* x;
  vector_t<A> centre;
  vector_t<A>& first;
  vector_t<A>& second;

  template <Span kSpan>
  void run(int64_t at, int64_t count) const {
    const auto d = own_lanes<kSpan, A>(load_lanes<kSpan>(x + at, count) - centre, count);
    first += d;
    second = multiply_add(d, d, second);
  }
};

template <typename T, typename A>
void plane_statistics(const T* x, int64_t length, double& mean, double& squares) {
  using V = vector_t<A>;
  constexpr int64_t lanes = lanes_v<A>;
  mean = squares = 0;
  for (int64_t begin = 0; begin < length; begin += kChunk) {
    const int64_t n = length - begin < kChunk ? length - begin : kChunk;
    const T* chunk = x + begin;
    V sum[4] = {};
    int64_t i = 0;
    for (; i + 4 * lanes <= n; i += 4 * lanes) {
      for (int u = 0; u < 4; ++u) {
        sum[u] += load(chunk + i + u * lanes);
      }
    }
    for_vectors<A>(i, n, AddTo<T, A>{chunk, sum[0]});
    const double share = 1.0 / n;
    const double total = sum_of_lanes<A>((sum[0] + sum[1]) + (sum[2] + sum[3]));
    const V centre = broadcast(static_cast<A>(total * share));

    V first[2] = {}, second[2] = {};
    for (i = 0; i + 2 * lanes <= n; i += 2 * lanes) {
      for (int u = 0; u < 2; ++u) {
        const V d = load(chunk + i + u * lanes) - centre;
        first[u] += d;
        second[u] = multiply_add(d, d, second[u]);
      }
    }
    for_vectors<A>(i, n, AddDeviationsTo<T, A>{chunk, centre, first[0], second[0]});
    const double rest = sum_of_lanes<A>(first[0] + first[1]) * share;
    const double chunk_mean = centre[0] + rest;
    const double chunk_squares = sum_of_lanes<A>(second[0] + second[1]) - rest * rest * n;
    const double difference = chunk_mean - mean;
    const double part = static_cast<double>(n) / (begin + n);
    mean += difference * part;
    squares += chunk_squares + difference * difference * part * begin;
  }
}

// Adds up a block of rows in pieces of a few rows, so that a sum in scratch is seldom loaded.
constexpr int kRows = 4;

template <typename T, typename A>
struct AddRows {
  const T* x;
  int64_t length;
  A* sum;

  template <Span kSpan>
  void run(int64_t at, int64_t count) const {
    const T* p = x + at;
    const auto a = load_lanes<kSpan>(p, count) + load_lanes<kSpan>(p + length, count);
    const auto b =
        load_lanes<kSpan>(p + 2 * length, count) + load_lanes<kSpan>(p + 3 * length, count);
    store(sum + at, load(sum + at) + own_lanes<kSpan, A>(a + b, count));
  }
};

template <typename T, typename A>
struct AddRow {
  const T* x;
  A* sum;

  template <Span kSpan>
  void run(int64_t at, int64_t count) const {
    store(sum + at, load(sum + at) + own_lanes<kSpan, A>(load_lanes<kSpan>(x + at, count), count));
  }
};

template <int kCount, typename T, typename A>
struct AddDeviations {
  const T* x;
  int64_t length;
  const A* centre;
  A* first;
  A* second;

  template <Span kSpan>
  void run(int64_t at, int64_t count) const {
    const auto c = load(centre + at);
    auto a = load(first + at), b = load(second + at);
    for (int row = 0; row < kCount; ++row) {
      const auto d =
          own_lanes<kSpan, A>(load_lanes<kSpan>(x + row * length + at, count) - c, count);
      a += d;
      b = multiply_add(d, d, b);
    }
    store(first + at, a);
    store(second + at, b);
  }
};

template <typename T, typename A>
void row_statistics(
    const T* x, int64_t rows, int64_t length, A* scratch, double* mean, double* squares
) {
  const int64_t padded = (length + kBatchNormPadding - 1) / kBatchNormPadding * kBatchNormPadding;
  A* centre = scratch;
  A* first = scratch + padded;
  A* second = scratch + 2 * padded;
  memset(scratch, 0, 3 * padded * sizeof(A));
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    for_vectors<A>(0, length, AddRows<T, A>{x + row * length, length, centre});
  }
  for (; row < rows; ++row) {
    for_vectors<A>(0, length, AddRow<T, A>{x + row * length, centre});
  }
  const A share = A(1) / rows;
  for (int64_t c = 0; c < length; ++c) {
    centre[c] *= share;
  }
  for (row = 0; row + kRows <= rows; row += kRows) {
    for_vectors<A>(
        0, length, AddDeviations<kRows, T, A>{x + row * length, length, centre, first, second}
    );
  }
  for (; row < rows; ++row) {
    for_vectors<A>(
        0, length, AddDeviations<1, T, A>{x + row * length, length, centre, first, second}
    );
  }
  for (int64_t c = 0; c < length; ++c) {
    const double rest = static_cast<double>(first[c]) / rows;
    mean[c] = centre[c] + rest;
    squares[c] = second[c] - rest * rest * rows;
  }
}

// where the partial results of a plane or of a block of rows are; the second ones C further
inline double* partials_of(const BatchNormReluArgs& args, int64_t begin) {
  const int64_t channel = args.planes ? begin % args.C : 0;
  return args.partials + begin / args.block * 2 * args.C + channel;
}

template <typename T, typename A>
void statistics(const BatchNormReluArgs& args, int64_t begin, int64_t end, A* scratch) {
  const T* x = static_cast<const T*>(args.input);
  if (!args.planes) {
    double* mean = partials_of(args, begin);
    row_statistics(x + begin * args.C, end - begin, args.C, scratch, mean, mean + args.C);
    return;
  }
  for (int64_t i = begin; i < end; ++i) {
    double* mean = partials_of(args, i);
    plane_statistics<T, A>(x + i * args.length, args.length, mean[0], mean[args.C]);
  }
}

// ---- forward

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
    const auto d = load_lanes<kSpan>(x + at, count) - of(args.mean, at);
    auto z = multiply_add(d, of(args.scale, at), of(args.shift, at));
    if (residual != nullptr) {
      z += load_lanes<kSpan>(residual + at, count);
    }
    store_lanes<kSpan>(y + at, activate.value(z), count);
  }
};

template <typename T>
inline const T* at_offset(const void* p, int64_t offset) {
  return p == nullptr ? nullptr : static_cast<const T*>(p) + offset;
}

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

// ---- backward

template <typename T, typename A, typename Activate, typename Constants>
struct Gradient {
  const T* x;
  const T* residual;
  const T* y;
  const T* grad;
  const BatchNormReluArgs& args;
  const Activate& activate;
  Constants of;

  // gradient of z, and x - mean
  template <Span kSpan>
  inline auto dz(int64_t at, int64_t count, vector_t<A>& d) const {
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

// Where the two sums go: to a register of partial sums of one channel, or to an array over
// channels.
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
  const int64_t padded =
      (args.length + kBatchNormPadding - 1) / kBatchNormPadding * kBatchNormPadding;
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
        first += sum_of_lanes<A>(lanes[0]);
        second += sum_of_lanes<A>(lanes[1]);
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

#define FASTVISION_DEFINE_BATCH_NORM_RELU(T, A)                                       \
  void batch_norm_relu_statistics(                                                    \
      const T*, const BatchNormReluArgs& args, int64_t begin, int64_t end, A* scratch \
  ) {                                                                                 \
    statistics<T, A>(args, begin, end, scratch);                                      \
  }                                                                                   \
  void batch_norm_relu_forward(                                                       \
      const T*, const BatchNormReluArgs& args, int64_t begin, int64_t end, A*         \
  ) {                                                                                 \
    forward<T, A>(args, begin, end);                                                  \
  }                                                                                   \
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
FASTVISION_DEFINE_BATCH_NORM_RELU(float, float)
FASTVISION_DEFINE_BATCH_NORM_RELU(double, double)
FASTVISION_DEFINE_BATCH_NORM_RELU(half_t, float)
FASTVISION_DEFINE_BATCH_NORM_RELU(bfloat16_t, float)

}  // namespace fastvision::FASTVISION_ISA
