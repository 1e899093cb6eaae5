// Rotated boxes as the structures of arrays that the CPU kernels take.
#pragma once

#include <cmath>
#include <memory>

#include "common/rotated_box.h"
#include "ops/box_iou_rotated.h"
#include "ops/box_pairs.h"
#include "ops/nms_inputs.h"

namespace fastvision {

constexpr double kRadians = 3.14159265358979323846 / 180;  // per degree

// Numbers of a box: (cx, cy, width, height, degrees), or of a solid one (cx, cy, cz, width, height,
// depth, radians), which turns the other way.
constexpr int rotated_columns(bool solid) { return solid ? 7 : 5; }
constexpr int rotated_arrays(bool solid) { return solid ? kSolidArrays : kRotatedArrays; }

// Writes `count` boxes to arrays that are `step` numbers apart.
template <bool kSolid, typename T, typename A>
void write_rotated(const T* boxes, int64_t count, A* to, int64_t step) {
  constexpr int columns = rotated_columns(kSolid);
  for (int64_t i = 0; i < count; ++i, boxes += columns) {
    const auto at = [boxes](int k) { return static_cast<A>(boxes[k]); };
    const double given = static_cast<double>(boxes[columns - 1]);
    const double angle = kSolid ? -given : given * kRadians;
    const int side = kSolid ? 3 : 2;
    const RotatedBox<A> b{
        at(0),
        at(1),
        at(side),
        at(side + 1),
        static_cast<A>(std::cos(angle)),
        static_cast<A>(std::sin(angle))
    };
    A measure = b.width * b.height;
    if constexpr (kSolid) {
      const A depth = at(5);
      measure = b.width <= 0 || b.height <= 0 || depth <= 0 ? A(0) : measure * depth;
      to[9 * step + i] = at(2) - depth / 2;
      to[10 * step + i] = at(2) + depth / 2;
    }
    A x, y;
    upright_extent(b, x, y);
    const bool empty = measure < static_cast<A>(kMinRotatedArea);
    // no distance between centers is within those of an empty box
    x = empty ? -INFINITY : x;
    y = empty ? -INFINITY : y;
    const A values[kRotatedArrays] = {b.cx, b.cy, b.width, b.height, b.cos, b.sin, measure, x, y};
    for (int k = 0; k < kRotatedArrays; ++k) {
      to[k * step + i] = values[k];
    }
  }
}

// The two sets of a call, of T's boxes.
template <bool kSolid, typename T>
class RotatedPairs {
  using A = accumulate_t<T>;

 public:
  explicit RotatedPairs(const BoxPairs& pairs)
      : pairs_(pairs), boxes1_(pairs.boxes1), boxes2_(pairs.boxes2) {}

  RotatedArgs<A> of_image(int64_t image) const {
    return {boxes1_.from(pairs_.first1(image)), boxes2_.from(pairs_.first2(image)), pairs_.M};
  }

 private:
  class Memory {
   public:
    explicit Memory(const Tensor& boxes)
        : count_(boxes.numel() / rotated_columns(kSolid)),
          memory_(new A[rotated_arrays(kSolid) * count_]) {
      const auto* data = static_cast<const torch_scalar_t<T>*>(boxes.const_data_ptr());
      write_rotated<kSolid>(data, count_, memory_.get(), count_);
    }

    // The boxes from `first` on.
    RotatedSet<A> from(int64_t first) const { return {memory_.get() + first, count_}; }

   private:
    int64_t count_;
    std::unique_ptr<A[]> memory_;
  };

  const BoxPairs& pairs_;
  Memory boxes1_, boxes2_;
};

constexpr int64_t kRotatedSerialPairs = 1 << 12;  // below, waking threads does not pay

// Overlaps of all pairs by `kernel`, which takes the result, the boxes of an image and a tile.
template <bool kSolid, typename Kernel>
Tensor rotated_overlaps(const Tensor& boxes1, const Tensor& boxes2, const Kernel& kernel) {
  constexpr int64_t kTileRows = 64, kTileColumns = 512;
  const BoxPairs pairs(boxes1, boxes2, rotated_columns(kSolid));
  Tensor output = pairs.empty_overlaps(boxes1.scalar_type() == ScalarType::Double);
  if (output.numel() == 0) {
    return output;
  }
  FASTVISION_DISPATCH_FLOATING(boxes1.scalar_type(), "boxes1", [&] {
    using A = accumulate_t<scalar_t>;
    const RotatedPairs<kSolid, scalar_t> boxes(pairs);
    A* to = static_cast<A*>(output.mutable_data_ptr());
    for_tiles<RotatedTile>(
        pairs,
        kTileRows,
        kTileColumns,
        kRotatedSerialPairs,
        [&](int64_t image, const RotatedTile& tile) {
          kernel(to + image * pairs.N * pairs.M, boxes.of_image(image), tile);
        }
    );
  });
  return output;
}

// The sum of `parts` terms of each of `count` boxes, in order; by the angle as it is given.
template <bool kSolid, typename A>
void sum_parts(const A* terms, int64_t parts, int64_t count, A* grad) {
  constexpr int kTerms = rotated_columns(kSolid);
  for (int64_t i = 0; i < count * kTerms; ++i) {
    A sum = 0;
    for (int64_t part = 0; part < parts; ++part) {
      sum += terms[part * count * kTerms + i];
    }
    const bool is_angle = i % kTerms == kTerms - 1;
    grad[i] = is_angle ? sum * static_cast<A>(kSolid ? -1 : kRadians) : sum;
  }
}

// Gradients of the boxes in float, or in double for double boxes; with a batch if they have one.
// `kernel` takes the gradient of an image, its boxes, a tile, and the terms of rows and columns.
template <bool kSolid, typename Kernel>
std::tuple<Tensor, Tensor> rotated_gradients(
    const Tensor& grad_output, const Tensor& boxes1, const Tensor& boxes2, const Kernel& kernel
) {
  constexpr int kTerms = rotated_columns(kSolid);
  const BoxPairs pairs(boxes1, boxes2, kTerms);
  const bool wide = boxes1.scalar_type() == ScalarType::Double;
  pairs.check_gradient(grad_output, wide);
  const Tensor grad = torch::stable::contiguous(grad_output);
  const int64_t B = pairs.B, N = pairs.N, M = pairs.M;
  Tensor grad1 = pairs.empty_gradient(N, wide), grad2 = pairs.empty_gradient(M, wide);
  FASTVISION_DISPATCH_FLOATING(boxes1.scalar_type(), "boxes1", [&] {
    using A = accumulate_t<scalar_t>;
    const RotatedPairs<kSolid, scalar_t> boxes(pairs);
    const auto* g = static_cast<const A*>(grad.const_data_ptr());
    const PairParts parts(pairs);
    const int64_t of_rows = N * kTerms, of_columns = M * kTerms;
    // the terms of rows for each part of the columns, and the reverse
    const std::unique_ptr<A[]> rows(new A[B * parts.columns * of_rows]());
    const std::unique_ptr<A[]> columns(new A[B * parts.rows * of_columns]());
    parts.run<RotatedTile>(
        pairs,
        kRotatedSerialPairs,
        [&](int64_t image, int64_t row, int64_t column, const RotatedTile& tile) {
          kernel(
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
      sum_parts<kSolid>(
          rows.get() + image * parts.columns * of_rows, parts.columns, N, to1 + image * of_rows
      );
      sum_parts<kSolid>(
          columns.get() + image * parts.rows * of_columns, parts.rows, M, to2 + image * of_columns
      );
    }
  });
  return {grad1, grad2};
}

}  // namespace fastvision
