// Masks of a tensor as bits, for the ops on overlaps of masks.
#pragma once

#include <algorithm>
#include <memory>

#include "common/parallel.h"
#include "common/torch.h"
#include "ops/mask_iou.h"

namespace fastvision {

class PackedMasks {
 public:
  // masks: [N, H, W] of bool
  PackedMasks(const Tensor& masks, const char* name) {
    check_dim(masks, 3, name);
    STD_TORCH_CHECK(masks.scalar_type() == ScalarType::Bool, name, " must be of type bool");
    const Tensor dense = masks.is_contiguous() ? masks : torch::stable::contiguous(masks);
    const int64_t N = count_ = masks.size(0);
    bits_.H = masks.size(1);
    bits_.W = masks.size(2);
    bits_.row_words = (bits_.W + 63) / 64;
    words_.reset(new uint64_t[N * bits_.H * bits_.row_words]);
    extents_.reset(new MaskExtent[N]);
    bits_.words = words_.get();
    bits_.extents = extents_.get();
    const auto* pixels = static_cast<const uint8_t*>(dense.const_data_ptr());
    const int64_t chunk = kPiecePixels / std::max<int64_t>(bits_.H * bits_.W, 1);
    parallel_chunks(N, std::max<int64_t>(chunk, 1), [&] {
      return [&](int64_t begin, int64_t end) {
        FASTVISION_CALL(pack_masks, bits_, pixels, begin, end);
      };
    });
  }

  const MaskBits& bits() const { return bits_; }
  int64_t count() const { return count_; }
  int64_t pixels(int64_t i) const { return extents_[i].pixels; }

 private:
  static constexpr int64_t kPiecePixels = 1 << 16;  // waking a thread for fewer does not pay

  int64_t count_;
  MaskBits bits_;
  std::unique_ptr<uint64_t[]> words_;
  std::unique_ptr<MaskExtent[]> extents_;
};

// Intersection over union of mask i of `a` and mask j of `b`; 0 if both are empty.
inline double overlap(const PackedMasks& a, int64_t i, const PackedMasks& b, int64_t j) {
  const int64_t inter = FASTVISION_CALL(mask_intersection, a.bits(), i, b.bits(), j);
  const int64_t together = a.pixels(i) + b.pixels(j) - inter;
  return inter == 0 ? 0.0 : static_cast<double>(inter) / static_cast<double>(together);
}

}  // namespace fastvision
