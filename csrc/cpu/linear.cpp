// Linear layers of a few rows: the weights of some outputs are read side by side, since several
// streams get more from memory than one.
#include "ops/linear.h"

#include "common/simd.h"
#include "common/simd_activation.h"
#include "common/simd_sum.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// The sums of a single row have two vectors each, to hide the latency of additions.
template <int kRows, int kOutputs, typename T>
inline void linear_tile(const LinearArgs<T>& args, int64_t output) {
  using V = vector_t<T>;
  constexpr int64_t n = lanes_v<T>;
  constexpr int kParts = kRows == 1 ? 2 : 1;
  const int64_t F = args.features;
  const T* weight = args.weight + output * F;
  V sums[kRows][kOutputs][kParts] = {};
  int64_t f = 0;
  for (; f + kParts * n <= F; f += kParts * n) {
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      V x[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        x[r] = load(args.input + r * F + f + part * n);
      }
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) {
        const V w = load(weight + o * F + f + part * n);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          sums[r][o][part] = multiply_add(x[r], w, sums[r][o][part]);
        }
      }
    }
  }
  for (; f < F; f += n) {
    const int count = static_cast<int>(min(F - f, n));
    for (int o = 0; o < kOutputs; ++o) {
      const V w = load_partial(weight + o * F + f, count);
      for (int r = 0; r < kRows; ++r) {
        const V x = load_partial(args.input + r * F + f, count);
        sums[r][o][0] = multiply_add(x, w, sums[r][o][0]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    T* to = args.output + r * args.outputs + output;
    for (int o = 0; o < kOutputs; ++o) {
      const V sum = sums[r][o][0] + (kParts > 1 ? sums[r][o][kParts - 1] : V{});
      to[o] = sum_of_lanes<T>(sum) + (args.bias == nullptr ? T(0) : args.bias[output + o]);
    }
    activate(to, kOutputs, args.activation, static_cast<T>(args.negative_slope));
  }
}

template <int kRows, typename T>
inline void linear_rows(const LinearArgs<T>& args, int64_t begin, int64_t end) {
  int64_t output = begin;
  for (; output + kLinearStreams <= end; output += kLinearStreams) {
    linear_tile<kRows, kLinearStreams>(args, output);
  }
  for (; output < end; ++output) {
    linear_tile<kRows, 1>(args, output);
  }
}

template <typename T>
inline void linear_any(const LinearArgs<T>& args, int64_t begin, int64_t end) {
  switch (args.rows) {
    case 1:
      return linear_rows<1>(args, begin, end);
    case 2:
      return linear_rows<2>(args, begin, end);
    case 3:
      return linear_rows<3>(args, begin, end);
  }
}

}  // namespace

void linear(const LinearArgs<float>& args, int64_t begin, int64_t end) {
  linear_any(args, begin, end);
}
void linear(const LinearArgs<double>& args, int64_t begin, int64_t end) {
  linear_any(args, begin, end);
}

}  // namespace fastvision::FASTVISION_ISA
