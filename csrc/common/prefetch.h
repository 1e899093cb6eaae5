// Prefetches memory. For files of csrc/cpu.
#pragma once

#include <cstdint>

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int64_t kLineBytes = 64;

// for reading, into the L2 cache
inline void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }

// the lines of `bytes` from `memory` on, for writing
inline void prefetch_to_write(const void* memory, int64_t bytes) {
  const char* first = static_cast<const char*>(memory);
  for (int64_t i = 0; i < bytes; i += kLineBytes) {
    __builtin_prefetch(first + i, 1, 2);
  }
}

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
