// Contract of the search for the largest values of columns.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/scalar.h"

namespace fastvision {

constexpr int kTopkColumns = 16;    // of one search, a multiple of all vectors' lanes
constexpr int64_t kTopkBlock = 64;  // rows of a single column that are compared at once, at most

// A value and its row as one integer, which is larger for a larger value, and of equal values for
// the first row. Integers are selected and sorted in half the time of pairs.
template <typename V>
struct candidate;
template <>
struct candidate<float> {
  using bits = uint32_t;
  using key = uint64_t;
};
template <>
struct candidate<double> {
  using bits = uint64_t;
  __extension__ using key = unsigned __int128;
};
template <typename T>
using candidate_t = typename candidate<accumulate_t<T>>::key;

template <typename V>
FASTVISION_NO_COPY typename candidate<V>::key candidate_of(V value, int64_t row) {
  using bits_t = typename candidate<V>::bits;
  constexpr int kBits = 8 * sizeof(V);
  bits_t bits;
  value += V(0);  // the zeros are equal
  __builtin_memcpy(&bits, &value, sizeof bits);
  const bits_t sign = bits_t(1) << (kBits - 1);
  const bits_t ordered = (bits & sign) != 0 ? ~bits : bits | sign;
  return (static_cast<typename candidate<V>::key>(ordered) << kBits) |
         static_cast<bits_t>(~static_cast<bits_t>(row));
}

template <typename V>
FASTVISION_NO_COPY int64_t row_of(typename candidate<V>::key key) {
  using bits_t = typename candidate<V>::bits;
  return static_cast<int64_t>(static_cast<bits_t>(~static_cast<bits_t>(key)));
}

template <typename V>
FASTVISION_NO_COPY V value_of_candidate(typename candidate<V>::key key) {
  using bits_t = typename candidate<V>::bits;
  constexpr int kBits = 8 * sizeof(V);
  const bits_t ordered = static_cast<bits_t>(key >> kBits);
  const bits_t sign = bits_t(1) << (kBits - 1);
  const bits_t bits = (ordered & sign) != 0 ? ordered ^ sign : ~ordered;
  V value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename T>
struct TopkArgs {
  const T* input;  // [rows, columns], 1 to kTopkColumns columns
  int64_t step;    // elements from row to row
  int columns;
  // a value below is no candidate, nor is NaN; columns beyond the last one have bounds as well
  accumulate_t<T> bounds[kTopkColumns];
  candidate_t<T>* found;         // [columns, capacity]
  int64_t counts[kTopkColumns];  // of each column, below `capacity` - kTopkBlock at the start
  int64_t capacity;
};

// Appends the candidates of rows [begin, end) to those of their columns, in order. Returns `end`,
// or the row to go on with once a column might have no room.
#define FASTVISION_DECLARE_TOPK(T) \
  FASTVISION_DECLARE_CPU(int64_t, topk_above, TopkArgs<T>&, int64_t begin, int64_t end)
FASTVISION_DECLARE_TOPK(float)
FASTVISION_DECLARE_TOPK(double)
FASTVISION_DECLARE_TOPK(half_t)
FASTVISION_DECLARE_TOPK(bfloat16_t)
#undef FASTVISION_DECLARE_TOPK

}  // namespace fastvision
