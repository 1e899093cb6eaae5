// Transposed convolution with separable filters: a special kernel upsamples rows, then columns.
#include "ops/conv_transpose2d_separable.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "common/memory_format.h"
#include "common/parallel.h"
#include "common/torch.h"
#include "ops/conv_engine.h"

namespace fastvision {
namespace {

constexpr int64_t kSerialWork = 1 << 16;  // values below which waking threads does not pay
constexpr int64_t kRowBytes = 16 << 10;   // per stretched row, so that those of a task stay cached
constexpr int64_t kTaskOutputs = 1 << 16;

template <typename scalar_t>
void run_separable(const SeparableArgs<accumulate_t<scalar_t>>& args) {
  using A = accumulate_t<scalar_t>;
  const int64_t planes = args.channels_last ? args.N : args.N * args.C;
  const int64_t width = args.channels_last ? args.C : 1;
  const int64_t columns = (args.OW - 1 + args.x.padding) / args.x.stride + 1;
  const int64_t pixel_bytes = args.x.stride * width * static_cast<int64_t>(sizeof(A));
  const int64_t q_step = std::clamp<int64_t>(kRowBytes / pixel_bytes, 1, columns);
  const int64_t row_outputs = q_step * args.x.stride * width;
  // whole periods of the stride, since each task stretches its first rows itself
  const int64_t y_step =
      std::max<int64_t>(kTaskOutputs / row_outputs / args.y.stride, 2) * args.y.stride;
  const int64_t x_blocks = ceil_div(columns, q_step);
  const int64_t y_blocks = ceil_div(args.OH, y_step);
  const int64_t tasks = planes * y_blocks * x_blocks;
  const int64_t outputs = args.N * args.C * args.OH * args.OW;
  parallel_chunks(tasks, outputs < kSerialWork ? tasks : 1, [&] {
    return [&, scratch = std::unique_ptr<A[]>(new A[separable_scratch(args, q_step)])](
               int64_t begin, int64_t end
           ) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t y = i / x_blocks % y_blocks * y_step;
        const int64_t q = i % x_blocks * q_step;
        const SeparableTask task{
            i / (x_blocks * y_blocks),
            y,
            std::min(args.OH, y + y_step),
            q,
            std::min(columns, q + q_step),
        };
        FASTVISION_CALL(
            conv_transpose2d_separable,
            static_cast<const scalar_t*>(nullptr),
            args,
            task,
            scratch.get()
        );
      }
    };
  });
}

Tensor conv_transpose2d_separable(
    const Tensor& input,
    std::vector<double> rows,
    std::vector<double> columns,
    const Tensor& scale,
    const std::optional<Tensor>& shift,
    const std::optional<Tensor>& residual,
    int64_t stride_y,
    int64_t stride_x,
    int64_t padding_y,
    int64_t padding_x,
    int64_t OH,
    int64_t OW,
    int64_t activation,
    double negative_slope
) {
  check_dim(input, 4, "input");
  STD_TORCH_CHECK(
      std::min({stride_y, stride_x, OH, OW}) > 0 && std::min(padding_y, padding_x) >= 0,
      "stride and output must be positive, padding not negative"
  );
  STD_TORCH_CHECK(!rows.empty() && !columns.empty(), "rows and columns must not be empty");
  STD_TORCH_CHECK(activation >= 0 && activation < kActivations, "unknown activation ", activation);
  const int64_t N = input.size(0), C = input.size(1), H = input.size(2), W = input.size(3);
  STD_TORCH_CHECK(H > 0 && W > 0, "input must not be empty in height or width");
  const bool channels_last = is_channels_last(input);
  const Tensor x = in_format(input, channels_last);
  Tensor output = empty_in_format(input, N, C, OH, OW, channels_last);
  const std::optional<Tensor> added = residual_of(residual, output, channels_last);
  if (output.numel() == 0) {
    return output;
  }
  FASTVISION_DISPATCH_FLOATING(input.scalar_type(), "input", [&] {
    using A = accumulate_t<scalar_t>;
    constexpr ScalarType kAccumulate =
        std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
    for (const Tensor* t : {&scale, shift ? &*shift : &scale}) {
      STD_TORCH_CHECK(
          t->scalar_type() == kAccumulate && t->numel() == C && t->is_contiguous() && t->is_cpu(),
          "scale and shift must be contiguous, [C], float32, or float64 for float64 input"
      );
    }
    const std::vector<A> y_taps(rows.begin(), rows.end());
    const std::vector<A> x_taps(columns.begin(), columns.end());
    run_separable<scalar_t>({
        x.const_data_ptr(),
        added ? added->const_data_ptr() : nullptr,
        output.mutable_data_ptr(),
        static_cast<const A*>(scale.const_data_ptr()),
        shift ? static_cast<const A*>(shift->const_data_ptr()) : nullptr,
        {y_taps.data(), static_cast<int64_t>(y_taps.size()), stride_y, padding_y},
        {x_taps.data(), static_cast<int64_t>(x_taps.size()), stride_x, padding_x},
        N,
        C,
        H,
        W,
        OH,
        OW,
        channels_last,
        static_cast<Activation>(activation),
        static_cast<A>(negative_slope),
    });
  });
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("conv_transpose2d_separable", FASTVISION_BOX(&conv_transpose2d_separable));
}

}  // namespace fastvision
