// The boxes of one image by class.
#pragma once

#include <utility>

#include "ops/nms_suppression.h"

namespace fastvision {

// Sorts the indices of boxes by class, and within a class by descending score or by index. A key is
// the class. `items` has room for 2 N; the result is one half of it.
template <typename scalar_t>
SortItem* order_by_class(const NmsArgs& args, SortItem* items, bool by_score) {
  const int64_t N = args.N;
  SortItem* other = items + N;
  for (int64_t i = 0; i < N; ++i) {
    items[i] = {0, static_cast<int32_t>(i)};
  }
  if (by_score) {
    const auto* scores = static_cast<const torch_scalar_t<scalar_t>*>(args.scores);
    for (int64_t i = 0; i < N; ++i) {
      items[i].key = score_key(static_cast<accumulate_t<scalar_t>>(scores[i]));
    }
    SortItem* sorted = stable_sort(items, other, N);
    if (sorted == other) {
      std::swap(items, other);
    }
  }
  for (int64_t i = 0; i < N; ++i) {
    items[i].key = args.idxs == nullptr ? 0 : static_cast<uint64_t>(args.idxs[items[i].index]);
  }
  return stable_sort(items, other, N);
}

// Where each class begins, and N.
inline std::vector<int64_t> class_begins(const SortItem* by_class, int64_t N) {
  std::vector<int64_t> begins;
  for (int64_t i = 0; i < N; ++i) {
    if (i == 0 || by_class[i].key != by_class[i - 1].key) {
      begins.push_back(i);
    }
  }
  begins.push_back(N);
  return begins;
}

}  // namespace fastvision
