// Contract of the search for the largest values of columns.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/scalar.h"

namespace fastvision {

constexpr int kTopkColumns = 16;    // of one search, a multiple of all vectors' lanes
constexpr int64_t kTopkBlock = 64;  // rows of a single column that are compared at once, at most

template <typename T>
struct Candidate {
  T value;
  int32_t row;
};

template <typename T>
struct TopkArgs {
  const T* input;  // [rows, columns], 1 to kTopkColumns columns
  int64_t step;    // elements from row to row
  int columns;
  // a value below is no candidate, nor is NaN; columns beyond the last one have bounds as well
  accumulate_t<T> bounds[kTopkColumns];
  Candidate<accumulate_t<T>>* found;  // [columns, capacity]
  int64_t counts[kTopkColumns];       // of each column, below `capacity` - kTopkBlock at the start
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
