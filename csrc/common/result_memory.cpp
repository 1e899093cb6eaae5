#include "common/result_memory.h"

#include <sys/mman.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace fastvision {
namespace {

constexpr uintptr_t kHugePage = uintptr_t{2} << 20;

// -1 on overflow of 64 bits
int64_t bytes_of(const std::vector<int64_t>& sizes, int64_t element_size) {
  int64_t bytes = element_size;
  for (const int64_t size : sizes) {
    if (size == 0) {
      return 0;
    }
    if (bytes < 0 || __builtin_mul_overflow(bytes, size, &bytes)) {
      bytes = -1;  // a later size may still be 0
    }
  }
  return bytes;
}

std::string out_of_memory(const std::vector<int64_t>& sizes, int64_t bytes) {
  std::ostringstream message;
  message << "out of memory: ";
  if (bytes < 0) {
    message << "more than 2**63";
  } else {
    message << bytes;
  }
  message << " bytes for the result [";
  for (size_t i = 0; i < sizes.size(); ++i) {
    message << (i == 0 ? "" : ", ") << sizes[i];
  }
  message << "]";
  return message.str();
}

}  // namespace

void ask_for_huge_pages(void* memory, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  const auto address = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (address + bytes) / kHugePage * kHugePage;
  if (begin < end) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint, may fail
  }
#endif
}

Tensor empty_strided(
    const std::vector<int64_t>& sizes,
    const std::vector<int64_t>& strides,
    ScalarType type,
    int64_t element_size,
    const torch::stable::Device& device
) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const int64_t bytes = bytes_of(sizes, element_size);
  AtenTensorHandle handle;
  // the C API drops torch's own message
  if (bytes < 0 || aoti_torch_empty_strided(
                       sizes.size(),
                       sizes.data(),
                       strides.data(),
                       to<int32_t>(from(type)),
                       to<int32_t>(from(device.type())),
                       device.index(),
                       &handle
                   ) != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error(out_of_memory(sizes, bytes));
  }
  Tensor result(handle);
  if (bytes >= kLeastHugeBytes && result.is_cpu()) {
    ask_for_huge_pages(result.mutable_data_ptr(), bytes);
  }
  return result;
}

Tensor empty_result(
    const Tensor& like, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides
) {
  return empty_strided(
      sizes, strides, like.scalar_type(), static_cast<int64_t>(like.element_size()), like.device()
  );
}

}  // namespace fastvision
