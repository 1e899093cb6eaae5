#include "ops/roi_samples_devices.h"

namespace fastvision {
namespace {

RoiArgs options(int64_t sampling_ratio, bool aligned, bool clockwise) {
  RoiArgs args{};
  args.sampling_ratio = sampling_ratio;
  args.aligned = aligned;
  args.rotated = true;
  args.clockwise = clockwise;
  return args;
}

template <template <typename> typename Device>
Tensor roi_align_rotated(
    const Tensor& input,
    const Tensor& rois,
    double spatial_scale,
    int64_t pooled_height,
    int64_t pooled_width,
    int64_t sampling_ratio,
    bool aligned,
    bool clockwise
) {
  RoiArgs args = options(sampling_ratio, aligned, clockwise);
  args.PH = pooled_height;
  args.PW = pooled_width;
  return roi_pooled(roi_kernels<RoIAlignRotated, Device>, args, {input}, rois, {spatial_scale});
}

template <template <typename> typename Device>
Tensor roi_align_rotated_backward(
    const Tensor& grad,
    const Tensor& rois,
    double spatial_scale,
    std::vector<int64_t> sizes,
    int64_t sampling_ratio,
    bool aligned,
    bool clockwise,
    bool channels_last
) {
  RoiArgs args = options(sampling_ratio, aligned, clockwise);
  args.channels_last = channels_last;
  return roi_gradients(
      roi_kernels<RoIAlignRotated, Device>, args, grad, rois, sizes, {spatial_scale}
  )[0];
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("roi_align_rotated", FASTVISION_BOX(&roi_align_rotated<RoiSamplesCpu>));
  m.impl("roi_align_rotated_backward", FASTVISION_BOX(&roi_align_rotated_backward<RoiSamplesCpu>));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastvision, CUDA, m) {
  m.impl("roi_align_rotated", FASTVISION_BOX(&roi_align_rotated<RoiCuda>));
  m.impl("roi_align_rotated_backward", FASTVISION_BOX(&roi_align_rotated_backward<RoiCuda>));
}
#endif

}  // namespace fastvision
