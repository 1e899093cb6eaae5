// The op: one hash of the values, types and layouts of several tensors.
#include "ops/fingerprint.h"

#include <algorithm>

#include "common/parallel.h"
#include "common/torch.h"

namespace fastvision {
namespace {

constexpr int64_t kChunk = int64_t{64} << 10;  // bytes; fixed, so threads do not change the result
constexpr int64_t kWorkersLeast = int64_t{256} << 10;  // bytes below which one thread is faster
constexpr int64_t kMostDims = 8;

// Whether the elements fill their memory without gaps or overlaps, in any order.
bool is_dense(const int64_t* sizes, const int64_t* strides, int64_t dims) {
  int64_t order[kMostDims];
  int64_t count = 0;
  for (int64_t d = 0; d < dims; ++d) {
    if (sizes[d] != 1) {
      order[count++] = d;
    }
  }
  std::sort(order, order + count, [&](int64_t a, int64_t b) { return strides[a] < strides[b]; });
  int64_t expected = 1;
  for (int64_t i = 0; i < count; ++i) {
    if (strides[order[i]] != expected) {
      return false;
    }
    expected *= sizes[order[i]];
  }
  return true;
}

uint64_t of_bytes(const void* bytes, int64_t size, uint64_t seed) {
  if (size < kWorkersLeast) {
    return FASTVISION_CALL(fingerprint, bytes, size, seed);
  }
  const int64_t chunks = (size + kChunk - 1) / kChunk;
  std::vector<uint64_t> parts(chunks);
  parallel_chunks(chunks, 1, [&] {
    return [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const char* const begin = static_cast<const char*>(bytes) + i * kChunk;
        parts[i] = FASTVISION_CALL(fingerprint, begin, std::min(kChunk, size - i * kChunk), seed);
      }
    };
  });
  return FASTVISION_CALL(fingerprint, parts.data(), chunks * int64_t{sizeof(uint64_t)}, seed);
}

// Non-negative, or -1 if a tensor has gaps or overlapping elements.
int64_t fingerprint_of(const std::vector<std::optional<Tensor>>& tensors) {
  uint64_t result = tensors.size();
  for (const std::optional<Tensor>& tensor : tensors) {
    int64_t layout[2 + 2 * kMostDims] = {-1};
    int64_t length = 1;
    if (tensor.has_value()) {
      const int64_t dims = tensor->dim();
      STD_TORCH_CHECK(tensor->is_cpu(), "tensors must be on the CPU");
      if (dims > kMostDims) {
        return -1;
      }
      const auto sizes = tensor->sizes(), strides = tensor->strides();
      if (!is_dense(sizes.data(), strides.data(), dims)) {
        return -1;
      }
      layout[0] = dims;
      layout[1] = static_cast<int64_t>(tensor->scalar_type());
      std::copy_n(sizes.data(), dims, layout + 2);
      std::copy_n(strides.data(), dims, layout + 2 + dims);
      length = 2 + 2 * dims;
    }
    result = FASTVISION_CALL(fingerprint, layout, length * int64_t{sizeof(int64_t)}, result);
    if (tensor.has_value()) {
      const int64_t size = tensor->numel() * static_cast<int64_t>(tensor->element_size());
      result = of_bytes(tensor->const_data_ptr(), size, result);
    }
  }
  return static_cast<int64_t>(result >> 1);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("fingerprint", FASTVISION_BOX(&fingerprint_of));
}

}  // namespace fastvision
