// What Python asks the library besides its ops: how it was built, and the CPU level of its kernels.
// Plain C functions, which ctypes calls, so that the library is tied to no version of Python.
#pragma once

#include <cstdint>

#define FASTVISION_EXPORT __attribute__((visibility("default")))

extern "C" {

// lists are separated by spaces
FASTVISION_EXPORT const char* fastvision_compiler();
FASTVISION_EXPORT const char* fastvision_cuda_version();        // empty without CUDA kernels
FASTVISION_EXPORT const char* fastvision_cuda_architectures();  // such as "80 90"
FASTVISION_EXPORT const char* fastvision_cpu_levels();          // compiled in, lowest first

// indices into cpu_levels
FASTVISION_EXPORT int fastvision_cpu_level();
FASTVISION_EXPORT int fastvision_cpu_level_supported();

// Runs the CPU kernels at the level of that name. Returns null, or why it cannot.
FASTVISION_EXPORT const char* fastvision_set_cpu_level(const char* name);

// Asks for huge pages where the block has not been touched yet.
FASTVISION_EXPORT void fastvision_ask_for_huge_pages(void* memory, int64_t bytes);

}  // extern "C"
