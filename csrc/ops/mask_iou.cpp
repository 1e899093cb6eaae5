#include "common/parallel.h"
#include "common/result_memory.h"
#include "ops/mask_iou_packed.h"

namespace fastvision {
namespace {

// Overlaps of mask i with itself and the masks after it, [N, N] in both orders.
void write_symmetric(const PackedMasks& masks, int64_t i, float* out) {
  const int64_t N = masks.count();
  for (int64_t j = i; j < N; ++j) {
    out[i * N + j] = out[j * N + i] = static_cast<float>(overlap(masks, i, masks, j));
  }
}

Tensor mask_iou(const Tensor& masks1, const Tensor& masks2) {
  const PackedMasks a(masks1, "masks1");
  const bool same = masks1.const_data_ptr() == masks2.const_data_ptr() &&
                    masks1.size(0) == masks2.size(0) && masks1.is_contiguous() &&
                    masks2.is_contiguous();
  std::optional<PackedMasks> other;
  if (!same) {
    other.emplace(masks2, "masks2");
  }
  const PackedMasks& b = same ? a : *other;
  STD_TORCH_CHECK(
      masks1.size(1) == masks2.size(1) && masks1.size(2) == masks2.size(2),
      "masks1 and masks2 must be of one size"
  );
  const int64_t N = masks1.size(0), M = masks2.size(0);
  Tensor result = empty_strided({N, M}, {M, 1}, ScalarType::Float, sizeof(float), masks1.device());
  float* out = static_cast<float*>(result.mutable_data_ptr());
  if (same) {
    // each pair once; two rows from both ends have as many pairs as any other two
    parallel_chunks((N + 1) / 2, 1, [&] {
      return [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          write_symmetric(a, i, out);
          if (N - 1 - i > i) {
            write_symmetric(a, N - 1 - i, out);
          }
        }
      };
    });
    return result;
  }
  parallel_chunks(N, 1, [&] {
    return [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = 0; j < M; ++j) {
          out[i * M + j] = static_cast<float>(overlap(a, i, b, j));
        }
      }
    };
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) { m.impl("mask_iou", FASTVISION_BOX(&mask_iou)); }

}  // namespace fastvision
