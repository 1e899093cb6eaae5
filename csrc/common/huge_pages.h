// Huge pages for large results: the first touch of fresh memory costs a fault per page, and with
// small pages that took as long as RoIAlign's arithmetic (docs/architecture.md has the figures).
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

namespace fastvision {

constexpr size_t kHugePageThreshold = 4 << 20;

// Call before anything is written to [memory, memory + bytes). Only a hint: failing is harmless.
inline void advise_huge_pages(void* memory, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  if (bytes >= kHugePageThreshold) {
    const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#endif
}

}  // namespace fastvision
