#include "ops/box_iou.h"

#include <memory>

#include "ops/box_pairs.h"

namespace fastvision {
namespace {

constexpr int64_t kTileRows = 128;         // for which boxes2 are taken apart once
constexpr int64_t kTileColumns = 1 << 11;  // for which boxes1 are
// below, waking threads does not pay
constexpr int64_t kSerialPairs = 1 << 14;
constexpr int64_t kSerialGradients = 1 << 12;

BoxIouArgs make_args(const BoxPairs& pairs, int64_t kind, int64_t format, double eps) {
  STD_TORCH_CHECK(kind >= 0 && kind < kBoxIouKinds, "unknown kind ", kind);
  STD_TORCH_CHECK(format >= 0 && format < kBoxFormats, "unknown format ", format);
  BoxIouArgs args{};
  args.M = pairs.M;
  args.kind = static_cast<BoxIouKind>(kind);
  args.format = static_cast<BoxFormat>(format);
  args.eps = eps;
  return args;
}

template <typename T>
BoxIouArgs of_image(BoxIouArgs args, const BoxPairs& pairs, int64_t image) {
  args.boxes1 = static_cast<const T*>(pairs.boxes1.const_data_ptr()) + 4 * pairs.first1(image);
  args.boxes2 = static_cast<const T*>(pairs.boxes2.const_data_ptr()) + 4 * pairs.first2(image);
  return args;
}

template <typename T, typename O>
void run_forward(const BoxPairs& pairs, const BoxIouArgs& args, O* output) {
  for_tiles<BoxIouTile>(
      pairs, kTileRows, kTileColumns, kSerialPairs, [&](int64_t image, const BoxIouTile& tile) {
        const T* type = nullptr;
        O* to = output + image * pairs.N * pairs.M;
        FASTVISION_CALL(box_iou, type, to, of_image<T>(args, pairs, image), tile);
      }
  );
}

// `narrow`: results of double boxes in float.
Tensor box_iou(
    const Tensor& boxes1,
    const Tensor& boxes2,
    int64_t kind,
    int64_t format,
    double eps,
    bool narrow
) {
  const BoxPairs pairs(boxes1, boxes2, 4);
  const BoxIouArgs args = make_args(pairs, kind, format, eps);
  const bool wide = boxes1.scalar_type() == ScalarType::Double && !narrow;
  Tensor output = pairs.empty_overlaps(wide);
  if (output.numel() == 0) {
    return output;
  }
  FASTVISION_DISPATCH_FLOATING(boxes1.scalar_type(), "boxes1", [&] {
    if constexpr (std::is_same_v<scalar_t, double>) {
      if (wide) {
        run_forward<double>(pairs, args, static_cast<double*>(output.mutable_data_ptr()));
        return;
      }
    }
    run_forward<scalar_t>(pairs, args, static_cast<float*>(output.mutable_data_ptr()));
  });
  return output;
}

template <typename T, typename A>
void run_backward(
    const BoxPairs& pairs, const BoxIouArgs& args, const A* grad, A* grad1, A* grad2
) {
  const int64_t B = pairs.B, N = pairs.N, M = pairs.M;
  const PairParts parts(pairs);
  const int64_t of_rows = N * kBoxIouTerms, of_columns = M * kBoxIouTerms;
  // the terms of rows for each part of the columns, and the reverse
  const std::unique_ptr<A[]> rows(new A[B * parts.columns * of_rows]());
  const std::unique_ptr<A[]> columns(new A[B * parts.rows * of_columns]);
  parts.run<BoxIouTile>(
      pairs,
      kSerialGradients,
      [&](int64_t image, int64_t row, int64_t column, const BoxIouTile& tile) {
        const T* type = nullptr;
        FASTVISION_CALL(
            box_iou_backward,
            type,
            grad + image * N * M,
            of_image<T>(args, pairs, image),
            tile,
            rows.get() + (image * parts.columns + column) * of_rows,
            columns.get() + (image * parts.rows + row) * of_columns
        );
      }
  );
  for (int64_t image = 0; image < B; ++image) {
    const BoxIouArgs here = of_image<T>(args, pairs, image);
    FASTVISION_CALL(
        box_iou_terms,
        static_cast<const T*>(here.boxes1),
        grad1 + image * N * 4,
        N,
        here,
        rows.get() + image * parts.columns * of_rows,
        parts.columns,
        of_rows
    );
    FASTVISION_CALL(
        box_iou_terms,
        static_cast<const T*>(here.boxes2),
        grad2 + image * M * 4,
        M,
        here,
        columns.get() + image * parts.rows * of_columns,
        parts.rows,
        of_columns
    );
  }
}

// Gradients of the boxes in float, or in double for double boxes; [B, N, 4] and [B, M, 4] if they
// are batched.
std::tuple<Tensor, Tensor> box_iou_backward(
    const Tensor& grad_output,
    const Tensor& boxes1,
    const Tensor& boxes2,
    int64_t kind,
    int64_t format,
    double eps
) {
  const BoxPairs pairs(boxes1, boxes2, 4);
  const BoxIouArgs args = make_args(pairs, kind, format, eps);
  const bool wide = boxes1.scalar_type() == ScalarType::Double;
  pairs.check_gradient(grad_output, wide);
  const Tensor grad = torch::stable::contiguous(grad_output);
  Tensor grad1 = pairs.empty_gradient(pairs.N, wide), grad2 = pairs.empty_gradient(pairs.M, wide);
  FASTVISION_DISPATCH_FLOATING(boxes1.scalar_type(), "boxes1", [&] {
    using A = accumulate_t<scalar_t>;
    run_backward<scalar_t>(
        pairs,
        args,
        static_cast<const A*>(grad.const_data_ptr()),
        static_cast<A*>(grad1.mutable_data_ptr()),
        static_cast<A*>(grad2.mutable_data_ptr())
    );
  });
  return {grad1, grad2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("box_iou", FASTVISION_BOX(&box_iou));
  m.impl("box_iou_backward", FASTVISION_BOX(&box_iou_backward));
}

}  // namespace fastvision
