// Instruction set of the CPU kernels. Every file of csrc/cpu is compiled once per level, into a
// namespace of that name; the level is chosen at run time.
#pragma once

namespace fastvision {

// levels in ascending order: 0 baseline, 1 avx2 (with FMA and F16C), 2 avx512 (F, BW, CD, DQ, VL)
int cpu_level();
int cpu_level_supported();
// Lowers (or restores) the level; a level above what this CPU has is clamped to it.
void set_cpu_level(int level);

}  // namespace fastvision

// For functions in headers that files of every level include. No file may emit a copy, since the
// linker might keep the one this CPU cannot execute.
#define FASTVISION_NO_COPY __attribute__((always_inline)) inline

// Calls a kernel, which may be overloaded, at the current level.
#if defined(FASTVISION_HAS_AVX512)
#define FASTVISION_CALL(function, ...)                                            \
  (::fastvision::cpu_level() == 2   ? ::fastvision::avx512::function(__VA_ARGS__) \
   : ::fastvision::cpu_level() == 1 ? ::fastvision::avx2::function(__VA_ARGS__)   \
                                    : ::fastvision::baseline::function(__VA_ARGS__))
#else
#define FASTVISION_CALL(function, ...) ::fastvision::baseline::function(__VA_ARGS__)
#endif

// Declares one kernel in the namespace of every level.
#define FASTVISION_DECLARE_CPU(result, function, ...) \
  namespace baseline {                                \
  result function(__VA_ARGS__);                       \
  }                                                   \
  namespace avx2 {                                    \
  result function(__VA_ARGS__);                       \
  }                                                   \
  namespace avx512 {                                  \
  result function(__VA_ARGS__);                       \
  }
