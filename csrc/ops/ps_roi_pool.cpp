#include "ops/ps_roi_pool.h"

#include "ops/roi_devices.h"

namespace fastvision {
namespace {

template <template <typename> typename Device>
Tensor ps_roi_pool(
    const Tensor& input,
    const Tensor& rois,
    double spatial_scale,
    int64_t pooled_height,
    int64_t pooled_width
) {
  RoiArgs args{};
  args.PH = pooled_height;
  args.PW = pooled_width;
  check_sensitive(input, pooled_height, pooled_width);
  return roi_pooled(roi_kernels<PSRoIPool, Device>, args, {input}, rois, {spatial_scale});
}

template <template <typename> typename Device>
Tensor ps_roi_pool_backward(
    const Tensor& grad,
    const Tensor& rois,
    double spatial_scale,
    std::vector<int64_t> sizes,
    bool channels_last
) {
  RoiArgs args{};
  args.channels_last = channels_last;
  return roi_gradients(roi_kernels<PSRoIPool, Device>, args, grad, rois, sizes, {spatial_scale})[0];
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("ps_roi_pool", FASTVISION_BOX(&ps_roi_pool<RoiCpu>));
  m.impl("ps_roi_pool_backward", FASTVISION_BOX(&ps_roi_pool_backward<RoiCpu>));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastvision, CUDA, m) {
  m.impl("ps_roi_pool", FASTVISION_BOX(&ps_roi_pool<RoiCuda>));
  m.impl("ps_roi_pool_backward", FASTVISION_BOX(&ps_roi_pool_backward<RoiCuda>));
}
#endif

}  // namespace fastvision
