// Mean and sum of squared deviations per block of items and channel.
#include "ops/batch_norm_relu.h"

#include "cpu/batch_norm_relu_items.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// Two passes over each chunk, for its mean and for the deviations from it, avoid cancellation even
// if the mean is large. Chunks are merged by the pairwise update (Chan, Golub and LeVeque 1983).
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
    const double total = sum_of_lanes<A, double>((sum[0] + sum[1]) + (sum[2] + sum[3]));
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
    const double rest = sum_of_lanes<A, double>(first[0] + first[1]) * share;
    const double chunk_mean = centre[0] + rest;
    const double chunk_squares = sum_of_lanes<A, double>(second[0] + second[1]) - rest * rest * n;
    const double difference = chunk_mean - mean;
    const double part = static_cast<double>(n) / (begin + n);
    mean += difference * part;
    squares += chunk_squares + difference * difference * part * begin;
  }
}

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
  const int64_t padded = padded_length(length);
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

}  // namespace

#define FASTVISION_DEFINE_STATISTICS(T, A)                                            \
  void batch_norm_relu_statistics(                                                    \
      const T*, const BatchNormReluArgs& args, int64_t begin, int64_t end, A* scratch \
  ) {                                                                                 \
    statistics<T, A>(args, begin, end, scratch);                                      \
  }
FASTVISION_DEFINE_STATISTICS(float, float)
FASTVISION_DEFINE_STATISTICS(double, double)
FASTVISION_DEFINE_STATISTICS(half_t, float)
FASTVISION_DEFINE_STATISTICS(bfloat16_t, float)
#undef FASTVISION_DEFINE_STATISTICS

}  // namespace fastvision::FASTVISION_ISA
