// Prefetches memory. For files of csrc/cpu.
#pragma once

#include <cstdint>

namespace fastvision::FASTVISION_ISA {
namespace {

constexpr int64_t kLineBytes = 64;

// for reading, into the L2 cache
inline void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }

}  // namespace
}  // namespace fastvision::FASTVISION_ISA
