#include "ops/roi_align.h"

#include "ops/roi_devices.h"

namespace fastvision {
namespace {

template <template <typename> typename Device>
Tensor roi_align(
    std::vector<Tensor> features,
    const Tensor& rois,
    std::vector<double> spatial_scales,
    int64_t pooled_height,
    int64_t pooled_width,
    int64_t sampling_ratio,
    bool aligned,
    double canonical_scale,
    double canonical_level,
    int64_t min_level
) {
  RoiArgs args =
      roi_align_options(sampling_ratio, aligned, canonical_scale, canonical_level, min_level);
  args.PH = pooled_height;
  args.PW = pooled_width;
  return roi_pooled(roi_kernels<RoIAlign, Device>, args, std::move(features), rois, spatial_scales);
}

template <template <typename> typename Device>
std::vector<Tensor> roi_align_backward(
    const Tensor& grad,
    const Tensor& rois,
    std::vector<int64_t> sizes,
    std::vector<double> spatial_scales,
    int64_t sampling_ratio,
    bool aligned,
    double canonical_scale,
    double canonical_level,
    int64_t min_level,
    bool channels_last
) {
  RoiArgs args =
      roi_align_options(sampling_ratio, aligned, canonical_scale, canonical_level, min_level);
  args.channels_last = channels_last;
  return roi_gradients(roi_kernels<RoIAlign, Device>, args, grad, rois, sizes, spatial_scales);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("roi_align", FASTVISION_BOX(&roi_align<RoiCpu>));
  m.impl("roi_align_backward", FASTVISION_BOX(&roi_align_backward<RoiCpu>));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastvision, CUDA, m) {
  m.impl("roi_align", FASTVISION_BOX(&roi_align<RoiCuda>));
  m.impl("roi_align_backward", FASTVISION_BOX(&roi_align_backward<RoiCuda>));
}
#endif

}  // namespace fastvision
