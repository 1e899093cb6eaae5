#include "ops/roi_pool.h"

#include "ops/roi_devices.h"

namespace fastvision {
namespace {

template <template <typename> typename Device>
std::tuple<Tensor, Tensor> roi_pool(
    const Tensor& input,
    const Tensor& rois,
    double spatial_scale,
    int64_t pooled_height,
    int64_t pooled_width,
    bool with_argmax
) {
  RoiArgs args{};
  args.PH = pooled_height;
  args.PW = pooled_width;
  return roi_maxima(
      roi_kernels<RoIPool, Device>, args, {input}, rois, {spatial_scale}, with_argmax
  );
}

template <template <typename> typename Device>
Tensor roi_pool_backward(
    const Tensor& grad,
    const Tensor& rois,
    const Tensor& argmax,
    double spatial_scale,
    std::vector<int64_t> sizes,
    bool channels_last
) {
  RoiArgs args{};
  args.channels_last = channels_last;
  return roi_gradients(
      roi_kernels<RoIPool, Device>, args, grad, rois, sizes, {spatial_scale}, &argmax
  )[0];
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("roi_pool", FASTVISION_BOX(&roi_pool<RoiCpu>));
  m.impl("roi_pool_backward", FASTVISION_BOX(&roi_pool_backward<RoiCpu>));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastvision, CUDA, m) {
  m.impl("roi_pool", FASTVISION_BOX(&roi_pool<RoiCuda>));
  m.impl("roi_pool_backward", FASTVISION_BOX(&roi_pool_backward<RoiCuda>));
}
#endif

}  // namespace fastvision
