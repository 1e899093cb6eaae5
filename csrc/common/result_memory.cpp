#include "common/result_memory.h"

#include <sys/mman.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <cstdint>
#include <mutex>

#include "common/empty_cache.h"

// torch has it from 2.11 on: weak, so that the same binary loads with 2.10
extern "C" AOTITorchError torch_from_blob(
    void* data,
    int64_t ndim,
    const int64_t* sizes,
    const int64_t* strides,
    int64_t storage_offset,
    int32_t dtype,
    int32_t device_type,
    int32_t device_index,
    AtenTensorHandle* result,
    int32_t layout,
    const uint8_t* opaque_metadata,
    int64_t opaque_metadata_size,
    void (*deleter)(void* data, void* context),
    void* context
) __attribute__((weak));

namespace fastvision {
namespace {

constexpr size_t kLeastBytes = size_t{1} << 20;  // smaller results are torch's allocator's business
constexpr size_t kMostIdleBytes = size_t{256} << 20;
constexpr size_t kPage = size_t{2} << 20;  // a huge page

struct Block {
  void* memory;
  size_t bytes;
};

// Blocks that no tensor uses, the oldest first.
class Idle {
 public:
  // one that is at most a quarter too large, or fresh memory; null where there is none
  void* take(size_t least, size_t* taken) {
    const size_t unit = least < kPage ? kPage / 8 : kPage;
    const size_t bytes = (least + unit - 1) / unit * unit;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto best = blocks_.end();
      for (auto it = blocks_.begin(); it != blocks_.end(); ++it) {
        if (it->bytes >= bytes && it->bytes <= bytes + bytes / 4 &&
            (best == blocks_.end() || it->bytes <= best->bytes)) {
          best = it;
        }
      }
      if (best != blocks_.end()) {
        const Block block = *best;
        blocks_.erase(best);
        bytes_ -= block.bytes;
        *taken = block.bytes;
        return block.memory;
      }
    }
    *taken = bytes;
    void* memory =
        mmap(nullptr, *taken, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      return nullptr;
    }
#if defined(MADV_HUGEPAGE)
    madvise(memory, *taken, MADV_HUGEPAGE);  // only a hint: failing is harmless
#endif
    return memory;
  }

  void give(void* memory, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_.push_back({memory, bytes});
    bytes_ += bytes;
    shrink(kMostIdleBytes);
  }

  void release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    shrink(0);
  }

 private:
  void shrink(size_t most) {
    size_t gone = 0;
    for (; bytes_ > most; ++gone) {
      munmap(blocks_[gone].memory, blocks_[gone].bytes);
      bytes_ -= blocks_[gone].bytes;
    }
    blocks_.erase(blocks_.begin(), blocks_.begin() + gone);
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;
  size_t bytes_ = 0;
};

// never destroyed: tensors may be freed after static objects are
Idle& idle() {
  static Idle* const idle = new Idle;
  return *idle;
}

void give_back(void* memory, void* context) {
  idle().give(memory, reinterpret_cast<size_t>(context));
}

}  // namespace

Tensor empty_result(
    const Tensor& like, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides
) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const torch::stable::Device device = like.device();
  const int32_t type = to<int32_t>(from(like.scalar_type()));
  const int32_t device_type = to<int32_t>(from(device.type()));
  size_t bytes = like.element_size(), taken = 0;
  for (const int64_t size : sizes) {
    bytes *= static_cast<size_t>(size);
  }
  void* memory = nullptr;
  if (like.is_cpu() && bytes >= kLeastBytes && torch_from_blob != nullptr) {
    memory = idle().take(bytes, &taken);
  }
  AtenTensorHandle handle;
  if (memory == nullptr) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        sizes.size(), sizes.data(), strides.data(), type, device_type, device.index(), &handle
    ));
    return Tensor(handle);
  }
  const AOTITorchError failed = torch_from_blob(
      memory,
      sizes.size(),
      sizes.data(),
      strides.data(),
      0,
      type,
      device_type,
      device.index(),
      &handle,
      aoti_torch_layout_strided(),
      nullptr,
      0,
      &give_back,
      reinterpret_cast<void*>(taken)
  );
  if (failed) {
    idle().give(memory, taken);
  }
  TORCH_ERROR_CODE_CHECK(failed);
  return Tensor(handle);
}

void empty_cache() { idle().release(); }

}  // namespace fastvision
