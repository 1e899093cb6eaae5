#include "ops/ps_roi_align.h"

#include "ops/roi_devices.h"

namespace fastvision {
namespace {

RoiArgs options(int64_t sampling_ratio) {
  RoiArgs args{};
  args.sampling_ratio = sampling_ratio;
  args.aligned = true;
  return args;
}

template <template <typename> typename Device>
Tensor ps_roi_align(
    const Tensor& input,
    const Tensor& rois,
    double spatial_scale,
    int64_t pooled_height,
    int64_t pooled_width,
    int64_t sampling_ratio
) {
  RoiArgs args = options(sampling_ratio);
  args.PH = pooled_height;
  args.PW = pooled_width;
  check_sensitive(input, pooled_height, pooled_width);
  return roi_pooled(roi_kernels<PSRoIAlign, Device>, args, {input}, rois, {spatial_scale});
}

template <template <typename> typename Device>
Tensor ps_roi_align_backward(
    const Tensor& grad,
    const Tensor& rois,
    double spatial_scale,
    std::vector<int64_t> sizes,
    int64_t sampling_ratio,
    bool channels_last
) {
  RoiArgs args = options(sampling_ratio);
  args.channels_last = channels_last;
  return roi_gradients(
      roi_kernels<PSRoIAlign, Device>, args, grad, rois, sizes, {spatial_scale}
  )[0];
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("ps_roi_align", FASTVISION_BOX(&ps_roi_align<RoiCpu>));
  m.impl("ps_roi_align_backward", FASTVISION_BOX(&ps_roi_align_backward<RoiCpu>));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastvision, CUDA, m) {
  m.impl("ps_roi_align", FASTVISION_BOX(&ps_roi_align<RoiCuda>));
  m.impl("ps_roi_align_backward", FASTVISION_BOX(&ps_roi_align_backward<RoiCuda>));
}
#endif

}  // namespace fastvision
