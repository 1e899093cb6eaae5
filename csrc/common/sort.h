// Stable sorting of indices by an unsigned key.
#pragma once

#include <cstdint>
#include <utility>

namespace fastvision {

struct SortItem {
  uint64_t key;
  int32_t index;
};

// Stable sort by ascending key. Returns the array that holds the result: items or scratch.
inline SortItem* stable_sort(SortItem* items, SortItem* scratch, int64_t n) {
  constexpr int64_t kInsertionMax = 48;
  if (n <= kInsertionMax) {
    for (int64_t i = 1; i < n; ++i) {
      const SortItem item = items[i];
      int64_t j = i;
      for (; j > 0 && items[j - 1].key > item.key; --j) {
        items[j] = items[j - 1];
      }
      items[j] = item;
    }
    return items;
  }
  // least-significant-digit radix sort that skips digits in which all keys agree
  constexpr int kDigitBits = 8;
  constexpr uint64_t kDigits = 1 << kDigitBits;
  uint64_t varying = 0;
  for (int64_t i = 1; i < n; ++i) {
    varying |= items[i].key ^ items[0].key;
  }
  for (int shift = 0; shift < 64; shift += kDigitBits) {
    if ((varying >> shift) % kDigits == 0) {
      continue;
    }
    int64_t next[kDigits] = {};
    for (int64_t i = 0; i < n; ++i) {
      ++next[(items[i].key >> shift) % kDigits];
    }
    int64_t position = 0;
    for (int64_t& count : next) {
      position += std::exchange(count, position);
    }
    for (int64_t i = 0; i < n; ++i) {
      scratch[next[(items[i].key >> shift) % kDigits]++] = items[i];
    }
    std::swap(items, scratch);
  }
  return items;
}

}  // namespace fastvision
