// The op: one hash of the values, types and layouts of several tensors.
#include "ops/fingerprint.h"

#include <algorithm>
#include <cstring>

#include "common/parallel.h"
#include "ops/fingerprint_of.h"

namespace fastvision {
namespace {

constexpr int64_t kChunk = int64_t{64} << 10;  // bytes; fixed, so threads do not change the result
constexpr int64_t kWorkersLeast = int64_t{256} << 10;  // bytes below which one thread is faster
constexpr int64_t kMostDims = 8;

// Whether the elements fill their memory without gaps or overlaps, in any order.
bool is_dense(const int64_t* sizes, const int64_t* strides, int64_t dims) {
  int64_t order[kMostDims];  // of the dimensions, by their strides
  int64_t count = 0;
  for (int64_t d = 0; d < dims; ++d) {
    if (sizes[d] == 1) {
      continue;
    }
    int64_t at = count++;
    for (; at > 0 && strides[order[at - 1]] > strides[d]; --at) {
      order[at] = order[at - 1];
    }
    order[at] = d;
  }
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

// The words of one hash. Small tensors share it: its fixed part takes longer than their values.
class Words {
 public:
  explicit Words(uint64_t seed) : result_(seed) {}

  // at most kMost words
  void add(const void* bytes, int64_t size) {
    const int64_t words = (size + 7) / 8;
    if (words == 0) {
      return;
    }
    if (used_ + words > kMost) {
      hash();
    }
    words_[used_ + words - 1] = 0;  // behind the last byte
    std::memcpy(words_ + used_, bytes, size);
    used_ += words;
  }

  uint64_t hash() {
    result_ = FASTVISION_CALL(fingerprint, words_, used_ * int64_t{sizeof(uint64_t)}, result_);
    used_ = 0;
    return result_;
  }

  static constexpr int64_t kMost = 256;

 private:
  uint64_t words_[kMost];
  int64_t used_ = 0;
  uint64_t result_;
};

constexpr int64_t kFewBytes = 256;

int64_t fingerprint_of_all(const std::vector<std::optional<Tensor>>& tensors) {
  return fingerprint_of(tensors.data(), static_cast<int64_t>(tensors.size()));
}

}  // namespace

int64_t fingerprint_of(const std::optional<Tensor>* tensors, int64_t count) {
  Words words(static_cast<uint64_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    int64_t layout[2 + 2 * kMostDims] = {-1};
    if (!tensors[i].has_value()) {
      words.add(layout, sizeof(int64_t));
      continue;
    }
    const Tensor& tensor = *tensors[i];
    const int64_t dims = tensor.dim();
    STD_TORCH_CHECK(tensor.is_cpu(), "tensors must be on the CPU");
    if (dims > kMostDims) {
      return -1;
    }
    const auto sizes = tensor.sizes(), strides = tensor.strides();
    if (!is_dense(sizes.data(), strides.data(), dims)) {
      return -1;
    }
    layout[0] = dims;
    layout[1] = static_cast<int64_t>(tensor.scalar_type());
    std::copy_n(sizes.data(), dims, layout + 2);
    std::copy_n(strides.data(), dims, layout + 2 + dims);
    words.add(layout, (2 + 2 * dims) * int64_t{sizeof(int64_t)});
    const int64_t size = tensor.numel() * static_cast<int64_t>(tensor.element_size());
    if (size <= kFewBytes) {
      words.add(tensor.const_data_ptr(), size);
    } else {
      const uint64_t hash = of_bytes(tensor.const_data_ptr(), size, static_cast<uint64_t>(i));
      words.add(&hash, sizeof hash);
    }
  }
  return static_cast<int64_t>(words.hash() >> 1);
}

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("fingerprint", FASTVISION_BOX(&fingerprint_of_all));
}

}  // namespace fastvision
