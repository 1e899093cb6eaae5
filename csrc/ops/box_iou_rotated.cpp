#include "ops/box_iou_rotated.h"

#include <cmath>
#include <memory>

#include "common/rotated_box.h"
#include "ops/box_pairs.h"
#include "ops/nms_inputs.h"

namespace fastvision {
namespace {

constexpr int64_t kTileRows = 64, kTileColumns = 512;
// below, waking threads does not pay
constexpr int64_t kSerialPairs = 1 << 12;
constexpr double kRadians = 3.14159265358979323846 / 180;  // per degree

// Boxes (center, width, height, degrees) as a structure of arrays.
template <typename A>
class RotatedMemory {
 public:
  template <typename T>
  RotatedMemory(const T* boxes, int64_t count) : memory_(new A[kArrays * count]), count_(count) {
    A* to[kArrays];
    for (int k = 0; k < kArrays; ++k) {
      to[k] = memory_.get() + k * count;
    }
    for (int64_t i = 0; i < count; ++i, boxes += 5) {
      const double angle = static_cast<double>(boxes[4]) * kRadians;
      const RotatedBox<A> b{
          static_cast<A>(boxes[0]),
          static_cast<A>(boxes[1]),
          static_cast<A>(boxes[2]),
          static_cast<A>(boxes[3]),
          static_cast<A>(std::cos(angle)),
          static_cast<A>(std::sin(angle))
      };
      const A area = b.width * b.height;
      A x, y;
      upright_extent(b, x, y);
      const bool empty = area < static_cast<A>(kMinRotatedArea);
      // no distance between centers is within those of an empty box
      x = empty ? -INFINITY : x;
      y = empty ? -INFINITY : y;
      const A values[kArrays] = {b.cx, b.cy, b.width, b.height, b.cos, b.sin, area, x, y};
      for (int k = 0; k < kArrays; ++k) {
        to[k][i] = values[k];
      }
    }
  }

  // The boxes from `first` on.
  RotatedSet<A> from(int64_t first) const {
    const A* p = memory_.get() + first;
    const int64_t n = count_;
    return {p, p + n, p + 2 * n, p + 3 * n, p + 4 * n, p + 5 * n, p + 6 * n, p + 7 * n, p + 8 * n};
  }

 private:
  static constexpr int kArrays = 9;
  std::unique_ptr<A[]> memory_;
  int64_t count_;
};

template <typename T>
class RotatedPairs {
  using A = accumulate_t<T>;

 public:
  explicit RotatedPairs(const BoxPairs& pairs)
      : pairs_(pairs), boxes1_(make(pairs.boxes1)), boxes2_(make(pairs.boxes2)) {}

  RotatedArgs<A> of_image(int64_t image) const {
    return {boxes1_.from(pairs_.first1(image)), boxes2_.from(pairs_.first2(image)), pairs_.M};
  }

 private:
  static RotatedMemory<A> make(const Tensor& boxes) {
    const auto* data = static_cast<const torch_scalar_t<T>*>(boxes.const_data_ptr());
    return RotatedMemory<A>(data, boxes.numel() / 5);
  }

  const BoxPairs& pairs_;
  RotatedMemory<A> boxes1_, boxes2_;
};

Tensor box_iou_rotated(const Tensor& boxes1, const Tensor& boxes2) {
  const BoxPairs pairs(boxes1, boxes2, 5);
  Tensor output = pairs.empty_overlaps(boxes1.scalar_type() == ScalarType::Double);
  if (output.numel() == 0) {
    return output;
  }
  FASTVISION_DISPATCH_FLOATING(boxes1.scalar_type(), "boxes1", [&] {
    using A = accumulate_t<scalar_t>;
    const RotatedPairs<scalar_t> boxes(pairs);
    A* to = static_cast<A*>(output.mutable_data_ptr());
    for_tiles<RotatedTile>(
        pairs, kTileRows, kTileColumns, kSerialPairs, [&](int64_t image, const RotatedTile& tile) {
          FASTVISION_CALL(
              box_iou_rotated, to + image * pairs.N * pairs.M, boxes.of_image(image), tile
          );
        }
    );
  });
  return output;
}

// The sum of `parts` terms of each of `count` boxes, in order; by degrees.
template <typename A>
void sum_parts(const A* terms, int64_t parts, int64_t count, A* grad) {
  for (int64_t i = 0; i < count * kRotatedTerms; ++i) {
    A sum = 0;
    for (int64_t part = 0; part < parts; ++part) {
      sum += terms[part * count * kRotatedTerms + i];
    }
    const bool is_angle = i % kRotatedTerms == kRotatedTerms - 1;
    grad[i] = is_angle ? sum * static_cast<A>(kRadians) : sum;
  }
}

// Gradients of the boxes in float, or in double for double boxes; [B, N, 5] and [B, M, 5] if they
// are batched.
std::tuple<Tensor, Tensor> box_iou_rotated_backward(
    const Tensor& grad_output, const Tensor& boxes1, const Tensor& boxes2
) {
  const BoxPairs pairs(boxes1, boxes2, 5);
  const bool wide = boxes1.scalar_type() == ScalarType::Double;
  pairs.check_gradient(grad_output, wide);
  const Tensor grad = torch::stable::contiguous(grad_output);
  const int64_t B = pairs.B, N = pairs.N, M = pairs.M;
  Tensor grad1 = pairs.empty_gradient(N, wide), grad2 = pairs.empty_gradient(M, wide);
  FASTVISION_DISPATCH_FLOATING(boxes1.scalar_type(), "boxes1", [&] {
    using A = accumulate_t<scalar_t>;
    const RotatedPairs<scalar_t> boxes(pairs);
    const auto* g = static_cast<const A*>(grad.const_data_ptr());
    const PairParts parts(pairs);
    const int64_t of_rows = N * kRotatedTerms, of_columns = M * kRotatedTerms;
    // the terms of rows for each part of the columns, and the reverse
    const std::unique_ptr<A[]> rows(new A[B * parts.columns * of_rows]());
    const std::unique_ptr<A[]> columns(new A[B * parts.rows * of_columns]());
    parts.run<RotatedTile>(
        pairs,
        kSerialPairs,
        [&](int64_t image, int64_t row, int64_t column, const RotatedTile& tile) {
          FASTVISION_CALL(
              box_iou_rotated_backward,
              g + image * N * M,
              boxes.of_image(image),
              tile,
              rows.get() + (image * parts.columns + column) * of_rows,
              columns.get() + (image * parts.rows + row) * of_columns
          );
        }
    );
    auto* to1 = static_cast<A*>(grad1.mutable_data_ptr());
    auto* to2 = static_cast<A*>(grad2.mutable_data_ptr());
    for (int64_t image = 0; image < B; ++image) {
      sum_parts(
          rows.get() + image * parts.columns * of_rows, parts.columns, N, to1 + image * of_rows
      );
      sum_parts(
          columns.get() + image * parts.rows * of_columns, parts.rows, M, to2 + image * of_columns
      );
    }
  });
  return {grad1, grad2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("box_iou_rotated", FASTVISION_BOX(&box_iou_rotated));
  m.impl("box_iou_rotated_backward", FASTVISION_BOX(&box_iou_rotated_backward));
}

}  // namespace fastvision
