#include "ops/box_iou_loss.h"

#include "common/parallel.h"
#include "common/result_memory.h"
#include "common/torch.h"

namespace fastvision {
namespace {

constexpr int64_t kChunk = 1 << 12;  // boxes of a thread: waking it for fewer does not pay

struct Boxes {
  Tensor boxes1, boxes2;
  BoxIouArgs args{};
  int64_t count;
  bool wide;

  Boxes(const Tensor& b1, const Tensor& b2, int64_t kind, double eps)
      : boxes1(torch::stable::contiguous(b1)), boxes2(torch::stable::contiguous(b2)) {
    check_dim(b1, 2, "boxes1");
    check_dim(b2, 2, "boxes2");
    count = b1.size(0);
    STD_TORCH_CHECK(
        b1.size(1) == 4 && b2.size(1) == 4 && b2.size(0) == count &&
            b1.scalar_type() == b2.scalar_type(),
        "boxes1 and boxes2 must have one shape [N, 4] and dtype"
    );
    wide = b1.scalar_type() == ScalarType::Double;
    STD_TORCH_CHECK(
        wide || b1.scalar_type() == ScalarType::Float, "boxes1 must be float32 or float64"
    );
    STD_TORCH_CHECK(kind > 0 && kind < kBoxIouKinds, "unknown kind ", kind);
    args.boxes1 = boxes1.const_data_ptr();
    args.boxes2 = boxes2.const_data_ptr();
    args.kind = static_cast<BoxIouKind>(kind);
    args.format = BoxFormat::xyxy;
    args.eps = eps;
  }

  // Calls run(number) with a float or double.
  template <typename Run>
  void dispatch(const Run& run) const {
    if (wide) {
      run(double{});
    } else {
      run(float{});
    }
  }
};

Tensor box_iou_loss(const Tensor& boxes1, const Tensor& boxes2, int64_t kind, double eps) {
  const Boxes boxes(boxes1, boxes2, kind, eps);
  Tensor losses = empty_result(boxes1, {boxes.count}, {1});
  boxes.dispatch([&](auto number) {
    auto* to = static_cast<decltype(number)*>(losses.mutable_data_ptr());
    parallel_chunks(boxes.count, kChunk, [&] {
      return [&](int64_t begin, int64_t end) {
        FASTVISION_CALL(box_iou_loss, boxes.args, to, begin, end);
      };
    });
  });
  return losses;
}

std::tuple<Tensor, Tensor> box_iou_loss_backward(
    const Tensor& grad_output, const Tensor& boxes1, const Tensor& boxes2, int64_t kind, double eps
) {
  const Boxes boxes(boxes1, boxes2, kind, eps);
  STD_TORCH_CHECK(
      grad_output.dim() == 1 && grad_output.size(0) == boxes.count &&
          grad_output.scalar_type() == boxes1.scalar_type(),
      "grad must have the shape and dtype of the losses"
  );
  const Tensor grad = torch::stable::contiguous(grad_output);
  Tensor grad1 = empty_result(boxes1, {boxes.count, 4}, {4, 1});
  Tensor grad2 = empty_result(boxes2, {boxes.count, 4}, {4, 1});
  boxes.dispatch([&](auto number) {
    using A = decltype(number);
    const A* from = static_cast<const A*>(grad.const_data_ptr());
    A* to1 = static_cast<A*>(grad1.mutable_data_ptr());
    A* to2 = static_cast<A*>(grad2.mutable_data_ptr());
    parallel_chunks(boxes.count, kChunk, [&] {
      return [&](int64_t begin, int64_t end) {
        FASTVISION_CALL(box_iou_loss_backward, boxes.args, from, to1, to2, begin, end);
      };
    });
  });
  return {grad1, grad2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("box_iou_loss", FASTVISION_BOX(&box_iou_loss));
  m.impl("box_iou_loss_backward", FASTVISION_BOX(&box_iou_loss_backward));
}

}  // namespace fastvision
