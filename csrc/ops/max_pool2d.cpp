#include "ops/max_pool2d.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "common/memory_format.h"
#include "common/parallel.h"
#include "common/torch.h"

namespace fastvision {
namespace {

constexpr int64_t kSerialElements = 1 << 13;  // below, waking threads does not pay
constexpr int64_t kPieceElements = 1 << 12;   // per kernel call

// Also drops taps that no window has inside, and a stride that no window follows, which bounds the
// scratch memory and all products of these numbers.
void check_windows(MaxPoolArgs& args) {
  const int64_t sizes[2] = {args.H, args.W}, outputs[2] = {args.OH, args.OW};
  for (int axis = 0; axis < 2; ++axis) {
    int64_t &kernel = args.kernel[axis], &stride = args.stride[axis];
    const int64_t padding = args.padding[axis], dilation = args.dilation[axis];
    STD_TORCH_CHECK(
        sizes[axis] > 0 && kernel > 0 && stride > 0 && dilation > 0 && padding >= 0 &&
            padding <= kernel / 2 && outputs[axis] > 0 &&
            (outputs[axis] - 1) <= (sizes[axis] + padding - 1) / stride,
        "kernel_size, stride, padding, dilation and output_size do not belong together"
    );
    kernel = std::min(kernel, (sizes[axis] + padding - 1) / dilation + 1);
    stride = outputs[axis] == 1 ? 1 : stride;
  }
  const int64_t last =
      args.dilation[0] * (args.kernel[0] - 1) * args.W + args.dilation[1] * (args.kernel[1] - 1);
  STD_TORCH_CHECK(
      last < std::numeric_limits<int32_t>::max(), "a window must span less than 2^31 pixels"
  );
}

std::tuple<Tensor, Tensor> max_pool2d_with_indices(
    const Tensor& x,
    int64_t kernel_h,
    int64_t kernel_w,
    int64_t stride_h,
    int64_t stride_w,
    int64_t padding_h,
    int64_t padding_w,
    int64_t dilation_h,
    int64_t dilation_w,
    int64_t OH,
    int64_t OW
) {
  check_dim(x, 4, "input");
  MaxPoolArgs args{
      nullptr,
      nullptr,
      nullptr,
      is_channels_last(x),
      x.size(1),
      x.size(2),
      x.size(3),
      OH,
      OW,
      {kernel_h, kernel_w},
      {stride_h, stride_w},
      {padding_h, padding_w},
      {dilation_h, dilation_w}
  };
  check_windows(args);
  const Tensor input = in_format(x, args.channels_last);
  Tensor output = empty_in_format(x, x.size(0), args.C, args.OH, args.OW, args.channels_last);
  const std::vector<int64_t> sizes(output.sizes().begin(), output.sizes().end());
  const std::vector<int64_t> strides(output.strides().begin(), output.strides().end());
  Tensor indices = empty_strided(sizes, strides, ScalarType::Long, 8, x.device());
  if (output.numel() == 0) {
    return {output, indices};
  }
  args.input = input.const_data_ptr();
  args.output = output.mutable_data_ptr();
  args.indices = static_cast<int64_t*>(indices.mutable_data_ptr());
  const int64_t items = output.numel() / (args.channels_last ? args.C : args.OW);
  const int64_t item_elements = output.numel() / items;
  const int64_t piece = output.numel() < kSerialElements
                            ? items
                            : std::max<int64_t>(kPieceElements / item_elements, 1);
  FASTVISION_DISPATCH_FLOATING(x.scalar_type(), "input", [&] {
    using A = accumulate_t<scalar_t>;
    const int64_t scratch_elements = args.channels_last ? 0 : max_pool2d_scratch(args);
    parallel_chunks(items, piece, [&] {
      return
          [&, scratch = std::unique_ptr<A[]>(new A[scratch_elements])](int64_t begin, int64_t end) {
            const auto* type = static_cast<const scalar_t*>(nullptr);
            FASTVISION_CALL(max_pool2d, type, args, begin, end, scratch.get());
          };
    });
  });
  return {output, indices};
}

// The same with the integers in one tensor: as arguments, they take longer than a small map.
std::tuple<Tensor, Tensor> max_pool2d_of_window(const Tensor& x, const Tensor& window) {
  STD_TORCH_CHECK(
      window.is_cpu() && window.scalar_type() == ScalarType::Long && window.is_contiguous() &&
          window.numel() == 12,
      "window must be int64[12]"
  );
  check_dim(x, 4, "input");
  const auto* w = static_cast<const int64_t*>(window.const_data_ptr());
  STD_TORCH_CHECK(
      x.size(2) == w[10] && x.size(3) == w[11], "input must have ", w[10], " x ", w[11], " pixels"
  );
  return max_pool2d_with_indices(x, w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9]);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("max_pool2d_of_window", FASTVISION_BOX(&max_pool2d_of_window));
  m.impl("max_pool2d_with_indices", FASTVISION_BOX(&max_pool2d_with_indices));
}

}  // namespace fastvision
