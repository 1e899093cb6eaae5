// Prefetches memory. For files of csrc/cpu.
#pragma once

#include <cstdint>

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kAheadBytes = 2048;  // between a read and its prefetch

// for reading, into the L2 cache
inline void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }

// Of a stream that is read in order, what lies `ahead` bytes behind `bytes` from `memory` on:
// several streams at once are more than the hardware follows, and the last lines may be past the
// end.
inline void prefetch_ahead(const void* memory, int64_t bytes, int64_t ahead = kAheadBytes) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(memory) + ahead;
  for (int64_t i = 0; i < bytes; i += kLineBytes) {
    __builtin_prefetch(reinterpret_cast<const void*>(first + i));
  }
}

// the lines of `bytes` from `memory` on, for writing
inline void prefetch_to_write(const void* memory, int64_t bytes) {
  const char* first = static_cast<const char*>(memory);
  for (int64_t i = 0; i < bytes; i += kLineBytes) {
    __builtin_prefetch(first + i, 1, 2);
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
