// The kernels of a RoI op on the CPU and on CUDA, as the engine calls them. An op is described as
// in ops/roi_align.h.
#pragma once

#include <memory>

#include "common/parallel.h"
#include "common/roi_taps.h"
#include "ops/roi_engine.h"
#include "ops/roi_schedule.h"
#ifdef USE_CUDA
#include "common/cuda_stream.h"
#endif

namespace fastvision {

template <typename Op>
struct RoiCpu {
  static constexpr bool kChannelsLastOnly = false;

  static void forward(const RoiArgs& args, const Tensor& features) {
    FASTVISION_DISPATCH_FLOATING(features.scalar_type(), "features", [&] {
      run_forward<scalar_t>(args);
    });
  }
  static void backward(const RoiArgs& args, const Tensor& grad) {
    FASTVISION_DISPATCH_FLOATING(grad.scalar_type(), "grad", [&] { run_backward<scalar_t>(args); });
  }

 private:
  template <typename T>
  using Kernel = RoiKernel<T, typename Op::Reduction, typename Op::Channels>;
  template <typename A>
  using Taps = RoiTaps<typename Op::template Axis<A>>;

  template <typename A>
  static Taps<A> build_taps(const RoiArgs& args) {
    Taps<A> taps(args);
    check_roi(taps.fault, taps.bad_roi);
    return taps;
  }

  template <typename T>
  static void run_forward(const RoiArgs& args) {
    using A = accumulate_t<T>;
    const Taps<A> taps = build_taps<A>(args);
    const RoiTapsView<A> view = taps.view();
    constexpr int64_t copied = kCopiedPerRoi<typename Op::Reduction, typename Op::Channels>;
    const RoiForwardSchedule schedule(args, Op::Channels::kSharedByBins, copied, view.rois);
    parallel_chunks(schedule.tasks, schedule.chunk, [&] {
      return
          [&, scratch = std::unique_ptr<A[]>(new A[schedule.scratch])](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
              FASTVISION_CALL(roi_forward, Kernel<T>{}, args, view, schedule[i], scratch.get());
            }
          };
    });
  }

  template <typename T>
  static void run_backward(const RoiArgs& args) {
    using A = accumulate_t<T>;
    const Taps<A> taps = build_taps<A>(args);
    const RoiTapsView<A> view = taps.view();
    const RoiBackwardSchedule schedule(args, Op::Channels::kSharedByBins, view.rois, sizeof(A));
    const int64_t tasks = static_cast<int64_t>(schedule.tasks.size());
    parallel_chunks(tasks, schedule.chunk, [&] {
      return [&,
              scratch = std::unique_ptr<A[]>(new A[schedule.scratch])](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          FASTVISION_CALL(roi_backward, Kernel<T>{}, args, view, schedule.tasks[i], scratch.get());
        }
      };
    });
  }
};

#ifdef USE_CUDA
template <typename Op>
struct RoiCuda {
  static constexpr bool kChannelsLastOnly = false;

  static void forward(const RoiArgs& args, const Tensor& features) {
    check_sizes(args);
    const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
    const cudaStream_t stream = current_cuda_stream(features.get_device_index());
    FASTVISION_DISPATCH_FLOATING(features.scalar_type(), "features", [&] {
      launch_roi_forward<Op, scalar_t>(args, stream);
    });
  }
  static void backward(const RoiArgs& args, const Tensor& grad) {
    check_sizes(args);
    const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
    const cudaStream_t stream = current_cuda_stream(grad.get_device_index());
    FASTVISION_DISPATCH_FLOATING(grad.scalar_type(), "grad", [&] {
      launch_roi_backward<Op, scalar_t>(args, stream);
    });
  }

 private:
  // the kernels' offsets are 64-bit, their sizes are not
  static void check_sizes(const RoiArgs& args) {
    check_fits_int(args.N, "a batch size");
    check_fits_int(args.C, "a number of channels");
    check_fits_int(args.K, "a number of rois");
    check_fits_int(args.PH * args.PW, "an output size");
  }
};
#endif

template <typename Op, template <typename> typename Device>
constexpr RoiKernels roi_kernels = {
    &Op::Channels::pooled,
    &Op::Channels::features,
    &Device<Op>::forward,
    &Device<Op>::backward,
    Device<Op>::kChannelsLastOnly,
    std::is_same_v<typename Op::Reduction, Maximum>
};

}  // namespace fastvision
