#include "ops/max_unpool2d.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>

#include "common/memory_format.h"
#include "common/parallel.h"
#include "common/torch.h"

namespace fastvision {
namespace {

constexpr int64_t kSerialElements = 1 << 13;  // below, waking threads does not pay
constexpr int64_t kPieceElements = 1 << 13;   // per kernel call
constexpr int64_t kChunksOfThread = 4;        // of rows: each begins new streams from memory
// to follow windows
constexpr int64_t kLeastChannels = 8;
constexpr int64_t kMostWindow = 16;

MaxUnpoolArgs layout(
    const Tensor& indices, int64_t PH, int64_t PW, bool channels_last, int64_t item
) {
  MaxUnpoolArgs args{};
  args.channels_last = channels_last;
  args.C = indices.size(1);
  args.H = indices.size(2);
  args.W = indices.size(3);
  args.PH = PH;
  args.PW = PW;
  args.pixels = PH * PW;
  args.indices = static_cast<const int64_t*>(indices.const_data_ptr());
  args.group = 1;
  if (channels_last) {
    // memory is read in order if a group has all channels; threads share no cache line
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t groups = threads == 1 ? 1 : (2 * threads + indices.size(0) - 1) / indices.size(0);
    const int64_t line = 64 / item, lines = (args.C + line - 1) / line;
    args.group = std::min(args.C, (lines + groups - 1) / groups * line);
  }
  return args;
}

void check_same(const Tensor& values, const Tensor& indices, const char* name) {
  check_dim(values, 4, name);
  check_dim(indices, 4, "indices");
  STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Long, "indices must be int64");
  for (int dim = 0; dim < 4; ++dim) {
    STD_TORCH_CHECK(
        values.size(dim) == indices.size(dim), name, " and indices must have the same shape"
    );
  }
}

// Runs kernel(begin, end, scratch), which returns whether all indices were in the plane, on all
// groups. `scratch_bytes`: per pixel of a plane.
template <typename Kernel>
void run(const MaxUnpoolArgs& args, int64_t N, int64_t scratch_bytes, const Kernel& kernel) {
  const int64_t groups = N * ((args.C + args.group - 1) / args.group);
  const int64_t elements = std::max(args.H * args.W, args.pixels) * args.group;
  const int64_t piece = groups * elements < kSerialElements
                            ? groups
                            : std::max<int64_t>(kPieceElements / elements, 1);
  std::atomic<bool> inside{true};
  parallel_chunks(groups, piece, [&] {
    const int64_t bytes = args.pixels * args.group * scratch_bytes;
    return [&, scratch = std::unique_ptr<float[]>(new float[(bytes + 3) / 4])](
               int64_t begin, int64_t end
           ) {
      if (!kernel(begin, end, scratch.get())) {
        inside.store(false, std::memory_order_relaxed);
      }
    };
  });
  STD_TORCH_CHECK(
      inside.load(), "indices must be at least 0 and below ", args.pixels, ", the pixels of a plane"
  );
}

// Whether the kernels that follow windows can be tried: the windows are the caller's word.
bool has_windows(MaxUnpoolArgs& args) {
  const int64_t sizes[2] = {args.PH, args.PW}, counts[2] = {args.H, args.W};
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t window = args.window[axis], padding = args.padding[axis];
    int64_t& stride = args.stride[axis];
    stride = counts[axis] == 1 ? sizes[axis] : stride;
    const bool fits = 0 < window && window <= kMostWindow && window <= stride &&
                      stride <= sizes[axis] && 0 <= padding && padding < window &&
                      (counts[axis] - 1) * stride < sizes[axis] + padding;
    if (!fits) {
      return false;
    }
  }
  return args.pixels <= std::numeric_limits<int32_t>::max() / (2 * kMostWindow) &&
         (args.channels_last ? args.C >= kLeastChannels : max_unpool2d_in_quads(args));
}

// Runs kernel(begin, end), which returns whether all indices were in their windows, on all rows of
// values, and returns the same.
template <typename Kernel>
bool run_rows(const MaxUnpoolArgs& args, int64_t N, const Kernel& kernel) {
  const int64_t rows = N * args.H * (args.channels_last ? 1 : args.C);
  const int64_t elements = args.pixels / args.H * (args.channels_last ? args.C : 1);
  const int64_t share = rows / (kChunksOfThread * torch::stable::get_num_threads());
  const int64_t piece = rows * elements < kSerialElements
                            ? rows
                            : std::max<int64_t>({2 * kPieceElements / elements, share, 1});
  std::atomic<bool> inside{true};
  parallel_chunks(rows, piece, [&] {
    return [&](int64_t begin, int64_t end) {
      if (inside.load(std::memory_order_relaxed) && !kernel(begin, end)) {
        inside.store(false, std::memory_order_relaxed);
      }
    };
  });
  return inside.load();
}

// 16-bit types move as bits
template <typename T>
using bits_t = std::conditional_t<sizeof(T) == 2, uint16_t, T>;

// The distance of windows that undo a pooling without overlap, if there was one.
int64_t likely_stride(int64_t size, int64_t count) {
  return std::max<int64_t>((size + count / 2) / count, 1);
}

Tensor max_unpool2d(const Tensor& x, const Tensor& places, int64_t OH, int64_t OW) {
  check_same(x, places, "input");
  STD_TORCH_CHECK(
      OH > 0 && OW > 0, "output_h and output_w must be at least 1, got ", OH, " and ", OW
  );
  const bool channels_last = is_channels_last(x);
  const Tensor input = in_format(x, channels_last), indices = in_format(places, channels_last);
  Tensor output = empty_in_format(x, x.size(0), x.size(1), OH, OW, channels_last);
  if (output.numel() == 0) {
    return output;
  }
  MaxUnpoolArgs args = layout(indices, OH, OW, channels_last, x.element_size());
  args.values = const_cast<void*>(input.const_data_ptr());
  args.plane = output.mutable_data_ptr();
  args.stream = is_streamed(output.numel() * x.element_size());
  if (input.numel() > 0) {
    args.stride[0] = args.window[0] = likely_stride(OH, args.H);
    args.stride[1] = args.window[1] = likely_stride(OW, args.W);
  }
  const bool windows = has_windows(args);
  FASTVISION_DISPATCH_FLOATING(x.scalar_type(), "input", [&] {
    const auto spread = [&](int64_t begin, int64_t end) {
      const auto* bits = static_cast<const bits_t<scalar_t>*>(nullptr);
      return FASTVISION_CALL(max_unpool2d_spread, bits, args, begin, end);
    };
    if (windows && run_rows(args, x.size(0), spread)) {
      return;
    }
    run(args, x.size(0), 0, [&](int64_t begin, int64_t end, void* scratch) {
      const auto* type = static_cast<const scalar_t*>(nullptr);
      return FASTVISION_CALL(max_unpool2d, type, args, begin, end, scratch);
    });
  });
  return output;
}

Tensor max_unpool2d_backward(
    const Tensor& g, const Tensor& places, int64_t stride_h, int64_t stride_w
) {
  check_dim(g, 4, "grad");
  check_dim(places, 4, "indices");
  STD_TORCH_CHECK(
      places.scalar_type() == ScalarType::Long && g.size(0) == places.size(0) &&
          g.size(1) == places.size(1),
      "indices must be int64, of the images and channels of grad"
  );
  const bool channels_last = is_channels_last(places);
  const Tensor grad = in_format(g, channels_last), indices = in_format(places, channels_last);
  const int64_t H = indices.size(2), W = indices.size(3);
  Tensor result = empty_in_format(g, g.size(0), g.size(1), H, W, channels_last);
  if (result.numel() == 0) {
    return result;
  }
  STD_TORCH_CHECK(g.size(2) > 0 && g.size(3) > 0, "grad must have pixels");
  MaxUnpoolArgs args = layout(indices, g.size(2), g.size(3), channels_last, g.element_size());
  args.stride[0] = args.window[0] = stride_h;
  args.stride[1] = args.window[1] = stride_w;
  args.values = result.mutable_data_ptr();
  args.plane = const_cast<void*>(grad.const_data_ptr());
  MaxUnpoolArgs tiles = args;
  const bool windows =
      has_windows(tiles) && tiles.window[0] <= args.PH / H && tiles.window[1] <= args.PW / W;
  FASTVISION_DISPATCH_FLOATING(g.scalar_type(), "grad", [&] {
    const auto collect = [&](int64_t begin, int64_t end) {
      const auto* bits = static_cast<const bits_t<scalar_t>*>(nullptr);
      return FASTVISION_CALL(max_unpool2d_collect, bits, tiles, begin, end);
    };
    if (windows && run_rows(tiles, g.size(0), collect)) {
      return;
    }
    run(args, g.size(0), 1, [&](int64_t begin, int64_t end, void* scratch) {
      const auto* type = static_cast<const scalar_t*>(nullptr);
      return FASTVISION_CALL(max_unpool2d_backward, type, args, begin, end, scratch);
    });
  });
  return result;
}

Tensor max_pool2d_backward(
    const Tensor& g,
    const Tensor& places,
    int64_t kernel_h,
    int64_t kernel_w,
    int64_t stride_h,
    int64_t stride_w,
    int64_t padding_h,
    int64_t padding_w,
    int64_t dilation_h,
    int64_t dilation_w,
    int64_t H,
    int64_t W
) {
  check_same(g, places, "grad");
  const bool channels_last = is_channels_last(places);
  const Tensor grad = in_format(g, channels_last), indices = in_format(places, channels_last);
  Tensor result = empty_in_format(g, g.size(0), g.size(1), H, W, channels_last);
  if (result.numel() == 0) {
    return result;
  }
  MaxUnpoolArgs args = layout(indices, H, W, channels_last, g.element_size());
  args.values = const_cast<void*>(grad.const_data_ptr());
  args.plane = result.mutable_data_ptr();
  args.stream = is_streamed(result.numel() * g.element_size());
  const int64_t kernel[2] = {kernel_h, kernel_w}, stride[2] = {stride_h, stride_w};
  const int64_t padding[2] = {padding_h, padding_w};
  std::copy_n(kernel, 2, args.window);
  std::copy_n(stride, 2, args.stride);
  std::copy_n(padding, 2, args.padding);
  const bool windows = grad.numel() > 0 && dilation_h == 1 && dilation_w == 1 && has_windows(args);
  FASTVISION_DISPATCH_FLOATING(g.scalar_type(), "grad", [&] {
    const auto spread = [&](int64_t begin, int64_t end) {
      const auto* bits = static_cast<const bits_t<scalar_t>*>(nullptr);
      return FASTVISION_CALL(max_unpool2d_spread, bits, args, begin, end);
    };
    if (windows && run_rows(args, g.size(0), spread)) {
      return;
    }
    // the indices say all that the windows would
    const int64_t scratch_bytes = sizeof(scalar_t) == 2 ? sizeof(float) : 0;
    run(args, g.size(0), scratch_bytes, [&](int64_t begin, int64_t end, void* s) {
      const auto* type = static_cast<const scalar_t*>(nullptr);
      return FASTVISION_CALL(max_pool2d_backward, type, args, begin, end, s);
    });
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("max_unpool2d", FASTVISION_BOX(&max_unpool2d));
  m.impl("max_unpool2d_backward", FASTVISION_BOX(&max_unpool2d_backward));
  m.impl("max_pool2d_with_indices_backward", FASTVISION_BOX(&max_pool2d_backward));
}

}  // namespace fastvision
