#include "ops/masks_to_boxes.h"

#include <algorithm>

#include "common/parallel.h"
#include "common/result_memory.h"
#include "common/torch.h"

namespace fastvision {
namespace {

constexpr int64_t kPieceBytes = 1 << 16;  // of a thread: waking it for fewer does not pay

Tensor masks_to_boxes(const Tensor& input) {
  check_dim(input, 3, "masks");
  const ScalarType type = input.scalar_type();
  MaskArgs args{};
  args.bytes = static_cast<int>(input.element_size());
  switch (type) {
    case ScalarType::Bool:
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Short:
    case ScalarType::Int:
    case ScalarType::Long:
      break;
    case ScalarType::Half:
    case ScalarType::BFloat16:
    case ScalarType::Float:
    case ScalarType::Double:
      args.is_signed_zero = true;
      break;
    default:
      STD_TORCH_CHECK(false, "masks must be of a boolean, integer or floating-point type");
  }
  const int64_t N = input.size(0);
  args.H = input.size(1);
  args.W = input.size(2);
  // slices need no copy as long as rows have no gaps
  const bool dense_rows = input.stride(2) == 1 || args.W == 1;
  const Tensor masks = dense_rows ? input : torch::stable::contiguous(input);
  args.masks = static_cast<const uint8_t*>(masks.const_data_ptr());
  args.mask_step = masks.stride(0) * args.bytes;
  args.row_step = masks.stride(1) * args.bytes;
  Tensor boxes = empty_strided({N, 4}, {4, 1}, ScalarType::Float, sizeof(float), input.device());
  if (args.H == 0 || args.W == 0) {
    torch::stable::zero_(boxes);
    return boxes;
  }
  args.boxes = static_cast<float*>(boxes.mutable_data_ptr());
  const int64_t mask_bytes = std::max<int64_t>(args.H * args.W * args.bytes, 1);
  parallel_chunks(N, std::max<int64_t>(kPieceBytes / mask_bytes, 1), [&] {
    return [&](int64_t begin, int64_t end) { FASTVISION_CALL(masks_to_boxes, args, begin, end); };
  });
  return boxes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("masks_to_boxes", FASTVISION_BOX(&masks_to_boxes));
}

}  // namespace fastvision
