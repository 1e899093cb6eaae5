// Comparison of all values with the bounds of their columns, which few of them reach.
#include "ops/topk_above.h"

#include "common/simd.h"
#include "common/simd_value.h"

namespace fastvision::FASTVISION_ISA {
namespace {

// Values next to each other of a single column.
template <typename T>
inline int64_t search_column(TopkArgs<T>& args, int64_t begin, int64_t end) {
  using value_t = accumulate_t<T>;
  constexpr int kLanes = lanes_v<value_t>, kVectors = 4;
  static_assert(kVectors * kLanes <= kTopkBlock);
  const auto bound = broadcast(args.bounds[0]);
  candidate_t<T>* found = args.found;
  int64_t count = args.counts[0];
  const auto append = [&](int64_t row) {
    found[count++] = candidate_of(value_of(args.input + row), row);
  };
  int64_t row = begin;
  for (; row + kVectors * kLanes <= end; row += kVectors * kLanes) {
    typename simd<value_t>::mask reached[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      reached[i] = load(args.input + row + i * kLanes) >= bound;
    }
    if (movemask((reached[0] | reached[1]) | (reached[2] | reached[3])) == 0) {
      continue;
    }
    if (count + kTopkBlock > args.capacity) {
      args.counts[0] = count;
      return row;
    }
    for (int i = 0; i < kVectors; ++i) {
      for (uint32_t bits = movemask(reached[i]); bits != 0; bits &= bits - 1) {
        append(row + i * kLanes + __builtin_ctz(bits));
      }
    }
  }
  if (row < end && count + kTopkBlock > args.capacity) {
    args.counts[0] = count;
    return row;
  }
  for (; row < end; ++row) {
    if (value_of(args.input + row) >= args.bounds[0]) {
      append(row);
    }
  }
  args.counts[0] = count;
  return end;
}

template <typename T>
inline int64_t search_columns(TopkArgs<T>& args, int64_t begin, int64_t end) {
  using value_t = accumulate_t<T>;
  constexpr int kLanes = lanes_v<value_t>;
  for (int64_t row = begin; row < end; ++row) {
    const T* values = args.input + row * args.step;
    bool is_full = false;
    for (int first = 0; first < args.columns; first += kLanes) {
      const int left = args.columns - first;
      const auto v = left < kLanes ? load_partial(values + first, left) : load(values + first);
      uint32_t bits = movemask(v >= load(args.bounds + first));
      bits &= left < kLanes ? (1u << left) - 1 : ~0u;
      for (; bits != 0; bits &= bits - 1) {
        const int column = first + __builtin_ctz(bits);
        int64_t& count = args.counts[column];
        args.found[column * args.capacity + count++] = candidate_of(value_of(values + column), row);
        is_full |= count == args.capacity;
      }
    }
    if (is_full) {
      return row + 1;
    }
  }
  return end;
}

template <typename T>
inline int64_t search(TopkArgs<T>& args, int64_t begin, int64_t end) {
  return args.columns == 1 && args.step == 1 ? search_column(args, begin, end)
                                             : search_columns(args, begin, end);
}

}  // namespace

int64_t topk_above(TopkArgs<float>& args, int64_t begin, int64_t end) {
  return search(args, begin, end);
}
int64_t topk_above(TopkArgs<double>& args, int64_t begin, int64_t end) {
  return search(args, begin, end);
}
int64_t topk_above(TopkArgs<half_t>& args, int64_t begin, int64_t end) {
  return search(args, begin, end);
}
int64_t topk_above(TopkArgs<bfloat16_t>& args, int64_t begin, int64_t end) {
  return search(args, begin, end);
}

}  // namespace fastvision::FASTVISION_ISA
