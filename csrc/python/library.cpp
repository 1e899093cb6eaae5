#include "python/library.h"

#include <sstream>
#include <string>

#include "build_info.h"
#include "common/isa.h"
#include "common/result_memory.h"

const char* fastvision_compiler() { return FASTVISION_CXX_COMPILER; }

const char* fastvision_cuda_version() { return FASTVISION_CUDA_VERSION; }

const char* fastvision_cuda_architectures() { return FASTVISION_CUDA_ARCHS; }

const char* fastvision_cpu_levels() { return FASTVISION_CPU_LEVELS; }

int fastvision_cpu_level() { return fastvision::cpu_level(); }

int fastvision_cpu_level_supported() { return fastvision::cpu_level_supported(); }

const char* fastvision_set_cpu_level(const char* name) {
  std::istringstream names(FASTVISION_CPU_LEVELS);
  std::string known;
  for (int level = 0; names >> known; ++level) {
    if (known == name) {
      if (level > fastvision::cpu_level_supported()) {
        return "this CPU does not support it";
      }
      fastvision::set_cpu_level(level);
      return nullptr;
    }
  }
  return "the library is built for " FASTVISION_CPU_LEVELS;
}

void fastvision_ask_for_huge_pages(void* memory, int64_t bytes) {
  fastvision::ask_for_huge_pages(memory, bytes);
}
