#include "ops/roi_samples_devices.h"

namespace fastvision {
namespace {

template <template <typename> typename Device>
std::tuple<Tensor, Tensor> roi_align_max(
    std::vector<Tensor> features,
    const Tensor& rois,
    std::vector<double> spatial_scales,
    int64_t pooled_height,
    int64_t pooled_width,
    int64_t sampling_ratio,
    bool aligned,
    double canonical_scale,
    double canonical_level,
    int64_t min_level,
    bool with_argmax
) {
  RoiArgs args =
      roi_align_options(sampling_ratio, aligned, canonical_scale, canonical_level, min_level);
  args.PH = pooled_height;
  args.PW = pooled_width;
  return roi_maxima(
      roi_kernels<RoIAlignMax, Device>, args, std::move(features), rois, spatial_scales, with_argmax
  );
}

template <template <typename> typename Device>
std::vector<Tensor> roi_align_max_backward(
    const Tensor& grad,
    const Tensor& rois,
    const Tensor& argmax,
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
  return roi_gradients(
      roi_kernels<RoIAlignMax, Device>, args, grad, rois, sizes, spatial_scales, &argmax
  );
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastvision, CPU, m) {
  m.impl("roi_align_max", FASTVISION_BOX(&roi_align_max<RoiSamplesCpu>));
  m.impl("roi_align_max_backward", FASTVISION_BOX(&roi_align_max_backward<RoiSamplesCpu>));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastvision, CUDA, m) {
  m.impl("roi_align_max", FASTVISION_BOX(&roi_align_max<RoiCuda>));
  m.impl("roi_align_max_backward", FASTVISION_BOX(&roi_align_max_backward<RoiCuda>));
}
#endif

}  // namespace fastvision
