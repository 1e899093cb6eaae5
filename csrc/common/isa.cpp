#include "common/isa.h"

#include <algorithm>
#include <atomic>

namespace fastvision {
namespace {

int detect() {
#if defined(FASTVISION_HAS_AVX512)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
#if defined(FASTVISION_EMULATE_AVX512)
  return avx2 ? 2 : 0;
#endif
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? 2 : avx2 ? 1 : 0;
#else
  return 0;
#endif
}

std::atomic<int>& active() {
  static std::atomic<int> level{cpu_level_supported()};
  return level;
}

}  // namespace

int cpu_level_supported() {
  static const int level = detect();
  return level;
}

int cpu_level() { return active().load(std::memory_order_relaxed); }

void set_cpu_level(int level) { active().store(std::clamp(level, 0, cpu_level_supported())); }

}  // namespace fastvision
